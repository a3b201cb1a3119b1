# SPDX-License-Identifier: Apache-2.0
"""Spines: the rows to which features are joined, from a data frame or Arrow data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_delta.errors import DeltaStoreError
from feast_delta.point_in_time import SPINE_ROW, SPINE_TABLE, SPINE_TIME
from feast_delta.sessions import quote_identifier

if TYPE_CHECKING:
    from datetime import datetime

    from duckdb import DuckDBPyConnection


EVENT_TIMESTAMP = "event_timestamp"


@dataclass(frozen=True)
class EntitySpine:
    """A spine in Arrow.

    Attributes:
        table: All rows and columns, unchanged.
        time_column: The timestamp column.
        first: Earliest time; None without rows.
        last: Latest time; None without rows.
    """

    table: pa.Table
    time_column: str
    first: datetime | None
    last: datetime | None


def spine_from_rows(rows: Any) -> EntitySpine:
    """Validate spine rows and find their timestamp column: ``event_timestamp``, else the only timestamp column.

    Args:
        rows: A pandas data frame, an Arrow table, or another object that exports an Arrow stream, such as a Polars data frame.

    Raises:
        DeltaStoreError: There is no such column, or the rows are nothing of that.
    """
    import pandas as pd

    if isinstance(rows, pd.DataFrame):
        try:
            table = pa.Table.from_pandas(rows, preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DeltaStoreError(
                f"the spine cannot be read: {error}", where="entity_df", next_step="give each column values of one type"
            ) from error
    elif isinstance(rows, pa.Table):
        table = rows
    elif hasattr(rows, "__arrow_c_stream__"):
        table = pa.table(rows)
    else:
        raise DeltaStoreError(
            f"a spine is a data frame of pandas or Polars, an Arrow table or a SQL query, not {type(rows).__name__}",
            where="entity_df",
            next_step="pass one of these",
        )
    time = _time_column(table.schema)
    if pa.types.is_null(table.schema.field(time).type):
        table = table.set_column(table.schema.get_field_index(time), time, table[time].cast(pa.timestamp("us", tz="UTC")))
    if not pa.types.is_timestamp(table.schema.field(time).type):
        raise DeltaStoreError(
            f"the spine's times are of type {table.schema.field(time).type}", where=time, next_step="convert them to timestamps"
        )
    bounds = pc.min_max(table[time]).as_py()
    return EntitySpine(table, time, _utc(bounds["min"]), _utc(bounds["max"]))


def register_spine(connection: DuckDBPyConnection, spine: EntitySpine) -> None:
    """Register the spine as `SPINE_TABLE`, with row numbers and times in µs."""
    numbers = pa.array(np.arange(spine.table.num_rows, dtype=np.int64))
    rows = spine.table.append_column(SPINE_ROW, numbers).append_column(SPINE_TIME, _micros(spine.table[spine.time_column]))
    connection.register(SPINE_TABLE, rows)


def _micros(times: pa.ChunkedArray) -> pa.Array:
    """Convert to µs since 1970, int64 [N]; round down, so that no later row becomes visible."""
    array = times.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], times.type)
    if array.type.unit != "ns":
        return array.cast(pa.timestamp("us", tz=array.type.tz)).cast(pa.int64())
    ticks = array.cast(pa.int64()).fill_null(0).to_numpy()
    return pa.array(np.floor_divide(ticks, 1000), mask=array.is_null().to_numpy(zero_copy_only=False))


def key_sql(schema: pa.Schema, column: str, source: pa.DataType, view: str) -> str:
    """Return SQL for a join key of the spine, in the type of the view's key.

    Args:
        schema: The spine's schema.
        column: The spine's column.
        source: Type of the view's key.
        view: The view's name, for errors.

    Raises:
        DeltaStoreError: The column is missing, or one key is text and the other a number.
    """
    index = schema.get_field_index(column)
    if index < 0:
        raise DeltaStoreError(
            f"the spine lacks the join key {column!r} of {view}; it has: {', '.join(schema.names)}",
            where="entity_df",
            next_step=f"add the column {column!r}",
        )
    found = schema.field(index).type
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_null(found):
        return f"CAST(s.{quote_identifier(column)} AS {'BIGINT' if pa.types.is_integer(source) else 'VARCHAR'})"
    if _kind(found) == _kind(source):
        return f"s.{quote_identifier(column)}"
    if pa.types.is_floating(found) and pa.types.is_integer(source):
        # pandas stores integers with missing values as floats.
        return f"TRY_CAST(s.{quote_identifier(column)} AS BIGINT)"
    raise DeltaStoreError(
        f"the spine's {column!r} contains {found}, but the key of {view} contains {source}",
        where=column,
        next_step="pass the ids in the type they were ingested with",
    )


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    return str(kind)


def _time_column(schema: pa.Schema) -> str:
    if EVENT_TIMESTAMP in schema.names:
        return EVENT_TIMESTAMP
    times = [field.name for field in schema if pa.types.is_timestamp(field.type)]
    if len(times) == 1:
        return str(times[0])
    raise DeltaStoreError(
        f"the spine has no column {EVENT_TIMESTAMP!r}; it has: {', '.join(schema.names)}",
        where="entity_df",
        next_step=f"name its timestamp column {EVENT_TIMESTAMP!r}",
    )


def _utc(moment: Any) -> datetime | None:
    from datetime import UTC

    if moment is None:
        return None
    if hasattr(moment, "to_pydatetime"):
        moment = moment.floor("us").to_pydatetime()
    found: datetime = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return found.astimezone(UTC)
