# SPDX-License-Identifier: Apache-2.0
"""Appending rows to a feature view's table, so that a resend adds nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from scalr_prod.contracts import Table
from scalr_prod.duck import quote
from scalr_prod.errors import CommitFailed, FeatureStoreError
from scalr_prod.feast_store.job import normalised
from scalr_prod.feast_store.scan import delta_table, scan_delta
from scalr_prod.lake import Lake

if TYPE_CHECKING:
    from collections.abc import Callable

    from deltalake import DeltaTable

    from scalr_prod.feast_store.offline_store import DeltaOfflineStoreConfig

__all__ = ["append_new_rows"]

_ATTEMPTS = 5


def append_new_rows(connection: Any, path: str, options: DeltaOfflineStoreConfig, rows: pa.Table, *, event: str) -> int:
    """Append those rows that the table does not hold yet; two rows are the same if all of their columns are.

    Args:
        connection: A DuckDB connection.
        path: The Delta table: one of the lake's, or one that ``writable`` names.
        options: The ``offline_store`` section of feature_store.yaml.
        rows: The rows, with exactly the table's columns.
        event: Column of the event's time: only that stretch of the table is compared.

    Returns:
        How many rows were added.

    Raises:
        FeatureStoreError: The table may not be written to, or the rows do not fit it.
        CommitFailed: Nothing was written.
    """
    open_table, append = _opened(path, options)
    for attempt in range(_ATTEMPTS):
        delta = open_table()
        fitted = _fitted(rows, delta, path)
        new = _missing(connection, delta, fitted, event, f"written_{attempt}")
        if not new.num_rows:
            return 0
        try:
            append(new, _content_key(new, delta.version()), delta.version())
        except CommitFailed:
            # Another writer may have been first: compare with what it wrote, and try again.
            if attempt + 1 == _ATTEMPTS or open_table().version() == delta.version():
                raise
            continue
        return int(new.num_rows)
    return 0


def _opened(
    path: str, options: DeltaOfflineStoreConfig
) -> tuple[Callable[[], DeltaTable], Callable[[pa.Table, str, int], object]]:
    """What opens a table that may be written to, and what appends rows to one version of it under a key."""
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
            lambda: delta_table(path, options.storage_options),
            lambda rows, key, version: _append_elsewhere(path, options.storage_options, rows, key, version),
        )
    raise FeatureStoreError(
        "only the lake's own tables can be written to, and those that the settings name",
        where=path,
        next_step="add its whole address to [feast] writable in scalr.toml, then run: scalr histories",
    )


def _address(path: str) -> str:
    """One spelling for one place: ``file://`` or not, relative, through links, or with a slash at the end."""
    parts = urlsplit(path)
    if parts.scheme in {"", "file"} or "://" not in path:
        return str(Path(unquote(parts.path) if parts.scheme == "file" else path).resolve())
    return f"{parts.scheme.lower()}://{parts.netloc}/{parts.path.strip('/')}"


def _append_elsewhere(path: str, storage_options: dict[str, str], rows: pa.Table, key: str, version: int) -> None:
    """Append to a table that is not the lake's, on this version or not at all."""
    from deltalake import CommitProperties, Transaction, write_deltalake

    delta = delta_table(path, storage_options)
    if delta.version() != version:
        raise CommitFailed(
            f"the table is at version {delta.version()}, the rows were compared with {version}",
            where=path,
            next_step="write the rows again",
        )
    # As in the lake: two commits that share an app id and started from one version conflict, and one of them lands.
    guard = [Transaction(key, 1), Transaction("scalr-expected-version", version)]
    try:
        write_deltalake(delta, rows, mode="append", commit_properties=CommitProperties(app_transactions=guard))
    except Exception as error:
        # deltalake raises exceptions of many kinds; the log alone tells what happened.
        if delta_table(path, storage_options).transaction_version(key) is None:
            raise CommitFailed(
                f"nothing was written: {error}", where=path, next_step="fix the problem above and write the rows again"
            ) from error


def _fitted(rows: pa.Table, delta: DeltaTable, path: str) -> pa.Table:
    """The rows in the table's columns and types."""
    schema = normalised(pa.schema(delta.schema().to_arrow()))
    if set(rows.column_names) != set(schema.names):
        missing, extra = set(schema.names) - set(rows.column_names), set(rows.column_names) - set(schema.names)
        raise FeatureStoreError(
            f"the columns do not match the table's: missing {sorted(missing)}, not known {sorted(extra)}",
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
            f"the rows do not fit the table: {error}", where=path, next_step="give each column the type of the table's"
        ) from error


def _missing(connection: Any, delta: DeltaTable, rows: pa.Table, event: str, alias: str) -> pa.Table:
    scan = scan_delta(connection, delta, alias, rows.column_names)
    connection.register(f"{alias}_rows", rows)
    names = ", ".join(quote(name) for name in rows.column_names)
    first, last = (f"(SELECT {bound}({quote(event)}) FROM {alias}_rows)" for bound in ("min", "max"))
    stretch = f"{quote(event)} BETWEEN {first} AND {last}"
    # EXCEPT compares whole rows, counts nulls as equal, and drops doubles among the new rows as well.
    found = connection.sql(f"SELECT {names} FROM {alias}_rows EXCEPT SELECT {names} FROM {scan.relation} WHERE {stretch}")
    new: pa.Table = found.to_arrow_table()
    connection.unregister(f"{alias}_rows")
    return new.cast(rows.schema)


def _content_key(rows: pa.Table, version: int) -> str:
    """Names this write: the same rows added to the same state of the table."""
    ordered = rows.sort_by([(field.name, "ascending") for field in rows.schema if not pa.types.is_nested(field.type)])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, ordered.schema) as writer:
        writer.write_table(ordered.combine_chunks())
    return f"feast-write-{version}-{hashlib.sha256(sink.getvalue()).hexdigest()}"
