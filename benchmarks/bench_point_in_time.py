"""The point-in-time join through Feast, beside DuckDB's bare ASOF join of the same rows and beside Feast's default store.

1 M feature rows × 200 k spine rows. `flat`: one number a row, and the bare join as a floor: it reads the same Delta table, but
knows nothing of knowledge time, ties or the order of the spine. `late`: a tenth of the rows became known after they happened,
which the bare join cannot express. `lists`: histories of 20 items and their times. One thread and 1 GiB for all of them; seconds
of processor time, so that other work on the machine disturbs the ratios little, and medians of five rounds, taken in turn.
Feast's default store ("file", on Dask) reads the same rows from Parquet, with as many threads as it likes; one round. It loses
spine rows, so the rows that it gave are told as well. `large`: 20 M rows × 2 M spine rows in a process of its own, for its memory.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scalr_prod.core.memory import peak_memory_mb

EVENTS, SPINE, USERS, LENGTH, ROUNDS = 1_000_000, 200_000, 20_000, 20, 5
#: `large` has so many times the rows, and the spine's.
LARGE, LARGE_SPINE = 20, 10
START, SPAN = 1_600_000_000_000_000, 10**14
STAMP = pa.timestamp("us", tz="UTC")
LIMITS = {"threads": 1, "memory_limit": "1GB"}
#: At most these, and at least so many times faster than Feast's default store.
TARGETS = {"ratio_to_bare_asof": 1.5, "times_faster_than_feast_default_store": 15, "memory_gib": 3}


def main() -> dict:
    from deltalake import write_deltalake

    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    figures: dict[str, Any] = {"limits": TARGETS, "events": EVENTS, "spine_rows": SPINE, "users": USERS}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tables = {name: make_rows(rng, name) for name in ("flat", "late", "lists")}
        for name, rows in tables.items():
            write_deltalake(str(folder / name), rows)
        pq.write_table(tables["flat"], folder / "flat.parquet")
        spine = make_spine(rng, SPINE)
        figures |= medians(
            {"bare_asof_s": lambda: bare(folder / "flat", spine)}
            | {f"{name}_s": ours(folder, name, spine) for name in tables}
            | {"flat_500_spine_rows_s": ours(folder, "flat", spine.slice(0, 500))}
        )
        figures["ratio_to_bare_asof"] = round(figures["flat_s"] / figures["bare_asof_s"], 2)
        started = time.process_time()
        figures["feast_default_store_rows"] = feast_default(folder, spine)
        figures["feast_default_store_s"] = round(time.process_time() - started, 3)
        figures["times_faster_than_feast_default_store"] = round(figures["feast_default_store_s"] / figures["flat_s"], 1)
        figures["large"] = large(folder)
    return figures


def bare(table: Path, spine: pa.Table, options: dict[str, Any] = LIMITS) -> int:
    """DuckDB's ASOF join of a Delta table, including its read; the number of its rows."""
    import duckdb
    from deltalake import DeltaTable

    with duckdb.connect(config=options) as connection:
        connection.register("spine", spine)
        connection.register("rows", DeltaTable(str(table)).to_pyarrow_dataset())
        query = "SELECT s.*, value FROM spine s ASOF LEFT JOIN rows r ON s.user_id = r.user_id"
        return connection.sql(f"{query} AND s.event_timestamp >= r.event_timestamp").to_arrow_table().num_rows


def large(folder: Path) -> dict[str, float]:
    """Seconds of processor time and the most memory of a process that does nothing but the join of many rows."""
    from deltalake import write_deltalake

    rng = np.random.default_rng(1)
    for _ in range(LARGE):
        write_deltalake(str(folder / "large"), make_rows(rng, "flat"), mode="append")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_joined_alone, (folder,))


def _joined_alone(folder: Path) -> dict[str, float]:
    run = ours(folder, "large", make_spine(np.random.default_rng(2), LARGE_SPINE * SPINE))
    started = time.process_time()
    rows = run()
    return {
        "events": LARGE * EVENTS,
        "spine_rows": rows,
        "s": round(time.process_time() - started, 1),
        "memory_gib": round(peak_memory_mb() / 1024, 2),
    }


def make_spine(rng: np.random.Generator, rows: int) -> pa.Table:
    times = pa.array(START + rng.integers(0, SPAN, rows), STAMP)
    return pa.table({"user_id": rng.integers(0, USERS, rows), "event_timestamp": times})


def make_rows(rng: np.random.Generator, kind: str) -> pa.Table:
    event = START + rng.integers(0, SPAN, EVENTS)
    delay = (rng.random(EVENTS) < 0.1) * rng.integers(1, SPAN // 10, EVENTS) if kind == "late" else 0
    rows = pa.table(
        {
            "user_id": rng.integers(0, USERS, EVENTS),
            "event_timestamp": pa.array(event, STAMP),
            "created_timestamp": pa.array(event + delay, STAMP),
            "value": rng.random(EVENTS).astype(np.float32),
        }
    )
    if kind == "lists":
        offsets = pa.array(np.arange(0, EVENTS * LENGTH + 1, LENGTH, dtype=np.int32))
        items = pa.array(rng.integers(0, 50_000, EVENTS * LENGTH))
        stamps = pa.array(np.repeat(event, LENGTH), STAMP)
        rows = rows.append_column("item_ids", pa.ListArray.from_arrays(offsets, items))
        rows = rows.append_column("event_timestamps", pa.ListArray.from_arrays(offsets, stamps))
    return rows


def feature_view(source: Any, *, lists: bool) -> Any:
    from feast import Entity, FeatureView, Field, ValueType
    from feast.types import Array, Float32, Int64, UnixTimestamp

    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    schema = [Field(name="user_id", dtype=Int64), Field(name="value", dtype=Float32)]
    if lists:
        schema += [Field(name="item_ids", dtype=Array(Int64)), Field(name="event_timestamps", dtype=Array(UnixTimestamp))]
    return FeatureView(name="view", entities=[user], ttl=timedelta(0), schema=schema, source=source)


class NoRegistry:
    """Neither store asks for more than the on-demand views, of which there are none."""

    @staticmethod
    def list_on_demand_feature_views(*_args: Any, **_kwargs: Any) -> list:
        return []


def ours(folder: Path, name: str, spine: pa.Table) -> Any:
    return lambda: job_of(folder, name, spine).to_arrow().num_rows


def job_of(folder: Path, name: str, spine: Any) -> Any:
    """Return the store's job for a spine, which is read now if it is a stream."""
    from feast import FileSource
    from feast.data_format import DeltaFormat
    from feast.repo_config import RepoConfig

    from feast_delta import DeltaOfflineStore, DeltaOfflineStoreConfig

    source = FileSource(
        path=str(folder / name),
        file_format=DeltaFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
    )
    view = feature_view(source, lists=name == "lists")
    features = [f"view:{field.name}" for field in view.features]
    options = DeltaOfflineStoreConfig(threads=1, memory_mb=1000, spill=str(folder / "spill"), knowledge_time="created")
    config = RepoConfig(project="p", provider="local", registry="none.db", offline_store=options, online_store=None)

    return DeltaOfflineStore.get_historical_features(config, [view], features, spine, NoRegistry, "p")


def feast_default(folder: Path, spine: pa.Table) -> int:
    from feast import FileSource
    from feast.infra.offline_stores.dask import DaskOfflineStore, DaskOfflineStoreConfig
    from feast.repo_config import RepoConfig

    source = FileSource(
        path=str(folder / "flat.parquet"), timestamp_field="event_timestamp", created_timestamp_column="created_timestamp"
    )
    store = DaskOfflineStoreConfig()
    config = RepoConfig(project="p", provider="local", registry="none.db", offline_store=store, online_store=None)
    view = feature_view(source, lists=False)
    job = DaskOfflineStore.get_historical_features(config, [view], ["view:value"], spine.to_pandas(), NoRegistry, "p")
    return len(job.to_df())


def medians(ways: dict[str, Any], rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds of processor time of each, in rounds that take one after the other."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            started = time.process_time()
            work()
            seconds[name].append(time.process_time() - started)
    return {name: round(statistics.median(some), 3) for name, some in seconds.items()}


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
