"""Steps whose cost for each row, lookup or call must not grow with the log: each at two sizes, in processor time of one thread.

`spill`: the external sort's writes (`core.partitioned`), µs for each row by number of partitions. Partitions here have some thousand
rows, not half a million, so that the files of many partitions weigh more than in a run. `lookup`: positions of half a million ids among
more and more known ones, beside pyarrow's `index_in`, which builds its table at each call. `negatives`: all negatives of a log, by number
of buckets of users. `log`: what is read of a table's log for its latest commits, by number of commits. `join`: the point-in-time join of
ten users, by number of files of a table sorted by user. `LIMITS`: the larger size at most so many times the smaller one.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake

from feast_delta import point_in_time
from feast_delta.scan import scan_delta
from scalr_prod.compute import load_segments, shuffle_folder, write_segments
from scalr_prod.core import partitioned
from scalr_prod.core.id_index import IdIndex, index_in
from scalr_prod.lake import Lake
from scalr_prod.lake.commits import commit_records
from scalr_prod.schemas import Table, table_schema
from scalr_prod.training_set import negatives
from scalr_prod.workspace import parquet_sql

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 3
SPILLED, PARTITIONS = 4_000_000, (100, 2_000)
LOOKUPS, KNOWN = 500_000, (500_000, 5_000_000)
EVENTS, BUCKETS = 500_000, (2, 20)
COMMITS = (40, 4_000)
FILES = (10, 300)
#: Two passes write twice; the rest is what more and smaller files cost. A table's log is listed whole, of a hundred times as many files.
LIMITS = {"spill": 6, "lookup": 2, "negatives": 2, "log": 20, "join": 3}


def main() -> dict:
    figures: dict[str, Any] = {"limits": LIMITS}
    for name, measure, sizes in (
        ("spill", spill, PARTITIONS),
        ("lookup", lookup, KNOWN),
        ("negatives", all_negatives, BUCKETS),
        ("log", log, COMMITS),
        ("join", join, FILES),
    ):
        with tempfile.TemporaryDirectory() as scratch:
            found = {str(size): measure(Path(scratch), size) for size in sizes}
        smaller, larger = (next(iter(found[str(size)].values())) for size in sizes)
        figures[name] = found | {"times": round(larger / smaller, 2)}
        print(f"  {name}: {figures[name]}", flush=True)
    return figures


def seconds(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The least processor time of some rounds."""
    took = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        took.append(time.process_time() - started)
    return min(took)


class Writes:
    """A DuckDB connection that adds up the time of its COPY statements."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection, self.seconds, self.count = connection, 0.0, 0

    def execute(self, query: str, *parameters: Any) -> Any:
        if not query.startswith("COPY"):
            return self._connection.execute(query, *parameters)
        self.count += 1
        done = []
        self.seconds += seconds(lambda: done.append(self._connection.execute(query, *parameters)), rounds=1)
        return done[0]


def spill(folder: Path, partitions: int) -> dict[str, float]:
    rng, span = np.random.default_rng(0), 2**40
    rows = pa.table({name: rng.integers(0, span, SPILLED) for name in ("key", "item", "time")})
    bounds = [span * number // partitions for number in range(1, partitions)]
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.register("rows", rows)
        writes = Writes(connection)
        for _ in partitioned.iter_partition_tables(writes, "FROM rows", key="key", bounds=bounds, folder=folder / "spill"):
            pass
    return {"us_per_row": round(1e6 * writes.seconds / SPILLED, 2), "writes": writes.count}


def lookup(_folder: Path, known: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    ids = uuids(rng.permutation(known))
    asked = ids.take(pa.array(rng.integers(0, known, LOOKUPS)))
    index = IdIndex(ids)
    assert np.array_equal(index.positions(asked), index_in(asked, ids))
    return {
        "ms": round(1e3 * seconds(lambda: index.positions(asked)), 1),
        "pyarrow_ms": round(1e3 * seconds(lambda: index_in(asked, ids), rounds=1), 1),
        "build_ms": round(1e3 * seconds(lambda: IdIndex(ids), rounds=1), 1),
    }


def all_negatives(folder: Path, buckets: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    columns = {
        "user_id": uuids(rng.integers(0, EVENTS // 20, EVENTS)),
        "item_id": pa.array((rng.zipf(1.3, EVENTS) % 10_000).astype(str)),
        "event_timestamp": pa.array(rng.integers(0, 10**13, EVENTS)).cast(pa.timestamp("us", tz="UTC")),
    }
    pq.write_table(pa.table(columns), folder / "real.parquet")
    draws, bounds = (
        negatives.NegativeDraws(1, "uniform", 0, [(0, 10**13)]),
        [(number << 63) // buckets for number in range(1, buckets)],
    )
    events = parquet_sql(folder / "real.parquet")

    def draw() -> None:
        with duckdb.connect(config={"threads": 1}) as connection, shuffle_folder(str(folder), {}) as shuffled:
            connection.execute(f"CREATE TABLE item_times AS {negatives.item_times_sql(events, draws.sampling)}")
            items = negatives.merge_item_times(connection, "item_times", draws.sampling)
            by_user = "(hash(user_id) >> 1)::BIGINT"
            segments = write_segments(connection, f"FROM {events}", key=by_user, bounds=bounds, folder=shuffled)
            for segment in segments.values():
                load_segments(connection, [segment], folder=shuffled, name="user_events")
                negatives.draw_user_negatives(connection, "user_events", items, draws)

    return {"s": round(seconds(draw, rounds=1), 2)}


def log(folder: Path, commits: int) -> dict[str, float]:
    """Of a table with so many appends, each a copy of the first one's entry in the log."""
    table, lake = Table.TARGET_EVENTS, Lake(str(folder / str(commits)))
    schema = table_schema(table, user="string", item="string")
    lake.create(table, schema)
    lake.append(table, schema.empty_table(), key="key 1")
    (folder / str(commits) / table.value / "_delta_log").mkdir(exist_ok=True)
    entry = Path(lake.uri(table)) / "_delta_log" / f"{1:020d}.json"
    text = entry.read_text()
    for version in range(2, commits + 1):
        entry.with_name(f"{version:020d}.json").write_text(re.sub(r"\bkey 1\b", f"key {version}", text))
    DeltaTable(lake.uri(table)).create_checkpoint()
    opened = lake.open_table(table)
    assert lake.commit_version(table, f"key {commits - 2}") == commits - 2
    return {
        "latest_ms": round(1e3 * seconds(lambda: commit_records(opened, after=commits - 3)), 2),
        "open_ms": round(1e3 * seconds(lambda: lake.open_table(table)), 2),
        "history_ms": round(1e3 * seconds(opened.history, rounds=1), 1),
    }


def join(folder: Path, files: int) -> dict[str, float]:
    """Users are numbered; each file has a hundred of them, with ten rows each."""
    path = str(folder / str(files))
    for number in range(files):
        users = np.repeat(np.arange(100 * number, 100 * (number + 1)), 10)
        rows = {"user_id": users, "n": np.tile(np.arange(10), 100), "event_timestamp": np.tile(np.arange(10) * 10**6, 100)}
        stamps = pa.array(rows["event_timestamp"]).cast(pa.timestamp("us", tz="UTC"))
        write_deltalake(path, pa.table(rows | {"event_timestamp": stamps}), mode="append")
    first = 100 * (files // 2)

    def joined() -> int:
        with duckdb.connect(config={"threads": 1}) as connection:
            connection.execute(
                f"CREATE TABLE {point_in_time.SPINE_TABLE} AS SELECT {first} + range AS user_id, range AS {point_in_time.SPINE_ROW}, "
                f"5000000 AS {point_in_time.SPINE_TIME} FROM range(10)"
            )
            scan = scan_delta(connection, DeltaTable(path), "rows")
            keys, features = (("user_id", "s.user_id"),), (("n", "n"),)
            view = point_in_time.ViewJoin(scan, keys, "event_timestamp", None, features)
            point_in_time.match_rows(connection, point_in_time.prune(connection, view, 0), 0)
            return connection.execute("SELECT sum(c0) FROM match_0").fetchall()[0][0]

    assert joined() == 50
    return {"ms": round(1e3 * seconds(joined), 1)}


def uuids(numbers: np.ndarray) -> pa.Array:
    return pa.array([f"{number:08x}-0000-4000-8000-{number * 7919 % 2**48:012x}" for number in numbers.tolist()])


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
