"""Appending rows to a feature view's table, so that a resend adds nothing."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from scalr_prod.contracts import Table
from scalr_prod.errors import CommitFailed, FeatureStoreError
from scalr_prod.feast_store.job import normalised
from scalr_prod.feast_store.scan import quote, scan_delta
from scalr_prod.lake import Lake

if TYPE_CHECKING:
    from deltalake import DeltaTable

__all__ = ["append_new_rows"]

_ATTEMPTS = 5


def append_new_rows(connection: Any, path: str, storage_options: dict[str, str], rows: pa.Table, *, event: str) -> int:
    """Append those rows that the table does not hold yet; two rows are the same if all of their columns are.

    Args:
        connection: A DuckDB connection.
        path: The Delta table, one of the lake's.
        storage_options: Access to it.
        rows: The rows, with exactly the table's columns.
        event: Column of the event's time: only that stretch of the table is compared.

    Returns:
        How many rows were added.

    Raises:
        FeatureStoreError: It is no table of the lake, or the rows do not fit it.
        CommitFailed: Nothing was written.
    """
    root, _, name = path.rstrip("/").rpartition("/")
    if name not in set(Table):
        raise FeatureStoreError(
            "only the lake's own tables can be written to", where=path, next_step=f"write to one of: {', '.join(Table)}"
        )
    lake, table = Lake(root, storage_options), Table(name)
    for attempt in range(_ATTEMPTS):
        delta = lake.open_table(table)
        fitted = _fitted(rows, delta, path)
        new = _missing(connection, delta, fitted, event, f"written_{attempt}")
        if not new.num_rows:
            return 0
        try:
            lake.append(table, new, key=_content_key(new, delta.version()), expected_version=delta.version())
        except CommitFailed:
            # Another writer may have been first: compare with what it wrote, and try again.
            if attempt + 1 == _ATTEMPTS or lake.version(table) == delta.version():
                raise
            continue
        return int(new.num_rows)
    return 0


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
