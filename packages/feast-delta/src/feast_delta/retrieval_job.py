# SPDX-License-Identifier: Apache-2.0
"""Feast retrieval job over DuckDB: lazy, and readable as a stream."""

from __future__ import annotations

import shutil
import uuid
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from feast.data_format import DeltaFormat
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata

from feast_delta.errors import DeltaStoreError
from feast_delta.scan import resolve_path
from feast_delta.spines import BATCH_ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import pandas as pd
    from duckdb import DuckDBPyRelation
    from feast.on_demand_feature_view import OnDemandFeatureView
    from feast.repo_config import RepoConfig
    from feast.saved_dataset import SavedDatasetStorage


#: Rows of an exported file, at most.
_FILE_ROWS = 2**20
_PART = "part-"


@dataclass(frozen=True)
class RetrievalQuery:
    """A query of the offline store.

    Attributes:
        run: Opens a DuckDB session and yields the result as lazy relations, which are read one after the other.
        text: Returns the query as one statement; None: it is none.
    """

    run: Callable[[], AbstractContextManager[Iterator[DuckDBPyRelation]]]
    text: Callable[[], str] | None = None


class DeltaRetrievalJob(RetrievalJob):
    """A query that runs each time its result is requested.

    Args:
        query: The query.
        config: Feast's settings.
        full_feature_names: Whether features are named ``view__feature``.
        metadata: Features, keys and time range of a historical retrieval.
        on_demand_feature_views: Transformations that Feast applies to the result.
    """

    def __init__(
        self,
        query: RetrievalQuery,
        config: RepoConfig,
        *,
        full_feature_names: bool = False,
        metadata: RetrievalMetadata | None = None,
        on_demand_feature_views: list[OnDemandFeatureView] | None = None,
    ) -> None:
        super().__init__()
        self._query = query
        self._full_feature_names = full_feature_names
        self._metadata = metadata
        self._on_demand_feature_views = on_demand_feature_views or []
        self._repo_path = str(config.repo_path) if config.repo_path else None
        self._settings = config.offline_store

    @property
    def full_feature_names(self) -> bool:
        """Whether features are named ``view__feature``."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """Transformations that Feast applies to the result."""
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """Features, keys and time range; None for a plain read of a table."""
        return self._metadata

    @contextmanager
    def stream(self) -> Iterator[pa.RecordBatchReader]:
        """Stream the result in batches, without on-demand features; memory does not grow with the result."""
        with self._settings.translate_errors(), self._query.run() as relations:
            first = next(relations).to_arrow_reader(BATCH_ROWS)
            schema = normalize_schema(first.schema)
            readers = chain([first], (relation.to_arrow_reader(BATCH_ROWS) for relation in relations))
            yield pa.RecordBatchReader.from_batches(schema, (batch.cast(schema) for reader in readers for batch in reader))

    def to_sql(self) -> str:
        """Return the query as one DuckDB statement, which gives the result without on-demand features.

        It reads the files that the tables have now, in a session after ``SET TimeZone = 'UTC'``, and may be slower than the job. A spine
        that was not given as SQL is the table ``entity_df``: DuckDB by itself finds a data frame in a variable of this name.

        Raises:
            DeltaStoreError: A table is not on a local disk, or several views are read without a spine.
        """
        if self._query.text is None:
            raise DeltaStoreError(
                "several views that are read without a spine are no single statement",
                where="to_sql",
                next_step="pass the spine as entity_df, or ask for one view",
            )
        with self._settings.translate_errors():
            return self._query.text()

    def supports_remote_storage_export(self) -> bool:
        """Whether the settings have a ``staging_location``."""
        return self._settings.staging_location is not None

    def to_remote_storage(self) -> list[str]:
        """Write the result to Parquet files in a new folder of ``staging_location``, batch by batch.

        Returns:
            The paths or URLs of the files, in the order of their rows; without rows there may be none.

        Raises:
            DeltaStoreError: The settings have no ``staging_location``.
        """
        with self._settings.translate_errors():
            if self._settings.staging_location is None:
                raise DeltaStoreError(
                    "the result cannot be exported: the settings do not say where to",
                    where="staging_location",
                    next_step="set staging_location in offline_store of feature_store.yaml to a folder or a URL",
                )
            root = resolve_path(self._settings.staging_location, self._repo_path)
            if self.on_demand_feature_views:
                return _export(self.to_arrow().to_reader(), root, self._settings.storage_options)
            with self.stream() as reader:
                return _export(reader, root, self._settings.storage_options)

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002 - Feast's signature
        with self._settings.translate_errors(), self._query.run() as relations:
            table = pa.concat_tables([relation.to_arrow_table() for relation in relations])
        return table.cast(normalize_schema(table.schema))

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

    def persist(
        self,
        storage: SavedDatasetStorage,
        allow_overwrite: bool = False,
        timeout: int | None = None,  # noqa: ARG002 - Feast's signature
    ) -> None:
        """Write the result to Parquet (a file or a folder) or Delta, batch by batch.

        Raises:
            SavedDatasetLocationAlreadyExists: The location exists, and may not be overwritten.
            DeltaStoreError: The storage is not file storage.
        """
        with self._settings.translate_errors():
            if not isinstance(storage, SavedDatasetFileStorage):
                raise DeltaStoreError(
                    f"a saved dataset cannot be stored as {type(storage).__name__}",
                    where="storage",
                    next_step="use feast.infra.offline_stores.file_source.SavedDatasetFileStorage",
                )
            options = storage.file_options
            path = resolve_path(options.uri, self._repo_path)
            if self.on_demand_feature_views:
                _write(
                    self.to_arrow().to_reader(),
                    path,
                    options.file_format,
                    self._settings.storage_options,
                    overwrite=allow_overwrite,
                )
                return
            with self.stream() as reader:
                _write(reader, path, options.file_format, self._settings.storage_options, overwrite=allow_overwrite)


def normalize_schema(schema: pa.Schema) -> pa.Schema:
    """Convert a schema to pyarrow's own types: DuckDB names a list's child ``l``, pyarrow ``item``."""
    return pa.schema([field.with_type(_plain(field.type)) for field in schema])


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return kind


def _export(reader: pa.RecordBatchReader, root: str, storage_options: dict[str, str]) -> list[str]:
    """Write rows to Parquet files in a new folder, and return their paths or URLs."""
    import pyarrow.dataset as ds
    from pyarrow.fs import LocalFileSystem, PyFileSystem

    name = uuid.uuid4().hex
    if "://" in root:
        from deltalake.fs import DeltaStorageHandler

        # Object stores as the tables' own: pyarrow's file systems do not know the settings' storage_options.
        filesystem, folder = PyFileSystem(DeltaStorageHandler(root, storage_options or None)), name
    else:
        filesystem, folder = LocalFileSystem(), str(Path(root) / name)
    written: list[str] = []
    try:
        ds.write_dataset(
            reader,
            folder,
            format="parquet",
            filesystem=filesystem,
            basename_template=f"{_PART}{{i}}.parquet",
            max_rows_per_file=_FILE_ROWS,
            max_rows_per_group=_FILE_ROWS,
            use_threads=False,
            file_visitor=lambda file: written.append(file.path),
        )
    except BaseException:
        if "://" not in root:
            shutil.rmtree(folder, ignore_errors=True)
        for path in written if "://" in root else ():
            filesystem.delete_file(path)
        raise
    # Files are ended in any order.
    written.sort(key=lambda path: int(path.rpartition(_PART)[2].removesuffix(".parquet")))
    return [f"{root.rstrip('/')}/{path}" if "://" in root else path for path in written]


def _write(
    reader: pa.RecordBatchReader, path: str, file_format: Any, storage_options: dict[str, str], *, overwrite: bool
) -> None:
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    if isinstance(file_format, DeltaFormat):
        from deltalake import DeltaTable, write_deltalake

        if not overwrite and DeltaTable.is_deltatable(path, storage_options=storage_options or None):
            raise SavedDatasetLocationAlreadyExists(location=path)
        write_deltalake(path, reader, mode="overwrite", schema_mode="overwrite", storage_options=storage_options or None)
        return
    if "://" in path:
        from pyarrow.fs import FileSystem

        filesystem, inner = FileSystem.from_uri(path)
        exists = filesystem.get_file_info(inner).type.name != "NotFound"
    else:
        filesystem, inner = None, path
        exists = Path(path).exists()
    if exists and not overwrite:
        raise SavedDatasetLocationAlreadyExists(location=path)
    if path.endswith(".parquet"):
        with ExitStack() as stack:
            if filesystem is None:  # object stores publish a file only when it is complete
                final = Path(path)
                final.parent.mkdir(parents=True, exist_ok=True)
                unfinished = stack.enter_context(TemporaryDirectory(prefix=f".{final.name}.", dir=final.parent))
                inner = str(Path(unfinished) / final.name)
            with pq.ParquetWriter(inner, reader.schema, filesystem=filesystem) as writer:
                for batch in reader:
                    writer.write_batch(batch)
            if filesystem is None:
                Path(inner).replace(path)
        return
    if filesystem is None and Path(path).is_dir() and any(not file.match("part-*.parquet") for file in Path(path).iterdir()):
        raise SavedDatasetLocationAlreadyExists(location=path)  # it holds files of something else
    ds.write_dataset(
        reader, inner, format="parquet", filesystem=filesystem, existing_data_behavior="delete_matching", use_threads=False
    )
