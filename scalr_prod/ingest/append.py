# SPDX-License-Identifier: Apache-2.0
"""Append staged events to the lake: a log is a multiset, and only the missing copies of each row are added."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

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
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    import pyarrow as pa
    from deltalake import DeltaTable

    from scalr_prod.ingest.sort_by_time import SortedFile
    from scalr_prod.lake import Correction, Lake
    from scalr_prod.schemas import Domain, IdType


#: Rows sampled to detect a log that was read in another time zone, and the smallest sample that allows a verdict.
_SAMPLE_ROWS: Final = 2_000
_MIN_ROWS: Final = 20
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
        view: Name of the DuckDB view of its rows.
        rows: Number of its rows.
        files: Its rows, in files sorted by time.
    """

    domain: Domain
    place: str
    item_type: IdType
    item_prefix: str
    origin: str
    view: str
    rows: int
    files: tuple[SortedFile, ...]

    @property
    def first_event(self) -> datetime:
        """Time of the earliest event (UTC)."""
        return self.files[0].first

    @property
    def last_event(self) -> datetime:
        """Time of the latest event (UTC)."""
        return self.files[-1].last

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
    """Append the rows of a log that its events table lacks. The two are compared by time range.

    Args:
        db: DuckDB connection that holds the log's view.
        lake: The lake.
        log: The staged log.
        folder: Folder of the files of missing rows.
    """

    def __init__(self, db: Any, lake: Lake, log: StagedLog, folder: Path) -> None:
        self.db, self.lake, self.log, self._folder = db, lake, log, folder
        self.table = Table.events(log.domain)
        #: Surplus copies in the log of rows that the table holds, and the table's rows in the log's time window.
        self.extra_copies, self.rows_in_window = 0, 0
        #: Files of the rows that the table lacks, and their number.
        self._pieces: Sequence[SortedFile] = ()
        self._rows = 0
        self._compared = -1

    def compare(self) -> None:
        """Find the rows that the table lacks.

        Raises:
            BadValue: More than half of the log is in the table with another created time or weight (their columns were mapped
                differently), or shifted in time (another time zone); or an event of the table is marked as recommended in the log alone, or
                in the table alone. Ingesting it would double-count.
        """
        if not self.lake.exists(self.table):
            self._pieces, self._rows, self._compared = self.log.files, self.log.rows, 0
            return
        opened = self.lake.open_table(self.table)
        names = arrow_schema(opened).names
        self.extra_copies = self.rows_in_window = self._rows = changed = 0
        lacking: list[SortedFile] = []
        for file, until in self._time_ranges():
            rows = scan_table(
                opened,
                where=self.log.lake_filter(),
                since=file.first,
                until=until,
            )
            create_temp_table(
                self.db, "counted", rows, f"SELECT {', '.join(names)}, count(*) AS times FROM loaded GROUP BY ALL"
            )
            changed += self._compare(file, names)
            self._refuse_marks(names)
            missing = self._missing_of(names)
            path = self._folder / f"{self.log.view}-lacking-{len(lacking)}.parquet"
            if (lacking_file := write_sorted_file(path, missing)) is not None:
                lacking.append(lacking_file)
        self.ensure_not_double_counted(changed - self.extra_copies, f"with another {CREATED_TIMESTAMP}, weight, type or value")
        self._refuse_moved(lacking, opened)
        self._pieces, self._compared = lacking, opened.version()

    def _time_ranges(self) -> Iterator[tuple[SortedFile, datetime]]:
        """Yield the log's files, each with the last instant before the next one."""
        files = self.log.files
        for file, after in pairwise(files):
            yield file, after.first - timedelta(microseconds=1)
        yield files[-1], files[-1].last

    def _compare(self, file: SortedFile, names: Sequence[str]) -> int:
        """Create ``lacking``, the rows of a file that ``counted`` lacks; return how many of them it holds with other values."""
        columns = ", ".join(names)
        # Subtracting grouped counts keeps genuine duplicates of the log and adds no row that the table already holds.
        self.db.execute(
            f"CREATE OR REPLACE TEMP TABLE lacking AS SELECT new.*, new.times - coalesce(counted.times, 0) AS lacking "
            f"FROM (SELECT {columns}, count(*) AS times FROM {parquet_sql(file.path)} GROUP BY ALL) AS new "
            f"LEFT JOIN counted ON {_same(names)} WHERE lacking > 0"
        )
        rows, again, rows_in_window, changed = self.db.sql(
            f"SELECT (SELECT coalesce(sum(lacking), 0) FROM lacking), "
            f"(SELECT coalesce(sum(lacking), 0) FROM lacking AS new SEMI JOIN counted ON {_same(names)}), "
            f"(SELECT coalesce(sum(times), 0) FROM counted), "
            f"(SELECT coalesce(sum(lacking), 0) FROM lacking SEMI JOIN counted USING ({USER_ID}, {ITEM_ID}, {EVENT_TIMESTAMP}))"
        ).fetchall()[0]
        self._rows, self.extra_copies, self.rows_in_window = (
            self._rows + int(rows),
            self.extra_copies + int(again),
            self.rows_in_window + int(rows_in_window),
        )
        return int(changed)

    def _refuse_marks(self, names: Sequence[str]) -> None:
        """Reject a log that marks events of ``counted`` in another way (``recommended_by``).

        Raises:
            BadValue: It does.
        """
        if RECOMMENDED_BY not in names:
            return
        others = [name for name in names if name != RECOMMENDED_BY]
        differs = f"new.{RECOMMENDED_BY} IS DISTINCT FROM counted.{RECOMMENDED_BY}"
        first, events = self.db.sql(
            f"SELECT epoch_us(min(new.{EVENT_TIMESTAMP})), count(*) FROM lacking AS new SEMI JOIN counted ON {_same(others)} AND {differs}"
        ).fetchall()[0]
        if events:
            raise BadValue(
                f"{events} events are in the lake already with another {RECOMMENDED_BY}; ingesting again would double-count",
                where=self.log.origin,
                next_step=f"replace them: scalr ingest --replace {micros_to_datetime(first).date().isoformat()}; or map event_id, so that "
                "events can change",
            )

    def _missing_of(self, names: Sequence[str]) -> pa.RecordBatchReader:
        columns, order = ", ".join(names), ", ".join((*SORT_COLUMNS, *(name for name in names if name not in SORT_COLUMNS)))
        reader: pa.RecordBatchReader = self.db.sql(
            f"SELECT {columns} FROM (SELECT {columns}, unnest(range(lacking)) FROM lacking) ORDER BY {order}"
        ).to_arrow_reader(BATCH_ROWS)
        return reader

    def _in_window(self, version: int, *, columns: Sequence[str] | None = None, where: Any = None) -> pa.RecordBatchReader:
        """Scan the table's rows of the log's domain between the log's first and last event."""
        first, last, own = self.log.first_event, self.log.last_event, combine_filters(self.log.lake_filter(), where)
        table = self.lake.open_table(self.table, version=version)
        return scan_table(table, columns=columns, where=own, since=first, until=last)

    def ensure_not_double_counted(self, events: int, difference: str) -> None:
        """Ensure that at most half of the log is already in the lake with other values.

        Raises:
            BadValue: It is.
        """
        if 2 * events > self.log.rows:
            raise BadValue(
                f"{events} of {self.log.rows} events are in the lake already {difference}; ingesting again would double-count",
                where=self.log.origin,
                next_step=f"map the columns under [domains.{self.log.place}.columns], and weigh its types, as before, or start a new "
                "project home",
            )

    def _refuse_moved(self, lacking: Sequence[SortedFile], opened: DeltaTable) -> None:
        """Reject a log most of whose events are in the table shifted by quarter hours, as from another time zone.

        Raises:
            BadValue: Most of a sample of the rows that the table lacks are shifted.
        """
        if 2 * self._rows <= self.log.rows:
            return
        middle = lacking[len(lacking) // 2]
        self.db.execute(
            f"CREATE OR REPLACE TEMP TABLE sample AS SELECT DISTINCT {USER_ID}, {ITEM_ID}, {EVENT_TIMESTAMP} FROM (SELECT * FROM "
            f"{parquet_sql(middle.path)} LIMIT {_SAMPLE_ROWS})"
        )
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

    def commit(self, count: Callable[[int], None]) -> CommitSummary:
        """Append the missing rows; concurrent ingests add each row once.

        Args:
            count: Called with the number of rows of each batch written.

        Raises:
            CommitFailed: Nothing was added.
            BadValue: As for `compare`, if the table has changed since.
        """
        schema = self.lake.schema(self.table)

        def add(version: int) -> CommitSummary:
            # A table created after a comparison without one is empty at version 0: all of the log is missing from it.
            if version != self._compared:
                self.compare()
            if not self._rows:
                # The table may have changed after `version` was read: the compared version is known to hold the whole log.
                return CommitSummary(0, 0, self._compared)
            rows, batches = self._rows, cast_to_schema(rebatch(iter_sorted_batches(self._pieces), BATCH_ROWS), schema, count)
            return CommitSummary(rows, 0, write_events(self.lake, self.table, batches, version))

        return retry_on_new_version(self.lake, self.table, add)


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
