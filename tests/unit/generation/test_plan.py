"""Which run a window is. Translator versions are made by hand here: a plan reads their manifests only."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from support.lakes import mark_home

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import EmptyWindow, TableNotFound, TrainedPastWindow, TranslatorError, TranslatorNotFound
from scalr_prod.generation import plan_run, preview_run
from scalr_prod.lake import Lake
from scalr_prod.ledger import Ledger, RunState
from scalr_prod.schemas import Table, table_schema

DAY = timedelta(days=1)
T0 = datetime(2024, 5, 1, tzinfo=UTC)
LAST = T0 + 10 * DAY


def events(days: list[float], late: float = 0) -> pa.Table:
    moments = [T0 + day * DAY for day in days]
    return pa.table(
        {
            "user_id": ["u"] * len(days),
            "item_id": [f"i{number}" for number in range(len(days))],
            "event_timestamp": moments,
            "created_timestamp": [moment + late * DAY for moment in moments],
            "weight": pa.array([1.0] * len(days), pa.float32()),
        },
        schema=table_schema(Table.SOURCE_EVENTS, user="string", item="string"),
    )


@pytest.fixture
def project(tmp_path):
    """A lake of eleven source and two target events, and a function to load its settings with a [generation] section."""
    path = tmp_path / "scalr.toml"
    path.write_text('[domains.source]\nname = "s"\nevents = "s"\n[domains.target]\nname = "t"\nevents = "t"\n')

    def load(**generation):
        return load_settings(path, generation=generation)

    mark_home(load())
    lake = Lake.open(load())
    for table, days in ((Table.SOURCE_EVENTS, list(range(11))), (Table.TARGET_EVENTS, [1, 3])):
        lake.create(table, events([]).schema)
        lake.append(table, events(days), key="made")
    lake.create(Table.SOURCE_USER_HISTORY, table_schema(Table.SOURCE_USER_HISTORY, user="string", item="string"))
    return load


def add_version(settings, version: int, trained_until: datetime, **facts) -> None:
    folder = settings.home / "models" / "translator" / str(version)
    folder.mkdir(parents=True)
    manifest = {"version": version, "sha256": f"{version:064x}", "trained_until": trained_until.isoformat(), "folds": 2}
    manifest |= facts
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with Ledger.open(settings) as ledger:
        ledger.models.record(
            version,
            path=str(folder),
            sha256=manifest["sha256"],
            fingerprint=str(version),
            trained_until=trained_until,
            metrics={},
        )


def test_backfill_covers_all_data_by_default(project):
    settings = project()
    add_version(settings, 1, LAST)
    spec = plan_run(settings)
    assert (spec.mode, spec.start, spec.end) == ("backfill", T0, LAST + timedelta(microseconds=1))
    assert spec.as_of == spec.end
    assert spec.table_versions == {"source_events": 1, "target_events": 1, "source_user_history": 0}
    with Ledger.open(settings) as ledger:
        run = ledger.runs.get(spec.run_id)
    assert run.state is RunState.PLANNED
    assert run.spec == spec


def test_a_causal_run_covers_the_last_day_by_default(project):
    settings = project(mode="causal")
    add_version(settings, 1, LAST - 2 * DAY)
    spec = plan_run(settings)
    assert spec.end - spec.start == DAY


def test_a_causal_run_covers_the_last_day_of_the_projects_calendar(project, tmp_path):
    """Berlin's clocks go back on 27 October, a day of 25 hours."""
    (tmp_path / "scalr.toml").write_text((tmp_path / "scalr.toml").read_text() + '[project]\ntimezone = "Europe/Berlin"\n')
    end = datetime(2024, 10, 27, 23, tzinfo=UTC)
    settings = project(mode="causal", end=end, as_of=end)
    Lake.open(settings).append(Table.SOURCE_EVENTS, events([(end - T0) / DAY - 0.5]), key="autumn")
    add_version(settings, 1, LAST)
    assert plan_run(settings).start == datetime(2024, 10, 26, 22, tzinfo=UTC)


def test_the_same_plan_is_the_same_run_however_the_work_is_cut(project):
    add_version(project(), 1, LAST)
    first = plan_run(project())
    assert plan_run(project(partitions=3, batch_size=64)) == first
    assert "shortlist" not in first.settings["generation"], "runs of before it came would be others"
    others = [{"seed": 1}, {"min_lift": 2.0}, {"temperature": 0.9}, {"events_per_source_event": 3}, {"align": True}]
    others += [{"shortlist": 50}, {"shortlist": 60}]
    assert len({plan_run(project(**other)).run_id for other in others} | {first.run_id}) == 1 + len(others)


def test_new_rows_make_a_new_run(project):
    settings = project(end=LAST, as_of=LAST)
    add_version(settings, 1, LAST)
    first = plan_run(settings)
    Lake.open(settings).append(Table.SOURCE_EVENTS, events([2.5]), key="late")
    assert plan_run(settings).run_id != first.run_id


def test_the_latest_fitting_version_is_chosen(project):
    settings = project(mode="causal", start=T0 + 5 * DAY, end=T0 + 6 * DAY)
    add_version(settings, 1, T0 + 3 * DAY)
    add_version(settings, 2, T0 + 5 * DAY)
    add_version(settings, 3, T0 + 5 * DAY + timedelta(microseconds=1))
    assert plan_run(settings).translator_version == 2
    assert plan_run(settings, version=1).translator_version == 1


@pytest.mark.parametrize("asked", [1, None])
def test_a_translator_trained_past_the_window_is_refused(project, asked):
    causal = project(mode="causal", start=T0 + 5 * DAY, end=T0 + 6 * DAY)
    add_version(causal, 1, T0 + 6 * DAY)
    with pytest.raises(TrainedPastWindow, match="past the window's start") as caught:
        plan_run(causal, version=asked)
    assert "--trained-until 2024-05-06T00:00:00+00:00" in str(caught.value)
    with pytest.raises(TrainedPastWindow, match="past as_of"):
        plan_run(project(end=T0 + 5 * DAY), version=asked)
    assert plan_run(project(end=T0 + 6 * DAY), version=asked).translator_version == 1
    with Ledger.open(causal) as ledger:
        assert len(ledger.runs.find()) == 1


@pytest.mark.parametrize(
    "window",
    [
        {"end": T0},  # half-open: the first event lies outside
        {"start": LAST + DAY},
        {"start": LAST + DAY, "end": LAST + 2 * DAY},
        {"start": T0 + DAY / 4, "end": T0 + DAY / 2},
        {"start": T0 - 9 * DAY, "end": T0 - 8 * DAY},
    ],
)
def test_a_window_without_events_is_refused(project, window):
    settings = project(**window)
    add_version(settings, 1, T0 - 20 * DAY)
    with pytest.raises(EmptyWindow) as caught:
        plan_run(settings)
    assert "[generation]" in caught.value.where
    if window.get("end", LAST) > T0:
        assert "range from 2024-05-01" in caught.value.found


def test_events_that_became_known_too_late_do_not_count(project):
    settings = project(start=T0 + 20 * DAY, end=T0 + 22 * DAY, as_of=T0 + 25 * DAY)
    add_version(settings, 1, T0)
    Lake.open(settings).append(Table.SOURCE_EVENTS, events([21], late=5), key="late")
    with pytest.raises(EmptyWindow):
        plan_run(settings)
    known = project(start=T0 + 20 * DAY, end=T0 + 22 * DAY, as_of=T0 + 26 * DAY)
    assert plan_run(known).as_of == T0 + 26 * DAY


def test_without_a_translator_or_data_the_missing_command_is_named(project, tmp_path):
    with pytest.raises(TranslatorNotFound, match="scalr translator train"):
        plan_run(project())
    empty = load_settings(tmp_path / "scalr.toml", project={"home": "elsewhere"})
    with pytest.raises(TableNotFound, match="scalr ingest"):
        plan_run(empty)


@pytest.mark.parametrize(
    ("ratio", "wanted", "drawn", "temperature"),
    [(None, 20, 20, 0.5), (None, 25, 20, 0.4), (4, 20, 8, 0.25), (0.1, 20, 1, 0.25), (0, 30, 30, 0.5)],
    ids=["ten for each real event", "whatever is asked", "four", "at least one", "no limit"],
)
def test_synthetic_events_are_limited_by_the_real_ones(project, caplog, ratio, wanted, drawn, temperature):
    """One user is translated; there are two target events."""
    ratios = {} if ratio is None else {"max_synthetic_ratio": ratio}
    settings = project(events_per_source_event=wanted, **ratios)
    add_version(settings, 1, LAST)
    with caplog.at_level("INFO"):
        spec = plan_run(settings)
    chosen = spec.settings["generation"]
    assert (chosen["events_per_source_event"], chosen["temperature"]) == (drawn, temperature)
    assert (f"limits each of 1 contexts to {drawn} events instead of {wanted}" in caplog.text) == (drawn < wanted)
    preview = preview_run(settings)
    assert preview.differences(settings, spec) == []
    assert preview.max_events_per_context == drawn, "what a dry run shows is what a context gets"


def test_a_temperature_of_the_settings_stays(project):
    settings = project(max_synthetic_ratio=4, temperature=0.8)
    add_version(settings, 1, LAST)
    chosen = plan_run(settings).settings["generation"]
    assert (chosen["events_per_source_event"], chosen["temperature"]) == (8, 0.8)


def test_real_events_count_once_they_are_known(project):
    settings = project(end=T0 + 2 * DAY, as_of=T0 + 3 * DAY, max_synthetic_ratio=4)
    add_version(settings, 1, T0)
    assert plan_run(settings).settings["generation"]["events_per_source_event"] == 4


def test_a_translator_of_other_histories_is_refused(project):
    settings = project()
    add_version(settings, 1, LAST, history_length=settings.histories.length)
    assert plan_run(settings, version=1).translator_version == 1
    add_version(settings, 2, LAST, history_length=7)
    with pytest.raises(TranslatorError, match="version 2 was trained on histories of 7 events, not 50") as caught:
        plan_run(settings, version=2)
    assert "set [histories] length = 7" in str(caught.value)
