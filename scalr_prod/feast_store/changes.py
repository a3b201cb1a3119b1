# SPDX-License-Identifier: Apache-2.0
"""Of which entities the latest row may be another one than at the last fill of the online store."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from scalr_prod.duck import quote
from scalr_prod.feast_store.columns import source_columns
from scalr_prod.feast_store.reads import join_keys, microseconds, source_path
from scalr_prod.feast_store.retrievals import duckdb_session
from scalr_prod.feast_store.scan import scan_delta
from scalr_prod.growth import files_between, growth

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    import pyarrow as pa
    from feast import FeatureStore, FeatureView

    State = tuple[int | None, datetime]

__all__ = ["changed_entities"]

logger = logging.getLogger(__name__)


def changed_entities(store: FeatureStore, view: FeatureView, before: Sequence[State], now: State) -> pa.Table | None:
    """The entities that have a row in a file which one state has and another has not, or a row between the ends of two states.

    Args:
        store: Feast's store.
        view: The view.
        before: Delta version and end of each state that the online store may hold.
        now: Delta version and end of what it is to hold.

    Returns:
        Their keys under the names of the table's columns, each once, none of them null. None where they cannot be told: the view
        has no entity or is no Delta table, or a former version is gone.
    """
    from deltalake import DeltaTable

    columns = source_columns(view.batch_source)
    keys = [columns.of(key) for key in join_keys(view)]
    if not keys or now[0] is None or any(version is None for version, _ in before):
        return None
    path, options = source_path(store.config, view.batch_source), store.config.offline_store.storage_options or None

    def queries(connection: Any) -> Iterator[str]:
        latter = DeltaTable(path, version=now[0], storage_options=options)
        for number, (version, end) in enumerate(before):
            former = DeltaTable(path, version=version, storage_options=options)
            grown = growth(former, latter)
            for alias, table, names in (("added", latter, grown.added), ("removed", former, grown.removed)):
                if names:
                    yield _keys(keys, scan_delta(connection, table, f"{alias}_{number}", keys, names=names).relation)
            if end != now[1]:
                low, high = sorted(microseconds(moment) or 0 for moment in (end, now[1]))
                # One clock at a time: the log then tells most of the files apart.
                for clock in columns.clocks:
                    names = files_between(latter, clock, low + 1, high)
                    some = scan_delta(connection, latter, f"between_{number}_{clock}", [*keys, clock], names=names)
                    moment = f"CAST({quote(clock)} AS TIMESTAMPTZ)"
                    between = f"{moment} > make_timestamptz({low}) AND {moment} <= make_timestamptz({high})"
                    yield f"{_keys(keys, some.relation)} AND {between}"

    with duckdb_session(store.config) as connection:
        try:
            # Run here: a version whose files were vacuumed opens, and fails when it is read.
            found = list(queries(connection)) or [f"{_keys(keys, _empty(connection, path, options, keys))}"]
            return connection.sql(" UNION ".join(found)).to_arrow_table()
        except Exception as error:
            # deltalake and DuckDB raise exceptions of many kinds. What has gone can no longer be told.
            logger.warning("%s: a former version cannot be read (%s); the online view is filled anew", view.name, error)
            return None


def _keys(keys: list[str], relation: str) -> str:
    present = " AND ".join(f"{quote(key)} IS NOT NULL" for key in keys)
    return f"SELECT {', '.join(map(quote, keys))} FROM {relation} WHERE {present}"


def _empty(connection: Any, path: str, options: dict[str, str] | None, keys: list[str]) -> str:
    from deltalake import DeltaTable

    return scan_delta(connection, DeltaTable(path, storage_options=options), "nothing", keys, names=frozenset()).relation
