# SPDX-License-Identifier: Apache-2.0
"""Upsert by event id: an event whose id is in the lake updates that event instead of being counted twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scalr_prod.core.timestamps import micros_to_datetime
from scalr_prod.ingest.append import AppendMissing, CommitSummary, write_events
from scalr_prod.ingest.rows import BATCH_ROWS, cast_to_schema, count_rows, create_temp_table, scan_table
from scalr_prod.lake import Correction, retry_on_new_version, window_sql
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_ID, EVENT_TIMESTAMP, ITEM_ID, USER_ID

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    import pyarrow as pa

    from scalr_prod.config import DomainSettings
    from scalr_prod.ingest.append import StagedLog
    from scalr_prod.ingest.log_tasks import LogTasks
    from scalr_prod.lake import Lake


def plan_append(tasks: LogTasks, lake: Lake, log: StagedLog, section: DomainSettings) -> AppendMissing:
    """Return the append of a log; an upsert if the settings map event ids."""
    return AppendMissing(tasks, lake, log) if section.columns.event_id is None else UpsertByEventId(tasks, lake, log, section)


def keep_latest_per_event_id(db: Any, view: str, section: DomainSettings, every_row: str) -> int:
    """Keep the last row of each event id in a log's view: by created time if that is mapped, else by reading order.

    An event whose last row is left out is not kept; see `record_left_out`.

    Args:
        db: DuckDB connection that holds the log's view.
        view: Name of the view.
        section: The log's settings.
        every_row: Query of `LEFT_OUT_COLUMNS` of all rows of the log, with those that were left out.

    Returns:
        Rows that are kept.
    """
    order = f"{CREATED_TIMESTAMP} DESC, position DESC" if section.columns.created else "position DESC"
    db.execute(
        f"CREATE TEMP TABLE {view}_ids AS FROM ({every_row}) "
        f"QUALIFY row_number() OVER (PARTITION BY {EVENT_ID} ORDER BY {order}) = 1"
    )
    db.execute(
        f"CREATE TEMP TABLE {view}_latest AS SELECT * EXCLUDE (position) FROM {view} SEMI JOIN {view}_ids USING (position)"
    )
    db.execute(f"DROP VIEW {view}")
    db.execute(f"CREATE TEMP VIEW {view} AS FROM {view}_latest")
    record_left_out(db, view)
    return count_rows(db, f"FROM {view}")


def record_left_out(db: Any, view: str) -> None:
    """Record the events of a log that its view no longer holds, in the table ``{view}_left_out``: id and created time."""
    db.execute(
        f"CREATE OR REPLACE TEMP TABLE {view}_left_out AS "
        f"SELECT {EVENT_ID}, {CREATED_TIMESTAMP} FROM {view}_ids ANTI JOIN {view} USING ({EVENT_ID})"
    )


class UpsertByEventId(AppendMissing):
    """Upsert a log whose events have ids into its events table.

    Events whose last row in the log is left out are removed. If created times are mapped, an event that the lake holds with a later
    created time is kept. The commit records the earliest changed event time, as a replacement does, so that data derived from former
    events is known to be stale.
    """

    def __init__(self, tasks: LogTasks, lake: Lake, log: StagedLog, section: DomainSettings) -> None:
        super().__init__(tasks, lake, log)
        self._missing, self._left_out, self._removed = f"missing_{log.view}", f"{log.view}_left_out", f"removed_{log.view}"
        self._newer = "new.created_timestamp >= known_events.created_timestamp" if section.columns.created else "true"

    def compare(self) -> None:
        """Find the events that the table lacks, holds with other values, or holds though they are left out now."""
        self.db.execute(f"CREATE OR REPLACE TEMP TABLE {self._removed} ({EVENT_ID} VARCHAR, since TIMESTAMPTZ)")
        every = f"SELECT *, false AS known, {EVENT_TIMESTAMP} AS since FROM {self.log.view}"
        if not self.lake.exists(self.table):
            self.db.execute(f"CREATE OR REPLACE TEMP TABLE {self._missing} AS {every}")
            self._compared = 0
            return
        version = self.lake.version(self.table)
        names = self.lake.schema(self.table).names
        with_ids = EVENT_ID in names
        self.db.execute(
            f"CREATE OR REPLACE TEMP TABLE {self._missing} AS {self._lacking(version, names) if with_ids else every}"
        )
        if with_ids:
            self.db.execute(
                f"INSERT INTO {self._removed} SELECT {EVENT_ID}, known_events.{EVENT_TIMESTAMP} "
                f"FROM known_events JOIN {self._left_out} AS new USING ({EVENT_ID}) WHERE {self._newer}"
            )
        self.db.execute("DROP TABLE IF EXISTS known_events")
        self._refuse_known_without_ids(version, with_ids=with_ids)
        # A table from before ids were mapped gets the column in `create_tables`, and is compared again then.
        self._compared = version if with_ids else -1

    def _lacking(self, version: int, names: list[str]) -> str:
        """Return the query of the events that a version of the table lacks or holds with other values."""
        rows = scan_table(self.lake.open_table(self.table, version=version), where=self.log.lake_filter())
        ids = f"SELECT {EVENT_ID} FROM {self.log.view} UNION ALL SELECT {EVENT_ID} FROM {self._left_out}"
        create_temp_table(self.db, "known_events", rows, f"FROM loaded SEMI JOIN ({ids}) USING ({EVENT_ID})")
        other = " OR ".join(f"new.{name} IS DISTINCT FROM known_events.{name}" for name in names if name != EVENT_ID)
        return (
            f"SELECT new.*, known_events.{EVENT_ID} IS NOT NULL AS known, "
            f"least(new.{EVENT_TIMESTAMP}, known_events.{EVENT_TIMESTAMP}) AS since "
            f"FROM {self.log.view} AS new LEFT JOIN known_events USING ({EVENT_ID}) "
            f"WHERE known_events.{EVENT_ID} IS NULL OR ({self._newer} AND ({other}))"
        )

    def _refuse_known_without_ids(self, version: int, *, with_ids: bool) -> None:
        """Reject a log whose events are in the lake without ids: ingesting them would double-count."""
        import pyarrow.compute as pc

        event = [USER_ID, ITEM_ID, EVENT_TIMESTAMP]
        rows = self._in_window(version, columns=event, where=pc.field(EVENT_ID).is_null() if with_ids else None)
        create_temp_table(self.db, "counted", rows, "SELECT DISTINCT * FROM loaded")
        same = count_rows(self.db, f"FROM {self._missing} SEMI JOIN counted USING ({', '.join(event)})")
        self.ensure_not_double_counted(same, "without an event_id", in_lake=count_rows(self.db, "FROM counted"))

    def commit(self, count: Callable[[int], None], ensure_none_erased: Callable[[], None]) -> CommitSummary:
        """Append missing events, update changed ones and remove those that are left out, in one commit; see `AppendMissing.commit`."""
        schema = self.lake.schema(self.table)

        def merge(version: int) -> CommitSummary:
            ensure_none_erased()
            if version != self._compared:
                self.compare()
            rows, known, removed, since, first = self.db.sql(
                f"SELECT count(*) FILTER (change <> 'removed'), count(*) FILTER (change = 'known'), count(*) FILTER (change = 'removed'), "
                f"epoch_us(min(since) FILTER (change <> 'missing')), epoch_us(min(since)) FROM "
                f"(SELECT if(known, 'known', 'missing') AS change, since FROM {self._missing} "
                f"UNION ALL SELECT 'removed', since FROM {self._removed})"
            ).fetchall()[0]
            if not rows and not removed:
                return CommitSummary(0, 0, self._compared)
            start = micros_to_datetime(first)
            replaces = known or removed
            correction = Correction(micros_to_datetime(since), int(known) + int(removed), int(known)) if replaces else None
            batches = cast_to_schema(self._ordered(schema.names, (version, start) if replaces else None), schema, count)
            done = write_events(self.lake, self.table, batches, version, correction, self._predicate(start))
            return CommitSummary(int(rows) - int(known), int(removed), done, int(known))

        return retry_on_new_version(self.lake, self.table, merge)

    def _ordered(self, names: list[str], beside: tuple[int, datetime] | None = None) -> pa.RecordBatchReader:
        """Return the changed and missing events in order; with ``beside``, also the domain's unchanged events from a time on."""
        columns = ", ".join(names)
        rows = f"SELECT {columns} FROM {self._missing}"
        if beside is not None:
            version, first = beside
            table = self.lake.open_table(self.table, version=version)
            lake_rows = scan_table(table, columns=names, where=self.log.lake_filter(), since=first)
            self.db.register("lake_events", lake_rows)
            changed = f"SELECT {EVENT_ID} FROM {self._missing} UNION ALL SELECT {EVENT_ID} FROM {self._removed}"
            rows += f" UNION ALL SELECT {columns} FROM lake_events ANTI JOIN ({changed}) USING ({EVENT_ID})"
        order = f"{EVENT_TIMESTAMP}, {USER_ID}, {ITEM_ID}, {EVENT_ID}"
        reader: pa.RecordBatchReader = self.db.sql(f"SELECT * FROM ({rows}) ORDER BY {order}").to_arrow_reader(BATCH_ROWS)
        return reader

    def _predicate(self, first: datetime) -> str:
        """Return Delta's predicate of the domain's events from a time on. Delta's own merge and delete leave ``string_view`` columns."""
        return f"{window_sql(first)} AND {self.log.lake_filter_sql()}" if self.log.item_prefix else window_sql(first)
