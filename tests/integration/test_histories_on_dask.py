"""Histories built on Dask workers: the same tables as in one process, whatever is lost on the way, and no file left that nobody removes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from support.built_tables import BUILT, fill_lake, table_digest
from support.lost_worker import lose_a_worker
from support.object_store import BUCKET, running_store

from scalr_prod.compute import executor
from scalr_prod.core import partitioned
from scalr_prod.core.delta_log import file_names
from scalr_prod.errors import ComputeError, LakeError
from scalr_prod.histories import build_histories, full_build
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table

#: Starts worker processes.
long = pytest.mark.long

EVENTS = 1_200


@pytest.fixture(scope="module")
def small():
    """Many partitions and tasks of few events."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitioned, "PARTITION_ROWS", 200)
        patch.setattr(full_build, "_TASK_EVENTS", 400)
        patch.setattr(executor, "LOCAL_WORKERS_MIN_WORK_S", 0)
        yield


@pytest.fixture(scope="module")
def expected(small, tmp_path_factory):
    """Digests of the tables that are built in this process."""
    settings = fill_lake(tmp_path_factory.mktemp("expected"), EVENTS, compute={"workers": 1})
    build_histories(settings)
    return {table: table_digest(settings, table) for table in BUILT}


def digests(settings):
    return {table: table_digest(settings, table) for table in BUILT}


def files_of(settings, table):
    return {path.name for path in Path(Lake.open(settings).uri(table)).glob("*.*")}


def test_workers_of_a_scheduler_build_the_same_tables(expected, here, tmp_path):
    settings = fill_lake(tmp_path / "built", EVENTS, compute={"dask": here})
    build_histories(settings)
    assert digests(settings) == expected
    for table in BUILT:
        assert files_of(settings, table) == file_names(Lake.open(settings).open_table(table))


@long
def test_workers_and_driver_share_nothing_but_an_object_store(expected, here, tmp_path):
    with running_store(honours_conditions=True) as store:
        project = {"lake": f"s3://{BUCKET}/lake", "storage_options": store.options}
        settings = fill_lake(tmp_path / "built", EVENTS, compute={"dask": here}, project=project)
        build_histories(settings)
        assert digests(settings) == expected
        left = store.keys()
    assert not [key for key in left if "shuffle-" in key]
    assert not [path for path in settings.home.rglob("*") if path.suffix in {".arrow", ".parquet"}]


def test_an_error_of_a_task_arrives_as_it_was_raised_and_nothing_is_left(small, here, tmp_path, monkeypatch):
    settings = fill_lake(tmp_path, EVENTS, compute={"dask": here})
    monkeypatch.setattr("scalr_prod.histories.row_stream._ROWS_ALWAYS", 0)
    monkeypatch.setattr("scalr_prod.histories.row_stream._ROWS_PER_EVENT", 1)
    with pytest.raises(LakeError, match=f"more than {EVENTS} rows"):
        build_histories(settings)
    assert Lake.open(settings).version(Table.SOURCE_USER_HISTORY) == 0
    assert not [name for name in files_of(settings, Table.SOURCE_USER_HISTORY) if name.startswith("shuffle-")]


def test_an_unexpected_error_names_the_command(small, here, tmp_path, monkeypatch):
    settings = fill_lake(tmp_path, EVENTS, compute={"dask": here})

    def fail(*_):
        raise ValueError("no such thing")

    monkeypatch.setattr(full_build, "_write_partition", fail)
    with pytest.raises(ComputeError, match="ValueError: no such thing") as caught:
        build_histories(settings)
    assert caught.value.next_step == "fix the cause, then run: scalr histories"


@long
@pytest.mark.parametrize("task", ["_write_events", "_write_partition"])
def test_a_worker_that_dies_changes_no_row_and_what_it_wrote_is_removed(expected, tmp_path, monkeypatch, task):
    settings = fill_lake(tmp_path / "built", EVENTS, compute={"workers": 2})
    died = tmp_path / "died"
    lose_a_worker(monkeypatch, full_build, task, died)
    build_histories(settings)
    assert died.exists()
    assert digests(settings) == expected
    lake, table = Lake.open(settings), Table.SOURCE_USER_HISTORY
    lost = files_of(settings, table) - file_names(lake.open_table(table))
    assert len(lost) == (task == "_write_partition")
    for name in lost:
        os.utime(Path(lake.uri(table)) / name, (time.time() - 2 * 86_400,) * 2)
    assert lake.vacuum(table, keep_days=1) == len(lost)
    assert files_of(settings, table) == file_names(lake.open_table(table))
    assert not any((settings.home / "staging").iterdir())


@long
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_local_workers_builds_the_same_tables(expected, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(executor, "is_distributed", lambda *_, **__: True)
    settings = fill_lake(tmp_path / "built", EVENTS, compute={"workers": workers})
    build_histories(settings)
    assert digests(settings) == expected
