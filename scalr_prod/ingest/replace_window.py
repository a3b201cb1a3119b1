# SPDX-License-Identifier: Apache-2.0
"""Replace a time window by staged events: rows that the logs no longer hold are removed, in one commit per table."""

from __future__ import annotations

import functools
import logging
import operator
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any

from scalr_prod.core.timestamps import micros_to_datetime
from scalr_prod.errors import BadValue, EmptyInput
from scalr_prod.ingest.append import CommitSummary, StagedLog, write_events
from scalr_prod.ingest.rows import BATCH_ROWS, cast_to_schema, scan_table
from scalr_prod.ingest.sort_by_time import SORT_COLUMNS
from scalr_prod.lake import Correction, retry_on_new_version, window_sql
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_ID, EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table
from scalr_prod.workspace import timestamp_literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from scalr_prod.config import Domains
    from scalr_prod.lake import Lake


logger = logging.getLogger(__name__)


def plan_replacements(
    domains: Domains, db: Any, lake: Lake, logs: Mapping[str, StagedLog], since: datetime
) -> dict[str, LogReplacement]:
    """Return the replacement of each log, by its settings key; logs of one table share one commit."""
    replacements: dict[str, LogReplacement] = {}
    for domain in ("source", "target"):
        own = [log for log in logs.values() if log.domain == domain]
        if own:
            limits = {log.place: domains[log.place].max_removed_share for log in own}
            table = _TableReplacement(db, lake, own, since, limits)
            replacements |= {log.place: LogReplacement(table, log.place) for log in own}
    return replacements


@dataclass
class LogReplacement:
    """One log's share of the replacement of its table's events."""

    table_replacement: _TableReplacement
    place: str

    def compare(self) -> None:
        """Find the rows to add and to remove.

        Raises:
            BadValue: More of the domain's events would be removed than ``max_removed_share`` allows.
            EmptyInput: The domain would have no events in the lake.
        """
        self.table_replacement.compare()

    def commit(self, count: Callable[[int], None], ensure_none_erased: Callable[[], None]) -> CommitSummary:
        """Commit the replacement, once for all logs of the table.

        Args:
            count: Called with the number of rows of each batch written.
            ensure_none_erased: Called before each attempt; raises if users or items were erased since the logs were read.

        Raises:
            CommitFailed: Nothing changed.
            InputError: As for `compare`, if the table has changed since.
        """
        return self.table_replacement.commit(count, ensure_none_erased)[self.place]


class _TableReplacement:
    """Replacement of a table's events from a time on by those of its logs.

    Args:
        db: DuckDB connection that holds the logs' views.
        lake: The lake.
        logs: Logs of one side.
        since: The window's start (UTC).
        limits: Largest share of a domain's events that may be removed, by its settings key.
    """

    def __init__(self, db: Any, lake: Lake, logs: list[StagedLog], since: datetime, limits: Mapping[str, float]) -> None:
        self.db, self.lake, self.logs, self.limits = db, lake, logs, limits
        self.since = since.astimezone(UTC)
        self.table = Table.events(logs[0].domain)
        self._name = f"{logs[0].domain}_replaced"
        self._compared: int | None = None
        self._changes: dict[str, tuple[int, int]] = {}
        self._first: datetime | None = None
        self._done: dict[str, CommitSummary] | None = None

    def compare(self) -> None:
        """See `LogReplacement.compare`."""
        version = self.lake.version(self.table) if self.lake.exists(self.table) else -1
        if self._compared == version:
            return
        names = [USER_ID, ITEM_ID, EVENT_TIMESTAMP, CREATED_TIMESTAMP, "weight"]
        if version >= 0:
            names = self.lake.schema(self.table).names
        columns = ", ".join(names)
        window = f"{EVENT_TIMESTAMP} >= {timestamp_literal(self.since)}"
        new = " UNION ALL ".join(f"SELECT {columns} FROM {log.view} WHERE {window}" for log in self.logs)
        if version < 0:
            lake_sql = f"SELECT {columns} FROM {self.logs[0].view} WHERE false"
        else:
            table = self.lake.open_table(self.table, version=version)
            self.db.register("lake_events", scan_table(table, columns=names, where=self._own_rows(), since=self.since))
            lake_sql = f"SELECT {columns} FROM lake_events"
        # The number of copies of each row before and after.
        self.db.execute(
            f"CREATE OR REPLACE TEMP TABLE {self._name} AS SELECT {columns}, sum(old)::BIGINT AS old, sum(new)::BIGINT AS new FROM "
            f"(SELECT *, 1 AS old, 0 AS new FROM ({lake_sql}) UNION ALL SELECT *, 0, 1 FROM ({new})) GROUP BY {columns}"
        )
        self.db.unregister("lake_events")
        first = self.db.sql(f"SELECT epoch_us(min({EVENT_TIMESTAMP})) FROM {self._name} WHERE old <> new").fetchall()[0][0]
        self._first = None if first is None else micros_to_datetime(first)
        self._changes = {log.place: self._change(log) for log in self.logs}
        if EVENT_ID in names:
            self._refuse_ids_before_window(version)
        for log in self.logs:
            self._refuse_removal(log, version)
        self._compared = version

    def _refuse_ids_before_window(self, version: int) -> None:
        """Reject events whose id is in the lake before the window: their corrected copy would be a duplicate."""
        import pyarrow.dataset as ds

        earlier = ds.field(EVENT_TIMESTAMP) < ds.scalar(self.since)
        table = self.lake.open_table(self.table, version=version)
        self.db.register("before", scan_table(table, columns=[EVENT_ID], where=earlier, until=self.since))
        same = f"SELECT {EVENT_ID} FROM {self._name} WHERE new > 0 AND {EVENT_ID} IN (SELECT {EVENT_ID} FROM before)"
        count, example = self.db.sql(f"SELECT count(*), min({EVENT_ID}) FROM ({same})").fetchall()[0]
        self.db.unregister("before")
        if count:
            raise BadValue(
                f"{count} events of the log, such as {example}, are in the lake with a time before {self.since.isoformat()}",
                where=self.logs[0].origin,
                next_step="replace from an earlier time on, so that they are corrected and not duplicated",
            )

    def _change(self, log: StagedLog) -> tuple[int, int]:
        added, removed = self.db.sql(
            f"SELECT coalesce(sum(greatest(new - old, 0)), 0), coalesce(sum(greatest(old - new, 0)), 0) FROM {self._name} "
            f"WHERE {log.lake_filter_sql()}"
        ).fetchall()[0]
        return int(added), int(removed)

    def _refuse_removal(self, log: StagedLog, version: int) -> None:
        """Reject the removal of too many of a domain's events, and a domain without events."""
        (added, removed), limit = self._changes[log.place], self.limits[log.place]
        if added and not removed:
            return
        rows = 0 if version < 0 else self.lake.dataset(self.table, version=version).count_rows(filter=log.lake_filter())
        if removed > limit * rows:
            raise BadValue(
                f"{removed} of the domain's {rows} events in the lake are not in the log, and would be removed from it: more than "
                f"max_removed_share = {limit:g}",
                where=log.origin,
                next_step=f"check that the log has all events since {self.since.isoformat()}; if they are to go, raise "
                f"max_removed_share under [domains.{log.place}]",
            )
        if removed == rows + added:
            raise EmptyInput(
                f"has no events from {self.since.isoformat()} on, and the lake would have none of the domain",
                where=log.origin,
                next_step=f"replace from an earlier time on, or check what [domains.{log.place}] names",
            )

    def commit(self, count: Callable[[int], None], ensure_none_erased: Callable[[], None]) -> dict[str, CommitSummary]:
        """See `LogReplacement.commit`."""

        def replace(version: int) -> dict[str, CommitSummary]:
            ensure_none_erased()
            return self._replace(version, count)

        if self._done is None:
            self._done = retry_on_new_version(self.lake, self.table, replace)
        return self._done

    def _replace(self, version: int, count: Callable[[int], None]) -> dict[str, CommitSummary]:
        if version != self._compared:
            self.compare()
        if self._first is None:
            return {place: CommitSummary(0, 0, version) for place in self._changes}
        schema = self.lake.schema(self.table)
        names = ", ".join(schema.names)
        ordered = self.db.sql(
            f"SELECT {names} FROM (SELECT {names}, unnest(range(new)) FROM {self._name}) "
            f"ORDER BY {', '.join((*SORT_COLUMNS, *(name for name in schema.names if name not in SORT_COLUMNS)))}"
        ).to_arrow_reader(BATCH_ROWS)
        added, removed = (sum(change[side] for change in self._changes.values()) for side in (0, 1))
        batches, correction = cast_to_schema(ordered, schema, count), Correction(self._first, removed, added)
        done = write_events(self.lake, self.table, batches, version, correction, self._predicate())
        logger.info("%s: %d events removed and %d added from %s on", self.table.value, removed, added, self._first.isoformat())
        return {place: CommitSummary(*change, done) for place, change in self._changes.items()}

    def _own_rows(self) -> Any:
        """Return the pyarrow filter of these logs' rows in the table; None: all rows."""
        own = [log.lake_filter() for log in self.logs if log.item_prefix]
        return functools.reduce(operator.or_, own) if own else None

    def _predicate(self) -> str:
        """Return Delta's predicate of the same rows, from the window's start on."""
        window = window_sql(self.since)
        own = " OR ".join(log.lake_filter_sql() for log in self.logs if log.item_prefix)
        return f"{window} AND ({own})" if own else window
