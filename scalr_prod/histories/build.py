# SPDX-License-Identifier: Apache-2.0
"""Build of the history tables: sort events out of core, split them at key boundaries, compute rows in numpy, and stream one commit."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from scalr_prod.core.delta_log import arrow_schema, files_dataset, row_count
from scalr_prod.core.progress import track
from scalr_prod.errors import CommitFailed, LakeError
from scalr_prod.histories.build_reports import HistoriesReport, TableReport
from scalr_prod.histories.incremental import (
    BuildRecord,
    EventsTable,
    find_new_events,
    latest_created_per_file,
    sort_all_events,
    sort_new_events,
)
from scalr_prod.histories.knowledge_time import HistoryRows, KeyBatch
from scalr_prod.lake import CommitMetadata, Lake, check_domains, commit_record
from scalr_prod.schemas import Table
from scalr_prod.workspace import open_duckdb, staging_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt
    from deltalake import DeltaTable

    from scalr_prod.config import HistorySettings, Settings
    from scalr_prod.errors import ScalrError

__all__ = ["are_histories_current", "are_tables_current", "build_histories", "build_tables"]

logger = logging.getLogger(__name__)

#: Part of every commit's key: increase it when the meaning of rows changes, so that tables are rebuilt.
_LAYOUT = 2
_DAY_US = 86_400_000_000
_NEVER = np.iinfo(np.int64).max
#: If all events became known late and out of order, rows grow with the square of events: fail before the disk is full.
_ROWS_PER_EVENT = 20
_ROWS_ALWAYS = 1_000_000
_BATCH = 65_536
_CHUNK = 400_000
#: List elements per written batch.
_ELEMENTS = 1 << 20
_EVENTS = {
    Table.SOURCE_USER_HISTORY: Table.SOURCE_EVENTS,
    Table.TARGET_USER_HISTORY: Table.TARGET_EVENTS,
    Table.TARGET_ITEM_STATS: Table.TARGET_EVENTS,
}


def build_histories(settings: Settings, *, progress: bool = False) -> HistoriesReport:
    """Build both domains' user histories and the target's item statistics; tables that are up to date are skipped.

    DuckDB sorts the events within ``[compute] memory_mb``, spilling to disk beyond it. They are streamed in batches of complete
    users into one commit per table.

    Args:
        settings: The project's settings.
        progress: Show progress bars on stderr.

    Raises:
        TableNotFound: Nothing has been ingested yet.
        ProjectsMixed: Home or lake belongs to another project. Nothing was written.
        DomainsMixed: The lake's tables were created for other domains.
        CommitFailed: The lake rejected a commit; that table is unchanged.
    """
    lake = Lake.open(settings)
    opened = check_domains(settings, lake)
    return HistoriesReport(build_tables(settings, lake, opened, progress=progress))


def are_histories_current(settings: Settings) -> bool:
    """Return whether all tables were built from the current events with these settings."""
    return are_tables_current(settings, Lake.open(settings))


def are_tables_current(settings: Settings, lake: Lake) -> bool:
    """Return whether all tables were built from the current events with these settings."""
    return all(_is_built(settings.histories, lake, table) for table in _EVENTS)


def _is_built(histories: HistorySettings, lake: Lake, table: Table) -> bool:
    if not lake.exists(table) or not lake.exists(_EVENTS[table]):
        return False
    return _is_fresh(lake.open_table(table), _made_from(histories, table, lake.open_table(_EVENTS[table])))


def rebuild_reason(settings: Settings) -> str | None:
    """Return why tables that were built from the current events would be built again; None: they would not."""
    lake = Lake.open(settings)
    for table, events in _EVENTS.items():
        if _is_built(settings.histories, lake, table) or not (lake.exists(table) and lake.exists(events)):
            continue
        current = lake.open_table(table)
        record = BuildRecord.from_record(commit_record(current))
        if record is None or record.version != lake.version(events):
            continue
        former = record.shape.split("-")[1]
        if former == str(_LAYOUT):
            return "[histories] changed"
        return f"this version of the package builds them otherwise (layout {former}, now {_LAYOUT})"
    return None


class _Session(NamedTuple):
    """A DuckDB session, and its spill folder."""

    db: Any
    folder: Path


def build_tables(
    settings: Settings, lake: Lake, opened: Mapping[Table, DeltaTable], *, progress: bool
) -> dict[str, TableReport]:
    """Build each table that was not built from the current events with these settings.

    Events are opened once and refreshed for each table. One DuckDB session reads them, so tables of the same events share its cache.

    Args:
        settings: ``[histories]``, and ``[compute] memory_mb``.
        lake: The lake.
        opened: Its events tables that are already open.
        progress: Show a progress bar on stderr for each table.

    Raises:
        TableNotFound: Nothing has been ingested yet.
        CommitFailed: The table is unchanged; those before it may have been built.
    """
    tables = {name: opened[name] if name in opened else lake.open_table(name) for name in dict.fromkeys(_EVENTS.values())}
    events = {name: EventsTable(lake, name, table) for name, table in tables.items()}
    with ExitStack() as stack:

        @cache
        def session() -> _Session:  # opened only if a table has to be built
            folder = stack.enter_context(staging_folder(settings, "histories"))
            return _Session(stack.enter_context(open_duckdb(settings, folder)), folder)

        return {
            table.value: _build_table(settings.histories, lake, table, events[name], session, progress=progress)
            for table, name in _EVENTS.items()
        }


def _build_table(
    histories: HistorySettings,
    lake: Lake,
    table: Table,
    events: EventsTable,
    session: Callable[[], _Session],
    *,
    progress: bool,
) -> TableReport:
    current = lake.open_table(table)
    # Refreshed after the table, so that it includes what another process has just built from.
    lake.refresh(events.table, events.current)
    built, appended = not _is_fresh(current, _made_from(histories, table, events.current)), False
    if built:
        appended = _build(histories, lake, table, events, current, session(), progress=progress)
    return TableReport(
        events=row_count(events.current),
        rows=row_count(current),
        version=current.version(),
        events_version=events.current.version(),
        built=built,
        appended=appended,
    )


def _build(
    histories: HistorySettings,
    lake: Lake,
    table: Table,
    source: EventsTable,
    current: DeltaTable,
    session: _Session,
    *,
    progress: bool,
) -> bool:
    """Append the rows of new events, or replace the table; return whether rows were appended. ``current`` is updated."""
    step, version, events = _step_us(histories, table), current.version(), source.current
    shape, made_from = _shape(histories, table), _made_from(histories, table, events)
    added = find_new_events(table, source, BuildRecord.from_record(commit_record(current)), shape)
    limit = _ROWS_PER_EVENT * row_count(events) + _ROWS_ALWAYS - (row_count(current) if added else 0)
    with track(table.value, show=progress, total=None if added else row_count(events), unit="events") as tell:
        marks, after = (added.deadlines, added.known_until) if added else (latest_created_per_file(files_dataset(events)), None)
        stream = _RowStream(table, arrow_schema(current), histories, step, marks, after, limit, tell)
        if added:
            reach = histories.trailing_days * _DAY_US if table is Table.TARGET_ITEM_STATS else histories.length
            ordered: Iterable[pa.RecordBatch] = sort_new_events(session.db, table, added, lookback=reach)
        else:
            ordered = sort_all_events(session.db, table, events, session.folder)
        record = BuildRecord(
            shape, str(events.metadata().id), events.version(), int(marks[-1]) if len(marks) else None
        ).to_record()
        rows = pa.RecordBatchReader.from_batches(stream.schema, stream.rows(ordered))
        write = lake.append if added else lake.replace
        try:
            metadata = CommitMetadata(record)
            write(table, rows, key=f"{made_from}@{version}", expected_version=version, metadata=metadata, opened=current)
        except CommitFailed:
            # The writer returns the stream's own error only as text.
            if stream.failure is not None:
                raise stream.failure from None
            # Another process may have built the same table in the meantime.
            lake.refresh(table, current)
            if not _is_fresh(current, made_from):
                raise
    return added is not None


def _step_us(histories: HistorySettings, table: Table) -> int:
    """Return the resolution of late knowledge times in microseconds."""
    return max(histories.late_step_s * 1_000_000, _DAY_US if table is Table.TARGET_ITEM_STATS else 0)


def _shape(histories: HistorySettings, table: Table) -> str:
    """Return a text that identifies the settings that determine a table's rows, and the row layout."""
    reach = histories.trailing_days if table is Table.TARGET_ITEM_STATS else histories.length
    return f"{table.value}-{_LAYOUT}-{reach}-{_step_us(histories, table)}"


def _made_from(histories: HistorySettings, table: Table, events: DeltaTable) -> str:
    """Return a text that identifies the events and settings that a table is built from."""
    return f"{_shape(histories, table)}-{events.metadata().id}-{events.version()}"


def _is_fresh(current: DeltaTable, made_from: str) -> bool:
    """Return whether the table's current version was built from these events and settings."""
    return current.version() > 0 and current.transaction_version(f"{made_from}@{current.version() - 1}") is not None


@dataclass
class _RowStream:
    """Sorted events → rows of a table.

    Attributes:
        table: The table.
        schema: Its Arrow schema.
        histories: ``[histories]``.
        step: Late events create rows at multiples of this, µs.
        marks: Latest times for such rows; see `KeyBatch`.
        after: Yield only rows known later than this, µs; None: all.
        limit: Maximal number of rows.
        tell: Called with the number of events processed.
        failure: The error that stopped the stream, if any.
    """

    table: Table
    schema: pa.Schema
    histories: HistorySettings
    step: int
    marks: npt.NDArray[np.int64]
    after: int | None
    limit: int
    tell: Callable[[int], None]
    failure: ScalrError | None = None

    def rows(self, ordered: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the table's batches."""
        done = 0
        for events in _whole_keys(ordered):
            chunk = _chunk(events, self.step, self.marks)
            for rows in chunk.iter_rows(self.after):
                done += len(rows)
                if done > self.limit:
                    self.failure = self._too_many()
                    raise self.failure
                if self.table is Table.TARGET_ITEM_STATS:
                    yield from _statistics(chunk, rows, events, self.schema, self.histories.trailing_days * _DAY_US)
                else:
                    yield from _histories(chunk, rows, events, self.schema, self.histories.length)
            self.tell(events.num_rows)

    def _too_many(self) -> ScalrError:
        return LakeError(
            f"more than {self.limit} rows: so many events became known late, at so many different times, that there would be "
            f"over {_ROWS_PER_EVENT} states to write for each event",
            where=self.table.value,
            next_step="set [histories] late_step_s, for example 86400: late events then enter histories once a day",
        )


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
