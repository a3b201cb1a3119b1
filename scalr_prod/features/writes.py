# SPDX-License-Identifier: Apache-2.0
"""Idempotent appends to a feature view's table."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from scalr_prod.errors import CommitFailed, FeatureStoreError
from scalr_prod.features.retrieval_job import normalize_schema
from scalr_prod.features.scan import open_delta_table, scan_delta
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table
from scalr_prod.workspace import quote_identifier

if TYPE_CHECKING:
    from collections.abc import Callable

    from deltalake import DeltaTable
    from duckdb import DuckDBPyConnection


_ATTEMPTS = 5


class WriteAccess(Protocol):
    """Which tables are writable, and how: a part of the ``offline_store`` section of feature_store.yaml.

    Attributes:
        lake: Root of the project's lake, whose tables are writable.
        storage_options: Access to an object store.
        writable: Full paths or URLs of other writable tables.
    """

    lake: str | None
    storage_options: dict[str, str]
    writable: list[str]


def append_new_rows(connection: DuckDBPyConnection, path: str, options: WriteAccess, rows: pa.Table, *, event: str) -> int:
    """Append the rows that the table does not have yet; rows are equal if all columns are.

    Args:
        connection: A DuckDB connection.
        path: The Delta table: one of the lake's, or one listed in ``writable``.
        options: The ``offline_store`` section of feature_store.yaml.
        rows: The rows, with exactly the table's columns.
        event: Column of the event time; only the rows' time range of the table is compared.

    Returns:
        Number of rows added.

    Raises:
        FeatureStoreError: The table is not writable, or the rows do not match it.
        CommitFailed: Nothing was written.
    """
    open_table, append = _writer(path, options)
    for attempt in range(_ATTEMPTS):
        delta = open_table()
        cast = _cast_to_table(rows, delta, path)
        new = _missing(connection, delta, cast, event, f"written_{attempt}")
        if not new.num_rows:
            return 0
        try:
            append(new, _content_key(new, delta.version()), delta.version())
        except CommitFailed:
            # Another writer may have committed first: compare again and retry.
            if attempt + 1 == _ATTEMPTS or open_table().version() == delta.version():
                raise
            continue
        return int(new.num_rows)
    return 0


def _writer(path: str, options: WriteAccess) -> tuple[Callable[[], DeltaTable], Callable[[pa.Table, str, int], object]]:
    """Return functions that open a writable table and append rows to one version of it under an idempotency key."""
    address = _address(path)
    if options.lake is not None:
        lake = Lake(options.lake, options.storage_options)
        own = next((table for table in Table if _address(lake.uri(table)) == address), None)
        if own is not None:
            return (
                lambda: lake.open_table(own),
                lambda rows, key, version: lake.append(own, rows, key=key, expected_version=version),
            )
    if address in {_address(named) for named in options.writable}:
        return (
            lambda: open_delta_table(path, options.storage_options),
            lambda rows, key, version: _append_elsewhere(path, options.storage_options, rows, key, version),
        )
    raise FeatureStoreError(
        "the table is not writable: only the lake's tables are, and those that the settings name",
        where=path,
        next_step="add its full path or URL to [feast] writable in scalr.toml, then run: scalr histories",
    )


def _address(path: str) -> str:
    """Normalize a path or URL: ``file://``, relative paths, symbolic links and trailing slashes."""
    parts = urlsplit(path)
    if parts.scheme in {"", "file"} or "://" not in path:
        return str(Path(unquote(parts.path) if parts.scheme == "file" else path).resolve())
    return f"{parts.scheme.lower()}://{parts.netloc}/{parts.path.strip('/')}"


def _append_elsewhere(path: str, storage_options: dict[str, str], rows: pa.Table, key: str, version: int) -> None:
    """Append to a table outside the lake, only on top of this version."""
    from deltalake import CommitProperties, Transaction, write_deltalake

    delta = open_delta_table(path, storage_options)
    if delta.version() != version:
        raise CommitFailed(
            f"the table is at version {delta.version()}, the rows were compared with {version}",
            where=path,
            next_step="write the rows again",
        )
    # As in the lake: of two commits with one app id that start from the same version, only one succeeds.
    guard = [Transaction(key, 1), Transaction("scalr-expected-version", version)]
    try:
        write_deltalake(delta, rows, mode="append", commit_properties=CommitProperties(app_transactions=guard))
    except Exception as error:
        # deltalake raises many exception types; only the log shows whether the commit succeeded.
        if open_delta_table(path, storage_options).transaction_version(key) is None:
            raise CommitFailed(
                f"nothing was written: {error}", where=path, next_step="fix the problem above and write the rows again"
            ) from error


def _cast_to_table(rows: pa.Table, delta: DeltaTable, path: str) -> pa.Table:
    """Cast the rows to the table's columns and types."""
    schema = normalize_schema(pa.schema(delta.schema().to_arrow()))
    if set(rows.column_names) != set(schema.names):
        missing, extra = set(schema.names) - set(rows.column_names), set(rows.column_names) - set(schema.names)
        raise FeatureStoreError(
            f"the columns do not match the table's: missing {sorted(missing)}, unknown {sorted(extra)}",
            where=path,
            next_step=f"write the columns: {', '.join(schema.names)}",
        )
    for field in schema:
        if not field.nullable and rows[field.name].null_count:
            raise FeatureStoreError(
                f"the column {field.name!r} must not be null", where=path, next_step="fill or drop those rows"
            )
    try:
        return rows.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, ValueError) as error:
        raise FeatureStoreError(
            f"the rows do not match the table: {error}", where=path, next_step="give each column the type of the table's"
        ) from error


def _missing(connection: DuckDBPyConnection, delta: DeltaTable, rows: pa.Table, event: str, alias: str) -> pa.Table:
    scan = scan_delta(connection, delta, alias, rows.column_names)
    connection.register(f"{alias}_rows", rows)
    names = ", ".join(quote_identifier(name) for name in rows.column_names)
    first, last = (f"(SELECT {bound}({quote_identifier(event)}) FROM {alias}_rows)" for bound in ("min", "max"))
    in_range = f"{quote_identifier(event)} BETWEEN {first} AND {last}"
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
