# SPDX-License-Identifier: Apache-2.0
"""Append staged events to the lake: a log is a multiset, and only the missing copies of each row are added."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from scalr_prod.compute import TaskRound, run_rounds
from scalr_prod.core.delta_log import arrow_schema
from scalr_prod.core.partitioned import rebatch
from scalr_prod.core.timestamps import micros_to_datetime
from scalr_prod.errors import BadValue
from scalr_prod.ingest.rows import BATCH_ROWS, cast_to_schema, combine_filters, create_temp_table, scan_table
from scalr_prod.ingest.sort_by_time import SORT_COLUMNS, iter_sorted_batches, write_sorted_file
from scalr_prod.lake import retry_on_new_version
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, RECOMMENDED_BY, USER_ID, Table
from scalr_prod.workspace import parquet_sql

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from datetime import datetime

    import pyarrow as pa
    from deltalake import DeltaTable
    from duckdb import DuckDBPyConnection

    from scalr_prod.compute import ShuffleFolder
    from scalr_prod.ingest.log_tasks import LogTasks
    from scalr_prod.ingest.sort_by_time import DistinctIds, SortedFile
    from scalr_prod.lake import Correction, Lake, TableFile
    from scalr_prod.schemas import Domain, IdType


#: Rows sampled to detect a log that was read in another time zone, and the smallest sample that allows a verdict.
_SAMPLE_ROWS: Final = 2_000
_MIN_ROWS: Final = 20
#: Rows of the lake in a log's time window that are too few to say what most of them are like.
_FEW_ROWS: Final = 100
_QUARTER_US: Final = 15 * 60 * 1_000_000
#: Largest difference between two time zones.
_MAX_ZONE_SHIFT: Final = timedelta(hours=26)


@dataclass(frozen=True)
class StagedLog:
    """A staged log, with ids in the lake's types.

    Attributes:
        domain: Its side, source or target.
        place: Key of its settings below ``[domains]``.
        item_type: Type of its item ids.
        item_prefix: Prefix of its item ids in the lake if there are several source domains; else empty.
        origin: Where it came from, for errors.
        view: Name of the DuckDB view of its rows, where this process sorted them; also the beginning of the names of tables.
        rows: Number of its rows.
        files: Its rows, in files sorted by time.
        users: Its distinct users.
        items: Its distinct items, also in the DuckDB table `items_table`.
    """

    domain: Domain
    place: str
    item_type: IdType
    item_prefix: str
    origin: str
    view: str
    rows: int
    files: tuple[SortedFile, ...]
    users: DistinctIds
    items: DistinctIds

    @property
    def first_event(self) -> datetime:
        """Time of the earliest event (UTC)."""
        return self.files[0].first

    @property
    def last_event(self) -> datetime:
        """Time of the latest event (UTC)."""
        return self.files[-1].last

    @property
    def items_table(self) -> str:
        """Name of the DuckDB table of its items."""
        return f"{self.view}_items"

    def lake_filter(self) -> Any:
        """Return the pyarrow filter of this domain's rows in the lake's tables; None: all rows."""
        return item_prefix_filter(self.item_prefix)

    def lake_filter_sql(self) -> str:
        """Return the same filter in SQL."""
        return f"starts_with({ITEM_ID}, '{self.item_prefix}')" if self.item_prefix else "true"


class CommitSummary(NamedTuple):
    """Rows that an ingest changed in an events table, and the version it wrote.

    Attributes:
        added: Rows that were added.
        removed: Rows that were removed.
        version: The table's version afterwards.
        updated: Rows that were changed.
    """

    added: int
    removed: int
    version: int
    updated: int = 0


class AppendMissing:
    """Append the rows of a log that its events table lacks. The two are compared by time range, in tasks.

    Args:
        tasks: Runs the tasks.
        lake: The lake.
        log: The staged log.
    """

    def __init__(self, tasks: LogTasks, lake: Lake, log: StagedLog) -> None:
        self.tasks, self.db, self.lake, self.log = tasks, tasks.connection, lake, log
        self.table = Table.events(log.domain)
        #: Surplus copies in the log of rows that the table holds, and the table's rows in the log's time window.
        self.extra_copies, self.rows_in_window = 0, 0
        #: Files of the rows that the table lacks.
        self._pieces: Sequence[SortedFile] = ()
        self._compared = -1

    @property
    def _rows(self) -> int:
        """Number of the rows that the table lacks."""
        return sum(piece.rows for piece in self._pieces)

    def compare(self) -> None:
        """Find the rows that the table lacks.

        Raises:
            BadValue: As for `compare_rounds`.
        """
        run_rounds(self.tasks.executor, [self.compare_rounds()])

    def compare_rounds(self) -> Generator[TaskRound, list[Any], None]:
        """Yield the round of tasks that finds the rows that the table lacks.

        Raises:
            BadValue: More than half of the log is in the table with another created time or weight (their columns were mapped
                differently), or shifted in time (another time zone); or an event of the table is marked as recommended in the log alone, or
                in the table alone. Ingesting it would double-count.
        """
        opened = self.lake.find_table(self.table)
        if opened is None:
            self._pieces, self._compared = self.log.files, 0
            return
        names = arrow_schema(opened).names
        job = _CompareJob(self.lake, self.table, opened.version(), names, self.log.item_prefix, self.tasks.folder)
        calls = [(job, number, *each) for number, each in enumerate(self._time_ranges())]
        ranges: list[_ComparedRange] = yield TaskRound(_compare_range, calls)
        ranges.sort(key=attrgetter("number"))
        self._refuse_marks([marked for found in ranges if (marked := found.marked) is not None])
        self._pieces = [found.lacking for found in ranges if found.lacking is not None]
        self.extra_copies, self.rows_in_window = (
            sum(found.extra_copies for found in ranges),
            sum(found.rows_in_window for found in ranges),
        )
        changed = sum(found.changed for found in ranges)
        difference = f"with another {CREATED_TIMESTAMP}, weight, type or value"
        self.ensure_not_double_counted(changed - self.extra_copies, difference, in_lake=self.rows_in_window)
        self._refuse_moved(opened, [found.lacking for found in ranges if found.lacking is not None and found.rows_in_window])
        self._compared = opened.version()

    def _time_ranges(self) -> Iterator[tuple[SortedFile, datetime]]:
        """Yield the log's files, each with the last instant before the next one."""
        files = self.log.files
        for file, after in pairwise(files):
            yield file, after.first - timedelta(microseconds=1)
        yield files[-1], files[-1].last

    def _refuse_marks(self, marked: Sequence[tuple[int, int]]) -> None:
        """Reject a log that marks events of the table in another way (``recommended_by``).

        Args:
            marked: Time of the first of such events (µs), and their number, by range.

        Raises:
            BadValue: It does.
        """
        if marked:
            raise BadValue(
                f"{sum(events for _, events in marked)} events are in the lake already with another {RECOMMENDED_BY}; ingesting again "
                "would double-count",
                where=self.log.origin,
                next_step=f"replace them: scalr ingest --replace {micros_to_datetime(marked[0][0]).date().isoformat()}; or map event_id, "
                "so that events can change",
            )

    def _in_window(self, version: int, *, columns: Sequence[str] | None = None, where: Any = None) -> pa.RecordBatchReader:
        """Scan the table's rows of the log's domain between the log's first and last event."""
        first, last, own = self.log.first_event, self.log.last_event, combine_filters(self.log.lake_filter(), where)
        table = self.lake.open_table(self.table, version=version)
        return scan_table(table, columns=columns, where=own, since=first, until=last)

    def ensure_not_double_counted(self, events: int, difference: str, *, in_lake: int) -> None:
        """Ensure that at most half of the log, or of the lake's rows in its time window, is in the lake with other values.

        Args:
            events: Number of such events.
            difference: How they differ, for the error.
            in_lake: The lake's rows in the log's time window; a few do not count.

        Raises:
            BadValue: More are.
        """
        if 2 * events > min(self.log.rows, max(in_lake, _FEW_ROWS)):
            raise BadValue(
                f"{events} of {self.log.rows} events are in the lake already {difference}; ingesting again would double-count",
                where=self.log.origin,
                next_step=f"map the columns under [domains.{self.log.place}.columns], and weigh its types, as before, or start a new "
                "project home",
            )

    def _refuse_moved(self, opened: DeltaTable, pieces: Sequence[SortedFile]) -> None:
        """Reject a log most of whose events are in the table shifted by quarter hours, as from another time zone.

        Args:
            opened: The table.
            pieces: The files of rows that the table lacks, of times of which it has others.

        Raises:
            BadValue: Most of a sample of the rows that the table lacks are shifted.
        """
        if 2 * self._rows <= self.log.rows or not pieces:
            return
        middle = pieces[len(pieces) // 2]
        first_rows = next(iter_sorted_batches(middle, self.tasks.folder)).slice(0, _SAMPLE_ROWS)
        self.db.register("first_rows", first_rows)
        self.db.execute(
            f"CREATE OR REPLACE TEMP TABLE sample AS SELECT DISTINCT {USER_ID}, {ITEM_ID}, {EVENT_TIMESTAMP} FROM first_rows"
        )
        self.db.unregister("first_rows")
        first, last, rows = self.db.sql(
            f"SELECT epoch_us(min({EVENT_TIMESTAMP})), epoch_us(max({EVENT_TIMESTAMP})), count(*) FROM sample"
        ).fetchall()[0]
        around = scan_table(
            opened,
            columns=[USER_ID, ITEM_ID, EVENT_TIMESTAMP],
            where=self.log.lake_filter(),
            since=micros_to_datetime(first) - _MAX_ZONE_SHIFT,
            until=micros_to_datetime(last) + _MAX_ZONE_SHIFT,
        )
        create_temp_table(self.db, "around", around)
        moved = f"(epoch_us(sample.{EVENT_TIMESTAMP}) - epoch_us(around.{EVENT_TIMESTAMP}))"
        # Two zones differ by one shift, or by two where one has daylight saving time. Whole days do not count: in a log of dates, a daily
        # event of a user recurs after one day.
        shifts = self.db.sql(
            f"SELECT {moved} // {_QUARTER_US} AS quarters, count(DISTINCT sample.rowid) AS events FROM sample JOIN around "
            f"USING ({USER_ID}, {ITEM_ID}) WHERE {moved} % {_QUARTER_US} = 0 AND quarters % 96 <> 0 AND abs(quarters) <= 4 * 26 "
            f"GROUP BY ALL ORDER BY events DESC LIMIT 2"
        ).fetchall()
        events = sum(number for _, number in shifts)
        if rows < _MIN_ROWS or 2 * events < rows:
            return
        hours = " or ".join(f"{abs(quarters) / 4:g} h {'earlier' if quarters > 0 else 'later'}" for quarters, _ in shifts)
        since = (self.log.first_event - _MAX_ZONE_SHIFT).date().isoformat()
        raise BadValue(
            f"{events} of {rows} sampled events are in the lake already, {hours}; ingesting again would double-count",
            where=self.log.origin,
            next_step=f"set timezone and timestamp_format of [domains.{self.log.place}] as before; or, if the new times are right, replace "
            f"the old ones: scalr ingest --replace {since}",
        )

    def commit(self, count: Callable[[int], None], ensure_none_erased: Callable[[], None]) -> CommitSummary:
        """Append the missing rows; concurrent ingests add each row once.

        Args:
            count: Called with the number of rows of each file written.
            ensure_none_erased: Called before each attempt; raises if users or items were erased since the log was read.

        Raises:
            CommitFailed: Nothing was added.
            BadValue: As for `compare_rounds`, if the table has changed since.
            ComputeError: A task failed; nothing was added.
        """
        opened = self.lake.open_table(self.table)

        def add(version: int) -> CommitSummary:
            ensure_none_erased()
            # A table created after a comparison without one is empty at version 0: all of the log is missing from it.
            if version != self._compared:
                self.compare()
            if not self._rows:
                # The table may have changed after `version` was read: the compared version is known to hold the whole log.
                return CommitSummary(0, 0, self._compared)
            files = self._write_files(arrow_schema(opened), count)
            committed = self.lake.append_files(self.table, files, key=commit_key(), expected_version=version, opened=opened)
            return CommitSummary(self._rows, 0, committed.version)

        return retry_on_new_version(self.lake, self.table, add, opened=opened)

    def _write_files(self, schema: pa.Schema, count: Callable[[int], None]) -> list[TableFile]:
        """Write the missing rows to the table's folder, in tasks."""
        written: dict[int, TableFile] = {}
        job = _WriteJob(self.lake, self.table, schema, str(uuid.uuid4()), self.tasks.folder)
        calls = ((job, number, piece) for number, piece in enumerate(self._pieces))
        try:
            for number, file in self.tasks.executor.map(_write_table_file, calls):
                written[number] = file
                count(file.rows)
        except BaseException:
            self.lake.remove_files(self.table, written.values())
            raise
        return [written[number] for number in sorted(written)]


@dataclass(frozen=True)
class _CompareJob:
    """What every task that compares a range needs to know.

    Attributes:
        lake: The lake.
        table: The events table.
        version: Its version.
        names: Its columns.
        item_prefix: See `StagedLog`.
        folder: Where the log's files are, and where tasks write.
    """

    lake: Lake
    table: Table
    version: int
    names: Sequence[str]
    item_prefix: str
    folder: ShuffleFolder


class _ComparedRange(NamedTuple):
    """A comparison of a log with its table, in a range of time.

    Attributes:
        number: Number of the range.
        lacking: The rows that the table lacks; None: none.
        extra_copies: How many of them the table holds in fewer copies.
        rows_in_window: The table's rows.
        changed: How many of the lacking rows it holds with other values.
        marked: Time of the first event that is marked in another way (µs), and number of such events; None: there is none.
    """

    number: int
    lacking: SortedFile | None
    extra_copies: int
    rows_in_window: int
    changed: int
    marked: tuple[int, int] | None


def _compare_range(
    connection: DuckDBPyConnection, job: _CompareJob, number: int, file: SortedFile, until: datetime
) -> _ComparedRange:
    """Task: compare a file of a log with the rows of its table from the same range of time."""
    names, columns = job.names, ", ".join(job.names)
    opened = job.lake.open_log(job.table, version=job.version)
    rows = scan_table(opened, where=item_prefix_filter(job.item_prefix), since=file.first, until=until)
    create_temp_table(connection, "counted", rows, f"SELECT {columns}, count(*) AS times FROM loaded GROUP BY ALL")
    with job.folder.open_local_files([file.path]) as paths:
        # Subtracting grouped counts keeps genuine duplicates of the log and adds no row that the table already holds.
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE lacking AS SELECT new.*, new.times - coalesce(counted.times, 0) AS lacking "
            f"FROM (SELECT {columns}, count(*) AS times FROM {parquet_sql(*paths)} GROUP BY ALL) AS new "
            f"LEFT JOIN counted ON {_same(names)} WHERE lacking > 0"
        )
    again, in_window, changed = connection.sql(
        f"SELECT (SELECT coalesce(sum(lacking), 0) FROM lacking AS new SEMI JOIN counted ON {_same(names)}), "
        f"(SELECT coalesce(sum(times), 0) FROM counted), "
        f"(SELECT coalesce(sum(lacking), 0) FROM lacking SEMI JOIN counted USING ({USER_ID}, {ITEM_ID}, {EVENT_TIMESTAMP}))"
    ).fetchall()[0]
    marked = _marked_otherwise(connection, names)
    order = ", ".join((*SORT_COLUMNS, *(name for name in names if name not in SORT_COLUMNS)))
    missing = connection.sql(
        f"SELECT {columns} FROM (SELECT {columns}, unnest(range(lacking)) FROM lacking) ORDER BY {order}"
    ).to_arrow_reader(BATCH_ROWS)
    lacking = write_sorted_file(missing, job.folder)
    connection.execute("DROP TABLE counted; DROP TABLE lacking")
    return _ComparedRange(number, lacking, int(again), int(in_window), int(changed), marked)


def _marked_otherwise(connection: DuckDBPyConnection, names: Sequence[str]) -> tuple[int, int] | None:
    """Return the time of the first event of ``lacking`` (µs) that ``counted`` marks in another way, and the number of such events."""
    if RECOMMENDED_BY not in names:
        return None
    others = [name for name in names if name != RECOMMENDED_BY]
    differs = f"new.{RECOMMENDED_BY} IS DISTINCT FROM counted.{RECOMMENDED_BY}"
    first, events = connection.sql(
        f"SELECT epoch_us(min(new.{EVENT_TIMESTAMP})), count(*) FROM lacking AS new SEMI JOIN counted ON {_same(others)} AND {differs}"
    ).fetchall()[0]
    return (int(first), int(events)) if events else None


@dataclass(frozen=True)
class _WriteJob:
    """What every task that writes a file of the table needs to know.

    Attributes:
        lake: The lake.
        table: The events table.
        schema: Its columns.
        commit_id: What the files of the commit have in common.
        folder: Where the rows are.
    """

    lake: Lake
    table: Table
    schema: pa.Schema
    commit_id: str
    folder: ShuffleFolder


def _write_table_file(_: DuckDBPyConnection, job: _WriteJob, number: int, file: SortedFile) -> tuple[int, TableFile]:
    """Task: write the rows of a file to the folder of a table; return its number and the table's file."""
    rows = cast_to_schema(rebatch(iter_sorted_batches(file, job.folder), BATCH_ROWS), job.schema, lambda _rows: None)
    written = job.lake.write_file(job.table, rows, job.schema, number=number, commit_id=job.commit_id)
    if written is None:
        raise AssertionError("a sorted file has rows")
    return number, written


def item_prefix_filter(prefix: str) -> Any:
    """Return the pyarrow filter of the rows whose item ids have a prefix; None, for all rows, if it is empty."""
    import pyarrow.compute as pc

    return pc.starts_with(pc.field(ITEM_ID), pattern=prefix) if prefix else None


def commit_key() -> str:
    """Return a unique key for one commit. An ingest is idempotent because it adds only missing rows, not by this key."""
    return f"ingest-{uuid.uuid4().hex}"


def write_events(
    lake: Lake,
    table: Table,
    rows: pa.RecordBatchReader,
    version: int,
    correction: Correction | None = None,
    predicate: str = "",
) -> int:
    """Write events in one commit on top of a version, and return the new version.

    Args:
        lake: The lake.
        table: The events table.
        rows: The events, in the table's schema.
        version: The version that they were computed from.
        correction: What the commit changes in existing events, or None if they are appended.
        predicate: With a correction, SQL of the events that the rows replace.

    Raises:
        CommitFailed: Nothing changed; the table may have a newer version.
    """
    if correction is None:
        return lake.append(table, rows, key=commit_key(), expected_version=version).version
    return lake.replace_where(
        table,
        rows,
        predicate,
        key=commit_key(),
        expected_version=version,
        metadata=correction.commit_metadata(version + 1),
    ).version


def _same(names: Sequence[str]) -> str:
    """Return the SQL condition that a row of the log (``new``) equals one of the lake (``counted``); nulls are equal."""
    return " AND ".join(f"new.{name} IS NOT DISTINCT FROM counted.{name}" for name in names)
