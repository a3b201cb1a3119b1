"""Rows of Parquet files, some at a time."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalr_prod.core.row_groups import iter_batches

ROWS, GROUP = 1_600_000, 20_000


@pytest.fixture
def path(tmp_path):
    table = pa.table({"number": np.arange(ROWS), "other": np.random.default_rng(0).integers(2**62, size=ROWS)})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=GROUP)
    return tmp_path / "rows.parquet"


@pytest.mark.parametrize(
    ("rows", "sizes"), [(15_000, [15_000, 5_000, 15_000]), (20_000, [20_000] * 3), (50_000, [50_000, 10_000, 50_000])]
)
def test_all_rows_come_in_their_order(path, rows, sizes):
    with pq.ParquetFile(path) as file:
        batches = list(iter_batches(file, rows, columns=["number"]))
    assert [len(batch) for batch in batches[:3]] == sizes
    assert (pa.Table.from_batches(batches).column("number").to_numpy() == np.arange(ROWS)).all()


def test_no_more_is_held_than_a_row_group(path):
    with pq.ParquetFile(path) as file:
        before, held = pa.total_allocated_bytes(), 0
        for _ in iter_batches(file, GROUP):
            held = max(held, pa.total_allocated_bytes() - before)
    assert held < path.stat().st_size / 4


def test_a_file_without_rows_gives_none(tmp_path):
    pq.write_table(pa.table({"number": pa.array([], pa.int64())}), tmp_path / "none.parquet")
    with pq.ParquetFile(tmp_path / "none.parquet") as file:
        assert sum(len(batch) for batch in iter_batches(file, 10)) == 0
