"""A spine that is far larger than memory, as a stream of Arrow batches: rows a second, and the most memory.

1 M feature rows × 10 M and × 100 M spine rows at random times, made while they are read; `knowledge_time: created`, one thread, 1 GiB for
DuckDB. The result is read as a stream, too. Each size runs in a process of its own, for its memory: what the libraries take is told beside
it. Seconds are of the wall clock and of the processor; both have the making of the random rows in them, which is told alone.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from benchmarks.bench_point_in_time import EVENTS, SPAN, START, USERS, job_of, make_rows
from scalr_prod.core.memory import peak_memory_mb

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZES = (10_000_000, 100_000_000)
BATCH = 250_000
#: Of the larger size beside the smaller one: memory that does not grow.
TARGETS = {"memory_gib": 3, "memory_ratio": 1.25}


def main() -> dict:
    from deltalake import write_deltalake

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        write_deltalake(f"{scratch}/flat", make_rows(np.random.default_rng(0), "flat"))
        found = {}
        for rows in SIZES:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[str(rows)] = pool.apply(_joined_alone, (Path(scratch), rows))
    small, large = found.values()
    ratio = round(large["memory_gib"] / small["memory_gib"], 2)
    return {"limits": TARGETS, "events": EVENTS, "users": USERS, "spines": found, "memory_ratio": ratio}


def spine_stream(rows: int) -> pa.RecordBatchReader:
    """Random users and times, as `bench_point_in_time.make_spine` makes them, batch by batch."""
    schema = pa.schema({"user_id": pa.int64(), "event_timestamp": pa.timestamp("us", tz="UTC")})

    def batches() -> Iterator[pa.RecordBatch]:
        rng = np.random.default_rng(2)
        for start in range(0, rows, BATCH):
            count = min(BATCH, rows - start)
            times = pa.array(START + rng.integers(0, SPAN, count)).cast(schema.field(1).type)
            yield pa.record_batch([pa.array(rng.integers(0, USERS, count)), times], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _joined_alone(folder: Path, rows: int) -> dict[str, Any]:
    job_of(folder, "flat", spine_stream(1)).to_arrow()  # what is imported and compiled once
    started = time.process_time()
    for _ in spine_stream(rows):
        pass
    made = time.process_time() - started
    libraries = peak_memory_mb()
    started, wall = time.process_time(), time.perf_counter()
    job = job_of(folder, "flat", spine_stream(rows))
    spilled = sum(file.stat().st_size for file in (folder / "spill").rglob("*.arrows"))
    read_s = time.process_time() - started
    read = matched = 0
    with job.stream() as batches:
        for batch in batches:
            read += batch.num_rows
            matched += batch.num_rows - batch["value"].null_count
    seconds, wall = time.process_time() - started, time.perf_counter() - wall
    assert read == rows, "no spine row is lost"
    return {
        "spine_rows": read,
        "with_a_value": matched,
        "s": round(seconds, 1),
        "wall_s": round(wall, 1),
        "of_it_reading_the_stream_s": round(read_s, 1),
        "making_the_rows_s": round(made, 1),
        "rows_per_s": round(rows / seconds),
        "memory_gib": round(peak_memory_mb() / 1024, 2),
        "before_the_join_gib": round(libraries / 1024, 2),
        "spilled_gb": round(spilled / 1e9, 2),
    }


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
