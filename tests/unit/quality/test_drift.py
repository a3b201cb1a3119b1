"""A run is compared with what was published before it, figure by figure: PSI as anybody can work it out by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from math import log

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from support.lakes import mark_home
from support.ledger_runs import make_spec
from support.small_project import Handmade, hour

from scalr_prod.config.settings import Settings
from scalr_prod.errors import QualityGateFailed
from scalr_prod.lake import Lake
from scalr_prod.ledger import Publication, PublicationStatus, run_folder
from scalr_prod.publication.commit import publish
from scalr_prod.quality import audit_tasks, validate_run
from scalr_prod.quality.drift import FIGURES, MIN_EVENTS, compute_drift, psi, rows_in_view, select_reference
from scalr_prod.schemas import Table, table_schema

#: Audits two more runs, or looks for one among two thousand.
long = pytest.mark.long

USERS, PER_WINDOW = 150, 5
ITEMS = [f"t{i}" for i in range(10)]
PLAIN = "[quality]\nmax_bucket_distance = 1.0\nmax_user_item_copies = 0\n"


def counted(**figures: dict[float, int]) -> pa.Table:
    rows = [(name, float(value), events) for name, found in figures.items() for value, events in found.items()]
    names, values, events = (list(column) for column in zip(*rows, strict=True))
    return pa.table({"figure": names, "value": pa.array(values, pa.float64()), "events": pa.array(events, pa.int64())})


def same(**changed: dict[float, int]) -> pa.Table:
    return counted(**({key: {float(n): 10 for n in range(10)} for key in FIGURES} | changed))


def test_the_index_is_the_one_worked_out_by_hand():
    # Ten bins of a tenth each; the run has .2 in the first, none in the second (told as .0001), a tenth in the others.
    run = {0.0: 20} | {float(n): 10 for n in range(2, 10)}
    by_hand = (0.2 - 0.1) * log(0.2 / 0.1) + (0.0001 - 0.1) * log(0.0001 / 0.1)
    assert by_hand == pytest.approx(0.7594, abs=1e-4)
    found = compute_drift(same(), same(probability=run))
    assert found["probability"] == pytest.approx(by_hand, rel=1e-12)
    assert found["item_popularity"] == found["history_length"] == 0.0


def test_two_bins_by_hand():
    # Three quarters of the former events are 1, a quarter is 5; of the run's, half and half.
    found = psi(*(np.array(column, float) for column in ([5, 1], [25, 75], [1, 5], [50, 50])))
    assert found == pytest.approx((0.5 - 0.75) * log(0.5 / 0.75) + (0.5 - 0.25) * log(0.5 / 0.25))


def test_values_that_are_new_fall_in_a_bin_beside_them():
    former = np.array([1.0, 5.0]), np.array([50.0, 50.0])
    assert psi(*former, np.array([0.0, 4.0]), np.array([50.0, 50.0])) == 0.0
    assert psi(*former, np.array([1.0, 99.0]), np.array([50.0, 50.0])) == 0.0
    assert psi(*former, np.array([99.0]), np.array([1.0])) > 1


def test_the_index_is_zero_for_the_same_and_else_positive_and_knows_no_order():
    rng = np.random.default_rng(3)
    for _ in range(50):
        values, events, later = (
            rng.permutation(60).astype(float),
            rng.integers(1, 90, 60).astype(float),
            rng.integers(1, 90, 60),
        )
        assert psi(values, events, values, 3 * events) == pytest.approx(0, abs=1e-12)
        found = psi(values, events, values, later.astype(float))
        assert found > 0
        other = rng.permutation(60)
        assert psi(values[other], events[other], values[other], later[other].astype(float)) == pytest.approx(found)
    assert psi(values, events, values, 0 * events) == 0.0


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A project with a source log of 1500 contexts in two windows, [0, 50) and [50, 100): 1500 candidates each."""
    source = [(f"u{k}", f"s{j}", k % 10 + 10 * j, k % 10 + 10 * j) for k in range(USERS) for j in range(10)]
    target = [("first", item, -1000, -1000) for item in ITEMS for _ in range(int(item[1:]) + 1)]

    def made(extra: str = "") -> Handmade:
        return Handmade(tmp_path_factory.mktemp("drift"), f"{PLAIN}{extra}", source=source, target=target)

    return made


def candidates(project: Handmade, start: float, *, seed: int = 0, likely: int = 0, shift: float = 0.0) -> dict:
    """Arguments of a run: candidates of its window, on all items alike, or with `likely` of ten on the most popular one."""
    spec = project.run(start=start, end=start + 50, trained_until=0, seed=seed, generated=False)
    frame = project.candidates(spec, project.source)
    number = np.arange(len(frame)) // 2
    frame["item_id"] = np.where(number % 10 < likely, "t9", [f"t{n % 9}" for n in number])
    frame.loc[frame.index % 2 == 1, "item_id"] = [f"t{(n + 4) % 9}" for n in number[frame.index % 2 == 1]]
    frame["probability"] = (0.05 + 0.001 * (number % 100) + shift).astype(np.float32)
    frame["event_id"] = [
        hashlib.md5(f"{spec.run_id}{n}".encode(), usedforsecurity=False).hexdigest() for n in range(len(frame))
    ]
    return {"start": start, "end": start + 50, "trained_until": 0, "seed": seed, "candidates": frame}


def published(project: Handmade, start: float, **how) -> str:
    run_id = project.run(**candidates(project, start, **how)).run_id
    validate_run(project.settings, run_id)
    publish(project.settings, run_id)
    return run_id


@pytest.fixture(scope="module")
def former(make) -> tuple[Handmade, str]:
    """A project with a published run."""
    project = make()
    return project, published(project, 0)


def test_a_run_is_compared_with_the_one_published_before(former, caplog):
    project, first = former
    project.configure(PLAIN)
    second = project.run(**candidates(project, 50, likely=10)).run_id
    figures = validate_run(project.settings, second).figures
    assert figures["drift_reference"] == first

    # By hand: of 1500 events, the items t0 … t8 have n + 1 real events each; all bins are of the former run's.
    before, run = (project_events(project, run_id) for run_id in (first, second))
    assert figures["drift_item_popularity"] == pytest.approx(
        by_hand(before, run, lambda row: int(row.item_id[1:]) + 1), rel=1e-9
    )
    # Every user has one source event in ten hours, so that the later window's histories are five longer.
    lengths = [(row.source_event_timestamp - hour(0)).total_seconds() // 36000 + 1 for row in before.itertuples()]
    assert set(lengths) == {1, 2, 3, 4, 5}
    longer = (0.0001 - 0.2) * log(0.0001 / 0.2) * 4 + (1 - 0.2) * log(1 / 0.2)
    assert figures["drift_history_length"] == pytest.approx(longer, rel=1e-9)
    assert figures["drift_probability"] == 0.0
    warned = [record.getMessage() for record in caplog.records if "max_drift_warn" in record.getMessage()]
    assert len(warned) == 1
    assert first in warned[0]
    assert "history_length" in warned[0]
    assert "probability" not in warned[0]


def project_events(project: Handmade, run_id: str) -> pd.DataFrame:
    frame = pd.concat(map(pd.read_parquet, sorted((run_folder(project.settings.home, run_id) / "accepted").glob("*.parquet"))))
    assert len(frame) == 2 * USERS * PER_WINDOW
    return frame


def by_hand(former: pd.DataFrame, run: pd.DataFrame, value) -> float:
    """PSI by pandas, with a bin for each value: no two of them share a tenth of the former run's events."""
    p, q = (pd.Series([value(row) for row in frame.itertuples()]).value_counts(normalize=True) for frame in (former, run))
    highest = [p.index[p.index >= one].min() if one <= p.index.max() else p.index.max() for one in q.index]
    q = q.groupby(highest).sum().reindex(p.index).fillna(0).clip(lower=1e-4)
    return float(((q - p) * np.log(q / p)).sum())


def test_over_the_limit_the_run_is_refused_and_below_it_is_not(former):
    project, _ = former
    project.configure(f"{PLAIN}max_drift = 0.5\nmax_drift_warn = 0\n")
    drifted = project.run(**candidates(project, 50, seed=1, shift=0.5)).run_id
    with pytest.raises(QualityGateFailed) as caught:
        validate_run(project.settings, drifted)
    assert "drift_of_probability" in str(caught.value)
    assert "drift_of_item_popularity" not in str(caught.value)
    project.configure(f"{PLAIN}max_drift = 50.0\n")
    report = validate_run(project.settings, drifted)
    assert {rule.rule for rule in report.rules} >= {f"drift_of_{name}" for name in FIGURES}


@long
def test_without_a_former_run_there_is_no_figure_and_no_rule(make):
    project = make("max_drift = 0.01\n")
    report = validate_run(project.settings, project.run(**candidates(project, 0)).run_id)
    assert report.passed
    assert not [name for name in (*report.figures, *(rule.rule for rule in report.rules)) if "drift" in name]


def publication(
    run_id: str, end: float, *, rows: int = 2000, status: PublicationStatus = PublicationStatus.PUBLISHED
) -> Publication:
    return Publication(
        run_id=run_id,
        attempt=1,
        key=f"publish:{run_id}:1",
        status=status,
        start=hour(end - 10),
        end=hour(end),
        base_version=0,
        delta_version=1,
        rows=rows,
        replaced={},
        created_at=hour(end),
        published_at=hour(end),
        rolled_back_at=None,
        rollback_version=None,
    )


def test_the_reference_is_of_the_latest_window_up_to_the_runs_own():
    spec = make_spec(start=hour(14), end=hour(24), as_of=hour(24))
    there = [publication("early", 10), publication("day", 20), publication("future", 30)]

    replaced: dict[str, int] = {}

    def found(*publications: Publication, rows: int = MIN_EVENTS) -> str | None:
        def held(some: Sequence[Publication]) -> dict[str, int]:
            return {one.run_id: one.rows - replaced.get(one.run_id, 0) for one in some}

        reference = select_reference(publications, spec, rows=rows, count_rows=held)
        return reference.run_id if reference else None

    assert found() is None
    assert found(*there) == "day"
    assert found(*there, publication("again", 20)) == "again"
    assert found(*there, publication("same window", 24)) == "same window"
    assert found(*there, publication(spec.run_id, 24)) == "day"
    assert found(*there, publication("gone", 24, status=PublicationStatus.ROLLED_BACK)) == "day"
    assert found(*there, publication("under way", 24, status=PublicationStatus.PENDING)) == "day"
    assert found(*there, rows=MIN_EVENTS - 1) is None
    assert found(*there, publication("small", 22, rows=MIN_EVENTS - 1)) == "day"
    replaced["day"] = 1500
    assert found(*there) == "early"


@long
def test_however_many_were_published_the_view_is_scanned_twice_at_most(tmp_path, monkeypatch):
    settings = Settings(domains={"source": {"name": "a", "events": "a"}, "target": {"name": "b", "events": "b"}}, base=tmp_path)
    mark_home(settings)
    lake = Lake.open(settings)
    table = Table.SYNTHETIC_TARGET_EVENTS
    lake.create(table, table_schema(table, user="string", item="string", source_item="string"))

    def add(run_id: str, at: float, rows: int) -> None:
        schema = lake.schema(table)
        of = {"run_id": run_id, "event_timestamp": hour(at), "source_event_timestamp": hour(at), "created_timestamp": hour(at)}
        zeros = {"probability": 0.5, "weight": 1.0, "translator_version": 1}
        made = {name: [of.get(name, zeros.get(name, "x"))] * rows for name in schema.names}
        lake.append(table, pa.table(made, schema=schema), key=run_id)

    add("kept", 5, MIN_EVENTS)
    add("partly replaced", 15, MIN_EVENTS - 1)
    add("of no publication", 15, MIN_EVENTS)
    scans: list[Table] = []
    dataset = Lake.dataset

    def counted(self: Lake, one: Table, **how: object) -> object:
        scans.append(one)
        return dataset(self, one, **how)

    monkeypatch.setattr(Lake, "dataset", counted)
    spec = make_spec(start=hour(14), end=hour(24), as_of=hour(24))
    for many in (1, 2000):
        # Each on its own window, or all on one: none of them has a row left.
        for ends in ([11 + number % 9 for number in range(many)], [20] * many):
            replaced = [publication(f"replaced {number}", end) for number, end in enumerate(ends)]
            there = [publication("kept", 10), *replaced, publication("partly replaced", 20)]
            scans.clear()
            found = select_reference(there, spec, rows=MIN_EVENTS, count_rows=partial(rows_in_view, lake))
            assert found is not None
            assert found.run_id == "kept"
            assert len(scans) == 2
    add("latest", 20, MIN_EVENTS)
    scans.clear()
    found = select_reference([*there, publication("latest", 24)], spec, rows=MIN_EVENTS, count_rows=partial(rows_in_view, lake))
    assert found is not None
    assert found.run_id == "latest"
    assert len(scans) == 1


@long
def test_source_events_of_all_users_give_the_figures_of_the_runs_own(former, monkeypatch):
    """Of very many users, the events of all are read."""
    project, _ = former
    project.configure(f"{PLAIN}max_drift = 50.0\n")
    run_id = project.run(**candidates(project, 50, seed=2, shift=0.5)).run_id
    found = []
    for few in (1_000_000, 0):
        monkeypatch.setattr(audit_tasks, "_FEW_USERS", few)
        (run_folder(project.settings.home, run_id) / "gate.json").unlink(missing_ok=True)
        found.append(validate_run(project.settings, run_id).figures)
    assert found[0] == found[1]
