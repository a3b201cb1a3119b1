# SPDX-License-Identifier: Apache-2.0
"""Spines: the rows to which features are joined, from a data frame or Arrow data.

Memory does not grow with a spine that comes as a stream: it is spilled to disk, and joined block by block.
"""

from __future__ import annotations

import weakref
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_delta.errors import DeltaStoreError, SpillError
from feast_delta.point_in_time import SPINE_ROW, SPINE_TABLE, SPINE_TIME
from feast_delta.sessions import quote_identifier

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager
    from datetime import datetime
    from pathlib import Path

    from duckdb import DuckDBPyConnection


EVENT_TIMESTAMP = "event_timestamp"


#: A block of a spine takes up to this part of the session's memory, with its row numbers and times.
_BLOCK_SHARE = 4
_ADDED_BYTES = 16
#: Rows of a batch that is streamed, or spilled.
BATCH_ROWS = 65_536


class SpillSettings(Protocol):
    """The part of the store's settings that bounds memory."""

    memory_mb: int

    def spill_folder(self) -> AbstractContextManager[Path]:
        """Create a folder for rows that do not fit in memory, and remove it afterwards."""


@dataclass(frozen=True)
class EntitySpine:
    """A spine, read in blocks.

    Attributes:
        schema: Its columns.
        time_column: The timestamp column.
        first: Earliest time; None without rows.
        last: Latest time; None without rows.
        rows: Number of rows.
        block_rows: Number of rows of a block.
        source: The rows, or the file that holds them.
    """

    schema: pa.Schema
    time_column: str
    first: datetime | None
    last: datetime | None
    rows: int
    block_rows: int
    source: pa.Table | SpilledRows

    def iter_blocks(self) -> Iterator[pa.Table]:
        """Yield the rows in order, in blocks that fit in memory; without rows, one empty block."""
        if isinstance(self.source, pa.Table):
            for start in range(0, max(self.rows, 1), self.block_rows):
                yield self.source.slice(start, self.block_rows)
            return
        held: list[pa.RecordBatch] = []
        rows = 0
        with self.source.open() as batches:
            for batch in batches:
                held.append(batch)
                rows += batch.num_rows
                if rows >= self.block_rows:
                    yield _with_times(pa.Table.from_batches(held), self.time_column)
                    held, rows = [], 0
        if held:
            yield _with_times(pa.Table.from_batches(held), self.time_column)


class SpilledRows:
    """Rows in a file, in a folder that is removed with this object.

    Args:
        settings: They make the folder.
        schema: The rows' columns.
    """

    def __init__(self, settings: SpillSettings, schema: pa.Schema) -> None:
        resources = ExitStack()
        self._path = str(resources.enter_context(settings.spill_folder()) / "spine.arrows")
        weakref.finalize(self, resources.close)
        self._writer = pa.ipc.new_stream(self._path, schema)

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows.

        Raises:
            SpillError: They cannot be written, for example because the disk is full.
        """
        with self._translated():
            self._writer.write_table(pa.Table.from_batches([batch]), max_chunksize=BATCH_ROWS)

    def close(self) -> None:
        """End the file; it can be read from now on.

        Raises:
            SpillError: As `write`.
        """
        with self._translated():
            self._writer.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SpillError(
                f"the spine cannot be spilled there: {error}",
                where=self._path,
                next_step="free space, or name another folder: spill in offline_store of feature_store.yaml, or TMPDIR",
            ) from error

    @contextmanager
    def open(self) -> Iterator[Iterable[pa.RecordBatch]]:
        """Open the file and yield its batches."""
        with pa.OSFile(self._path) as file, pa.ipc.open_stream(file) as reader:
            yield reader


def spine_from_rows(rows: Any, settings: SpillSettings) -> EntitySpine:
    """Validate spine rows and find their timestamp column: ``event_timestamp``, else the only timestamp column.

    Args:
        rows: A pandas data frame, an Arrow table, or another object that exports an Arrow stream, such as a Polars data frame. A stream
            that takes more memory than a block is spilled to disk, since a job may read it more than once.
        settings: The store's settings.

    Raises:
        DeltaStoreError: There is no such column, or the rows are nothing of that.
        SpillError: The rows cannot be spilled.
    """
    import pandas as pd

    if isinstance(rows, pd.DataFrame):
        try:
            table = pa.Table.from_pandas(rows, preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DeltaStoreError(
                f"the spine cannot be read: {error}", where="entity_df", next_step="give each column values of one type"
            ) from error
        return _spine_from_table(table, settings)
    if isinstance(rows, pa.Table):
        return _spine_from_table(rows, settings)
    if hasattr(rows, "__arrow_c_stream__"):
        return _spine_from_stream(pa.RecordBatchReader.from_stream(rows), settings)
    raise DeltaStoreError(
        f"a spine is a data frame of pandas or Polars, an Arrow table or stream, or a SQL query, not {type(rows).__name__}",
        where="entity_df",
        next_step="pass one of these",
    )


def _spine_from_table(rows: pa.Table, settings: SpillSettings) -> EntitySpine:
    time = _time_column(rows.schema)
    table = _with_times(rows, time)
    first, last = _time_bounds(table[time])
    block_rows = _block_rows(settings, table.num_rows, table.nbytes)
    return EntitySpine(table.schema, time, first, last, table.num_rows, block_rows, table)


def _spine_from_stream(stream: pa.RecordBatchReader, settings: SpillSettings) -> EntitySpine:
    """Read a stream into memory, or to disk if it does not fit in a block."""
    time = _time_column(stream.schema)
    schema = _with_times(stream.schema.empty_table(), time).schema
    held, rows, size = [], 0, 0
    spilled: SpilledRows | None = None
    bounds: list[datetime] = []
    for batch in stream:
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if spilled is None:
            held.append(batch)
            if _block_rows(settings, rows, size) >= rows:
                continue
            spilled = SpilledRows(settings, stream.schema)
        for one in held or [batch]:
            spilled.write(one)
            bounds += [moment for moment in _time_bounds(one.column(time)) if moment is not None]
        held = []
    if spilled is None:
        return _spine_from_table(pa.Table.from_batches(held, stream.schema), settings)
    spilled.close()
    block_rows = _block_rows(settings, rows, size)
    return EntitySpine(schema, time, min(bounds, default=None), max(bounds, default=None), rows, block_rows, spilled)


def _block_rows(settings: SpillSettings, rows: int, size: int) -> int:
    """Return how many rows a block has, given the bytes that some rows take."""
    return max(1, (settings.memory_mb * 2**20 // _BLOCK_SHARE) // (size // max(rows, 1) + _ADDED_BYTES))


def _with_times(table: pa.Table, time: str) -> pa.Table:
    """Return the rows with a time column of timestamps, which all null values may be without.

    Raises:
        DeltaStoreError: The times are of another type.
    """
    kind = table.schema.field(time).type
    if pa.types.is_null(kind):
        return table.set_column(table.schema.get_field_index(time), time, table[time].cast(pa.timestamp("us", tz="UTC")))
    if not pa.types.is_timestamp(kind):
        raise DeltaStoreError(f"the spine's times are of type {kind}", where=time, next_step="convert them to timestamps")
    return table


def _time_bounds(times: pa.ChunkedArray | pa.Array) -> tuple[datetime | None, datetime | None]:
    bounds = pc.min_max(times).as_py()
    return _utc(bounds["min"]), _utc(bounds["max"])


def register_spine(connection: DuckDBPyConnection, block: pa.Table, time_column: str) -> None:
    """Register a block of a spine as `SPINE_TABLE`, with row numbers and times in µs, in place of the former block."""
    numbers = pa.array(np.arange(block.num_rows, dtype=np.int64))
    rows = block.append_column(SPINE_ROW, numbers).append_column(SPINE_TIME, _micros(block[time_column]))
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
