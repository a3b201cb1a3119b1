"""The limits of this machine that other figures stand beside, each by the plainest code: processor seconds of one thread, medians."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks import bench_data_path as path
from benchmarks import bench_point_in_time as joins

if TYPE_CHECKING:
    import pyarrow as pa

#: Bytes that are copied: more than any cache holds.
COPIED = 1 << 28


def measured() -> dict[str, Any]:
    """ASOF joins of 1 M × 200 k rows with their read, a write of 10 000 rows of the feature view and of 1 M, memory bandwidth."""
    from deltalake import write_deltalake

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows, spine = joins.make_rows(rng, "flat"), joins.make_spine(rng, joins.SPINE)
        write_deltalake(str(folder / "flat"), rows)
        pq.write_table(rows, folder / "flat.parquet")
        few, many = path.published(path.WRITTEN, day=0), path.published(100 * path.WRITTEN, day=0)
        source, target = np.ones(COPIED, np.uint8), np.empty(COPIED, np.uint8)
        found = joins.medians(
            {
                "duckdb_asof_s": lambda: joins.bare(folder / "flat", spine),
                "polars_asof_s": lambda: polars_asof(folder / "flat.parquet", spine),
                "pyarrow_write_10000_rows_s": lambda: path.plain_write(folder, few),
                "pyarrow_write_1000000_rows_s": lambda: path.plain_write(folder, many),
                "copy_s": lambda: np.copyto(target, source),
            }
        )
    # Each byte is read and written.
    return found | {"memory_gb_per_s": round(2 * COPIED / found.pop("copy_s") / 1e9, 1)}


def polars_asof(file: Path, spine: pa.Table) -> int:
    """Polars' join of the same rows, which wants both sides sorted; the number of its rows."""
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    import polars as pl

    rows = pl.scan_parquet(file).select("user_id", "event_timestamp", "value").sort("event_timestamp")
    asked = pl.from_arrow(spine).lazy().sort("event_timestamp")
    return len(asked.join_asof(rows, on="event_timestamp", by="user_id").collect())
