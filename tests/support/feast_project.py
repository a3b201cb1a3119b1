"""A project made by hand for Feast: small tables with two users, and the repository applied to them."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa

from scalr_prod.config.settings import load_settings
from scalr_prod.features import apply_feature_repo
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table, table_schema
from support.lakes import fill_lake_once
from support.meter_tables import T0, hours

AS_OF = T0 + timedelta(hours=20)
VIEWS = (Table.SOURCE_EVENTS, Table.TARGET_EVENTS, Table.SOURCE_USER_HISTORY, Table.TARGET_USER_HISTORY)
VIEWS += (Table.TARGET_ITEM_STATS, Table.SYNTHETIC_TARGET_EVENTS, Table.SYNTHETIC_EVENT_PROVENANCE)
STAMP = pa.timestamp("us", tz="UTC")
COUNTS = ["source_user_history:event_count"]
COUNT = "source_user_history__event_count"


def synthetic(users: list[str], items: list[int], at: list[datetime], prefix: str) -> dict:
    count = len(users)
    return {
        "event_id": [f"{prefix}{number}" for number in range(count)],
        "user_id": users,
        "item_id": items,
        "event_timestamp": at,
        "probability": [0.5] * count,
        "weight": [0.25] * count,
        "source_domain": ["s"] * count,
        "translator_version": [1] * count,
        "run_id": ["run-1"] * count,
        "created_timestamp": [AS_OF] * count,
    }


def fill(lake: Lake) -> None:
    """Users have text ids, source items text ids, target items numbers."""
    for table in Table:
        source = table.value.startswith("source")
        lake.create(table, table_schema(table, user="string", item="string" if source else "int64", source_item="string"))

    def append(table: Table, columns: dict) -> None:
        lake.append(table, pa.table(columns).select(lake.schema(table).names).cast(lake.schema(table)), key="first")

    events = {"event_timestamp": hours(1, 2, 3), "created_timestamp": hours(1, 2, 3), "weight": [1.0] * 3}
    append(Table.SOURCE_EVENTS, {"user_id": ["a", "a", "b"], "item_id": ["s1", "s2", "s1"], **events})
    append(Table.TARGET_EVENTS, {"user_id": ["a", "b", "b"], "item_id": [1, 2, 3], **events})
    histories = {
        "user_id": ["a", "a", "b"],
        "event_timestamps": [hours(1), hours(1, 2), hours(3)],
        "event_count": [1, 2, 1],
        "event_timestamp": hours(1, 2, 3),
        "created_timestamp": hours(1, 2, 3),
    }
    append(Table.SOURCE_USER_HISTORY, {"item_ids": [["s1"], ["s1", "s2"], ["s1"]], **histories})
    append(Table.TARGET_USER_HISTORY, {"item_ids": [[1], [1, 2], [3]], **histories})
    stats = {"item_id": [1, 2], "event_timestamp": hours(1, 2), "first_seen": hours(1, 2), "created_timestamp": hours(1, 2)}
    append(Table.TARGET_ITEM_STATS, {**stats, "event_count": [1, 1], "trailing_event_count": [1, 1]})
    published = synthetic(["a", "b"], [7, 8], hours(2, 3), "e")
    append(Table.SYNTHETIC_TARGET_EVENTS, published)
    append(
        Table.SYNTHETIC_EVENT_PROVENANCE,
        published | {"source_item_id": ["s7", "s8"], "source_event_timestamp": hours(2, 3)},
    )


def make_project(folder: Path, extra: str = ""):
    """A project with hand-made tables and an applied repository."""
    domains = '[domains.source]\nname = "s"\nevents = "s.parquet"\n[domains.target]\nname = "t"\nevents = "t.parquet"\n'
    (folder / "scalr.toml").write_text(domains + extra)
    settings = load_settings(folder / "scalr.toml")
    fill_lake_once(settings, "feast", fill)
    apply_feature_repo(settings)
    return settings


def spine(users: list, times: list, **more: list) -> pa.Table:
    """Rows to join features to."""
    return pa.table({"user_id": users, "event_timestamp": pa.array(times, STAMP), **more})
