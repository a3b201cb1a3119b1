"""Feast's offline store over Delta tables: ``offline_store.type`` of a feature_store.yaml names the class below.

Data sources are Feast's own ``FileSource`` (Delta or Parquet), so that the stock SDK and command line need nothing of this
package but this class. What it keeps that the stock stores do not: every spine row, in spine order; the knowledge time of every
row; and memory that is bounded whatever the size of the tables.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import datetime  # noqa: TC003 - pydantic reads it at run time
from typing import TYPE_CHECKING, Any

from feast.data_format import DeltaFormat
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel
from feast.utils import compute_non_entity_date_range
from pydantic import Field, StrictStr

from scalr_prod.errors import FeatureStoreError
from scalr_prod.feast_store import reads
from scalr_prod.feast_store.asof import join_sql, match
from scalr_prod.feast_store.job import DeltaRetrievalJob, normalised
from scalr_prod.feast_store.scan import Scan, delta_table, literal, quote
from scalr_prod.feast_store.session import session
from scalr_prod.feast_store.spines import EVENT_TIMESTAMP, Spine, load_spine, to_spine
from scalr_prod.feast_store.writes import append_new_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    import pandas as pd
    import pyarrow as pa
    from feast.data_source import DataSource
    from feast.feature_view import FeatureView
    from feast.infra.registry.base_registry import BaseRegistry
    from feast.repo_config import RepoConfig

__all__ = ["DeltaOfflineStore", "DeltaOfflineStoreConfig"]


class DeltaOfflineStoreConfig(FeastConfigBaseModel):
    """The ``offline_store`` section of feature_store.yaml."""

    type: StrictStr = "scalr_prod.feast_store.offline_store.DeltaOfflineStore"
    #: Access to an object store, as the deltalake package takes it. It also reads AWS_*, AZURE_* and GOOGLE_* by itself.
    storage_options: dict[str, str] = Field(default_factory=dict, repr=False)
    #: What DuckDB may hold before it spills.
    memory_mb: int = Field(default=1024, ge=64)
    #: Default: all cores, at most eight.
    threads: int | None = Field(default=None, ge=1)
    #: Folder for what does not fit; default: the system's temporary folder.
    spill: str | None = None
    #: Read only what was known by this time (created <= known_by). Default: by each spine row's own time.
    known_by: datetime | None = None


class DeltaOfflineStore(OfflineStore):
    """Reads and writes feature views that lie in Delta tables (and reads those in Parquet)."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(  # noqa: PLR0917 - Feast's signature
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | pa.Table | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        **kwargs: Any,
    ) -> DeltaRetrievalJob:
        """Join features to a spine, point in time; without a spine, read the rows of a window.

        Args:
            config: Feast's settings.
            feature_views: The views that the references name.
            feature_refs: ``view:feature``.
            entity_df: The spine: a data frame, an Arrow table, or a SQL query over the project's feature views by their names.
                None: the rows with ``start_date <= event time <= end_date``.
            registry: Feast's registry.
            project: Feast's project.
            full_feature_names: Call features ``view__feature``.
            kwargs: ``start_date`` and ``end_date`` without a spine. ``filter_by_created_timestamp`` changes nothing with a
                spine, where knowledge time always counts; without one it leaves out what was not known by ``end_date``.

        Returns:
            A job that reads nothing of the views before its result is asked for.

        Raises:
            FeatureStoreError: The spine lacks a key or a time, its types do not fit, or a table cannot be read.
        """
        wanted = reads.wanted_features(feature_views, feature_refs, project, registry)
        if entity_df is None:
            first, last = compute_non_entity_date_range(feature_views, kwargs.get("start_date"), kwargs.get("end_date"))
            strict = bool(kwargs.get("filter_by_created_timestamp"))
            run, keys = _window(config, wanted, first, last, known_by_end=strict, full=full_feature_names)
        else:
            spine = _run_query(config, entity_df, registry, project) if isinstance(entity_df, str) else to_spine(entity_df)
            first, last = spine.first, spine.last
            run = _joined(config, wanted, spine, full=full_feature_names)
            keys = [name for name in spine.table.schema.names if name != spine.time]
        return DeltaRetrievalJob(
            run,
            full_feature_names=full_feature_names,
            metadata=RetrievalMetadata(features=feature_refs, keys=keys, min_event_timestamp=first, max_event_timestamp=last),
            on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            repo_path=str(config.repo_path) if config.repo_path else None,
            storage_options=config.offline_store.storage_options,
        )

    @staticmethod
    def pull_latest_from_table_or_query(  # noqa: PLR0917 - Feast's signature
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime | None,
        end_date: datetime | None,
    ) -> DeltaRetrievalJob:
        """Each entity's latest row with ``start_date <= event time <= end_date``, for the online store."""
        columns = _columns(join_key_columns, feature_name_columns, timestamp_field, created_timestamp_column)

        def query(scan: Scan, selected: list[tuple[str, str]]) -> str:
            return reads.latest_sql(
                scan,
                selected,
                keys=join_key_columns,
                event=timestamp_field,
                created=created_timestamp_column or None,
                start_us=reads.microseconds(start_date),
                end_us=reads.microseconds(end_date),
                known_by_us=reads.microseconds(config.offline_store.known_by),
            )

        return _pull(config, data_source, columns, query, dummy=not join_key_columns)

    @staticmethod
    def pull_all_from_table_or_query(  # noqa: PLR0917 - Feast's signature
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> DeltaRetrievalJob:
        """All rows with ``start_date <= event time <= end_date``."""
        columns = _columns(join_key_columns, feature_name_columns, timestamp_field, created_timestamp_column)

        def query(scan: Scan, selected: list[tuple[str, str]]) -> str:
            return reads.window_sql(
                scan,
                selected,
                event=timestamp_field,
                created=created_timestamp_column or None,
                start_us=reads.microseconds(start_date),
                end_us=reads.microseconds(end_date),
                known_by_us=reads.microseconds(config.offline_store.known_by),
            )

        return _pull(config, data_source, columns, query, dummy=False)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig, feature_view: FeatureView, table: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Append rows to a feature view's table; rows that are there already are not added again.

        Raises:
            FeatureStoreError: The rows do not fit the table, or the table cannot be written.
        """
        source = feature_view.batch_source
        path = reads.source_path(config, source)
        if not isinstance(source.file_format, DeltaFormat):
            raise FeatureStoreError(
                "only Delta tables can be appended to", where=path, next_step="use a FileSource with DeltaFormat"
            )
        with _session(config) as connection:
            append_new_rows(connection, path, config.offline_store.storage_options, table, event=source.timestamp_field)
        if progress:
            progress(table.num_rows)

    def get_table_column_names_and_types_from_data_source(
        self, config: RepoConfig, data_source: DataSource
    ) -> Iterable[tuple[str, str]]:
        """Names and Arrow types of a source's columns."""
        if not isinstance(data_source.file_format, DeltaFormat):
            return data_source.get_table_column_names_and_types(config)  # type: ignore[no-any-return]
        import pyarrow as pa

        table = delta_table(reads.source_path(config, data_source), config.offline_store.storage_options)
        schema = normalised(pa.schema(table.schema().to_arrow()))
        return [(field.name, str(field.type)) for field in schema]


def _session(config: RepoConfig, *, ordered: bool = False) -> AbstractContextManager[Any]:
    options = config.offline_store
    return session(memory_mb=options.memory_mb, threads=options.threads, spill=options.spill, ordered=ordered)


def _joined(
    config: RepoConfig, wanted: dict[FeatureView, list[str]], spine: Spine, *, full: bool
) -> Callable[[], AbstractContextManager[Any]]:
    known_by_us = reads.microseconds(config.offline_store.known_by)

    @contextmanager
    def run() -> Iterator[Any]:
        with _session(config) as connection:
            load_spine(connection, spine)
            yield _join(connection, config, wanted, spine.table.schema, known_by_us, full=full)

    return run


def _join(
    connection: Any,
    config: RepoConfig,
    wanted: dict[FeatureView, list[str]],
    spine: pa.Schema,
    known_by_us: int | None,
    *,
    full: bool,
) -> Any:
    views = [
        reads.view_join(connection, config, view, names, spine, number=number, full=full)
        for number, (view, names) in enumerate(wanted.items())
    ]
    reads.check_names(spine.names, views)
    for number, view in enumerate(views):
        match(connection, view, number, known_by_us)
    return connection.sql(join_sql(spine.names, views))


def _window(
    config: RepoConfig,
    wanted: dict[FeatureView, list[str]],
    first: datetime,
    last: datetime,
    *,
    known_by_end: bool,
    full: bool,
) -> tuple[Callable[[], AbstractContextManager[Any]], list[str]]:
    """Without a spine: one view's rows of a window."""
    known_by = config.offline_store.known_by
    if known_by_end:
        known_by = last if known_by is None else min(known_by, last)
    if len(wanted) != 1:
        raise FeatureStoreError(
            f"without a spine one feature view can be read at a time, not {len(wanted)}",
            where=", ".join(view.name for view in wanted),
            next_step="read one view's window, and join the others to its rows as a spine",
        )
    ((view, names),) = wanted.items()
    source = view.batch_source
    column_of = {new: old for old, new in source.field_mapping.items()}
    keys = reads.join_keys(view)
    prefix = f"{view.projection.name_to_use()}__" if full else ""
    created = source.created_timestamp_column or None
    columns = [
        *((column_of.get(key, key), name) for key, name in keys.items()),
        (source.timestamp_field, EVENT_TIMESTAMP),
        *((column_of.get(name, name), f"{prefix}{name}") for name in names),
        *([(created, created)] if created else []),
    ]

    @contextmanager
    def run() -> Iterator[Any]:
        with _session(config, ordered=True) as connection:
            scan = reads.open_source(connection, config, source, "source_0", [column for column, _ in columns])
            query = reads.window_sql(
                scan,
                columns,
                event=source.timestamp_field,
                created=created,
                start_us=reads.microseconds(first),
                end_us=reads.microseconds(last),
                known_by_us=reads.microseconds(known_by),
            )
            yield connection.sql(query)

    return run, list(keys.values())


def _run_query(config: RepoConfig, query: str, registry: BaseRegistry, project: str) -> Spine:
    """A spine from a SQL query over the project's feature views."""
    import duckdb

    with _session(config, ordered=True) as connection:
        for view in registry.list_feature_views(project):
            # Each named view is opened only if the query can mean it: opening one reads its Delta log.
            if view.name in query:
                scan = reads.open_source(connection, config, view.batch_source, f"source_{view.name}", [])
                connection.execute(f"CREATE TEMP VIEW {quote(view.name)} AS SELECT * FROM {scan.relation}")
        try:
            rows = connection.sql(query).to_arrow_table()
        except duckdb.Error as error:
            raise FeatureStoreError(
                f"the spine's query failed: {error}", where="entity_df", next_step="correct the query"
            ) from error
    return to_spine(rows)


def _columns(keys: list[str], features: list[str], event: str, created: str | None) -> list[str]:
    return list(dict.fromkeys([*keys, *features, event, *([created] if created else [])]))


def _pull(
    config: RepoConfig,
    source: DataSource,
    columns: list[str],
    query: Callable[[Scan, list[tuple[str, str]]], str],
    *,
    dummy: bool,
) -> DeltaRetrievalJob:
    @contextmanager
    def run() -> Iterator[Any]:
        with _session(config, ordered=True) as connection:
            scan = reads.open_source(connection, config, source, "source_0", columns)
            sql = query(scan, [(column, column) for column in columns])
            if dummy:
                sql = f"SELECT *, {literal(DUMMY_ENTITY_VAL)} AS {quote(DUMMY_ENTITY_ID)} FROM ({sql})"
            yield connection.sql(sql)

    return DeltaRetrievalJob(
        run,
        repo_path=str(config.repo_path) if config.repo_path else None,
        storage_options=config.offline_store.storage_options,
    )
