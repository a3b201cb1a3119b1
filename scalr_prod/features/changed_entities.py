# SPDX-License-Identifier: Apache-2.0
"""Entities whose latest row may have changed since the last materialization."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from scalr_prod.core.delta_log import diff_files, files_in_time_range
from scalr_prod.features.columns import source_columns
from scalr_prod.features.queries import join_keys, optional_micros, source_path
from scalr_prod.features.retrieval import open_duckdb_session
from scalr_prod.features.scan import scan_delta
from scalr_prod.workspace import quote_identifier

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from feast import FeatureStore, FeatureView

    TableState = tuple[int | None, datetime]


logger = logging.getLogger(__name__)


def find_changed_entities(
    store: FeatureStore, view: FeatureView, before: Sequence[TableState], now: TableState
) -> pa.Table | None:
    """Find the entities with a row in a file that was added or removed between two states, or with a row between their end times.

    Args:
        store: Feast's store.
        view: The view.
        before: Delta version and end time of each state that the online store may hold.
        now: Delta version and end time that it should hold.

    Returns:
        Their distinct, non-null keys under the table's column names. None if they cannot be determined: the view has no entity or
        is no Delta table, or a previous version can no longer be read.
    """
    from deltalake import DeltaTable

    columns = source_columns(view.batch_source)
    keys = [columns.column_name(key) for key in join_keys(view)]
    if not keys or now[0] is None or any(version is None for version, _ in before):
        return None
    path, options = source_path(store.config, view.batch_source), store.config.offline_store.storage_options or None

    def queries(connection: DuckDBPyConnection) -> Iterator[str]:
        current = DeltaTable(path, version=now[0], storage_options=options)
        for number, (version, end) in enumerate(before):
            previous = DeltaTable(path, version=version, storage_options=options)
            grown = diff_files(previous, current)
            for alias, table, names in (("added", current, grown.added), ("removed", previous, grown.removed)):
                if names:
                    yield _keys(keys, scan_delta(connection, table, f"{alias}_{number}", keys, file_names=names).relation)
            if end != now[1]:
                low, high = sorted(optional_micros(moment) or 0 for moment in (end, now[1]))
                # One timestamp at a time, so that file statistics can skip most files.
                for clock in columns.timestamp_columns:
                    names = files_in_time_range(current, clock, low + 1, high)
                    some = scan_delta(connection, current, f"between_{number}_{clock}", [*keys, clock], file_names=names)
                    moment = f"CAST({quote_identifier(clock)} AS TIMESTAMPTZ)"
                    between = f"{moment} > make_timestamptz({low}) AND {moment} <= make_timestamptz({high})"
                    yield f"{_keys(keys, some.relation)} AND {between}"

    with open_duckdb_session(store.config) as connection:
        try:
            # Run the queries here: a vacuumed version opens, and fails only when it is read.
            found = list(queries(connection)) or [f"{_keys(keys, _empty(connection, path, options, keys))}"]
            return connection.sql(" UNION ".join(found)).to_arrow_table()
        except Exception as error:
            # deltalake and DuckDB raise many exception types; any of them means a full fill.
            logger.warning("%s: a previous version cannot be read (%s); refilling the whole view", view.name, error)
            return None


def _keys(keys: list[str], relation: str) -> str:
    present = " AND ".join(f"{quote_identifier(key)} IS NOT NULL" for key in keys)
    return f"SELECT {', '.join(map(quote_identifier, keys))} FROM {relation} WHERE {present}"


def _empty(connection: DuckDBPyConnection, path: str, options: dict[str, str] | None, keys: list[str]) -> str:
    from deltalake import DeltaTable

    return scan_delta(connection, DeltaTable(path, storage_options=options), "nothing", keys, file_names=frozenset()).relation
