# SPDX-License-Identifier: Apache-2.0
"""Lazy retrievals of the offline store: tables are opened when a result is requested, and closed afterwards."""

from __future__ import annotations

import getpass
import logging
import tempfile
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL

from scalr_prod.core.file_modes import make_private_folder
from scalr_prod.errors import FeatureStoreError, LakeError
from scalr_prod.features import queries
from scalr_prod.features.columns import KNOWLEDGE_TIME, source_columns
from scalr_prod.features.point_in_time import count_not_yet_known, join_sql, match_rows, prune
from scalr_prod.features.retrieval_job import DeltaRetrievalJob
from scalr_prod.features.spines import EVENT_TIMESTAMP, EntitySpine, register_spine, spine_from_rows
from scalr_prod.workspace import (
    configure_connection,
    duckdb_session,
    is_home,
    quote_identifier,
    quote_literal,
    temporary_folder,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    import pyarrow as pa
    from duckdb import DuckDBPyConnection, DuckDBPyRelation
    from feast.data_source import DataSource
    from feast.feature_view import FeatureView
    from feast.infra.registry.base_registry import BaseRegistry
    from feast.repo_config import RepoConfig

    from scalr_prod.features.scan import Scan


logger = logging.getLogger(__name__)

#: Opens a DuckDB connection and yields the result as a lazy relation.
QueryRunner: TypeAlias = "Callable[[], AbstractContextManager[DuckDBPyRelation]]"


@contextmanager
def open_session(
    *, memory_mb: int, threads: int | None, spill: str | None, ordered: bool = False
) -> Iterator[DuckDBPyConnection]:
    """Open an in-memory DuckDB connection in UTC.

    Args:
        memory_mb: Memory limit, see `duckdb_session`.
        threads: Default: all cores, up to eight.
        spill: Parent of the temporary spill folder; default: the system's temporary folder.
        ordered: Keep table order in plain reads, at some cost in memory.

    Raises:
        LakeError: Another user has taken the name of this user's folder there, or it cannot be created.
    """
    root = Path(spill or tempfile.gettempdir())
    if not is_home(root.parent):  # a shared folder: use a subfolder that no other user can enter
        root /= f"scalr-feast-{getpass.getuser()}"
        try:
            make_private_folder(root)
        except OSError as error:
            raise LakeError(
                f"rows cannot be spilled there: {error}",
                where=str(root),
                next_step="name a folder of your own: spill in offline_store of feature_store.yaml, or TMPDIR",
            ) from error
    with (
        temporary_folder(root, "feast-") as folder,
        duckdb_session(memory_mb=memory_mb, spill_folder=folder, threads=threads, preserve_order=ordered) as connection,
    ):
        yield connection


@contextmanager
def open_cursor(parent: DuckDBPyConnection) -> Iterator[DuckDBPyConnection]:
    """Open a second connection to an open database; its temporary objects are dropped when it is closed.

    It reuses what DuckDB has already loaded, such as time zones and Parquet footers.

    Args:
        parent: The open connection; memory, threads and spill folder are shared.
    """
    with closing(parent.cursor()) as connection:
        configure_connection(connection)
        yield connection


def open_duckdb_session(config: RepoConfig, *, ordered: bool = False) -> AbstractContextManager[DuckDBPyConnection]:
    """Open a DuckDB connection within the limits of feature_store.yaml, or a cursor of the one that is already open."""
    options = config.offline_store
    if options.within is not None and not ordered:
        return open_cursor(options.within)
    return open_session(memory_mb=options.memory_mb, threads=options.threads, spill=options.spill, ordered=ordered)


def plan_join(
    config: RepoConfig, requested: dict[FeatureView, list[str]], spine: EntitySpine, options: queries.JoinOptions
) -> QueryRunner:
    """Plan a point-in-time join of features to a spine."""

    @contextmanager
    def run() -> Iterator[DuckDBPyRelation]:
        with open_duckdb_session(config) as connection:
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
        FeatureStoreError: The views have different keys.
    """
    start_us, end_us = queries.optional_micros(first), queries.optional_micros(last)
    options = queries.JoinOptions(full_names=full_names, created_until_us=end_us if known_by_end else None)
    keys = [sorted(queries.join_keys(view).values()) for view in requested]
    if any(other != keys[0] for other in keys):
        raise FeatureStoreError(
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
        limit_us = queries.earliest(queries.known_by_us(config, source, view), options.created_until_us)
        return queries.window_sql(
            scan, selected, queries.RowFilter(columns.event, columns.created, start_us, end_us, known_by_us=limit_us)
        )

    @contextmanager
    def run() -> Iterator[DuckDBPyRelation]:
        with open_duckdb_session(config, ordered=True) as connection:
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
        FeatureStoreError: The query fails, or its result is no spine.
    """
    import duckdb

    with open_duckdb_session(config, ordered=True) as connection:
        for view in registry.list_feature_views(project):
            # Open only views whose name occurs in the query: opening reads the Delta log.
            if view.name in query:
                scan = queries.open_source(connection, config, view.batch_source, f"source_{view.name}", [])
                connection.execute(f"CREATE TEMP VIEW {quote_identifier(view.name)} AS SELECT * FROM {scan.relation}")
        try:
            rows = connection.sql(query).to_arrow_table()
        except duckdb.Error as error:
            raise FeatureStoreError(
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
    known_by_us = queries.known_by_us(config, source)
    return queries.RowFilter(event, created or None, start_us=start_us, end_us=end_us, known_by_us=known_by_us)


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
        with open_duckdb_session(config, ordered=ordered) as connection:
            scan = queries.open_source(connection, config, source, "source_0", columns)
            sql = query(connection, scan, [(column, column) for column in columns])
            if add_dummy_key:
                sql = f"SELECT *, {quote_literal(DUMMY_ENTITY_VAL)} AS {quote_identifier(DUMMY_ENTITY_ID)} FROM ({sql})"
            yield connection.sql(sql)

    return DeltaRetrievalJob(
        run,
        repo_path=str(config.repo_path) if config.repo_path else None,
        storage_options=config.offline_store.storage_options,
    )
