"""What a Delta table's log tells of its files: which state it is in, and between which times rows lie."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from scalr_prod.core.delta_log import (
    UNBOUNDED,
    diff_files,
    file_time_bounds,
    files_dataset,
    files_in_key_range,
    files_in_time_range,
    latest_time,
    reopen_version,
    row_count,
    version_fingerprint,
)

STAMP = pa.timestamp("us", tz="UTC")


def write(path, times, kind=STAMP) -> DeltaTable:
    write_deltalake(str(path), pa.table({"t": pa.array(times, kind), "n": pa.array(range(len(times)))}), mode="append")
    return DeltaTable(str(path))


@pytest.mark.parametrize("times", [[1_700_000_000_123_456, 1_700_000_000_999_999], [-1_500, -1, 7], [0], [-86_400_000_000_001]])
def test_the_times_of_a_file_lie_within_its_bounds(tmp_path, times):
    ((low, high),) = file_time_bounds(write(tmp_path / "table", times), "t").values()
    assert min(times) - 2_000 < low <= min(times)
    assert max(times) <= high <= max(times) + 1_000


def test_times_that_the_log_does_not_tell_are_any(tmp_path):
    assert list(file_time_bounds(write(tmp_path / "null", [1, None]), "t").values()) == [UNBOUNDED]
    assert list(file_time_bounds(write(tmp_path / "naive", [1, 2], pa.timestamp("us")), "t").values()) == [UNBOUNDED]
    table = write(tmp_path / "number", [1, 2])
    assert list(file_time_bounds(table, "n").values()) == list(file_time_bounds(table, "other").values()) == [UNBOUNDED]


def test_each_file_has_its_own_bounds(tmp_path):
    first = write(tmp_path / "table", [5_000, 9_000])
    second = write(tmp_path / "table", [70_000])
    (added,) = diff_files(first, second).added
    assert file_time_bounds(second, "t")[added] == (70_000, 71_000)
    assert file_time_bounds(second, "t") == file_time_bounds(first, "t") | {added: (70_000, 71_000)}


def test_some_files_of_a_table_are_its_rows_of_a_time_and_counted_from_the_log(tmp_path):
    for day in range(4):
        table = write(tmp_path / "table", [day * 1_000_000, day * 1_000_000 + 500_000])
    names = files_in_time_range(table, "t", 1_500_000, 2_400_000)
    assert len(names) == 2
    assert (
        files_in_time_range(table, "t", 3_600_000, UNBOUNDED[1])
        == files_in_time_range(table, "t", 600_000, 900_000)
        == frozenset()
    )
    some = files_dataset(table, names)
    assert some.schema.equals(table.to_pyarrow_dataset().schema)
    assert sorted(some.to_table()["t"].cast(pa.int64()).to_pylist()) == [1_000_000, 1_500_000, 2_000_000, 2_500_000]
    assert [row_count(table, chosen) for chosen in (names, frozenset(), None)] == [4, 0, 8]
    assert files_dataset(table, frozenset()).to_table().num_rows == 0


def test_the_latest_time_is_exact_and_of_files_that_end_earlier_only_the_log_is_read(tmp_path):
    path, second = tmp_path / "table", 1_700_000_000_000_000
    write_deltalake(str(path), pa.schema([("t", STAMP), ("n", pa.int64())]).empty_table())
    assert latest_time(DeltaTable(str(path)), ["t"]) is None
    for times in ([second + 123_458], [second, second + 123_457]):  # the log holds milliseconds: the same for both
        table = write(path, times)
    assert latest_time(table, ["t"]) == datetime(2023, 11, 14, 22, 13, 20, 123_458, tzinfo=UTC)
    table = write(path, [second + 124_458])
    for file in map(Path, table.file_uris()):
        if pq.read_table(file)["t"].cast(pa.int64())[0].as_py() < second + 124_000:
            file.write_bytes(b"not Parquet".ljust(file.stat().st_size))
    assert latest_time(table, ["t"]) == datetime(2023, 11, 14, 22, 13, 20, 124_458, tzinfo=UTC)


def test_the_latest_time_may_be_in_a_file_of_which_the_log_tells_none(tmp_path):
    table = write(tmp_path / "table", [9_000, None])
    assert latest_time(table, ["t"]) == datetime.fromtimestamp(0.009, UTC)
    assert latest_time(write(tmp_path / "table", [3_000]), ["t"]) == datetime.fromtimestamp(0.009, UTC)


def test_some_files_of_a_partitioned_table_have_its_columns(tmp_path):
    rows = pa.table({"t": pa.array([1, 2, 3], STAMP), "n": [1, 1, 2]})
    write_deltalake(str(tmp_path / "table"), rows, partition_by=["n"])
    table = DeltaTable(str(tmp_path / "table"))
    (name,) = (name for name in file_time_bounds(table, "t") if "n=2" in name)
    assert files_dataset(table, frozenset([name])).to_table().select(["t", "n"]).to_pydict()["n"] == [2]


def test_a_state_is_found_again_and_the_same_version_of_a_restored_table_is_another(tmp_path):
    table = tmp_path / "table"
    write(table, [1])
    shutil.copytree(table, tmp_path / "backup")
    before = version_fingerprint(write(table, [2]))
    now = write(table, [3])
    assert reopen_version(now, before, None).version() == 1
    assert reopen_version(DeltaTable(str(table), version=0), before, None) is None, "it has not come so far"
    shutil.rmtree(table)
    shutil.copytree(tmp_path / "backup", table)
    write(table, [2])
    again = write(table, [3])
    assert version_fingerprint(again) | {"files": ""} == version_fingerprint(now) | {"files": ""}
    assert reopen_version(again, before, None) is None
    other = write(tmp_path / "other", [1])
    assert reopen_version(other, before | {"version": 0}, None) is None
    assert reopen_version(other, version_fingerprint(other), None).version() == 0


def test_files_are_found_by_a_range_of_keys(tmp_path):
    """Also where the log cuts long texts off, and where it says nothing."""
    long = "x" * 300
    for number, text in ((1, "a"), (5, f"{long}b"), (7, f"{long}d"), (None, None)):
        rows = {"n": pa.array([number], pa.int64()), "s": pa.array([text], pa.string())}
        write_deltalake(str(tmp_path / "table"), pa.table(rows), mode="append")
    table = DeltaTable(str(tmp_path / "table"))

    def numbers(column, low, high):
        names = files_in_key_range(table, column, low, high)
        return set(files_dataset(table, names).to_table()["n"].to_pylist()) - {None}

    assert [numbers("n", low, high) for low, high in ((0, 0), (0, 1), (2, 6), (5, 9), (8, 9))] == [
        set(),
        {1},
        {5},
        {5, 7},
        set(),
    ]
    assert numbers("s", "a", "b") == {1}
    assert numbers("s", "b", "w") == set()
    assert numbers("s", f"{long}b", f"{long}c") >= {5}
    assert numbers("s", f"{long}d", f"{long}e") >= {7}
    assert numbers("s", "y", "z") == set()
    assert numbers("other", 1, 2) == numbers("n", "a", "b") == {1, 5, 7}
