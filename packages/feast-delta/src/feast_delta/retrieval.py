# SPDX-License-Identifier: Apache-2.0
"""Lazy retrievals of the offline store: tables are opened when a result is requested, and closed afterwards."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, TypeAlias

from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL

from feast_delta import queries
from feast_delta.columns import KNOWLEDGE_TIME, source_columns
from feast_delta.errors import DeltaStoreError
from feast_delta.point_in_time import count_not_yet_known, join_sql, match_rows, prune
from feast_delta.retrieval_job import DeltaRetrievalJob
from feast_delta.sessions import quote_identifier, quote_literal
from feast_delta.spines import EVENT_TIMESTAMP, EntitySpine, register_spine, spine_from_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    import pyarrow as pa
    from duckdb import DuckDBPyConnection, DuckDBPyRelation
    from feast.data_source import DataSource
    from feast.feature_view import FeatureView
    from feast.infra.registry.base_registry import BaseRegistry
    from feast.repo_config import RepoConfig

    from feast_delta.scan import Scan


logger = logging.getLogger(__name__)

#: Opens a DuckDB connection and yields the result as a lazy relation.
QueryRunner: TypeAlias = "Callable[[], AbstractContextManager[DuckDBPyRelation]]"


def plan_join(
    config: RepoConfig, requested: dict[FeatureView, list[str]], spine: EntitySpine, options: queries.JoinOptions
) -> QueryRunner:
    """Plan a point-in-time join of features to a spine."""

    @contextmanager
    def run() -> Iterator[DuckDBPyRelation]:
        with config.offline_store.open_session() as connection:
            register_spine(connection, spine)
            yield _join(connection, config, requested, spine.table.schema, options)

    return run


def _join(
    connection: DuckDBPyConnection,
    config: RepoConfig,
    requested: dict[FeatureView, list[str]],
    spine: pa.Schema,
    options: queries.JoinOptions,
) -> DuckDBPyRelation:
    views = [
        queries.plan_view_join(connection, config, view, names, spine, options, number=number)
        for number, (view, names) in enumerate(requested.items())
    ]
    queries.ensure_unique_names(spine.names, views)
    views = [prune(connection, view, number) for number, view in enumerate(views)]
    for number, (view, join) in enumerate(zip(requested, views, strict=True)):
        late = match_rows(connection, join, number)
        if late and (rows := count_not_yet_known(connection, join, number)):
            logger.warning(
                "%s: %d spine rows get no value, because their feature rows were created only later; if %s is a load time,"
                " tag the view or its source with %s = 'event'",
                view.name,
                rows,
                join.created,
                KNOWLEDGE_TIME,
            )
    return connection.sql(join_sql(spine.names, views))


def plan_window(
    config: RepoConfig,
    requested: dict[FeatureView, list[str]],
    first: datetime,
    last: datetime,
    *,
    known_by_end: bool,
    full_names: bool,
) -> tuple[QueryRunner, list[str]]:
    """Plan a read without a spine: the rows of one view, or several views joined at each time that any of them has a row.

    Args:
        config: Feast's settings.
        requested: Views and features.
        first: Earliest event time.
        last: Latest event time.
        known_by_end: Leave out rows created after ``last``.
        full_names: Name features ``view__feature``.

    Returns:
        The query runner, and the join key columns.

    Raises:
        DeltaStoreError: The views have different keys.
    """
    start_us, end_us = queries.optional_micros(first), queries.optional_micros(last)
    options = queries.JoinOptions(full_names=full_names, created_until_us=end_us if known_by_end else None)
    keys = [sorted(queries.join_keys(view).values()) for view in requested]
    if any(other != keys[0] for other in keys):
        raise DeltaStoreError(
            "views with different keys cannot be read together without a spine",
            where=", ".join(f"{view.name} ({', '.join(names)})" for view, names in zip(requested, keys, strict=True)),
            next_step="read one view's window, and join the others to its rows as a spine",
        )

    def window_sql(connection: DuckDBPyConnection, view: FeatureView, names: list[str], alias: str) -> str:
        source, selected = (
            view.batch_source,
            queries.window_columns(view, names, full_names=full_names, created=len(requested) == 1),
        )
        columns = source_columns(source)
        needed = dict.fromkeys([*(column for column, _ in selected), *columns.timestamp_columns])
        within = queries.ReadRange(time=(columns.event, start_us, end_us))
        scan = queries.open_source(connection, config, source, alias, list(needed), within=within)
        limit_us = queries.earliest(queries.known_by_micros(config, source, view), options.created_until_us)
        return queries.window_sql(
            scan, selected, queries.RowFilter(columns.event, columns.created, start_us, end_us, known_by_micros=limit_us)
        )

    @contextmanager
    def run() -> Iterator[DuckDBPyRelation]:
        with config.offline_store.open_session(ordered=True) as connection:
            if len(requested) == 1:
                ((view, names),) = requested.items()
                yield connection.sql(window_sql(connection, view, names, "source_0"))
                return
            windows = [window_sql(connection, view, [], f"window_{number}") for number, view in enumerate(requested)]
            shared = ", ".join(quote_identifier(name) for name in [*keys[0], EVENT_TIMESTAMP])
            union = " UNION ".join(f"SELECT {shared} FROM ({window})" for window in windows)
            ordered = f"{union} ORDER BY {quote_identifier(EVENT_TIMESTAMP)}, {shared}"
            spine = spine_from_rows(connection.sql(ordered).to_arrow_table())
            register_spine(connection, spine)
            yield _join(connection, config, requested, spine.table.schema, options)

    return run, keys[0]


def spine_from_query(config: RepoConfig, query: str, registry: BaseRegistry, project: str) -> EntitySpine:
    """Run a SQL query over the project's feature views and return its result as a spine.

    Raises:
        DeltaStoreError: The query fails, or its result is no spine.
    """
    import duckdb

    with config.offline_store.open_session(ordered=True) as connection:
        for view in registry.list_feature_views(project):
            # Open only views whose name occurs in the query: opening reads the Delta log.
            if view.name in query:
                scan = queries.open_source(connection, config, view.batch_source, f"source_{view.name}", [])
                connection.execute(f"CREATE TEMP VIEW {quote_identifier(view.name)} AS SELECT * FROM {scan.relation}")
        try:
            rows = connection.sql(query).to_arrow_table()
        except duckdb.Error as error:
            raise DeltaStoreError(
                f"the spine's query failed: {error}", where="entity_df", next_step="correct the query"
            ) from error
    return spine_from_rows(rows)


def pull_columns(keys: list[str], features: list[str], event: str, created: str | None) -> list[str]:
    """Return the distinct columns that a pull reads."""
    return list(dict.fromkeys([*keys, *features, event, *([created] if created else [])]))


def pulled_rows(
    config: RepoConfig, source: DataSource, event: str, created: str | None, times: tuple[datetime | None, datetime | None]
) -> queries.RowFilter:
    """Return the filter of a source's rows between two event times, both included; None: unbounded."""
    start_us, end_us = map(queries.optional_micros, times)
    known_by_micros = queries.known_by_micros(config, source)
    return queries.RowFilter(event, created or None, start_us=start_us, end_us=end_us, known_by_micros=known_by_micros)


def plan_pull(
    config: RepoConfig,
    source: DataSource,
    columns: list[str],
    query: Callable[[DuckDBPyConnection, Scan, list[tuple[str, str]]], str],
    *,
    add_dummy_key: bool,
    ordered: bool,
) -> DeltaRetrievalJob:
    """Plan a plain read of a source.

    Args:
        config: Feast's settings.
        source: The source.
        columns: Its columns.
        query: Returns the SQL for a connection, a scan in it and (column, name) pairs.
        add_dummy_key: Add the key that Feast uses for views without entities.
        ordered: Keep the table's order.
    """

    @contextmanager
    def run() -> Iterator[DuckDBPyRelation]:
        with config.offline_store.open_session(ordered=ordered) as connection:
            scan = queries.open_source(connection, config, source, "source_0", columns)
            sql = query(connection, scan, [(column, column) for column in columns])
            if add_dummy_key:
                sql = f"SELECT *, {quote_literal(DUMMY_ENTITY_VAL)} AS {quote_identifier(DUMMY_ENTITY_ID)} FROM ({sql})"
            yield connection.sql(sql)

    return DeltaRetrievalJob(
        run,
        repo_path=str(config.repo_path) if config.repo_path else None,
        storage_options=config.offline_store.storage_options,
        translate_errors=config.offline_store.translate_errors,
    )
