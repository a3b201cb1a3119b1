"""A shuffle regroups rows by key and loses none, and leaves nothing behind."""

from __future__ import annotations

import threading

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from support.object_store import BUCKET, running_store

from scalr_prod.compute import (
    ShuffleFolder,
    iter_segment_tables,
    load_segments,
    read_segments,
    shuffle_folder,
    write_segments,
    write_tables,
)
from scalr_prod.compute.shuffle import Segment

IDS = {
    "integers": (pa.array, [20, 50]),
    "texts": (lambda numbers: pa.array([f"u'{number:02d}" for number in numbers]), ["u'20", "u'50"]),
}


@pytest.mark.parametrize("batch", [65_536, 2_048])
@pytest.mark.parametrize("ids", IDS)
def test_each_partition_gets_its_keys_from_all_files(tmp_path, monkeypatch, ids, batch):
    monkeypatch.setattr("scalr_prod.compute.shuffle._BATCH", batch)
    to_ids, bounds = IDS[ids]
    numbers = np.random.default_rng(0).integers(0, 90, 20_000)
    rows = pa.table({"key": to_ids(numbers), "n": np.arange(20_000)})
    expected = [rows.filter(pa.array(mask)) for mask in (numbers < 20, (numbers >= 20) & (numbers < 50), numbers >= 50)]
    with shuffle_folder(str(tmp_path), {}) as folder, duckdb.connect() as db:
        files = []
        for part in range(4):
            db.register("events", rows.slice(part * 5_000, 5_000))
            files.append(write_segments(db, "FROM events", key="key", bounds=bounds, folder=folder))
        for number, wanted in enumerate(expected):
            assert load_segments(db, [file[number] for file in files], folder=folder, name="found") == len(wanted)
            assert db.sql("FROM found ORDER BY n").to_arrow_table().equals(wanted)
    assert list(tmp_path.iterdir()) == []


def test_a_partition_without_rows_has_no_segment(tmp_path):
    with shuffle_folder(str(tmp_path), {}) as folder, duckdb.connect() as db:
        segments = write_segments(db, "SELECT 9 AS key", key="key", bounds=[5, 10], folder=folder)
    assert segments.keys() == {1}


def test_a_key_that_is_computed_is_not_among_the_columns(tmp_path):
    with shuffle_folder(str(tmp_path), {}) as folder, duckdb.connect() as db:
        query = "SELECT range AS n FROM range(10)"
        segments = write_segments(db, query, key="n % 3", bounds=[1, 1, 2], folder=folder)
        found = {number: read_segments([segment], folder=folder).to_pydict() for number, segment in segments.items()}
    assert {number: sorted(rows.pop("n")) for number, rows in found.items()} == {0: [0, 3, 6, 9], 2: [1, 4, 7], 3: [2, 5, 8]}
    assert not any(found.values())


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


def test_segments_of_an_object_store_are_read_at_the_same_time_and_come_in_their_order(monkeypatch):
    read, together = ShuffleFolder.read, threading.Barrier(2, timeout=20)

    def read_beside_another(folder: ShuffleFolder, segment: Segment) -> bytes:
        together.wait()  # an error, unless a second segment is read meanwhile
        return read(folder, segment)

    with running_store(honours_conditions=True) as store:
        with shuffle_folder(f"s3://{BUCKET}/lake/events", store.options) as folder:
            files = [
                write_tables(((part, pa.table({"n": [part, file]})) for part in range(3)), folder=folder) for file in range(40)
            ]
            segments = [found[part] for part in (2, 0) for found in files]
            assert len(store.keys()) == 40
            monkeypatch.setattr(ShuffleFolder, "read", read_beside_another)
            found = [table["n"].to_pylist() for table in iter_segment_tables(segments, folder=folder)]
            assert found == [[part, file] for part in (2, 0) for file in range(40)]
        assert store.keys() == [], "nothing is left"


def test_columns_of_any_size_are_written_to_an_object_store_and_read_again(tmp_path):
    rows = pa.table({"n": np.random.default_rng(0).integers(0, 2**62, 600_000)})
    path, back = tmp_path / "log.csv.gz", tmp_path / "back"
    path.write_bytes(np.random.default_rng(1).bytes(10_000_000))
    with running_store(honours_conditions=True) as store, shuffle_folder(f"s3://{BUCKET}/lake/events", store.options) as folder:
        segments = write_tables([(number, rows.slice(number)) for number in range(3)], folder=folder)
        assert segments[0][2] > 4 << 20
        found = list(iter_segment_tables(segments.values(), folder=folder))
        assert [rows.slice(number).equals(table) for number, table in enumerate(found)] == [True] * 3
        folder.take(folder.put(path), back)
    assert back.read_bytes() == path.read_bytes()


def test_segments_that_follow_each_other_are_read_at_once(tmp_path, monkeypatch):
    read, sizes = ShuffleFolder.read, []
    monkeypatch.setattr(ShuffleFolder, "read", lambda folder, span: (sizes.append(span[2]), read(folder, span))[1])
    with shuffle_folder(str(tmp_path), {}) as folder:
        first, other = (
            write_tables(((part, pa.table({"n": [file, part]})) for part in range(4)), folder=folder) for file in (0, 1)
        )
        wanted = [first[0], first[1], first[3], other[0], other[1], other[2], other[1]]
        found = [table["n"].to_pylist() for table in iter_segment_tables(iter(wanted), folder=folder)]
    assert found == [[0, 0], [0, 1], [0, 3], [1, 0], [1, 1], [1, 2], [1, 1]]
    size = first[0][2]
    assert sizes == [2 * size, size, 3 * size, size]


def test_a_folder_on_this_machine_is_removed(tmp_path):
    with shuffle_folder(str(tmp_path), {}) as folder:
        with folder.open_local_folder() as inner:
            write_tables([(0, pa.table({"n": [1]}))], folder=inner)
            assert [path.parent.parent for path in tmp_path.rglob("*.arrow")] == [tmp_path]
        assert list(tmp_path.iterdir()) == []
