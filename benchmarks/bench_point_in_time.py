"""The point-in-time join through Feast, beside DuckDB's bare ASOF join of the same rows and beside Feast's default store.

1 M feature rows × 200 k spine rows. `flat`: one number a row, and the bare join as a floor: it reads the same Delta table, but
knows nothing of knowledge time, ties or the order of the spine. `late`: a tenth of the rows became known after they happened,
which the bare join cannot express. `lists`: histories of 20 items and their times. Two threads and 1 GiB for all of them;
medians of five rounds. Feast's default store ("file", on Dask) reads the same rows from Parquet, with as many threads as it
likes; one round. It loses spine rows, so the rows that it gave are told as well.
"""

from __future__ import annotations

import json
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

EVENTS, SPINE, USERS, LENGTH, ROUNDS = 1_000_000, 200_000, 20_000, 20, 5
START, SPAN = 1_600_000_000_000_000, 10**14
STAMP = pa.timestamp("us", tz="UTC")


def main() -> dict:
    import duckdb
    from deltalake import DeltaTable, write_deltalake

    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    figures: dict[str, Any] = {"events": EVENTS, "spine_rows": SPINE, "users": USERS}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tables = {name: make_rows(rng, name) for name in ("flat", "late", "lists")}
        for name, rows in tables.items():
            write_deltalake(str(folder / name), rows)
        pq.write_table(tables["flat"], folder / "flat.parquet")
        times = pa.array(START + rng.integers(0, SPAN, SPINE), STAMP)
        spine = pa.table({"user_id": rng.integers(0, USERS, SPINE), "event_timestamp": times})

        def bare() -> int:
            with duckdb.connect(config={"threads": 2, "memory_limit": "1GB"}) as connection:
                connection.register("spine", spine)
                connection.register("rows", DeltaTable(str(folder / "flat")).to_pyarrow_dataset())
                query = "SELECT s.*, value FROM spine s ASOF LEFT JOIN rows r ON s.user_id = r.user_id"
                return connection.sql(f"{query} AND s.event_timestamp >= r.event_timestamp").to_arrow_table().num_rows

        figures["bare_asof_s"] = median(bare)
        for name in tables:
            figures[f"{name}_s"] = median(ours(folder, name, spine))
        few = spine.slice(0, 500)
        figures["flat_500_spine_rows_s"] = median(ours(folder, "flat", few))
        figures["ratio_to_bare_asof"] = round(figures["flat_s"] / figures["bare_asof_s"], 2)
        started = time.perf_counter()
        figures["feast_default_store_rows"] = feast_default(folder, spine)
        figures["feast_default_store_s"] = round(time.perf_counter() - started, 3)
        figures["times_faster_than_feast_default_store"] = round(figures["feast_default_store_s"] / figures["flat_s"], 1)
    return figures


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
    from feast import FileSource
    from feast.data_format import DeltaFormat
    from feast.repo_config import RepoConfig

    from scalr_prod.feast_store.offline_store import DeltaOfflineStore, DeltaOfflineStoreConfig

    source = FileSource(
        path=str(folder / name),
        file_format=DeltaFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
    )
    view = feature_view(source, lists=name == "lists")
    features = [f"view:{field.name}" for field in view.features]
    options = DeltaOfflineStoreConfig(threads=2, memory_mb=1000, spill=str(folder / "spill"))
    config = RepoConfig(project="p", provider="local", registry="none.db", offline_store=options, online_store=None)

    def run() -> int:
        job = DeltaOfflineStore.get_historical_features(config, [view], features, spine, NoRegistry, "p")
        return job.to_arrow().num_rows

    return run


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


def median(work: Any, rounds: int = ROUNDS) -> float:
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return round(statistics.median(seconds), 3)


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
