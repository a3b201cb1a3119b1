"""One table from its events: sorted out of core, cut at whole keys, computed in numpy, streamed into one commit."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from scalr_prod.contracts import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table
from scalr_prod.duck import open_duckdb, staging_folder
from scalr_prod.errors import CommitFailed, LakeError
from scalr_prod.hashing import stable_hash_sql
from scalr_prod.histories import TableReport
from scalr_prod.histories.knowledge import Chunk, Rows
from scalr_prod.progress import counting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deltalake import DeltaTable

    from scalr_prod.errors import ScalrError
    from scalr_prod.lake import Lake
    from scalr_prod.sections import HistorySettings
    from scalr_prod.settings import Settings

__all__ = ["build_table", "is_built"]

logger = logging.getLogger(__name__)

#: Part of the key of every commit: change it when the rows' meaning changes, so that they are built anew.
_LAYOUT = 1
_DAY_US = 86_400_000_000
#: A log whose events all became known late and in disorder has a state for each pair of events: refuse before the disk is full.
_ROWS_PER_EVENT = 20
_ROWS_ALWAYS = 1_000_000
_BATCH = 65_536
_CHUNK = 400_000
#: Elements of the lists of one written batch.
_ELEMENTS = 1 << 20
_EVENTS = {
    Table.SOURCE_USER_HISTORY: Table.SOURCE_EVENTS,
    Table.TARGET_USER_HISTORY: Table.TARGET_EVENTS,
    Table.TARGET_ITEM_STATS: Table.TARGET_EVENTS,
}


def is_built(settings: Settings, lake: Lake, table: Table) -> bool:
    """Whether a table was made from the events that there are, with these settings."""
    if not lake.exists(table) or not lake.exists(_EVENTS[table]):
        return False
    return _is_fresh(lake, table, _made_from(settings, table, lake.open_table(_EVENTS[table])), lake.version(table))


def build_table(settings: Settings, lake: Lake, table: Table, *, progress: bool) -> TableReport:
    """Build a table, unless it was made from the same events with the same settings.

    Args:
        settings: ``[histories]``, and ``[compute] memory_mb``.
        lake: The lake.
        table: A user-history table or the item statistics.
        progress: Show a progress bar on stderr.

    Raises:
        TableNotFound: Nothing has been ingested yet.
        CommitFailed: The table is as it was.
    """
    events = lake.open_table(_EVENTS[table])
    version = lake.version(table)
    chosen = settings.histories
    step = _step_us(settings, table)
    made_from = _made_from(settings, table, events)
    count = lake.dataset(_EVENTS[table], version=events.version()).count_rows()
    built = not _is_fresh(lake, table, made_from, version)
    if built:
        # Each build leaves the one before behind for those who are reading it; a week later nobody is.
        lake.tidy(table)
        version = lake.version(table)
        with (
            staging_folder(settings, "histories") as folder,
            open_duckdb(settings, folder) as db,
            counting(table.value, show=progress, total=count, unit="events") as tell,
        ):
            work = _Work(table, lake.schema(table), chosen, step, limit=_ROWS_PER_EVENT * count + _ROWS_ALWAYS, tell=tell)
            rows = pa.RecordBatchReader.from_batches(work.schema, work.rows(_ordered(lake, table, events.version(), db)))
            try:
                lake.replace(table, rows, key=f"{made_from}@{version}", expected_version=version)
            except CommitFailed:
                # The stream's own error comes back through the writer as text only.
                if work.failure is not None:
                    raise work.failure from None
                # Another process may have built the same in the meantime.
                if not _is_fresh(lake, table, made_from, lake.version(table)):
                    raise
    version = lake.version(table)
    size = lake.dataset(table, version=version).count_rows()
    return TableReport(events=count, rows=size, version=version, events_version=events.version(), built=built)


def _step_us(settings: Settings, table: Table) -> int:
    """Late knowledge is told apart in steps of so many microseconds."""
    return max(settings.histories.late_step_s * 1_000_000, _DAY_US if table is Table.TARGET_ITEM_STATS else 0)


def _made_from(settings: Settings, table: Table, events: DeltaTable) -> str:
    """Names the events and settings that a table is made from."""
    chosen = settings.histories
    shape = f"{chosen.trailing_days if table is Table.TARGET_ITEM_STATS else chosen.length}-{_step_us(settings, table)}"
    return f"{table.value}-{_LAYOUT}-{events.metadata().id}-{events.version()}-{shape}"


def _is_fresh(lake: Lake, table: Table, made_from: str, version: int) -> bool:
    """Whether the commit that made this version was made from the same."""
    return version > 0 and lake.committed(table, f"{made_from}@{version - 1}")


def _ordered(lake: Lake, table: Table, version: int, db: Any) -> pa.RecordBatchReader:
    """The events by key and time; ties in the order that every reader of a history expects."""
    key = ITEM_ID if table is Table.TARGET_ITEM_STATS else USER_ID
    scanner = lake.dataset(_EVENTS[table], version=version).scanner(
        columns=[USER_ID, ITEM_ID, EVENT_TIMESTAMP, CREATED_TIMESTAMP],
        batch_size=_BATCH,
        batch_readahead=2,
        fragment_readahead=1,
    )
    db.register("events", scanner.to_reader())
    ties = "" if key == ITEM_ID else f"{stable_hash_sql(ITEM_ID)}, {ITEM_ID}, "
    item = "" if key == ITEM_ID else f"{ITEM_ID} AS item, "
    return db.sql(
        f"SELECT {key} AS key, {item}epoch_us({EVENT_TIMESTAMP}) AS time, epoch_us({CREATED_TIMESTAMP}) AS created "
        f"FROM events ORDER BY {key}, {EVENT_TIMESTAMP}, {ties}{CREATED_TIMESTAMP}"
    ).to_arrow_reader(_BATCH)


@dataclass
class _Work:
    """Sorted events → rows.

    Attributes:
        table: Which table.
        schema: Its Arrow schema.
        chosen: ``[histories]``.
        step: Late events make rows at multiples of this, µs.
        limit: Rows at most.
        tell: Called with the number of events done.
        failure: What stopped the stream, if something did.
    """

    table: Table
    schema: pa.Schema
    chosen: HistorySettings
    step: int
    limit: int
    tell: Callable[[int], None]
    failure: ScalrError | None = None

    def rows(self, ordered: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        """The table's batches."""
        done = 0
        for events in _whole_keys(ordered):
            chunk = _chunk(events, self.step)
            for rows in chunk.rows():
                done += len(rows)
                if done > self.limit:
                    self.failure = self._too_many()
                    raise self.failure
                if self.table is Table.TARGET_ITEM_STATS:
                    yield from _statistics(chunk, rows, events, self.schema, self.chosen.trailing_days * _DAY_US)
                else:
                    yield from _histories(chunk, rows, events, self.schema, self.chosen.length)
            self.tell(events.num_rows)

    def _too_many(self) -> ScalrError:
        return LakeError(
            f"more than {self.limit} rows: so many events became known late, at so many different times, that there would be "
            f"over {_ROWS_PER_EVENT} states to write for each event",
            where=self.table.value,
            next_step="set [histories] late_step_s, for example 86400: late events then enter histories once a day",
        )


def _whole_keys(ordered: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """Cut sorted events where a key ends, about `_CHUNK` events at a time; a key with more comes alone."""
    waiting: list[pa.RecordBatch] = []
    size = 0
    for batch in ordered:
        waiting.append(batch)
        size += batch.num_rows
        if size < _CHUNK:
            continue
        new = np.flatnonzero(_new_key(batch.column("key")))
        # The batch's first row may go on with the key before it, so that a cut needs a key that begins later in the batch.
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


def _chunk(events: pa.Table, step: int) -> Chunk:
    new_key, times, created = (_column(events, name) for name in ("key", "time", "created"))
    return Chunk(_new_key(new_key), times.to_numpy(), created.to_numpy(), step=step)


def _column(events: pa.Table, name: str) -> pa.Array:
    return events.column(name).combine_chunks()


def _histories(chunk: Chunk, rows: Rows, events: pa.Table, schema: pa.Schema, length: int) -> Iterator[pa.RecordBatch]:
    users, items, times = (_column(events, name) for name in ("key", "item", "time"))
    step = max(_ELEMENTS // length, 1)
    for low in range(0, len(rows), step):
        part = rows.slice(low, low + step)
        count, offsets, positions = chunk.last_known(part, length)
        at = chunk.end_of(part) - 1
        lists = pa.array(offsets, pa.int32())
        yield pa.RecordBatch.from_arrays(
            [
                users.take(pa.array(at)),
                _instants(chunk.times[at]),
                pa.ListArray.from_arrays(lists, items.take(pa.array(positions))),
                pa.ListArray.from_arrays(lists, _instants(times.to_numpy()[positions])),
                pa.array(count),
                _instants(chunk.created_times[part.known]),
            ],
            schema=schema,
        )


def _statistics(chunk: Chunk, rows: Rows, events: pa.Table, schema: pa.Schema, trailing: int) -> Iterator[pa.RecordBatch]:
    items = _column(events, "key")
    for low in range(0, len(rows), _BATCH):
        part = rows.slice(low, low + _BATCH)
        at = chunk.end_of(part) - 1
        yield pa.RecordBatch.from_arrays(
            [
                items.take(pa.array(at)),
                _instants(chunk.times[at]),
                _instants(chunk.times[chunk.first_seen(part)]),
                pa.array(chunk.count(part, chunk.start_of(part))),
                pa.array(chunk.count(part, chunk.start_after(part, trailing))),
                _instants(chunk.created_times[part.known]),
            ],
            schema=schema,
        )


def _instants(micros: Any) -> pa.Array:
    return pa.array(micros, pa.int64()).cast(pa.timestamp("us", tz="UTC"))
