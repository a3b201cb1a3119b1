# SPDX-License-Identifier: Apache-2.0
"""DuckDB scans of Delta tables and Parquet files.

Local Delta tables are read as the Parquet files that their log lists. DuckDB then identifies a row by file and position, and the join can
carry that number instead of the row. DuckDB's Delta extension is not used, because it is downloaded at run time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from feast_delta.delta_log import (
    GLOB_CHARACTERS,
    arrow_schema,
    duckdb_readable_files,
    file_part_dataset,
    files_dataset,
    files_have_all_columns,
)
from feast_delta.errors import DeltaStoreError, TableMissing
from feast_delta.sessions import quote_identifier, quote_literal, read_parquet_sql

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from deltalake import DeltaTable
    from duckdb import DuckDBPyConnection

    from feast_delta.delta_log import FilePart


#: Bits of the position within a file; the file's number is in the bits above.
_POSITION_BITS = 40


@dataclass(frozen=True)
class Scan:
    """A relation to select from, with its schema and row ids.

    Attributes:
        relation: SQL for a FROM clause.
        schema: Arrow schema of all of its columns.
        row_id: SQL expression (BIGINT), unique per row.
        table: The Delta table, or None if it is not one.
        files: Number of files that each query reads; 0: the rows were copied.
    """

    relation: str
    schema: pa.Schema
    row_id: str
    table: DeltaTable | None = None
    files: int = 0


def resolve_path(path: str, repo_path: Path | str | None) -> str:
    """Resolve a source's path: URLs are unchanged, relative paths start from the repository."""
    if "://" in path or repo_path is None:
        return path
    return str(Path(repo_path) / path)


def open_delta_table(path: str, storage_options: dict[str, str], version: int | None = None) -> DeltaTable:
    """Open a Delta table, at its latest or a given version.

    Raises:
        TableMissing: There is no table at this path.
        DeltaStoreError: There is no such version, or it cannot be read.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    try:
        return DeltaTable(path, version=version, storage_options=storage_options or None)
    except TableNotFoundError as error:
        raise TableMissing(
            "the feature view's table does not exist yet",
            where=path,
            next_step="create the table, or correct its source's path",
        ) from error
    except Exception as error:
        # deltalake raises many exception types (DeltaError, OSError, Rust panics as Exception).
        raise DeltaStoreError(
            f"the feature view's table cannot be read{'' if version is None else f' at version {version}'}: {error}",
            where=path,
            next_step="check the path and the access to it",
        ) from error


def scan_delta(
    connection: DuckDBPyConnection,
    table: DeltaTable,
    alias: str,
    columns: Sequence[str] | None = None,
    *,
    file_names: frozenset[str] | None = None,
    part: FilePart | None = None,
    rows_sql: str = "true",
) -> Scan:
    """Make a Delta table selectable in this DuckDB connection.

    Args:
        connection: The DuckDB connection.
        table: The table.
        alias: A name that is unique in the connection.
        columns: The columns to copy if the table cannot be read in place; default: all.
        file_names: Read only these files, see `delta_log`.
        part: Of those files, read only this part.
        rows_sql: SQL condition of the rows to copy if the table cannot be read in place.
    """
    schema = arrow_schema(table)
    if part is not None:
        chosen = [name for name in part.names if file_names is None or name in file_names]
        if part.parts > 1:  # DuckDB cannot be told which row groups to read
            rows = file_part_dataset(table, part._replace(names=tuple(chosen)))
            return replace(_copy(connection, rows, alias, columns, rows_sql), table=table)
        file_names = frozenset(chosen)
    files = duckdb_readable_files(table)
    if files is not None and file_names is not None:
        prefix = unquote(urlparse(table.table_uri).path).rstrip("/") + "/"
        decoded = {unquote(name) for name in file_names}
        files = [file for file in files if file.removeprefix(prefix) in decoded]
    if files == []:
        connection.register(alias, schema.empty_table())
        return Scan(quote_identifier(alias), schema, "0::BIGINT")
    if files is not None:
        relation = read_parquet_sql(files, union_by_name=not files_have_all_columns(table))
        return Scan(relation, schema, _file_row_id(), table, len(files))
    return replace(_copy(connection, files_dataset(table, file_names), alias, columns, rows_sql), table=table)


def scan_parquet(connection: DuckDBPyConnection, path: str, alias: str, columns: Sequence[str] | None = None) -> Scan:
    """Make a Parquet file or folder selectable in DuckDB; URLs are read through pyarrow.

    Raises:
        DeltaStoreError: There is no Parquet at this path.
    """
    import pyarrow.dataset as ds

    try:
        if "://" in path:
            from pyarrow.fs import FileSystem

            filesystem, inner = FileSystem.from_uri(path)
            dataset = ds.dataset(inner, format="parquet", filesystem=filesystem)
        else:
            dataset = ds.dataset(path, format="parquet")
    except (OSError, ValueError) as error:
        raise DeltaStoreError(
            f"cannot be read as Parquet: {error}", where=path, next_step="check the path and the access to it"
        ) from error
    files = list(dataset.files)
    if not files:
        connection.register(alias, dataset.schema.empty_table())
        return Scan(quote_identifier(alias), dataset.schema, "0::BIGINT")
    if "://" not in path and not any(GLOB_CHARACTERS & set(file) for file in files):
        relation = f"read_parquet([{', '.join(quote_literal(file) for file in files)}], hive_partitioning = false)"
        return Scan(relation, dataset.schema, _file_row_id(), files=len(files))
    return _copy(connection, dataset, alias, columns)


def _file_row_id() -> str:
    return f"((file_index::BIGINT << {_POSITION_BITS}) + file_row_number)"


def _copy(
    connection: DuckDBPyConnection, dataset: Any, alias: str, columns: Sequence[str] | None, rows_sql: str = "true"
) -> Scan:
    """Copy the columns into a temporary DuckDB table, which can spill and has row ids."""
    names = [name for name in dataset.schema.names if columns is None or name in set(columns)]
    connection.register(f"{alias}_dataset", dataset)
    selected = ", ".join(quote_identifier(name) for name in names)
    connection.execute(
        f"CREATE TEMP TABLE {quote_identifier(alias)} AS SELECT {selected} FROM {quote_identifier(f'{alias}_dataset')} "
        f"WHERE {rows_sql}"
    )
    connection.unregister(f"{alias}_dataset")
    return Scan(quote_identifier(alias), dataset.schema, "rowid")
