# SPDX-License-Identifier: Apache-2.0
"""Limit of events per user and calendar day, whatever the number of logs that deliver the day.

A day's events are those of the lake and of the log. If a log makes a user's day exceed the limit, the lake's events over the limit are
removed. Days that are left out as a whole (``over_user_day = "drop"``) are recorded in the home, so that later events of them are left
out, too.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.atomic_io import atomic_path
from scalr_prod.core.delta_log import arrow_schema
from scalr_prod.core.file_lock import file_lock
from scalr_prod.core.timestamps import micros_to_datetime
from scalr_prod.errors import CommitFailed
from scalr_prod.ingest.append import write_events
from scalr_prod.ingest.rows import BATCH_ROWS, cast_to_schema, count_rows, create_temp_table, scan_table
from scalr_prod.ingest.sort_by_time import SORT_COLUMNS
from scalr_prod.lake import Correction, retry_on_new_version, window_sql
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_ID, EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table
from scalr_prod.workspace import parquet_sql, quote_literal, timestamp_literal

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from pathlib import Path

    from deltalake import DeltaTable

    from scalr_prod.config import DomainSettings
    from scalr_prod.ingest.append import StagedLog
    from scalr_prod.ingest.log_limits import LeftOutRows
    from scalr_prod.lake import Lake


logger = logging.getLogger(__name__)

#: File in the home: domain, user and day of the days that were left out, and the limit that they exceeded.
_FILE: Final = "user_days.parquet"
_LOCK_TIMEOUT_S: Final = 600
_KEY: Final = f"{USER_ID}, day"
_MICROSECOND: Final = timedelta(microseconds=1)
#: More than a calendar day.
_ONE_DAY: Final = timedelta(hours=26)


class UserDayLimit:
    """The limit ``max_user_day`` of one log.

    Args:
        db: DuckDB connection that holds the log's view.
        view: Name of the view, which `apply` replaces.
        place: Settings key of the log.
        section: Its settings, with a limit.
        timezone: The project's time zone.
        home: The project's home.
        since: The log replaces the lake's events from this time on, or None if it is added to them.
    """

    def __init__(
        self, db: Any, view: str, place: str, section: DomainSettings, *, timezone: str, home: Path, since: datetime | None
    ) -> None:
        self._db, self._view, self._place, self._since = db, view, place, since
        self._most, self._caps = section.max_user_day, section.over_user_day == "cap"
        self._maps_ids = section.columns.event_id is not None
        self._zone = quote_literal(timezone)
        self._with_day = f"*, ({EVENT_TIMESTAMP} AT TIME ZONE {self._zone})::DATE AS day"
        self._path = home / _FILE
        self._over, self._removed = f"{view}_over", f"{view}_removed"
        self._lake_names: list[str] = []

    def apply(self, lake_table: DeltaTable | None, lake_filter: Any, left_out: LeftOutRows) -> None:
        """Leave out the log's events over the limit.

        Args:
            lake_table: The lake's events; None if there is no table yet.
            lake_filter: pyarrow filter of the domain's rows in it; None: all rows.
            left_out: Counts the rows over the limit.

        Raises:
            BadValue: Too many rows would be left out.
        """
        recorded = f"FROM ({self._recorded_sql()}) SEMI JOIN log_days USING ({_KEY})"
        counted = f"SELECT {_KEY}, count(*) AS events FROM"
        self._create("log_days", f"{counted} (SELECT {self._with_day} FROM {self._view}) GROUP BY ALL")
        self._create_from_lake("lake_days", lake_table, lake_filter, f"{counted} day_rows GROUP BY ALL", days="log_days")
        # Days whose events must be compared one by one: an event may be both in the log and in the lake.
        self._create(
            "checked_days",
            f"SELECT {_KEY} FROM (FROM log_days UNION ALL FROM lake_days) GROUP BY ALL HAVING sum(events) > {self._most} UNION {recorded}",
        )
        self._match_events(lake_table, lake_filter)
        self._create(self._over, f"SELECT {_KEY} FROM day_events GROUP BY ALL HAVING count(*) > {self._most} UNION {recorded}")
        # The columns after the weight decide between events that are equal before.
        order = ", ".join([EVENT_TIMESTAMP, CREATED_TIMESTAMP, ITEM_ID, "weight DESC", *self._other_columns()])
        self._create(
            "kept_events",
            f"FROM day_events SEMI JOIN {self._over} USING ({_KEY}) "
            f"QUALIFY row_number() OVER (PARTITION BY {_KEY} ORDER BY {order}) <= {self._most if self._caps else 0}",
        )
        self._create(
            self._removed, f"FROM lake_rows SEMI JOIN {self._over} USING ({_KEY}) ANTI JOIN kept_events USING (lake_row)"
        )
        over = count_rows(
            self._db, f"FROM log_rows SEMI JOIN {self._over} USING ({_KEY}) ANTI JOIN kept_events USING (log_row)"
        )
        if over:
            left_out.counts["over_user_day"] += over
            left_out.ensure_within_limit(count_rows(self._db, f"FROM {self._view}") - over)
            self._replace_view()
            days = count_rows(self._db, f"FROM {self._over}")
            logger.warning("%s: %d users and days with more than %d events", left_out.origin, days, self._most)

    def commit(self, lake: Lake, log: StagedLog) -> int:
        """Record the days that are left out, remove the lake's events over the limit in one commit, and return their number.

        Raises:
            CommitFailed: No event was removed.
        """
        self._record()
        count = count_rows(self._db, f"FROM {self._removed}")
        if not count:
            return 0
        table = Table.events(log.domain)
        schema = lake.schema(table)
        first, last = self._time_range(self._removed)
        own = f" AND {log.lake_filter_sql()}" if log.item_prefix else ""

        def remove(version: int) -> int:
            rows = scan_table(lake.open_table(table, version=version), where=log.lake_filter(), since=first, until=last)
            create_temp_table(self._db, "window_rows", rows, f"SELECT *, {_copy_number(self._lake_names)} FROM loaded")
            remaining = self._db.sql(
                f"SELECT {', '.join(schema.names)} FROM window_rows AS a "
                f"ANTI JOIN {self._removed} AS b ON {_same([*self._lake_names, 'copy'])} "
                f"ORDER BY {', '.join((*SORT_COLUMNS, *self._other_columns()))}"
            ).to_arrow_reader(BATCH_ROWS)
            batches = cast_to_schema(remaining, schema, lambda _rows: None)
            correction = Correction(first, count, 0)
            return write_events(lake, table, batches, version, correction, window_sql(first, last + _MICROSECOND) + own)

        retry_on_new_version(lake, table, remove)
        logger.warning("%s: %d events were removed from the lake by max_user_day", log.origin, count)
        return count

    def _match_events(self, lake_table: DeltaTable | None, lake_filter: Any) -> None:
        """Create ``day_events``: the checked days' events in the log or the lake, with their rows in ``log_rows`` and ``lake_rows``."""
        columns = [name for (name, *_) in self._db.sql(f"DESCRIBE {self._view}").fetchall()]
        names = self._lake_names = columns if lake_table is None else arrow_schema(lake_table).names
        by_id = self._maps_ids and EVENT_ID in names
        numbered = f"SELECT *, {_copy_number(names)}, row_number() OVER ()"
        self._create(
            "log_rows",
            f"{numbered} AS log_row FROM (SELECT {self._with_day} FROM {self._view}) SEMI JOIN checked_days USING ({_KEY})",
        )
        self._create_from_lake(
            "lake_rows", lake_table, lake_filter, f"{numbered} AS lake_row FROM day_rows", days="checked_days"
        )
        same = f"a.{EVENT_ID} = b.{EVENT_ID}" if by_id else _same([*names, "copy"])
        # The log may move an event with an id to another day, or leave it out.
        in_log = (
            f"(SELECT {EVENT_ID} FROM {self._view} UNION ALL SELECT {EVENT_ID} FROM {self._view}_left_out)"
            if by_id
            else "log_rows"
        )
        values = ", ".join([_KEY, EVENT_TIMESTAMP, CREATED_TIMESTAMP, ITEM_ID, "weight", *self._other_columns()])
        own = ", ".join(f"a.{name}" for name in values.split(", "))
        self._create(
            "day_events",
            f"SELECT {own}, a.log_row, b.lake_row FROM log_rows AS a LEFT JOIN lake_rows AS b ON {same} "
            f"UNION ALL SELECT {values}, NULL, lake_row FROM lake_rows AS a ANTI JOIN {in_log} AS b ON {same}",
        )

    def _other_columns(self) -> list[str]:
        """Return the lake's columns that events are not sorted by first."""
        return [name for name in self._lake_names if name not in SORT_COLUMNS]

    def _create(self, name: str, query: str) -> None:
        self._db.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {query}")

    def _create_from_lake(self, name: str, lake_table: DeltaTable | None, lake_filter: Any, query: str, *, days: str) -> None:
        """Create a table by a query over ``day_rows``, the lake's rows of the days in a table."""
        query = (
            f"WITH day_rows AS (SELECT * FROM (SELECT {self._with_day} FROM loaded) SEMI JOIN {days} USING ({_KEY})) {query}"
        )
        if lake_table is None:
            self._create(name, query.replace("FROM loaded", f"FROM {self._view} WHERE false"))
            return
        first, last = self._time_range(self._view)
        until = last + _ONE_DAY if self._since is None else min(last + _ONE_DAY, self._since - _MICROSECOND)
        create_temp_table(self._db, name, scan_table(lake_table, where=lake_filter, since=first - _ONE_DAY, until=until), query)

    def _time_range(self, relation: str) -> tuple[datetime, datetime]:
        """Return the time of the first and last event of a relation (UTC)."""
        ((first, last),) = self._db.sql(
            f"SELECT epoch_us(min({EVENT_TIMESTAMP})), epoch_us(max({EVENT_TIMESTAMP})) FROM {relation}"
        ).fetchall()
        return micros_to_datetime(first), micros_to_datetime(last)

    def _replace_view(self) -> None:
        """Replace the log's view by one without the events over the limit."""
        former = f"{self._view}_before_limit"
        columns = ", ".join(name for (name, *_) in self._db.sql(f"DESCRIBE {self._view}").fetchall())
        self._db.execute(f"ALTER VIEW {self._view} RENAME TO {former}")
        self._db.execute(
            f"CREATE TEMP VIEW {self._view} AS "
            f"SELECT {columns} FROM (SELECT {self._with_day} FROM {former}) ANTI JOIN {self._over} USING ({_KEY}) "
            f"UNION ALL SELECT {columns} FROM log_rows SEMI JOIN kept_events USING (log_row)"
        )

    def _recorded_sql(self) -> str:
        """Return the query of the recorded days that the log's events are left out of."""
        if self._caps or not self._path.exists():
            return f"SELECT {USER_ID}, NULL::DATE AS day FROM {self._view} WHERE false"
        own = f"domain = {quote_literal(self._place)} AND most >= {self._most}"
        return f"SELECT {_KEY} FROM {self._file_sql()} WHERE {own}{self._earlier()}"

    def _record(self) -> None:
        """Record the days that are left out as a whole; those that the log replaces are recorded again."""
        if self._caps:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        busy = CommitFailed(
            f"another process has been writing it for over {_LOCK_TIMEOUT_S} s",
            where=str(self._path),
            next_step="wait for it to finish, then run the command again",
        )
        with file_lock(self._path.with_name(f".{self._path.name}.lock"), busy, timeout_s=_LOCK_TIMEOUT_S):
            self._update_record()

    def _update_record(self) -> None:
        if not (self._path.exists() or count_rows(self._db, f"FROM {self._over}")):
            return
        place = quote_literal(self._place)
        rows = f"SELECT {place} AS domain, {_KEY}, {self._most} AS most FROM {self._over}"
        if self._path.exists():
            rows += f" UNION ALL SELECT domain, {_KEY}, most FROM {self._file_sql()} WHERE domain <> {place} OR (true{self._earlier()})"
        with atomic_path(self._path) as unfinished:
            self._db.execute(
                f"COPY (SELECT domain, {_KEY}, max(most)::BIGINT AS most FROM ({rows}) GROUP BY ALL ORDER BY ALL) "
                f"TO {quote_literal(str(unfinished))} (FORMAT parquet)"
            )

    def _file_sql(self) -> str:
        return parquet_sql(self._path)

    def _earlier(self) -> str:
        """Return the SQL condition that a recorded day begins before the events that the log replaces."""
        if self._since is None:
            return ""
        return f" AND (day::TIMESTAMP AT TIME ZONE {self._zone}) < {timestamp_literal(self._since)}"


def _copy_number(names: Iterable[str]) -> str:
    """Return the SQL column ``copy``, which numbers equal rows."""
    return f"row_number() OVER (PARTITION BY {', '.join(names)}) AS copy"


def _same(names: Iterable[str]) -> str:
    """Return the SQL condition that rows a and b are equal; nulls are equal."""
    return " AND ".join(f"a.{name} IS NOT DISTINCT FROM b.{name}" for name in names)
