"""Logs ingested on Dask workers: the same files of the tables as in one process, whatever is lost on the way, and no file left behind."""

from __future__ import annotations

import hashlib
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv
from support.lost_worker import lose_a_worker
from support.object_store import BUCKET, running_store

from scalr_prod.compute import executor, rounds
from scalr_prod.config.settings import Settings
from scalr_prod.core import partitioned
from scalr_prod.core.delta_log import file_names
from scalr_prod.core.file_systems import open_file_system
from scalr_prod.errors import BadValue, ComputeError
from scalr_prod.ingest import append, ingest, log_tasks, pipeline, sort_by_time, staging
from scalr_prod.ingest.sources import files
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table
from scalr_prod.workspace import SuppressionList
from scalr_prod.workspace.suppression_list import SuppressedId

#: Starts worker processes.
long = pytest.mark.long

EVENTS = 1_600
START_US = 1_704_067_200_000_000
TABLES = (Table.SOURCE_EVENTS, Table.TARGET_EVENTS, Table.SOURCE_ITEMS, Table.TARGET_ITEMS)
COLUMNS = {"created": "known", "event_type": "kind"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Many tasks of few rows."""
    monkeypatch.setattr(partitioned, "PARTITION_ROWS", 300)
    monkeypatch.setattr(files, "_MOST_TASK_S", 2e-3)
    monkeypatch.setattr(log_tasks, "_RANGE_S", 1e-3)
    monkeypatch.setattr(executor, "LOCAL_WORKERS_MIN_WORK_S", 0)


def events(seed: int, rows: int = EVENTS) -> pa.Table:
    """Events: many at the same times, some equal, a tenth known days late, some without a type."""
    rng = np.random.default_rng(seed)
    times = START_US + rng.integers(0, rows // 3, rows) * 3_600_000_000
    known = times + np.where(rng.random(rows) < 0.1, rng.integers(0, 72, rows), 0) * 3_600_000_000
    zoned = pa.timestamp("us", "UTC")
    columns = {
        "user_id": pa.array([f"u{number}" for number in rng.integers(0, 60, rows)]),
        "item_id": pa.array(rng.integers(0, 40, rows).astype(str)),
        "timestamp": pa.array(times, zoned),
        "known": pa.array(known, zoned),
        "kind": pa.array([(None, "view", "buy")[number] for number in rng.integers(0, 3, rows)]),
        "id": pa.array([f"e{seed}-{number}" for number in rng.permutation(rows)]),
    }
    return pa.table(columns)


def write_logs(folder: Path, share: float = 1.0) -> None:
    """Write the first part of each log: a large Parquet file and small ones, and a CSV file beside lines of JSON."""
    source, target = events(1), events(2)
    size = int(EVENTS * share)
    (folder / "source").mkdir(parents=True, exist_ok=True)
    (folder / "target").mkdir(exist_ok=True)
    half = size // 2
    pq.write_table(source.slice(0, half), folder / "source" / "a.parquet", row_group_size=100)
    for number in range(4):
        rows = source.slice(half + number * (size - half) // 4, (size - half) // 4)
        pq.write_table(rows, folder / "source" / f"b{number}.parquet")
    csv.write_csv(target.slice(0, half), folder / "target" / "a.csv")
    with (folder / "target" / "b.jsonl").open("w") as lines:
        for row in target.slice(half, size - half).to_pylist():
            lines.write(
                json.dumps({name: str(value) if name in {"timestamp", "known"} else value for name, value in row.items()})
                + "\n"
            )


def project(folder: Path, columns: dict | None = None, **sections) -> Settings:
    domains = {
        name: {"name": name[0], "events": str(folder / name), "duplicates": "keep", "columns": columns or COLUMNS}
        for name in ("source", "target")
    }
    domains["source"] |= sections.pop("source", {})
    return Settings(domains=domains, base=folder / "project", **sections)


def ingest_twice(folder: Path, **sections) -> dict:
    """Ingest a half of the logs, then all of them; return the reports, and digests of the tables' files, or of their rows with a limit."""
    settings = project(folder, **sections)
    reports = []
    for share in (0.5, 1.0):
        write_logs(folder, share)
        reports.append(ingest(settings).to_json())
    assert not any((settings.home / "staging").iterdir())
    lake = Lake.open(settings)
    found: dict = {"reports": reports}
    # Delta rewrites a file without the events over a limit, and puts its rows in any order.
    is_limited = "max_user_day" in sections.get("source", {})
    for table in TABLES:
        named = open_file_system(lake.uri(table), lake.storage_options)
        contents = [named.open_input_file(name).read() for name in file_names(lake.open_table(table))]
        if is_limited:
            contents = [sorted_rows(content) for content in contents]
        found[table.value] = sorted(hashlib.sha256(content).hexdigest() for content in contents)
    is_merged = "event_id" in sections.get("columns", {})  # the driver writes them
    assert len(found["source_events"]) > (1 if is_merged else 6)
    assert reports[1]["source"]["rows"] > 0.8 * EVENTS
    return found


def sorted_rows(content: bytes) -> bytes:
    """The rows of a Parquet file in one order."""
    rows = pq.read_table(pa.BufferReader(content))
    return repr(rows.sort_by([(name, "ascending") for name in rows.column_names]).to_pylist()).encode()


def left_behind(settings: Settings) -> set[str]:
    """Files in the tables' folders that no commit names."""
    lake = Lake.open(settings)
    found = set()
    for table in TABLES:
        there = {path.name for path in Path(lake.uri(table)).glob("*.*")}
        found |= there - (file_names(lake.open_table(table)) if lake.exists(table) else set())
    return {name for name in found if name.startswith(("shuffle-", "part-0"))} - _replaced(lake)


def _replaced(lake: Lake) -> set[str]:
    """Files of earlier versions: catalogues are replaced as a whole, and a limit removes events."""
    tables = [table for table in TABLES if lake.exists(table)]
    return {
        name
        for table in tables
        for version in range(lake.version(table) + 1)
        for name in file_names(lake.open_log(table, version=version))
    }


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="by row"),
        pytest.param({"source": {"duplicates": "drop"}}, marks=long, id="without repeated rows"),
        pytest.param({"columns": COLUMNS | {"event_id": "id"}}, marks=long, id="by event id"),
        pytest.param({"source": {"max_user_day": 3, "max_left_out": 1.0}}, marks=long, id="within a limit"),
    ],
)
def test_workers_of_a_scheduler_write_the_same_files(here, tmp_path, options):
    expected = ingest_twice(tmp_path / "alone", **options)
    found = ingest_twice(tmp_path / "workers", compute={"dask": here}, **options)
    assert found == expected
    assert not left_behind(project(tmp_path / "workers"))


def name_of_task(task, call):
    return (call[1] if task is rounds._run_numbered else task).__name__


@long
def test_workers_and_driver_share_nothing_but_an_object_store(here, tmp_path, monkeypatch):
    expected = ingest_twice(tmp_path / "alone")
    tasks, ran = executor._Workers.map, []

    def map_elsewhere(self, task, arguments):
        """Nothing of the logs exists while tasks run: those that parse them read copies."""
        calls = list(arguments)
        logs = tmp_path / "workers"
        for name in ("source", "target"):
            (logs / name).rename(logs / f"{name}.hidden")
        try:
            yield from tasks(self, task, calls)
            ran.extend(name_of_task(task, call) for call in calls)
        finally:
            for name in ("source", "target"):
                (logs / f"{name}.hidden").rename(logs / name)

    monkeypatch.setattr(executor._Workers, "map", map_elsewhere)
    with running_store(honours_conditions=True) as store:
        lake = {"lake": f"s3://{BUCKET}/lake", "storage_options": store.options}
        assert ingest_twice(tmp_path / "workers", compute={"dask": here}, project=lake) == expected
        left = store.keys()
    assert len(ran) > 40
    assert set(ran) == {
        "_parse_files",
        "_write_by_time",
        "_sort_range",
        "_merge_ids",
        "count_common_users",
        "_hash_rows",
        "_compare_range",
        "_write_table_file",
    }
    assert not [key for key in left if "shuffle-" in key]


@long
def test_events_with_ids_are_upserted_beside_workers_that_share_an_object_store(here, tmp_path):
    options = {"columns": COLUMNS | {"event_id": "id"}}
    expected = ingest_twice(tmp_path / "alone", **options)
    with running_store(honours_conditions=True) as store:
        lake = {"lake": f"s3://{BUCKET}/lake", "storage_options": store.options}
        assert ingest_twice(tmp_path / "workers", compute={"dask": here}, project=lake, **options) == expected


def test_erased_users_and_items_are_left_out_by_every_task(here, tmp_path):
    write_logs(tmp_path)
    settings = project(tmp_path, compute={"dask": here})
    ingest(project(tmp_path))
    with SuppressionList.open_for_update(settings) as suppressed:
        for kind, erased in (("user", "u7"), ("item", "5")):
            suppressed.update([SuppressedId(suppressed.digest(erased, kind), datetime.now(UTC))], kind)
    lake = Lake.open(settings)
    rows = lake.read(Table.SOURCE_EVENTS).to_pylist()
    report = ingest(settings).to_json()["source"]
    assert report["rows_forgotten"] == sum(row["user_id"] == "u7" for row in rows) > 0


def test_an_error_of_a_cell_arrives_as_it_was_raised_and_nothing_is_left(here, tmp_path):
    write_logs(tmp_path)
    with (tmp_path / "target" / "a.csv").open("a") as rows:
        rows.write('"u1","i1","no time","no time","view","x"\n')
    settings = project(tmp_path, compute={"dask": here})
    with pytest.raises(BadValue, match="'no time' is not a timestamp") as caught:
        ingest(settings)
    assert caught.value.where == f"{tmp_path / 'target' / 'a.csv'}, column 'timestamp', row {EVENTS // 2 + 1}"
    lake = Lake.open(settings)
    assert not any(lake.exists(table) for table in TABLES)
    assert not left_behind(settings)
    assert not Path(lake.uri(Table.SOURCE_EVENTS)).exists()


def test_an_unexpected_error_names_the_command_and_leaves_no_file(here, tmp_path, monkeypatch):
    write = append._write_table_file

    def fail_later(*arguments):
        if arguments[-2] == 3:
            raise ValueError("no such thing")
        return write(*arguments)

    write_logs(tmp_path)
    settings = project(tmp_path, compute={"dask": here})
    monkeypatch.setattr(append, "_write_table_file", fail_later)
    with pytest.raises(ComputeError, match="ValueError: no such thing") as caught:
        ingest(settings)
    assert caught.value.next_step == "fix the cause, then run: scalr ingest"
    assert Lake.open(settings).read(Table.SOURCE_EVENTS).num_rows == 0
    assert len(left_behind(settings)) <= 1, "of another task that ran meanwhile"


def test_files_for_a_version_that_another_ingest_passed_are_removed(tmp_path, monkeypatch):
    write_logs(tmp_path, 0.5)
    settings = project(tmp_path)
    ingest(settings)
    write_logs(tmp_path)
    write, calls = append.AppendMissing._write_files, []

    def write_beside_another(self, schema, count):
        found = write(self, schema, count)
        calls.append(len(found))
        if len(calls) == 1:
            ingest(settings)
        return found

    monkeypatch.setattr(append.AppendMissing, "_write_files", write_beside_another)
    assert ingest(settings).domains["source"].rows_added == 0
    assert len(calls) == 3, "of the ingest, and of each domain of the other one"
    assert not left_behind(settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "task"),
    [
        pytest.param(staging, "_parse_files", marks=long),
        pytest.param(sort_by_time, "_write_by_time", marks=long),
        pytest.param(sort_by_time, "_sort_range", marks=long),
        pytest.param(sort_by_time, "_merge_ids", marks=long),
        pytest.param(pipeline, "count_common_users", marks=long),
        pytest.param(append, "_compare_range", marks=long),
        pytest.param(append, "_write_table_file", marks=long),
    ],
)
def test_a_worker_that_dies_changes_no_byte_and_what_it_wrote_is_removed(tmp_path, monkeypatch, module, task):
    expected, died = ingest_twice(tmp_path / "alone", compute={"workers": 1}), tmp_path / "died"
    lose_a_worker(monkeypatch, module, task, died)
    assert ingest_twice(tmp_path / "workers", compute={"workers": 2}) == expected
    assert died.exists()
    settings = project(tmp_path / "workers")
    lake, lost = Lake.open(settings), left_behind(settings)
    assert len(lost) == (task == "_write_table_file")
    for name in lost:
        path = next(path for table in TABLES for path in [Path(lake.uri(table)) / name] if path.exists())
        os.utime(path, (time.time() - 2 * 86_400,) * 2)
    for table in TABLES[:2]:
        lake.vacuum(table, keep_days=1)
    assert not left_behind(settings)


@long
@pytest.mark.slow
def test_any_number_of_local_workers_writes_the_same_files(tmp_path, monkeypatch):
    expected = ingest_twice(tmp_path / "alone", compute={"workers": 1})
    monkeypatch.setattr(executor, "is_distributed", lambda *_, **__: True)
    for workers in (1, 2, 4):
        assert ingest_twice(tmp_path / f"workers_{workers}", compute={"workers": workers}) == expected
