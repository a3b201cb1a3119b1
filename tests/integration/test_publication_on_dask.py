"""Publication on Dask workers: the same rows as from one process, whatever is lost on the way, and no file left behind."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from support.lost_worker import lose_a_worker
from support.object_store import running_store
from support.small_project import Handmade

from scalr_prod.compute import executor
from scalr_prod.errors import CommitFailed, ComputeError
from scalr_prod.ledger import RunSpec, RunState
from scalr_prod.publication import accepted_rows, publish
from scalr_prod.schemas import Table

VIEW, PROVENANCE = Table.SYNTHETIC_TARGET_EVENTS, Table.SYNTHETIC_EVENT_PROVENANCE


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few rows are enough for workers."""
    monkeypatch.setattr(executor, "LOCAL_WORKERS_MIN_WORK_S", 0)


def published(project: Handmade, spec: RunSpec, **compute) -> tuple[pa.Table, pa.Table]:
    """Publish the run: the rows of the view and of the provenance, in the order of the tables' files."""
    settings = project.settings
    publish(settings.model_copy(update={"compute": settings.compute.model_copy(update=compute)}), spec.run_id)
    return tuple(
        project.lake.read(table).sort_by([("run_id", "ascending"), ("event_id", "ascending")]) for table in (VIEW, PROVENANCE)
    )


def files(project: Handmade, table: Table) -> set[str]:
    """Names of the Parquet files in a table's folder."""
    return {path.name for path in Path(project.lake.uri(table)).glob("*.parquet")}


def test_workers_of_a_scheduler_publish_the_same_rows_in_one_commit(here, tmp_path):
    alone, on_workers = (Handmade(tmp_path / name) for name in ("alone", "workers"))
    expected = published(alone, alone.accepted(parts=4))
    before = on_workers.lake.version(VIEW)
    assert published(on_workers, on_workers.accepted(parts=4), dask=here) == expected
    assert on_workers.lake.version(VIEW) == before + 1
    assert len(files(on_workers, VIEW)) == 4
    assert not [name for table in (VIEW, PROVENANCE) for name in files(on_workers, table) if name.startswith("shuffle-")]


def test_a_window_is_replaced_by_workers_where_it_holds_all_rows(here, tmp_path):
    project = Handmade(tmp_path)
    publish(project.settings, project.accepted(parts=4, seed=1).run_id)
    second = project.accepted(parts=4, seed=2)
    published(project, second, dask=here)
    assert project.held() == {second.run_id: len(project.candidates(second))}


@pytest.mark.long
def test_workers_and_driver_share_nothing_but_an_object_store(here, tmp_path, monkeypatch):
    alone = Handmade(tmp_path / "alone")
    expected = published(alone, alone.accepted(parts=4))
    with running_store(honours_conditions=True) as store:
        project = Handmade(tmp_path / "store", store.toml)
        spec = project.accepted(parts=4)
        assert published(project, spec, dask=here) == expected
        left = store.keys()
    assert not [key for key in left if "shuffle-" in key]


@pytest.mark.long
@pytest.mark.slow
def test_a_worker_that_dies_changes_no_row(tmp_path, monkeypatch):
    alone, project = Handmade(tmp_path / "alone"), Handmade(tmp_path / "workers")
    expected, died = published(alone, alone.accepted(parts=4)), tmp_path / "died"
    lose_a_worker(monkeypatch, accepted_rows, "_write_file", died)
    assert published(project, project.accepted(parts=4), workers=2) == expected
    assert died.exists()


def test_after_an_error_of_a_task_the_next_command_publishes(here, tmp_path, monkeypatch):
    project = Handmade(tmp_path)
    spec, write = project.accepted(parts=4), accepted_rows._write_file

    def fail(connection, job, number):
        if job.table is VIEW and number == 1:
            raise ValueError("no such thing")
        return write(connection, job, number)

    with monkeypatch.context() as patched:
        patched.setattr(accepted_rows, "_write_file", fail)
        with pytest.raises(ComputeError, match="ValueError: no such thing") as caught:
            published(project, spec, dask=here)
    assert caught.value.next_step == f"fix the cause, then run: scalr publish {spec.run_id}"
    assert not project.held()
    assert project.state(spec.run_id) is RunState.VALIDATED
    published(project, spec)
    assert project.held() == {spec.run_id: len(project.candidates(spec))}


def test_a_full_disk_names_the_table_and_leaves_no_file(tmp_path, monkeypatch):
    project = Handmade(tmp_path)
    spec, write = project.accepted(parts=4), accepted_rows._write_file

    def full(connection, job, number):
        if job.table is VIEW and number == 1:
            raise OSError(28, "No space left on device")
        return write(connection, job, number)

    with monkeypatch.context() as patched:
        patched.setattr(accepted_rows, "_write_file", full)
        with pytest.raises(CommitFailed, match="No space left") as caught:
            published(project, spec, workers=1)
    assert caught.value.where == project.lake.uri(VIEW)
    assert not files(project, VIEW)
    assert project.state(spec.run_id) is RunState.VALIDATED
    published(project, spec)
    assert project.held() == {spec.run_id: len(project.candidates(spec))}
