# SPDX-License-Identifier: Apache-2.0
"""Idempotent appends to a feature view's table."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from feast_delta.errors import DeltaStoreError, WriteFailed
from feast_delta.retrieval_job import normalize_schema
from feast_delta.scan import open_delta_table, scan_delta
from feast_delta.sessions import quote_identifier

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from duckdb import DuckDBPyConnection


_ATTEMPTS = 5


class TableWriter(Protocol):
    """Access to one table for appends."""

    def open_table(self) -> DeltaTable:
        """Open the table at its latest version."""

    def append(self, rows: pa.Table, *, key: str, version: int) -> None:
        """Append rows once per key, only on top of a version.

        Args:
            rows: Rows in the table's schema.
            key: Idempotency key.
            version: The table's version that the rows were compared with.

        Raises:
            WriteFailed: Nothing was written.
        """


class DeltaTableWriter:
    """Access to any Delta table.

    Args:
        path: Its path or URL.
        storage_options: Access to an object store.
    """

    def __init__(self, path: str, storage_options: dict[str, str]) -> None:
        self.path, self.storage_options = path, storage_options

    def open_table(self) -> DeltaTable:
        """Open the table at its latest version."""
        return open_delta_table(self.path, self.storage_options)

    def append(self, rows: pa.Table, *, key: str, version: int) -> None:
        """Append rows once per key, only on top of a version; see `TableWriter.append`."""
        from deltalake import CommitProperties, Transaction, write_deltalake

        delta = self.open_table()
        if delta.version() != version:
            raise WriteFailed(
                f"the table is at version {delta.version()}, the rows were compared with {version}",
                where=self.path,
                next_step="write the rows again",
            )
        # Of two commits with one app id that start from the same version, only one succeeds.
        guard = [Transaction(key, 1), Transaction("feast-delta-expected-version", version)]
        try:
            write_deltalake(delta, rows, mode="append", commit_properties=CommitProperties(app_transactions=guard))
        except Exception as error:
            # deltalake raises many exception types; only the log shows whether the commit succeeded.
            if self.open_table().transaction_version(key) is None:
                raise WriteFailed(
                    f"nothing was written: {error}", where=self.path, next_step="fix the problem above and write the rows again"
                ) from error


def append_new_rows(connection: DuckDBPyConnection, path: str, writer: TableWriter, rows: pa.Table, *, event: str) -> int:
    """Append the rows that the table does not have yet; rows are equal if all columns are.

    Args:
        connection: A DuckDB connection.
        path: The Delta table, for errors.
        writer: Access to it.
        rows: The rows, with exactly the table's columns.
        event: Column of the event time; only the rows' time range of the table is compared.

    Returns:
        Number of rows added.

    Raises:
        DeltaStoreError: The rows do not match the table.
        WriteFailed: Nothing was written.
    """
    for attempt in range(_ATTEMPTS):
        delta = writer.open_table()
        cast = _cast_to_table(rows, delta, path)
        new = _missing(connection, delta, cast, event, f"written_{attempt}")
        if not new.num_rows:
            return 0
        try:
            writer.append(new, key=_content_key(new, delta.version()), version=delta.version())
        except WriteFailed:
            # Another writer may have committed first: compare again and retry.
            if attempt + 1 == _ATTEMPTS or writer.open_table().version() == delta.version():
                raise
            continue
        return int(new.num_rows)
    return 0


def table_address(path: str) -> str:
    """Normalize a path or URL: ``file://``, relative paths, symbolic links and trailing slashes."""
    parts = urlsplit(path)
    if parts.scheme in {"", "file"} or "://" not in path:
        return str(Path(unquote(parts.path) if parts.scheme == "file" else path).resolve())
    return f"{parts.scheme.lower()}://{parts.netloc}/{parts.path.strip('/')}"


def _cast_to_table(rows: pa.Table, delta: DeltaTable, path: str) -> pa.Table:
    """Cast the rows to the table's columns and types."""
    schema = normalize_schema(pa.schema(delta.schema().to_arrow()))
    if set(rows.column_names) != set(schema.names):
        missing, extra = set(schema.names) - set(rows.column_names), set(rows.column_names) - set(schema.names)
        raise DeltaStoreError(
            f"the columns do not match the table's: missing {sorted(missing)}, unknown {sorted(extra)}",
            where=path,
            next_step=f"write the columns: {', '.join(schema.names)}",
        )
    for field in schema:
        if not field.nullable and rows[field.name].null_count:
            raise DeltaStoreError(
                f"the column {field.name!r} must not be null", where=path, next_step="fill or drop those rows"
            )
    try:
        return rows.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, ValueError) as error:
        raise DeltaStoreError(
            f"the rows do not match the table: {error}", where=path, next_step="give each column the type of the table's"
        ) from error


def _missing(connection: DuckDBPyConnection, delta: DeltaTable, rows: pa.Table, event: str, alias: str) -> pa.Table:
    scan = scan_delta(connection, delta, alias, rows.column_names)
    connection.register(f"{alias}_rows", rows)
    names = ", ".join(quote_identifier(name) for name in rows.column_names)
    first, last = (f"(SELECT {bound}({quote_identifier(event)}) FROM {alias}_rows)" for bound in ("min", "max"))
    in_range = f"{quote_identifier(event)} BETWEEN {first} AND {last}"
    if rows[event].null_count:
        in_range += f" OR {quote_identifier(event)} IS NULL"
    # EXCEPT compares full rows, treats nulls as equal, and removes duplicates among the new rows too.
    found = connection.sql(f"SELECT {names} FROM {alias}_rows EXCEPT SELECT {names} FROM {scan.relation} WHERE {in_range}")
    new: pa.Table = found.to_arrow_table()
    connection.unregister(f"{alias}_rows")
    return new.cast(rows.schema)


def _content_key(rows: pa.Table, version: int) -> str:
    """Return the idempotency key of adding these rows to this version."""
    ordered = rows.sort_by([(field.name, "ascending") for field in rows.schema if not pa.types.is_nested(field.type)])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, ordered.schema) as writer:
        writer.write_table(ordered.combine_chunks())
    return f"feast-write-{version}-{hashlib.sha256(sink.getvalue()).hexdigest()}"
