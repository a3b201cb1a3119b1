# SPDX-License-Identifier: Apache-2.0
"""Feast offline store over Delta tables; ``offline_store.type`` in feature_store.yaml names the class below.

Data sources are Feast's own ``FileSource`` (Delta or Parquet), so the stock SDK and command line need only this class of the package.
Unlike the stock stores it keeps every spine row in spine order, and bounds memory whatever the size of the tables. On request it respects
each row's knowledge time.

Other packages change what the store does by a subclass of `DeltaOfflineStoreConfig`, in a module that also has the name
`DeltaOfflineStore`: its methods open sessions, writers and versions, and translate errors.
"""

from __future__ import annotations

import tempfile
import uuid
from contextlib import contextmanager
from datetime import datetime  # noqa: TC003 - pydantic reads it at run time
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pyarrow as pa
from feast.data_format import DeltaFormat
from feast.infra.offline_stores.file_source import FileLoggingDestination
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel
from feast.utils import compute_non_entity_date_range
from pydantic import Field, StrictStr

from feast_delta import monitoring, queries, retrieval
from feast_delta.columns import KnowledgeTime, source_columns
from feast_delta.errors import DeltaStoreError, SpillError, TableNotWritable
from feast_delta.retrieval_job import DeltaRetrievalJob, normalize_schema
from feast_delta.scan import Scan, open_delta_table, resolve_path
from feast_delta.sessions import duckdb_session, open_cursor
from feast_delta.spines import spine_from_rows
from feast_delta.writes import DeltaTableWriter, append_new_rows, table_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import date

    import pandas as pd
    from duckdb import DuckDBPyConnection
    from feast.data_source import DataSource
    from feast.feature_logging import LoggingConfig, LoggingSource
    from feast.feature_view import FeatureView
    from feast.infra.registry.base_registry import BaseRegistry
    from feast.repo_config import RepoConfig

    from feast_delta.delta_log import FilePart
    from feast_delta.writes import TableWriter


class DeltaOfflineStoreConfig(FeastConfigBaseModel):
    """The ``offline_store`` section of feature_store.yaml."""

    type: StrictStr = "feast_delta.DeltaOfflineStore"
    #: Access to an object store, as the deltalake package takes it. It also reads AWS_*, AZURE_* and GOOGLE_* by itself.
    storage_options: dict[str, str] = Field(default_factory=dict, repr=False)
    #: Memory limit of DuckDB before it spills.
    memory_mb: int = Field(default=1024, ge=64)
    #: Default: all cores, up to eight.
    threads: int | None = Field(default=None, ge=1)
    #: Parent of the spill folders; default: the system's temporary folder.
    spill: str | None = None
    #: Folder or URL below which a job's `to_remote_storage` writes Parquet files, as in Feast's DuckDB store. Default: it does not.
    staging_location: str | None = None
    #: Full paths or URLs of the Delta tables that may be written to. Default: any.
    writable: list[str] | None = None
    #: From when a row is known, unless a tag of its view or source says otherwise. ``event``: from its event time on; the creation time
    #: only breaks ties, as in Feast's own stores. ``created``: from its creation time on.
    knowledge_time: KnowledgeTime = "event"
    #: Read only rows known by this time (created <= known_by), except of views tagged as known by their event time.
    known_by: datetime | None = None
    #: Table → Delta version to read; the key is the table's full path, or its last part. Default: the latest version.
    versions: dict[str, int] = Field(default_factory=dict)
    #: Table → the `FilePart` to read, with a key as in ``versions``: for readers that divide a table among them. Default: all files.
    files: dict[str, Any] = Field(default_factory=dict, repr=False, exclude=True)
    #: Table's full path → keys of the entities whose latest rows are pulled. Tables that are not listed: all entities.
    entities: dict[str, Any] = Field(default_factory=dict, repr=False, exclude=True)
    #: An open DuckDB connection whose database runs the retrievals, see `open_cursor`. Default: one connection each.
    within: Any = Field(default=None, repr=False, exclude=True)

    @contextmanager
    def open_session(self, *, ordered: bool = False) -> Iterator[DuckDBPyConnection]:
        """Open a DuckDB connection within the limits of the settings, or a cursor of the one that is already open.

        Args:
            ordered: Keep table order in plain reads, at some cost in memory.

        Raises:
            SpillError: The spill folder cannot be created.
        """
        if self.within is not None and not ordered:
            with open_cursor(self.within) as connection:
                yield connection
            return
        with (
            self.spill_folder() as folder,
            duckdb_session(
                memory_mb=self.memory_mb, spill_folder=folder, threads=self.threads, preserve_order=ordered
            ) as connection,
        ):
            yield connection

    @contextmanager
    def spill_folder(self) -> Iterator[Path]:
        """Create a folder that only this user can enter, for rows that do not fit in memory, and remove it afterwards.

        Raises:
            SpillError: It cannot be created.
        """
        try:
            if self.spill is not None:
                Path(self.spill).mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(prefix="feast-delta-", dir=self.spill, ignore_cleanup_errors=True)
        except OSError as error:
            raise SpillError(
                f"rows cannot be spilled there: {error}",
                where=self.spill or tempfile.gettempdir(),
                next_step="name a folder of your own: spill in offline_store of feature_store.yaml, or TMPDIR",
            ) from error
        with folder as path:
            yield Path(path)

    def table_writer(self, path: str) -> TableWriter:
        """Return the access to a Delta table that rows are appended to.

        Args:
            path: Its full path or URL.

        Raises:
            TableNotWritable: ``writable`` does not name it.
        """
        if self.writable is not None and table_address(path) not in map(table_address, self.writable):
            raise TableNotWritable(
                "the table is not writable: only those that the settings name are",
                where=path,
                next_step="add its full path or URL to writable in offline_store of feature_store.yaml",
            )
        return DeltaTableWriter(path, self.storage_options)

    def pinned_version(self, path: str) -> int | None:
        """Return the Delta version of a table to read; None: the latest.

        Args:
            path: Its full path or URL.
        """
        return self.versions.get(path, self.versions.get(path.rstrip("/").rpartition("/")[2]))

    def files_to_read(self, path: str) -> FilePart | None:
        """Return the part of a table's files to read; None: all.

        Args:
            path: Its full path or URL.
        """
        return self.files.get(path, self.files.get(path.rstrip("/").rpartition("/")[2]))

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Enclose all that the store does. A subclass may raise other errors in place of `DeltaStoreError`."""
        yield


_Method = TypeVar("_Method", bound="Callable[..., Any]")


def _translated(method: _Method) -> _Method:
    """Run a method of the store within the settings' `DeltaOfflineStoreConfig.translate_errors`."""

    @wraps(method)
    def call(config: RepoConfig, *args: Any, **kwargs: Any) -> Any:
        with config.offline_store.translate_errors():
            return method(config, *args, **kwargs)

    return cast("_Method", call)


class DeltaOfflineStore(OfflineStore):
    """Read and write feature views in Delta tables, and read those in Parquet."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    @_translated
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | pa.Table | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        **kwargs: Any,
    ) -> DeltaRetrievalJob:
        """Join features to a spine point in time; without a spine, read the rows of a window.

        Args:
            config: Feast's settings.
            feature_views: The views that the references name.
            feature_refs: ``view:feature``.
            entity_df: The spine: a data frame of pandas or Polars, an Arrow table or stream, or a SQL query over the project's feature
                views by their names.
                None: the rows with ``start_date <= event time <= end_date``.
            registry: Feast's registry.
            project: Feast's project.
            full_feature_names: Name features ``view__feature``.
            kwargs: ``start_date`` and ``end_date`` without a spine. ``filter_by_created_timestamp``: a row is visible only from its
                creation time on, whatever ``knowledge_time`` and `KNOWLEDGE_TIME` say. Without a spine, it leaves out rows created
                after ``end_date``.

        Returns:
            A job that reads the views when its result is requested.

        Raises:
            DeltaStoreError: The spine lacks a key or a time, its types do not fit, or a table cannot be read.
        """
        requested = queries.requested_features(feature_views, feature_refs, project, registry)
        force_created = bool(kwargs.get("filter_by_created_timestamp"))
        if entity_df is None:
            first, last = compute_non_entity_date_range(feature_views, kwargs.get("start_date"), kwargs.get("end_date"))
            query, keys = retrieval.plan_window(
                config, requested, first, last, known_by_end=force_created, full_names=full_feature_names
            )
        else:
            entities: Callable[[], list[str]] | None = None
            if isinstance(entity_df, str):
                spine = retrieval.spine_from_query(config, entity_df, registry, project)
                entities = partial(retrieval.query_tables, config, entity_df, registry, project)
            else:
                spine = spine_from_rows(entity_df, config.offline_store)
            first, last = spine.first, spine.last
            options = queries.JoinOptions(full_names=full_feature_names, force_created=force_created)
            query = retrieval.plan_join(config, requested, spine, options, entities)
            keys = [name for name in spine.schema.names if name != spine.time_column]
        return DeltaRetrievalJob(
            query,
            config,
            full_feature_names=full_feature_names,
            metadata=RetrievalMetadata(features=feature_refs, keys=keys, min_event_timestamp=first, max_event_timestamp=last),
            on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
        )

    @staticmethod
    @_translated
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime | None,
        end_date: datetime | None,
    ) -> DeltaRetrievalJob:
        """Read each entity's latest row with ``start_date <= event time <= end_date``, for the online store."""
        columns = retrieval.pull_columns(join_key_columns, feature_name_columns, timestamp_field, created_timestamp_column)
        rows = retrieval.pulled_rows(config, data_source, timestamp_field, created_timestamp_column, (start_date, end_date))

        def query(connection: DuckDBPyConnection, scan: Scan, selected: list[tuple[str, str]]) -> str:
            entities = config.offline_store.entities.get(queries.source_path(config, data_source))
            return queries.latest_sql(
                connection,
                scan,
                selected,
                rows,
                keys=join_key_columns,
                features=feature_name_columns,
                subset=None
                if entities is None
                else queries.EntitySubset(entities, queries.newest_files_start_us(scan, timestamp_field, entities.num_rows)),
            )

        def text(scan: Scan, selected: list[tuple[str, str]]) -> str:
            return queries.latest_statement(scan, selected, rows, keys=join_key_columns, features=feature_name_columns)

        pull = retrieval.PullQuery(query, text, ordered=False)
        return retrieval.plan_pull(config, data_source, columns, pull, add_dummy_key=not join_key_columns)

    @staticmethod
    @_translated
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> DeltaRetrievalJob:
        """Read all rows with ``start_date <= event time <= end_date``."""
        columns = retrieval.pull_columns(join_key_columns, feature_name_columns, timestamp_field, created_timestamp_column)
        rows = retrieval.pulled_rows(config, data_source, timestamp_field, created_timestamp_column, (start_date, end_date))

        def text(scan: Scan, selected: list[tuple[str, str]]) -> str:
            return queries.window_sql(scan, selected, rows)

        pull = retrieval.PullQuery(lambda _, *read: text(*read), text, ordered=True)
        return retrieval.plan_pull(config, data_source, columns, pull, add_dummy_key=False)

    @staticmethod
    @_translated
    def offline_write_batch(
        config: RepoConfig, feature_view: FeatureView, table: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Append rows to a feature view's table, except rows it already has.

        Raises:
            DeltaStoreError: The rows do not match the table, or the table is not writable by the settings.
        """
        source, columns = feature_view.batch_source, source_columns(feature_view.batch_source)
        path = queries.source_path(config, source)
        if not isinstance(source.file_format, DeltaFormat):
            raise DeltaStoreError(
                "only Delta tables can be appended to", where=path, next_step="use a FileSource with DeltaFormat"
            )
        with config.offline_store.open_session() as connection:
            writer = config.offline_store.table_writer(path)
            append_new_rows(connection, path, writer, columns.rename_to_table(table), event=columns.event)
        if progress:
            progress(table.num_rows)

    @staticmethod
    @_translated
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,  # noqa: ARG004 - Feast's signature
        logging_config: LoggingConfig,
        registry: BaseRegistry,  # noqa: ARG004 - Feast's signature
    ) -> None:
        """Append a feature server's log to its folder, as one more Parquet file.

        Raises:
            DeltaStoreError: The destination is not a folder of files.
        """
        import pyarrow.dataset as ds

        destination = logging_config.destination
        if not isinstance(destination, FileLoggingDestination):
            raise DeltaStoreError(
                f"features cannot be logged to a {type(destination).__name__}",
                where="logging_config",
                next_step="use a FileLoggingDestination",
            )
        rows = ds.dataset(data, format="parquet").to_table() if isinstance(data, Path) else data
        ds.write_dataset(
            rows,
            resolve_path(destination.path, config.repo_path),
            format="parquet",
            basename_template=f"{uuid.uuid4().hex}-{{i}}.parquet",
            partitioning=destination.partition_by or None,
            existing_data_behavior="overwrite_or_ignore",
            use_threads=False,
        )

    @staticmethod
    @_translated
    def compute_monitoring_metrics(
        config: RepoConfig,
        data_source: DataSource,
        feature_columns: list[tuple[str, str]],
        timestamp_field: str,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        histogram_bins: int = 20,
        top_n: int = 10,
    ) -> list[dict[str, Any]]:
        """Compute counts, quantiles and histograms of features over a time range."""
        rows = queries.RowFilter(
            source_columns(data_source).column_name(timestamp_field),
            start_us=queries.optional_micros(start_date),
            end_us=queries.optional_micros(end_date),
        )
        return monitoring.compute_metrics(config, data_source, feature_columns, rows, bins=histogram_bins, top_values=top_n)

    @staticmethod
    @_translated
    def get_monitoring_max_timestamp(config: RepoConfig, data_source: DataSource, timestamp_field: str) -> datetime | None:
        """Return the latest event time of a source; None without rows."""
        return monitoring.latest_event_time(config, data_source, timestamp_field)

    @staticmethod
    @_translated
    def ensure_monitoring_tables(config: RepoConfig) -> None:
        """Create the tables of metrics if they do not exist."""
        monitoring.ensure_tables(config)

    @staticmethod
    @_translated
    def save_monitoring_metrics(config: RepoConfig, metric_type: str, metrics: list[dict[str, Any]]) -> None:
        """Store metrics; a metric with an existing key replaces it."""
        monitoring.save_metrics(config, metric_type, metrics)

    @staticmethod
    @_translated
    def query_monitoring_metrics(
        config: RepoConfig,
        project: str,
        metric_type: str,
        filters: dict[str, Any] | None = None,
        start_date: date | None = None,
        end_date: date | None = None,
    ) -> list[dict[str, Any]]:
        """Return a project's metrics by ascending date."""
        return monitoring.query_metrics(config, project, metric_type, filters=filters, start=start_date, end=end_date)

    @staticmethod
    @_translated
    def clear_monitoring_baseline(
        config: RepoConfig,
        project: str,
        feature_view_name: str | None = None,
        feature_name: str | None = None,
        data_source_type: str | None = None,
    ) -> None:
        """Unset the baseline flag of the matching metrics."""
        filters = {"feature_view_name": feature_view_name, "feature_name": feature_name, "data_source_type": data_source_type}
        monitoring.clear_baseline(config, project, **filters)

    def get_table_column_names_and_types_from_data_source(
        self, config: RepoConfig, data_source: DataSource
    ) -> Iterable[tuple[str, str]]:
        """Return names and Arrow types of a source's columns."""
        if not isinstance(data_source.file_format, DeltaFormat):
            return data_source.get_table_column_names_and_types(config)  # type: ignore[no-any-return]
        with config.offline_store.translate_errors():
            table = open_delta_table(queries.source_path(config, data_source), config.offline_store.storage_options)
        schema = normalize_schema(pa.schema(table.schema().to_arrow()))
        return [(field.name, str(field.type)) for field in schema]
