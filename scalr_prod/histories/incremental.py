# SPDX-License-Identifier: Apache-2.0
"""Incremental build: the events that a table lacks, and the few old events that its new rows need.

If every new event became known after all events that the table was built from, no existing row changes and new rows are appended. The
commit that writes the rows also records what they were built from, so both are written atomically.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.core.delta_log import diff_files, duckdb_readable_files, files_dataset, row_count
from scalr_prod.core.hashing import stable_hash_sql
from scalr_prod.core.timestamps import micros_to_datetime
from scalr_prod.errors import LakeError
from scalr_prod.lake import commit_id_of, corrections_since
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table
from scalr_prod.workspace import read_parquet_sql

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa
    import pyarrow.dataset as ds
    from deltalake import DeltaTable

    from scalr_prod.lake import Lake


logger = logging.getLogger(__name__)

_BATCH = 65_536
#: Up to this many old events are cached in the session (24 bytes each for integer ids), so that their files are read once.
_HELD = 1_000_000
#: Columns read of old events.
_OLD_COLUMNS = (USER_ID, ITEM_ID, EVENT_TIMESTAMP)


@dataclass(frozen=True)
class BuildRecord:
    """Record of what a table was built from, stored in its commit.

    Attributes:
        shape: Table, row layout and settings.
        events: Id of the events table.
        version: Delta version of the events.
        known_until: Latest created time of the events, µs; None: no events.
    """

    shape: str
    events: str
    version: int
    known_until: int | None

    def to_record(self) -> str:
        """Return the record as the text stored in the commit."""
        return json.dumps(asdict(self))

    @classmethod
    def from_record(cls, text: str | None) -> BuildRecord | None:
        """Parse the record of a commit; None if it has none."""
        return None if text is None else cls(**json.loads(text))


@dataclass(frozen=True)
class EventsTable:
    """An events table, opened at most once per version.

    Attributes:
        lake: The lake.
        table: The table.
        current: The version to build from.
    """

    lake: Lake
    table: Table
    current: DeltaTable
    _former: dict[int, DeltaTable] = field(default_factory=dict)

    def at_version(self, version: int) -> DeltaTable:
        """Open the table at an earlier version.

        Raises:
            LakeError: The log or the files of that version were removed.
        """
        if version not in self._former:
            self._former[version] = self.lake.open_table(self.table, version=version)
        return self._former[version]


@dataclass(frozen=True)
class NewEvents:
    """Events that were added since a table was built.

    Attributes:
        old: The events that it was built from.
        new: The events that were added.
        known_until: Time by which all old events were known, and no new one, µs.
        deadlines: int64 [M]. ``known_until``, then the latest created time of each new commit, ascending.
    """

    old: DeltaTable
    new: ds.Dataset
    known_until: int
    deadlines: npt.NDArray[np.int64]

    @cached_property
    def old_files(self) -> list[str] | None:
        """The files of the old events if DuckDB can read them directly; else None."""
        return duckdb_readable_files(self.old)

    @cached_property
    def fits_in_session(self) -> bool:
        """Whether the old events are few enough to be cached in the session."""
        return row_count(self.old) <= _HELD


def find_new_events(table: Table, events: EventsTable, built: BuildRecord | None, shape: str) -> NewEvents | None:
    """Find the events added since a table was built; None, with the reason logged, if it must be rebuilt.

    Args:
        table: The table to build.
        events: The events to build from.
        built: What the table was built from.
        shape: Its row layout and settings now; see `BuildRecord`.
    """
    addition = _addition(events, built, shape)
    if isinstance(addition, NewEvents):
        return addition
    logger.info("building %s from all events: %s", table.value, addition)
    return None


def _addition(events: EventsTable, built: BuildRecord | None, shape: str) -> NewEvents | str:
    """Return the added events, or the reason to rebuild."""
    now, name = events.current, events.table.value
    if built is None or built.known_until is None:
        return "no record of an earlier build" if built is None else "there were no events at its last build"
    other_events = built.events != str(now.metadata().id) or built.version > now.version()
    if built.shape != shape or other_events:
        return f"{name} was recreated" if other_events else "the settings or the row layout have changed"
    try:
        before = events.at_version(built.version)
    except LakeError:
        return f"version {built.version} of {name}, which it was built from, cannot be read"
    grown, replaced = diff_files(before, now), corrections_since(events.lake, events.table, built.version, opened=now)
    if grown.removed or replaced:
        return f"events of {name} were replaced" if replaced else f"files of {name} were rewritten"
    new = files_dataset(now, grown.added)
    first = _first_known(new)
    if first is None or first > built.known_until:
        return NewEvents(before, new, built.known_until, np.unique([built.known_until, *latest_created(new).values()]))
    since, until = (micros_to_datetime(moment).isoformat() for moment in (first, built.known_until))
    return (
        f"a new event of {name} was created at {since}, not after the latest one of the last build, {until}; to append, set `created` in "
        "[domains.*] columns to a column that is filled at delivery"
    )


def latest_created(events: ds.Dataset) -> dict[str, int]:
    """Return the latest created time of the events of each commit, µs, by what its files have in common in their names.

    Delta's own statistics have only milliseconds.
    """
    latest: dict[str, int] = {}
    for fragment in events.get_fragments():
        time, commit = _extreme(fragment, events.schema, "max"), commit_id_of(fragment.path)
        if time is not None:
            latest[commit] = max(time, latest.get(commit, time))
    return latest


def _first_known(events: ds.Dataset) -> int | None:
    earliest = [_extreme(fragment, events.schema, "min") for fragment in events.get_fragments()]
    return min((time for time in earliest if time is not None), default=None)


def _extreme(fragment: Any, schema: pa.Schema, which: str) -> int | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    batches = fragment.to_batches(schema=schema, columns=[CREATED_TIMESTAMP], batch_readahead=2)
    extremes = [pc.min_max(batch.column(0).cast(pa.int64())).as_py()[which] for batch in batches]
    return {"min": min, "max": max}[which]((time for time in extremes if time is not None), default=None)


def sort_new_events(db: Any, table: Table, new_events: NewEvents, *, lookback: int) -> pa.RecordBatchReader:
    """Sort the events that new rows need, those of keys with new events, by key and time, as `sort_partition_sql` does.

    Old events of a key are returned only if they are within the look-back of a new row, with the number of earlier ones. All old
    events count as created at ``known_until``: every new row knows all of them, so their created times are not read.

    Args:
        db: DuckDB connection.
        table: The table to build.
        new_events: The new events.
        lookback: For histories, the maximal number of events; for statistics, the window in µs.

    Returns: The columns of `create_events_view`, ``before``, the number of earlier events, and for statistics ``first``, the time of the
        first one, µs.
    """
    statistics = table is Table.TARGET_ITEM_STATS
    columns = "key, time, created" if statistics else "key, item, time, created"
    create_events_view(db, table, "new_scan", new_events.new)
    _hold(db, "new_events", "FROM new_scan")
    _hold(db, "touched", "SELECT key, min(time) AS since FROM new_events GROUP BY key")
    # One scan of all old events for the counts, then one of the events late enough to be within a row's reach.
    _old(db, table, "counted", new_events)
    found = (
        f"count(*) FILTER (WHERE time <= since - {lookback}) AS before, min(time) AS first, min(since) - {lookback} + 1 AS horizon"
        if statistics
        # Events of the same time stay together, so slightly more than the reach may be kept.
        else f"count(*) FILTER (WHERE time < since) AS before, list_min(max(time, {lookback}) FILTER (WHERE time < since)) AS horizon"
    )
    _hold(db, "former", f"SELECT key, {found} FROM counted JOIN touched USING (key) GROUP BY key")
    db.execute("UPDATE former SET horizon = since FROM touched WHERE former.key = touched.key AND horizon IS NULL")
    earliest = db.sql("SELECT min(horizon) FROM former").fetchall()[0][0]
    _old(db, table, "reached", new_events, earliest=earliest)
    _hold(db, "old_events", f"SELECT {columns} FROM reached JOIN former USING (key) WHERE time >= horizon")
    if not statistics:
        db.execute(
            "UPDATE former SET before = before - kept FROM (SELECT key, count(*) AS kept FROM old_events "
            "JOIN touched USING (key) WHERE time < since GROUP BY key) AS near WHERE former.key = near.key"
        )
    more = ", first" if statistics else ""
    return db.sql(
        f"SELECT {columns}, coalesce(before, 0) AS before{more} FROM "
        f"(SELECT {columns} FROM old_events UNION ALL SELECT {columns} FROM new_events) "
        f"LEFT JOIN former USING (key) ORDER BY {_order(table)}"
    ).to_arrow_reader(_BATCH)


def _hold(db: Any, name: str, rows: str) -> None:
    """Create or replace a temporary table of the session."""
    db.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {rows}")


def _old(db: Any, table: Table, name: str, added: NewEvents, *, earliest: int | None = None) -> None:
    """Create a view of old events, or of those from a time on (µs), that reads as few columns and files as possible."""
    import pyarrow.dataset as ds

    if added.old_files:
        bound = "" if earliest is None else f" WHERE {EVENT_TIMESTAMP} >= make_timestamptz({earliest})"
        _view(db, table, name, f"{_held(db, added, added.old_files)}{bound}", known=added.known_until)
    else:
        where = None if earliest is None else ds.field(EVENT_TIMESTAMP) >= micros_to_datetime(earliest)
        create_events_view(db, table, name, files_dataset(added.old), where=where, known=added.known_until)


def _held(db: Any, added: NewEvents, files: list[str]) -> str:
    """Return the relation of the old events: few events are cached in the session, for all tables built from them."""
    if not added.fits_in_session:
        return read_parquet_sql(files)
    held = f'"{added.old.metadata().id}@{added.old.version()}"'
    columns = ", ".join(_OLD_COLUMNS)
    db.execute(f"CREATE TEMP TABLE IF NOT EXISTS {held} AS SELECT {columns} FROM {read_parquet_sql(files)}")
    return held


def create_events_view(
    db: Any, table: Table, name: str, events: ds.Dataset, *, where: ds.Expression | None = None, known: int | None = None
) -> None:
    """Create a view of events, which can be scanned once: ``key``, ``item`` (not for statistics), ``time`` and ``created`` (µs).

    Args:
        db: DuckDB connection.
        table: The table to build.
        name: Name of the view.
        events: The events.
        where: Only events that match.
        known: Created time of all events, µs; default: their own.
    """
    scanner = events.scanner(
        columns=[*_OLD_COLUMNS, *([CREATED_TIMESTAMP] if known is None else [])],
        filter=where,
        batch_size=_BATCH,
        batch_readahead=2,
        fragment_readahead=1,
    )
    db.register(f"{name}_stream", scanner.to_reader())
    _view(db, table, name, f"{name}_stream", known=known)


def _view(db: Any, table: Table, name: str, relation: str, *, known: int | None = None) -> None:
    """Create a view of events as `create_events_view` does, of a relation."""
    created = f"epoch_us({CREATED_TIMESTAMP})" if known is None else f"{known}::BIGINT"
    names = f"{ITEM_ID} AS key" if table is Table.TARGET_ITEM_STATS else f"{USER_ID} AS key, {ITEM_ID} AS item"
    db.execute(
        f"CREATE OR REPLACE TEMP VIEW {name} AS SELECT {names}, epoch_us({EVENT_TIMESTAMP}) AS time, "
        f"{created} AS created FROM {relation}"
    )


def sort_partition_sql(table: Table) -> str:
    """Return the query that sorts the table ``partition_rows`` by key and time, with ties in the order that readers of histories expect."""
    if table is Table.TARGET_ITEM_STATS:
        return f"FROM partition_rows ORDER BY {_order(table)}"
    hashed = f"SELECT item, {stable_hash_sql('item')} AS tie FROM (SELECT DISTINCT item FROM partition_rows)"
    return f"SELECT partition_rows.* FROM partition_rows JOIN ({hashed}) USING (item) ORDER BY key, time, tie, item, created"


def _order(table: Table) -> str:
    ties = "" if table is Table.TARGET_ITEM_STATS else f"{stable_hash_sql('item')}, item, "
    return f"key, time, {ties}created"
