"""A shuffle regroups rows by key and loses none, and leaves nothing behind."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from scalr_prod.compute import load_segments, shuffle_folder, write_segments

IDS = {
    "integers": (pa.array, [20, 50]),
    "texts": (lambda numbers: pa.array([f"u'{number:02d}" for number in numbers]), ["u'20", "u'50"]),
}


@pytest.mark.parametrize("ids", IDS)
def test_each_partition_gets_its_keys_from_all_files(tmp_path, ids):
    to_ids, bounds = IDS[ids]
    numbers = np.random.default_rng(0).integers(0, 90, 5_000)
    rows = pa.table({"key": to_ids(numbers), "n": np.arange(5_000)})
    expected = [rows.filter(pa.array(mask)) for mask in (numbers < 20, (numbers >= 20) & (numbers < 50), numbers >= 50)]
    with shuffle_folder(str(tmp_path), {}) as folder, duckdb.connect() as db:
        files = []
        for part in range(4):
            db.register("events", rows.slice(part * 1_250, 1_250))
            files.append(write_segments(db, "FROM events", key="key", bounds=bounds, folder=folder))
        for number, wanted in enumerate(expected):
            assert load_segments(db, [file[number] for file in files], folder=folder, name="found") == len(wanted)
            assert db.sql("FROM found ORDER BY n").to_arrow_table().equals(wanted)
    assert list(tmp_path.iterdir()) == []


def test_a_partition_without_rows_has_no_segment(tmp_path):
    with shuffle_folder(str(tmp_path), {}) as folder, duckdb.connect() as db:
        segments = write_segments(db, "SELECT 9 AS key", key="key", bounds=[5, 10], folder=folder)
    assert segments.keys() == {1}


def test_files_of_others_are_not_removed(tmp_path):
    with shuffle_folder(str(tmp_path), {}) as other, duckdb.connect() as db:
        segments = write_segments(db, "SELECT 1 AS key", key="key", bounds=[], folder=other)
        with shuffle_folder(str(tmp_path), {}) as folder:
            write_segments(db, "SELECT 2 AS key", key="key", bounds=[], folder=folder)
        load_segments(db, segments.values(), folder=other, name="found")
        assert db.sql("FROM found").fetchall() == [(1,)]


def test_a_table_of_no_segment_has_the_columns(tmp_path):
    schema = pa.schema([("key", pa.int64()), ("n", pa.string())])
    with shuffle_folder(str(tmp_path), {}) as folder, duckdb.connect() as db:
        assert load_segments(db, [], folder=folder, name="found", schema=schema) == 0
        assert db.sql("FROM found").to_arrow_table().schema == schema


def test_a_file_is_copied_to_the_folder_and_moved_back(tmp_path):
    path, back = tmp_path / "rows.parquet", tmp_path / "back" / "rows.parquet"
    path.write_bytes(b"rows")
    with shuffle_folder(str(tmp_path), {}) as folder:
        copied = folder.put(path)
        assert {file.name for file in tmp_path.iterdir()} == {path.name, copied}
        folder.take(copied, back)
        assert (path.read_bytes(), back.read_bytes()) == (b"rows", b"rows")
        folder.put(path)
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "back"}
