"""A lake of random events in several files, and what the tables that were built from them hold."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from scalr_prod.config.settings import Settings
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table, table_schema
from support.lakes import mark_home

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BUILT", "fill_lake", "table_digest", "table_rows"]

#: Tables that `build_histories` builds.
BUILT = (Table.SOURCE_USER_HISTORY, Table.TARGET_USER_HISTORY, Table.TARGET_ITEM_STATS)
_START_US = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp() * 1e6)
_HOUR_US = 3_600_000_000


def fill_lake(folder: Path, events: int, *, files: int = 4, **settings: Any) -> Settings:
    """Write so many events to each log of a new project: a tenth known days late, many at the same times, some equal.

    Args:
        folder: The project's folder.
        events: Number of events of each domain.
        files: Number of files of each events table.
        settings: Sections of the project's settings.
    """
    domains = {"source": {"name": "a", "events": "a"}, "target": {"name": "b", "events": "b"}}
    made = Settings(domains=domains, base=folder, **settings)
    mark_home(made)
    lake, rng = Lake.open(made), np.random.default_rng(events)
    for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS, *BUILT):
        schema = table_schema(table, user="string", item="int64")
        lake.create(table, schema)
        if table in BUILT:
            continue
        for part in range(files):
            size = events // files
            users = rng.integers(0, events // 20 + 1, size)
            times = _START_US + rng.integers(0, events // 4 + 1, size) * _HOUR_US
            created = times + np.where(rng.random(size) < 0.1, rng.integers(0, 72, size), 0) * _HOUR_US
            columns = [
                [f"u{user}" for user in users],
                rng.integers(0, events // 50 + 1, size),
                times,
                created,
                np.ones(size),
            ]
            arrays = [pa.array(column).cast(field.type) for column, field in zip(columns, schema, strict=True)]
            lake.append(table, pa.Table.from_arrays(arrays, schema=schema), key=str(part))
    return made


def table_rows(settings: Settings, table: Table) -> list[str]:
    """Return all columns of a table's rows, in the order of its files' names."""
    import pyarrow.parquet as pq

    from scalr_prod.core.delta_log import file_names
    from scalr_prod.core.file_systems import open_file_system

    lake = Lake.open(settings)
    files = open_file_system(lake.uri(table), lake.storage_options)
    names = sorted(file_names(lake.open_table(table)))
    return [repr(row) for name in names for row in pq.read_table(name, filesystem=files, partitioning=None).to_pylist()]


def table_digest(settings: Settings, table: Table) -> str:
    """Return a SHA-256 of `table_rows`."""
    return hashlib.sha256("\n".join(table_rows(settings, table)).encode()).hexdigest()
