# SPDX-License-Identifier: Apache-2.0
"""Lazy retrievals of the offline store: tables are opened when a result is requested, and closed afterwards."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL

from feast_delta import queries
from feast_delta.columns import KNOWLEDGE_TIME, source_columns
from feast_delta.errors import DeltaStoreError
from feast_delta.point_in_time import (
    SPINE_ROW,
    SPINE_TABLE,
    SPINE_TIME,
    count_not_yet_known,
    join_sql,
    match_query,
    match_rows,
    prune,
)
from feast_delta.retrieval_job import DeltaRetrievalJob, RetrievalQuery
from feast_delta.sessions import quote_identifier, quote_literal
from feast_delta.spines import BATCH_ROWS, EVENT_TIMESTAMP, EntitySpine, register_spine, spine_from_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from duckdb import DuckDBPyConnection, DuckDBPyRelation
    from feast.data_source import DataSource
    from feast.feature_view import FeatureView
    from feast.infra.registry.base_registry import BaseRegistry
    from feast.repo_config import RepoConfig

    from feast_delta.point_in_time import ViewJoin
    from feast_delta.scan import Scan


logger = logging.getLogger(__name__)

#: The table that a query's text reads the spine from, if the spine was not given as SQL.
ENTITY_TABLE = "entity_df"


def plan_join(
    config: RepoConfig,
    requested: dict[FeatureView, list[str]],
    spine: EntitySpine,
    options: queries.JoinOptions,
    entities: Callable[[], list[str]] | None = None,
) -> RetrievalQuery:
    """Plan a point-in-time join of features to a spine.

    Args:
        config: Feast's settings.
        requested: Views and features.
        spine: The spine.
        options: How they are joined.
        entities: Returns common table expressions of the spine `ENTITY_TABLE` for the query's text. None: whoever runs it names a table so.
    """

    @contextmanager
    def run() -> Iterator[Iterator[DuckDBPyRelation]]:
        with config.offline_store.open_session() as connection:
            yield _join(connection, config, requested, spine, options)

    def text() -> str:
        for view in requested:
            _ensure_local(config, view.batch_source)
        with config.offline_store.open_session() as connection:
            whole = replace(options, whole_spine=False)
            views = _plan_views(connection, config, requested, spine.schema, whole)
        time = quote_identifier(spine.time_column)
        numbered = (
            f"SELECT *, row_number() OVER () - 1 AS {SPINE_ROW}, epoch_us(CAST({time} AS TIMESTAMPTZ)) AS {SPINE_TIME}"
            f" FROM {ENTITY_TABLE}"
        )
        tables = [*(entities() if entities else []), f"{SPINE_TABLE} AS MATERIALIZED ({numbered})"]
        tables += [table for number, view in enumerate(views) for table in match_query(view, number)]
        sql = f"WITH {', '.join(tables)} {join_sql(spine.schema.names, views)}"
        return _self_contained(config, sql, {} if entities else {ENTITY_TABLE: spine.schema.empty_table()})

    return RetrievalQuery(run, text)


def _plan_views(
    connection: DuckDBPyConnection,
    config: RepoConfig,
    requested: dict[FeatureView, list[str]],
    schema: pa.Schema,
    options: queries.JoinOptions,
) -> list[ViewJoin]:
    views = [
        queries.plan_view_join(connection, config, view, names, schema, options, number=number)
        for number, (view, names) in enumerate(requested.items())
    ]
    queries.ensure_unique_names(schema.names, views)
    return views


def _join(
    connection: DuckDBPyConnection,
    config: RepoConfig,
    requested: dict[FeatureView, list[str]],
    spine: EntitySpine,
    options: queries.JoinOptions,
) -> Iterator[DuckDBPyRelation]:
    """Join the spine's blocks; a relation is read before the next one is made."""
    options = replace(options, whole_spine=spine.rows <= spine.block_rows)
    views: list[ViewJoin] = []
    withheld = [0] * len(requested)
    for block in spine.iter_blocks():
        register_spine(connection, block, spine.time_column)
        views = views or _plan_views(connection, config, requested, spine.schema, options)
        pruned = [prune(connection, view, number) for number, view in enumerate(views)]
        for number, view in enumerate(pruned):
            if match_rows(connection, view, number):
                withheld[number] += count_not_yet_known(connection, view, number)
        yield connection.sql(join_sql(spine.schema.names, pruned))
    for feature_view, view, rows in zip(requested, views, withheld, strict=True):
        if rows:
            logger.warning(
                "%s: %d spine rows get no value, because their feature rows were created only later; if %s is a load time,"
                " tag the view or its source with %s = 'event'",
                feature_view.name,
                rows,
                view.created,
                KNOWLEDGE_TIME,
            )


def plan_window(
    config: RepoConfig,
    requested: dict[FeatureView, list[str]],
    first: datetime,
    last: datetime,
    *,
    known_by_end: bool,
    full_names: bool,
) -> tuple[RetrievalQuery, list[str]]:
    """Plan a read without a spine: the rows of one view, or several views joined at each time that any of them has a row.

    Args:
        config: Feast's settings.
        requested: Views and features.
        first: Earliest event time.
        last: Latest event time.
        known_by_end: Leave out rows created after ``last``.
        full_names: Name features ``view__feature``.

    Returns:
        The query, and the join key columns.

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

    if len(requested) == 1:
        ((only, features),) = requested.items()

        def only_view_sql(connection: DuckDBPyConnection) -> str:
            return window_sql(connection, only, features, "source_0")

        return _plan_statement(config, only.batch_source, only_view_sql, ordered=True), keys[0]

    @contextmanager
    def run() -> Iterator[Iterator[DuckDBPyRelation]]:
        with config.offline_store.open_session(ordered=True) as connection:
            windows = [window_sql(connection, view, [], f"window_{number}") for number, view in enumerate(requested)]
            shared = ", ".join(quote_identifier(name) for name in [*keys[0], EVENT_TIMESTAMP])
            union = " UNION ".join(f"SELECT {shared} FROM ({window})" for window in windows)
            ordered = f"{union} ORDER BY {quote_identifier(EVENT_TIMESTAMP)}, {shared}"
            spine = spine_from_rows(connection.sql(ordered).to_arrow_reader(BATCH_ROWS), config.offline_store)
            yield _join(connection, config, requested, spine, options)

    return RetrievalQuery(run), keys[0]


def _plan_statement(
    config: RepoConfig,
    source: DataSource,
    query: Callable[[DuckDBPyConnection], str],
    *,
    ordered: bool,
    text: Callable[[DuckDBPyConnection], str] | None = None,
) -> RetrievalQuery:
    """Plan a query of one statement.

    Args:
        config: Feast's settings.
        source: The source that it reads.
        query: Returns the statement for a session.
        ordered: Keep the table's order.
        text: Returns it for `DeltaRetrievalJob.to_sql`; default: ``query``.
    """

    @contextmanager
    def run() -> Iterator[Iterator[DuckDBPyRelation]]:
        with config.offline_store.open_session(ordered=ordered) as connection:
            yield iter([connection.sql(query(connection))])

    def write() -> str:
        _ensure_local(config, source)
        with config.offline_store.open_session() as connection:
            return _self_contained(config, (text or query)(connection), {})

    return RetrievalQuery(run, write)


#: Why there is no statement, and what to do instead.
_NOT_LOCAL = "only queries of Parquet files on a local disk can be written as SQL"
_READ_INSTEAD = "read the result by to_arrow or stream, or write it by persist or to_remote_storage"


def _ensure_local(config: RepoConfig, source: DataSource) -> None:
    """Ensure that a source is on a local disk, before it is copied into a session for nothing.

    Raises:
        DeltaStoreError: It is in an object store.
    """
    if "://" in (path := queries.source_path(config, source)):
        raise DeltaStoreError(_NOT_LOCAL, where=path, next_step=_READ_INSTEAD)


def _self_contained(config: RepoConfig, sql: str, tables: dict[str, pa.Table]) -> str:
    """Return a statement that another session can run, given some tables.

    Raises:
        DeltaStoreError: It reads a table that was copied into the session, or names of the spine's query are those of the join.
    """
    import duckdb

    with config.offline_store.open_session() as connection:
        connection.execute("SET python_enable_replacements = false")
        for name, rows in tables.items():
            connection.register(name, rows)
        try:
            connection.sql(sql)
        except duckdb.CatalogException as error:
            raise DeltaStoreError(_NOT_LOCAL, where="to_sql", next_step=_READ_INSTEAD) from error
        except duckdb.Error as error:
            raise DeltaStoreError(f"this is no single statement: {error}", where="to_sql", next_step=_READ_INSTEAD) from error
    return sql


def spine_from_query(config: RepoConfig, query: str, registry: BaseRegistry, project: str) -> EntitySpine:
    """Run a SQL query over the project's feature views and return its result as a spine.

    Raises:
        DeltaStoreError: The query fails, or its result is no spine.
    """
    import duckdb

    with config.offline_store.open_session(ordered=True) as connection:
        for name, rows in _view_tables(connection, config, query, registry, project).items():
            connection.execute(f"CREATE TEMP VIEW {quote_identifier(name)} AS {rows}")
        try:
            result = connection.sql(query).to_arrow_reader(BATCH_ROWS)
            return spine_from_rows(result, config.offline_store)
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise DeltaStoreError(
                f"the spine's query failed: {error}", where="entity_df", next_step="correct the query"
            ) from error


def query_tables(config: RepoConfig, query: str, registry: BaseRegistry, project: str) -> list[str]:
    """Return common table expressions of a spine's query and of the feature views that it reads."""
    with config.offline_store.open_session() as connection:
        views = _view_tables(connection, config, query, registry, project)
    spine = query.strip().rstrip(";")
    return [f"{quote_identifier(name)} AS ({rows}\n)" for name, rows in {**views, ENTITY_TABLE: spine}.items()]


def _view_tables(
    connection: DuckDBPyConnection, config: RepoConfig, query: str, registry: BaseRegistry, project: str
) -> dict[str, str]:
    """Return SQL of the rows of each feature view whose name occurs in a query."""
    found = {}
    for view in registry.list_feature_views(project):
        if view.name in query:  # opening the others would read their logs
            scan = queries.open_source(connection, config, view.batch_source, f"source_{view.name}", [])
            found[view.name] = f"SELECT * FROM {scan.relation}"
    return found


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


@dataclass(frozen=True)
class PullQuery:
    """A plain read of a source.

    Attributes:
        run: Returns the SQL for a session, a scan in it and (column, name) pairs; it may create tables in the session.
        text: The same in one statement.
        ordered: Keep the table's order.
    """

    run: Callable[[DuckDBPyConnection, Scan, list[tuple[str, str]]], str]
    text: Callable[[Scan, list[tuple[str, str]]], str]
    ordered: bool


def plan_pull(
    config: RepoConfig, source: DataSource, columns: list[str], query: PullQuery, *, add_dummy_key: bool
) -> DeltaRetrievalJob:
    """Plan a plain read of a source.

    Args:
        config: Feast's settings.
        source: The source.
        columns: Its columns.
        query: What is read.
        add_dummy_key: Add the key that Feast uses for views without entities.
    """
    selected = [(column, column) for column in columns]

    def statement(connection: DuckDBPyConnection, write: Callable[[Scan], str]) -> str:
        sql = write(queries.open_source(connection, config, source, "source_0", columns))
        dummy = f"{quote_literal(DUMMY_ENTITY_VAL)} AS {quote_identifier(DUMMY_ENTITY_ID)}"
        return f"SELECT *, {dummy} FROM ({sql})" if add_dummy_key else sql

    planned = _plan_statement(
        config,
        source,
        lambda connection: statement(connection, lambda scan: query.run(connection, scan, selected)),
        ordered=query.ordered,
        text=lambda connection: statement(connection, lambda scan: query.text(scan, selected)),
    )
    return DeltaRetrievalJob(planned, config)
