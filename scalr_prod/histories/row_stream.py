# SPDX-License-Identifier: Apache-2.0
"""Rows of a history table from sorted events, computed in numpy in batches of complete keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from scalr_prod.core.timestamps import DAY_US
from scalr_prod.errors import LakeError
from scalr_prod.histories.knowledge_time import HistoryRows, KeyBatch
from scalr_prod.schemas import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt

    from scalr_prod.config import HistorySettings
    from scalr_prod.errors import ScalrError


_NEVER = np.iinfo(np.int64).max
#: If all events became known late and out of order, rows grow with the square of events: fail before the disk is full.
_ROWS_PER_EVENT = 20
_ROWS_ALWAYS = 1_000_000
_BATCH = 65_536
_CHUNK = 400_000
#: List elements per written batch.
_ELEMENTS = 1 << 20


def late_step_us(histories: HistorySettings, table: Table) -> int:
    """Return the resolution of late knowledge times in microseconds."""
    return max(histories.late_step_s * 1_000_000, DAY_US if table is Table.TARGET_ITEM_STATS else 0)


def row_limit(events: int) -> int:
    """Return the maximal number of rows of a table that is built from so many events."""
    return _ROWS_PER_EVENT * events + _ROWS_ALWAYS


def too_many_rows(table: Table, limit: int) -> ScalrError:
    """Return the error for a table of more rows than the limit."""
    return LakeError(
        f"more than {limit} rows: so many events became known late, at so many different times, that there would be "
        f"over {_ROWS_PER_EVENT} states to write for each event",
        where=table.value,
        next_step="set [histories] late_step_s, for example 86400: late events then enter histories once a day",
    )


@dataclass
class RowStream:
    """Rows of a table from sorted events.

    Attributes:
        table: The table.
        schema: Its Arrow schema.
        histories: ``[histories]``.
        marks: Latest times for such rows; see `KeyBatch`.
        after: Yield only rows known later than this, µs; None: all.
        limit: Maximal number of rows.
        tell: Called with the number of events processed.
        failure: The error that stopped the stream, if any.
    """

    table: Table
    schema: pa.Schema
    histories: HistorySettings
    marks: npt.NDArray[np.int64]
    after: int | None
    limit: int
    tell: Callable[[int], None] = field(default=lambda _: None)
    failure: ScalrError | None = None

    def rows(self, ordered: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the table's batches."""
        done, step = 0, late_step_us(self.histories, self.table)
        for events in _whole_keys(ordered):
            chunk = _chunk(events, step, self.marks)
            for rows in chunk.iter_rows(self.after):
                done += len(rows)
                if done > self.limit:
                    self.failure = too_many_rows(self.table, self.limit)
                    raise self.failure
                if self.table is Table.TARGET_ITEM_STATS:
                    yield from _statistics(chunk, rows, events, self.schema, self.histories.trailing_days * DAY_US)
                else:
                    yield from _histories(chunk, rows, events, self.schema, self.histories.length)
            self.tell(events.num_rows)


def _whole_keys(ordered: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Split sorted events at key boundaries into batches of about `_CHUNK` events; a larger key gets its own batch."""
    waiting: list[pa.RecordBatch] = []
    size = 0
    for batch in ordered:
        waiting.append(batch)
        size += batch.num_rows
        if size < _CHUNK:
            continue
        new = np.flatnonzero(_new_key(batch.column("key")))
        # The batch's first row may continue the previous key, so a split needs a key that starts later in the batch.
        if len(new) > 1:
            cut = int(new[-1])
            yield pa.Table.from_batches([*waiting[:-1], batch.slice(0, cut)])
            waiting = [batch.slice(cut)]
            size = batch.num_rows - cut
    if size:
        yield pa.Table.from_batches(waiting)


def _new_key(keys: pa.Array) -> Any:
    import pyarrow.compute as pc

    new = np.ones(len(keys), bool)
    if len(keys) > 1:
        new[1:] = pc.not_equal(keys.slice(1), keys.slice(0, len(keys) - 1)).to_numpy(zero_copy_only=False)
    return new


def _chunk(events: pa.Table, step: int, marks: npt.NDArray[np.int64]) -> KeyBatch:
    new_key, times, created = (_column(events, name) for name in ("key", "time", "created"))
    return KeyBatch(_new_key(new_key), times.to_numpy(), created.to_numpy(), late_step=step, deadlines=marks)


def _column(events: pa.Table, name: str) -> pa.Array:
    return events.column(name).combine_chunks()


def _histories(
    chunk: KeyBatch, rows: HistoryRows, events: pa.Table, schema: pa.Schema, length: int
) -> Iterator[pa.RecordBatch]:
    users, items, times = (_column(events, name) for name in ("key", "item", "time"))
    before = _column(events, "before").to_numpy()
    step = max(_ELEMENTS // length, 1)
    for low in range(0, len(rows), step):
        batch = rows.slice(low, low + step)
        known = chunk.last_known_events(batch, length)
        at = chunk.time_end_of(batch) - 1
        lists = pa.array(known.offsets, pa.int32())
        yield pa.RecordBatch.from_arrays(
            [
                users.take(pa.array(at)),
                _instants(chunk.times[at]),
                pa.ListArray.from_arrays(lists, items.take(pa.array(known.positions))),
                pa.ListArray.from_arrays(lists, _instants(times.to_numpy()[known.positions])),
                pa.array(known.total + before[at]),
                _instants(chunk.created_times[batch.known_rank]),
            ],
            schema=schema,
        )


def _statistics(
    chunk: KeyBatch, rows: HistoryRows, events: pa.Table, schema: pa.Schema, trailing: int
) -> Iterator[pa.RecordBatch]:
    items, before = _column(events, "key"), _column(events, "before").to_numpy()
    # A row knows all events that were left out: it is later in event time and in knowledge time.
    earliest = _column(events, "first").fill_null(_NEVER).to_numpy() if "first" in events.schema.names else None
    for low in range(0, len(rows), _BATCH):
        batch = rows.slice(low, low + _BATCH)
        at = chunk.time_end_of(batch) - 1
        first = chunk.times[chunk.earliest_known_event(batch)]
        yield pa.RecordBatch.from_arrays(
            [
                items.take(pa.array(at)),
                _instants(chunk.times[at]),
                _instants(first if earliest is None else np.minimum(first, earliest[at])),
                pa.array(chunk.count_known(batch, chunk.key_start_of(batch)) + before[at]),
                pa.array(chunk.count_known(batch, chunk.window_start(batch, trailing))),
                _instants(chunk.created_times[batch.known_rank]),
            ],
            schema=schema,
        )


def _instants(micros: Any) -> pa.Array:
    return pa.array(micros, pa.int64()).cast(pa.timestamp("us", tz="UTC"))
