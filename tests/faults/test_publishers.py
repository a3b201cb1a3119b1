"""Four publishers at once, up to twenty-five runs each: every row arrives, once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from support.provenance import published_with_sources
from support.small_project import Handmade
from support.warm import forking

from scalr_prod.config.settings import load_settings
from scalr_prod.ledger import Ledger, RunState
from scalr_prod.publication.commit import publish
from scalr_prod.schemas import Table

pytestmark = pytest.mark.slow

PUBLISHERS = 4


def _publish_all(config: str, run_ids: list[str], barrier: object) -> list[dict]:
    settings = load_settings(config)
    barrier.wait()
    return [publish(settings, run_id).to_json() for run_id in run_ids]


def at_once(project: Handmade, shares: list[list[str]]) -> list[dict]:
    context = forking()
    with context.Manager() as manager, context.Pool(len(shares)) as pool:
        barrier = manager.Barrier(len(shares))
        return [
            report
            for reports in pool.starmap(_publish_all, [(str(project.config), share, barrier) for share in shares])
            for report in reports
        ]


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.nightly
@pytest.mark.parametrize("runs", [25])
def test_nothing_is_lost_and_nothing_twice(tmp_path, runs):
    """Neighbouring windows of an hour each, dealt out in turn, so that the four meet all the time."""
    project = Handmade(tmp_path)
    specs = [project.accepted(start=hour, end=hour + 1) for hour in range(5, 5 + PUBLISHERS * runs)]
    wanted = {spec.run_id: len(project.candidates(spec)) for spec in specs}
    shares = [[spec.run_id for spec in specs[number::PUBLISHERS]] for number in range(PUBLISHERS)]
    version = project.lake.version(Table.SYNTHETIC_TARGET_EVENTS)
    reports = at_once(project, shares)

    rows = project.view()
    assert dict(Counter(rows["run_id"])) == wanted, "0 rows lost"
    assert not rows["event_id"].duplicated().any(), "0 rows twice"
    assert [report["outcome"] for report in reports] == ["published"] * PUBLISHERS * runs
    assert sorted(report["delta_version"] for report in reports) == list(range(version + 1, version + 1 + len(specs)))
    assert len(published_with_sources(project.lake)) == len(rows)
    with Ledger.open(project.settings) as ledger:
        assert {run.state for run in ledger.runs.find()} == {RunState.PUBLISHED}

    before = files(project.settings.home / "lake")
    again = at_once(project, shares)
    assert [report["outcome"] for report in again] == ["already_published"] * PUBLISHERS * runs
    assert files(project.settings.home / "lake") == before, "a repeated publication writes nothing"


@pytest.mark.nightly
def test_of_runs_of_one_window_the_last_commit_stays_and_each_says_what_it_replaced(tmp_path):
    project = Handmade(tmp_path)
    specs = [project.accepted(seed=seed, start=50, end=60) for seed in range(PUBLISHERS * 3)]
    reports = at_once(project, [[spec.run_id for spec in specs[number::PUBLISHERS]] for number in range(PUBLISHERS)])
    in_order = sorted(reports, key=lambda report: report["delta_version"])
    size = len(project.candidates(specs[0]))
    assert dict(Counter(project.view()["run_id"])) == {in_order[-1]["run_id"]: size}
    assert [report["replaced"] for report in in_order] == [{}, *({report["run_id"]: size} for report in in_order[:-1])]


@pytest.mark.parametrize("table", [Table.SYNTHETIC_TARGET_EVENTS, Table.SYNTHETIC_EVENT_PROVENANCE])
@pytest.mark.parametrize("step", ["before", "after"])
def test_a_commit_whose_answer_is_lost_is_told_from_one_that_failed(tmp_path, monkeypatch, step, table):
    """The writer fails before or after its commit, and the log cannot be read: the outcome is unknown, until it can be."""
    from deltalake import DeltaTable

    from scalr_prod.errors import CommitFailed, CommitOutcomeUnknown
    from scalr_prod.lake import Lake

    project = Handmade(tmp_path)
    spec = project.accepted()
    write = DeltaTable.create_write_transaction

    def lose_the_answer(delta, *arguments, **options):
        if step == "after" or delta.metadata().name != table.value:
            write(delta, *arguments, **options)
        if delta.metadata().name != table.value:
            return
        raise pa.ArrowException("connection reset")

    def unreadable(*_):
        raise OSError("connection reset")

    with monkeypatch.context() as broken:
        broken.setattr(DeltaTable, "create_write_transaction", lose_the_answer)
        if step == "before":
            error: type[Exception] = CommitFailed
        else:
            error = CommitOutcomeUnknown
            broken.setattr(Lake, "has_commit", unreadable)
        with pytest.raises(error, match="nothing was written" if step == "before" else "may have landed") as caught:
            publish(project.settings, spec.run_id)
        assert "run the command again" in caught.value.next_step
    report = publish(project.settings, spec.run_id)
    is_committed = step == "after" and table is Table.SYNTHETIC_TARGET_EVENTS
    assert report.outcome == ("recovered" if is_committed else "published")
    assert len(project.view()) == report.rows == 200
    assert len(published_with_sources(project.lake)) == 200
