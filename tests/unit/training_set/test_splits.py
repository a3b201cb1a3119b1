"""Boundaries of a training set's parts, the files that hold them, and runs whose events could be in none."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from conftest import write_toml

from scalr_prod.config.settings import load_settings
from scalr_prod.core.calendar import local_to_utc
from scalr_prod.core.timestamps import DAY_US
from scalr_prod.errors import ScalrError, SettingsError, TrainingSetError
from scalr_prod.pipeline import PipelineContext, steps
from scalr_prod.training_set import ensure_run_fits_splits
from scalr_prod.training_set.features import _plan_files
from scalr_prod.training_set.label_window import LabelWindow
from scalr_prod.training_set.periods import Period
from scalr_prod.training_set.splits import keep_known_by_split_end, resolve_splits

MAY, JUNE, JULY = (datetime(2024, month, 1, tzinfo=UTC) for month in (5, 6, 7))
BOTH = {"validation": "2024-05-01", "test": "2024-06-01"}


@pytest.fixture
def settings(two_domains):
    config = write_toml(two_domains)

    def make(splits, zone="UTC", **sections):
        more = sections.pop("training_set", {})
        return load_settings(config, project={"timezone": zone}, training_set={"splits": splits} | more, **sections)

    return make


def test_times_are_of_the_projects_calendar_unless_they_have_a_zone(settings):
    assert resolve_splits(settings({})) == {}
    assert resolve_splits(settings(BOTH)) == {"validation": MAY, "test": JUNE}
    assert list(resolve_splits(settings({"test": "2024-06-01", "validation": "2024-05-01"}))) == ["validation", "test"]
    mixed = {"validation": "2024-05-01", "test": "2024-06-01T02:00:00+02:00"}
    assert resolve_splits(settings(mixed, "Europe/Berlin")) == {
        "validation": datetime(2024, 4, 30, 22, tzinfo=UTC),
        "test": JUNE,
    }


def test_a_local_time_that_does_not_exist_counts_as_just_as_much_later():
    assert local_to_utc(datetime(2018, 11, 4), "America/Sao_Paulo") == datetime(2018, 11, 4, 3, tzinfo=UTC)  # noqa: DTZ001 - local
    assert local_to_utc(MAY, "America/Sao_Paulo") == MAY


@pytest.mark.parametrize(
    "splits", [{"validation": "2024-06-01", "test": "2024-06-01"}, {"validation": "2024-07-01", "test": MAY}]
)
def test_parts_in_another_order_are_refused(settings, splits):
    with pytest.raises(TrainingSetError, match=r"test begins at .* not after validation"):
        resolve_splits(settings(splits))


def test_another_name_or_no_time_is_no_setting(settings):
    for splits in ({"dev": "2024-05-01"}, {"test": "soon"}):
        with pytest.raises(SettingsError, match="splits"):
            settings(splits)


def test_an_event_is_kept_if_it_was_known_by_the_end_of_its_part():
    window = LabelWindow(None, JULY, {"validation": MAY, "test": JUNE})
    before = datetime(2024, 4, 30, tzinfo=UTC)
    cases = [  # happened, known, kept
        (before, before, True), (before, MAY, True), (before, JUNE, False),
        (MAY, MAY, True), (MAY, JUNE, True), (MAY, JULY, False),
        (JUNE, JULY, True),
    ]  # fmt: skip
    happened, created, kept = zip(*cases, strict=True)
    stamp = pa.timestamp("us", "UTC")
    batch = pa.record_batch(
        {"event_timestamp": pa.array(happened, stamp), "created_timestamp": pa.array(created, stamp), "n": range(len(cases))}
    )
    found = keep_known_by_split_end(batch, window).column("n").to_pylist()
    assert found == [number for number, keep in enumerate(kept) if keep]
    assert window.train == LabelWindow(None, MAY)


def test_no_file_has_rows_of_two_parts_and_the_others_are_as_without_parts():
    periods = {Period(day * DAY_US, (day + 1) * DAY_US): rows for day, rows in enumerate((10, 25, 4))}
    plain = _plan_files(periods, periods, 10)
    assert [file.rows for file in plain] == [10, 10, 10, 5, 4]
    assert _plan_files(periods, periods, 10, [0, 10, 35, 39]) == plain, "parts that begin where files do"
    cut = _plan_files(periods, periods, 10, [13, 34, 37])
    assert [file.rows for file in cut] == [10, 3, 7, 10, 4, 1, 2, 2]
    assert len({file.name for file in cut}) == len(cut)
    assert [file.name for file in cut] == sorted(file.name for file in cut)


@pytest.mark.parametrize(
    ("generation", "more", "fits"),
    [
        ({}, {}, False),
        ({"end": MAY}, {}, True),
        ({"end": JUNE}, {}, False),
        ({"end": MAY, "as_of": JUNE}, {}, False),
        ({"mode": "causal"}, {}, True),
        ({}, {"synthetic_weight": 0}, True),
    ],
)
def test_a_whole_run_that_reads_past_train_is_refused_before_it_trains(settings, generation, more, fits):
    chosen = settings(BOTH, generation=generation, training_set=more)
    if fits:
        return ensure_run_fits_splits(chosen)
    with pytest.raises(TrainingSetError, match="none of its events may be in train") as caught:
        steps.policy(PipelineContext(chosen, whole=True))
    assert 'set [generation] end = "2024-05-01T00:00:00+00:00"' in caught.value.next_step
    assert isinstance(caught.value, ScalrError)
    return steps.policy(PipelineContext(chosen))  # a stage alone makes no run that could leak
