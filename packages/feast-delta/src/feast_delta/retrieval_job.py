# SPDX-License-Identifier: Apache-2.0
"""Feast retrieval job over DuckDB: lazy, and readable as a stream."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext
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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import pandas as pd
    from duckdb import DuckDBPyRelation
    from feast.on_demand_feature_view import OnDemandFeatureView
    from feast.saved_dataset import SavedDatasetStorage


_BATCH_ROWS = 65_536


class DeltaRetrievalJob(RetrievalJob):
    """A query that runs each time its result is requested.

    Args:
        run: Context manager that opens a DuckDB connection and yields the result as a lazy relation.
        full_feature_names: Whether features are named ``view__feature``.
        metadata: Features, keys and time range of a historical retrieval.
        on_demand_feature_views: Transformations that Feast applies to the result.
        repo_path: Base of the relative paths of saved datasets.
        storage_options: Access to an object store.
        translate_errors: See `DeltaOfflineStoreConfig.translate_errors`.
    """

    def __init__(
        self,
        run: Callable[[], AbstractContextManager[DuckDBPyRelation]],
        *,
        full_feature_names: bool = False,
        metadata: RetrievalMetadata | None = None,
        on_demand_feature_views: list[OnDemandFeatureView] | None = None,
        repo_path: str | None = None,
        storage_options: dict[str, str] | None = None,
        translate_errors: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        super().__init__()
        self._run = run
        self._full_feature_names = full_feature_names
        self._metadata = metadata
        self._on_demand_feature_views = on_demand_feature_views or []
        self._repo_path = repo_path
        self._storage_options = storage_options or {}
        self._translate_errors = translate_errors

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
        with self._translate_errors(), self._run() as relation:
            reader = relation.to_arrow_reader(_BATCH_ROWS)
            schema = normalize_schema(reader.schema)
            yield pa.RecordBatchReader.from_batches(schema, (batch.cast(schema) for batch in reader))

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002 - Feast's signature
        with self._translate_errors(), self._run() as relation:
            table = relation.to_arrow_table()
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
        with self._translate_errors():
            if not isinstance(storage, SavedDatasetFileStorage):
                raise DeltaStoreError(
                    f"a saved dataset cannot be stored as {type(storage).__name__}",
                    where="storage",
                    next_step="use feast.infra.offline_stores.file_source.SavedDatasetFileStorage",
                )
            options = storage.file_options
            path = resolve_path(options.uri, self._repo_path)
            if self.on_demand_feature_views:
                _write(self.to_arrow().to_reader(), path, options.file_format, self._storage_options, overwrite=allow_overwrite)
                return
            with self.stream() as reader:
                _write(reader, path, options.file_format, self._storage_options, overwrite=allow_overwrite)


def normalize_schema(schema: pa.Schema) -> pa.Schema:
    """Convert a schema to pyarrow's own types: DuckDB names a list's child ``l``, pyarrow ``item``."""
    return pa.schema([field.with_type(_plain(field.type)) for field in schema])


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return kind


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
