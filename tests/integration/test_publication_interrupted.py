"""Publishing killed at any point, and several publishers at the same time, on real Delta tables and a real ledger."""

from __future__ import annotations

import sys
import time

import pytest
from support.examples import sweep
from support.provenance import published_with_sources
from support.small_project import Handmade, in_processes
from support.warm import run

from scalr_prod.config.settings import load_settings
from scalr_prod.ledger import RunState
from scalr_prod.publication import publish, rollback_run
from scalr_prod.schemas import Table

#: Kills, or loses the record of, a publication at further steps; each goes through the same recovery.
long = pytest.mark.long

VIEW = Table.SYNTHETIC_TARGET_EVENTS


@pytest.fixture
def project(tmp_path) -> Handmade:
    return Handmade(tmp_path)


KILLED = """
import os, sys
from scalr_prod import publication
from scalr_prod.publication import accepted_rows, commit
from scalr_prod.lake import Lake
from scalr_prod.ledger.leases import LeaseRepository
from scalr_prod.ledger.publications import PublicationRepository
from scalr_prod.config.settings import load_settings

work, point, config, run_id = sys.argv[1:]

def die(*_args, **_options):
    os._exit(77)

def half(run, files, canary, kept):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from scalr_prod.core.delta_log import arrow_schema
    schema = arrow_schema(run.view)
    def batches():
        yield from pq.read_table(files[0]).select(schema.names).cast(schema).slice(0, 50).to_batches()
        die()
    return pa.RecordBatchReader.from_batches(schema, batches())

def half_of(is_provenance):
    import pyarrow.parquet as pq
    whole = accepted_rows.stream_accepted_rows
    def rows(files, schema, canary):
        if ("source_item_id" in schema.names) is not is_provenance:
            yield from whole(files, schema, canary)
            return
        yield from pq.read_table(files[0]).select(schema.names).cast(schema).slice(0, 50).to_batches()
        die()
    return rows

if point == "within the provenance":
    accepted_rows.stream_accepted_rows = half_of(is_provenance=True)
elif point == "before the intent":
    PublicationRepository.record_intent = die
elif point == "before the commit":
    Lake.replace_window = Lake.replace_window_with_files = Lake.delete = die
elif point == "within the commit":
    commit._rows_to_commit = half
    accepted_rows.stream_accepted_rows = half_of(is_provenance=False)
elif point == "before the confirmation":
    PublicationRepository.confirm = PublicationRepository.record_rollback = die
elif point == "before the lease is given back":
    LeaseRepository.release = die
getattr(publication, work)(load_settings(config), run_id)
"""

POINTS = [
    "within the provenance",
    "before the intent",
    "before the commit",
    "within the commit",
    "before the confirmation",
    "before the lease is given back",
]


def killed(project: Handmade, work: str, point: str, run_id: str) -> None:
    done = run([sys.executable, "-c", KILLED, work, point, project.config, run_id])
    assert done.returncode == 77, done.stderr


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("point", sweep(POINTS, keep=2))
def test_a_publication_killed_at_any_point_is_finished_by_the_next_call(project, point):
    old, new = project.accepted(seed=1), project.accepted(seed=2)
    publish(project.settings, old.run_id)
    version = project.lake.version(VIEW)
    killed(project, "publish", point, new.run_id)

    landed = POINTS.index(point) >= POINTS.index("before the confirmation")
    assert project.held() == {(new if landed else old).run_id: 200}, "all of one run, or all of the other"
    assert project.state(new.run_id) is (RunState.PUBLISHED if point == POINTS[-1] else RunState.VALIDATED)

    started = time.monotonic()
    report = publish(project.settings, new.run_id)
    assert time.monotonic() - started < 20, "the lease of the dead process was in the way"
    wanted = {"before the confirmation": "recovered", "before the lease is given back": "already_published"}
    assert report.outcome == wanted.get(point, "published")
    assert (report.rows, report.replaced, report.attempt) == (200, {old.run_id: 200}, 1)
    assert report.delta_version == version + 1
    assert project.lake.version(VIEW) == version + 1, "committed once"
    assert project.held() == {new.run_id: 200}
    assert len(published_with_sources(project.lake)) == 200
    assert project.state(new.run_id) is RunState.PUBLISHED


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("point", sweep(["before the confirmation", "before the commit"], keep=1))
def test_a_rollback_killed_at_any_point_is_finished_by_the_next_call(project, point):
    spec = project.accepted()
    publish(project.settings, spec.run_id)
    version = project.lake.version(VIEW)
    killed(project, "rollback_run", point, spec.run_id)
    assert project.state(spec.run_id) is RunState.PUBLISHED
    report = rollback_run(project.settings, spec.run_id)
    assert (report.outcome, report.rows, report.delta_version) == ("rolled_back", 200, version + 1)
    assert project.lake.version(VIEW) == version + 1
    assert not len(project.view())


@pytest.mark.slow
def test_a_rollback_finds_a_publication_that_was_not_confirmed(project):
    spec = project.accepted()
    killed(project, "publish", "before the confirmation", spec.run_id)
    assert rollback_run(project.settings, spec.run_id).rows == 200
    assert not len(project.view())


@pytest.mark.nightly
@pytest.mark.slow
def test_others_may_publish_between_a_kill_and_its_recovery(project):
    first, second, other = project.accepted(seed=1), project.accepted(seed=2), project.accepted(start=100, end=150)
    killed(project, "publish", "before the confirmation", first.run_id)
    landed = project.lake.version(VIEW)
    publish(project.settings, other.run_id)
    report = publish(project.settings, first.run_id)
    assert (report.outcome, report.delta_version) == ("recovered", landed)

    killed(project, "publish", "before the commit", second.run_id)
    publish(project.settings, other.run_id)
    rollback_run(project.settings, other.run_id)
    report = publish(project.settings, second.run_id)
    assert (report.outcome, report.attempt) == ("published", 1)
    assert project.held() == {second.run_id: 200}


@pytest.mark.slow
def test_a_run_replaced_by_one_that_died_unrecorded_is_put_back(project):
    """The ledger knows nothing of the second commit: what counts is what the view holds."""
    first, second = project.accepted(seed=1), project.accepted(seed=2)
    publish(project.settings, first.run_id)
    killed(project, "publish", "before the confirmation", second.run_id)
    assert project.held() == {second.run_id: 200}
    report = publish(project.settings, first.run_id)
    assert (report.outcome, report.attempt, report.replaced) == ("published", 2, {second.run_id: 200})
    assert project.held() == {first.run_id: 200}


@pytest.mark.slow
def test_a_run_whose_rollback_died_unrecorded_is_published_again(project):
    spec = project.accepted()
    publish(project.settings, spec.run_id)
    killed(project, "rollback_run", "before the confirmation", spec.run_id)
    assert project.held() == {}
    report = publish(project.settings, spec.run_id)
    assert (report.outcome, report.attempt, report.rows) == ("published", 2, 200)
    assert project.held() == {spec.run_id: 200}
    assert publish(project.settings, spec.run_id).outcome == "already_published"


@long
@pytest.mark.slow
def test_a_run_that_died_unrecorded_and_was_replaced_since_is_put_back(project):
    first, second = project.accepted(seed=1), project.accepted(seed=2)
    killed(project, "publish", "before the confirmation", first.run_id)
    publish(project.settings, second.run_id)
    report = publish(project.settings, first.run_id)
    assert (report.outcome, report.attempt, report.replaced) == ("published", 2, {second.run_id: 200})
    assert project.held() == {first.run_id: 200}


@long
@pytest.mark.slow
def test_a_rollback_names_who_replaced_the_run_though_that_one_died_unrecorded(project):
    first, second = project.accepted(seed=1), project.accepted(seed=2)
    publish(project.settings, first.run_id)
    killed(project, "publish", "before the confirmation", second.run_id)
    report = rollback_run(project.settings, first.run_id)
    assert (report.outcome, report.rows, list(report.replaced_by)) == ("replaced", 0, [second.run_id])
    assert project.held() == {second.run_id: 200}


def _publish(config: str, run_id: str, barrier: object) -> dict:
    settings = load_settings(config)
    barrier.wait()
    return publish(settings, run_id).to_json()


@pytest.mark.slow
def test_publishers_of_different_windows_lose_nothing(project):
    specs = [project.accepted(start=start, end=start + 20) for start in (20, 40, 60, 80)]
    reports = in_processes(_publish, [(str(project.config), spec.run_id) for spec in specs])
    assert [report["outcome"] for report in reports] == ["published"] * 4
    assert len({report["delta_version"] for report in reports}) == 4
    assert project.held() == {spec.run_id: len(project.candidates(spec)) for spec in specs}


@pytest.mark.slow
def test_publishers_of_one_window_leave_one_run_and_a_ledger_that_says_which(project):
    specs = [project.accepted(seed=seed) for seed in range(3)]
    reports = in_processes(_publish, [(str(project.config), spec.run_id) for spec in specs])
    assert {report["outcome"] for report in reports} == {"published"}
    in_order = sorted(reports, key=lambda report: report["delta_version"])
    assert project.held() == {in_order[-1]["run_id"]: 200}
    assert [report["replaced"] for report in in_order] == [
        {},
        {in_order[0]["run_id"]: 200},
        {in_order[1]["run_id"]: 200},
    ], "each says exactly what it took the place of"


@pytest.mark.slow
def test_publishers_of_the_same_run_commit_it_once(project):
    spec = project.accepted()
    before = project.lake.version(VIEW)
    reports = in_processes(_publish, [(str(project.config), spec.run_id)] * 3)
    assert sorted(report["outcome"] for report in reports) == ["already_published", "already_published", "published"]
    assert project.lake.version(VIEW) == before + 1
    assert project.held() == {spec.run_id: 200}
