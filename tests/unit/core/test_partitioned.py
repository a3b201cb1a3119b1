"""Rows dealt out to heaps come back in the order that one sort of all of them gives, and no heap holds more than it should."""

from __future__ import annotations

import random

import duckdb
import pyarrow as pa
import pytest

from scalr_prod.core import partitioned
from scalr_prod.core.partitioned import hash_bounds, iter_partition_tables, quantile_bounds, rebatch

RANDOM = random.Random(0)  # noqa: S311 - made data
ROWS = 20_000
KEYS = {
    "numbers": pa.array([RANDOM.randrange(-500, 500) for _ in range(ROWS)], pa.int64()),
    # Bytes and code points put these in one order, and UTF-16 in another.
    "texts": pa.array([RANDOM.choice("aZé\uffff\U0001f600") + str(RANDOM.randrange(300)) for _ in range(ROWS)]),
    "times": pa.array([RANDOM.randrange(-(10**15), 10**15) for _ in range(ROWS)]).cast(pa.timestamp("us", "UTC")),
    "one": pa.array([7] * ROWS, pa.int64()),
    "mostly one": pa.array([7] * (ROWS - 100) + list(range(100)), pa.int64()),
}


@pytest.fixture
def db():
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


@pytest.mark.parametrize("name", KEYS)
def test_heaps_one_after_the_other_are_all_rows_in_order(db, tmp_path, monkeypatch, name):
    monkeypatch.setattr(partitioned, "PARTITION_ROWS", 1_000)
    rows = pa.table({"key": KEYS[name], "number": pa.array(RANDOM.sample(range(ROWS), ROWS))})
    db.register("rows", rows)
    edges = quantile_bounds(db, "rows", "key", ROWS)
    path = tmp_path / "some'rows [1]"
    found, sizes = [], []
    for heap in iter_partition_tables(db, "FROM rows", key="key", bounds=edges, folder=path):
        table = db.sql(f"FROM {heap} ORDER BY key, number").to_arrow_table()
        found.append(table)
        sizes.append(len(table))
    assert pa.concat_tables(found).equals(db.sql("FROM rows ORDER BY key, number").to_arrow_table())
    assert not path.exists()
    if "one" not in name:
        assert len(sizes) == 20
        assert max(sizes) < 2_000


def test_few_rows_are_one_heap_and_touch_no_disk(db, tmp_path):
    db.execute("CREATE TABLE rows AS SELECT range AS key FROM range(10)")
    assert quantile_bounds(db, "rows", "key", 10) == []
    path = tmp_path / "nowhere" / "rows"
    (found,) = (
        db.sql(f"SELECT key FROM {heap} ORDER BY key").fetchnumpy()["key"].tolist()
        for heap in iter_partition_tables(db, "FROM rows", key="key", bounds=[], folder=path)
    )
    assert found == list(range(10))


@pytest.mark.parametrize("rows", [[5, 1, 9, 5, 9], [1], [9], []])
def test_equal_keys_share_a_partition_and_an_empty_one_has_the_columns(db, tmp_path, rows):
    db.register(
        "rows", pa.table({"key": pa.array(rows, pa.int64()), "many": pa.array([["a"]] * len(rows), pa.list_(pa.string()))})
    )
    tables = iter_partition_tables(
        db, "FROM rows WHERE key > $least", key="key", bounds=[5, 9], folder=tmp_path / "rows", parameters={"least": 0}
    )
    found = [db.sql(f"SELECT key, many FROM {name} ORDER BY key").fetchall() for name in tables]
    assert found == [[(key, ["a"]) for key in sorted(rows) if low <= key < high] for low, high in ((0, 5), (5, 9), (9, 99))]


@pytest.mark.parametrize("name", ["numbers", "texts", "times", "one", "mostly one"])
def test_many_partitions_take_several_passes_that_write_few_folders_each(db, tmp_path, monkeypatch, name):
    monkeypatch.setattr(partitioned, "PARTITION_ROWS", 200)
    monkeypatch.setattr(partitioned, "_FAN_OUT", 4)
    rows = pa.table({"key": KEYS[name], "number": pa.array(RANDOM.sample(range(ROWS), ROWS))})
    db.register("rows", rows)
    bounds = quantile_bounds(db, "rows", "key", ROWS)
    folder = tmp_path / "some'rows [1]"
    found, fan_outs = [], []
    for partition in iter_partition_tables(db, "FROM rows", key="key", bounds=bounds, folder=folder):
        found.append(db.sql(f"FROM {partition} ORDER BY key, number").to_arrow_table())
        fan_outs += [len(list(path.glob("partition_number=*"))) for path in [folder, *folder.rglob("*")] if path.is_dir()]
    assert len(found) == len(bounds) + 1
    assert pa.concat_tables(found).equals(db.sql("FROM rows ORDER BY key, number").to_arrow_table())
    assert not folder.exists()
    assert max(fan_outs) <= 4
    if "one" not in name:
        assert len(found) == 100


def test_partitions_of_a_folder_without_rows_are_empty_tables(db, tmp_path, monkeypatch):
    monkeypatch.setattr(partitioned, "_FAN_OUT", 2)
    db.register("rows", pa.table({"key": pa.array([1, 2, 70, 71], pa.int64())}))
    tables = iter_partition_tables(
        db, "FROM rows", key="key", bounds=[10, 20, 30, 40, 50, 60, 70, 80], folder=tmp_path / "rows"
    )
    assert [db.sql(f"SELECT key FROM {name} ORDER BY key").fetchall() for name in tables] == [
        [(1,), (2,)],
        [],
        [],
        [],
        [],
        [],
        [],
        [(70,), (71,)],
        [],
    ]


@pytest.mark.parametrize("sizes", [[], [0], [7], [10], [3, 3, 3, 3], [25, 0, 4], [10, 10]])
def test_batches_are_cut_anew(sizes):
    numbers = iter(range(sum(sizes)))
    batches = [pa.record_batch({"at": pa.array([next(numbers) for _ in range(size)], pa.int64())}) for size in sizes]
    found = [batch.column(0).to_pylist() for batch in rebatch(batches, 10)]
    assert [number for batch in found for number in batch] == list(range(sum(sizes)))
    assert all(len(batch) == 10 for batch in found[:-1])
    assert all(0 < len(batch) <= 10 for batch in found)


def test_hashes_are_split_evenly(monkeypatch):
    monkeypatch.setattr(partitioned, "PARTITION_ROWS", 100)
    assert hash_bounds(0) == hash_bounds(100) == []
    assert hash_bounds(301) == [2**61, 2**62, 3 * 2**61]
