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

from scalr_prod.contracts import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table
from scalr_prod.duck import parquet_sql
from scalr_prod.errors import LakeError
from scalr_prod.growth import fragments_of, growth, local_files, records_of
from scalr_prod.hashing import stable_hash_sql
from scalr_prod.heaps import edges_of, ordered, rebatched
from scalr_prod.instants import datetime_of
from scalr_prod.replacements import replaced_since

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt
    import pyarrow as pa
    import pyarrow.dataset as ds
    from deltalake import DeltaTable

    from scalr_prod.lake import Lake

__all__ = ["Addition", "Built", "Events", "addition", "all_ordered", "known_by_file", "new_ordered"]

logger = logging.getLogger(__name__)

_BATCH = 65_536
#: Up to this many old events are cached in the session (24 bytes each for integer ids), so that their files are read once.
_HELD = 1_000_000
#: Columns read of old events.
_OLD_COLUMNS = (USER_ID, ITEM_ID, EVENT_TIMESTAMP)


@dataclass(frozen=True)
class Built:
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

    def to_json(self) -> str:
        """Return the record as the text stored in the commit."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, record: str | None) -> Built | None:
        """Parse the record of a commit; None if it has none."""
        return None if record is None else cls(**json.loads(record))


@dataclass(frozen=True)
class Events:
    """An events table, opened at most once per version.

    Attributes:
        lake: The lake.
        table: The table.
        now: The version to build from.
    """

    lake: Lake
    table: Table
    now: DeltaTable
    _former: dict[int, DeltaTable] = field(default_factory=dict)

    def at(self, version: int) -> DeltaTable:
        """Open the table at a former version.

        Raises:
            LakeError: The log or the files of that version were removed.
        """
        if version not in self._former:
            self._former[version] = self.lake.open_table(self.table, version=version)
        return self._former[version]


@dataclass(frozen=True)
class Addition:
    """Events that were added since a table was built.

    Attributes:
        old: The events that it was built from.
        new: The events that were added.
        known_until: Time by which all old events were known, and no new one, µs.
        marks: int64 [M]. ``known_until``, then the latest created time of each new file; see `latest_created_per_file`.
    """

    old: DeltaTable
    new: ds.Dataset
    known_until: int
    marks: npt.NDArray[np.int64]

    @cached_property
    def files(self) -> list[str] | None:
        """The files of the old events if DuckDB can read them directly; else None."""
        return local_files(self.old)

    @cached_property
    def are_held(self) -> bool:
        """Whether the old events are few enough to be cached in the session."""
        return records_of(self.old) <= _HELD


def addition(table: Table, events: Events, built: Built | None, shape: str) -> Addition | None:
    """Find the events added since a table was built; None, with the reason logged, if it must be rebuilt.

    Args:
        table: The table to build.
        events: The events to build from.
        built: What the table was built from.
        shape: Its row layout and settings now; see `BuildRecord`.
    """
    found = _addition(events, built, shape)
    if isinstance(found, Addition):
        return found
    logger.info("building %s from all events: %s", table.value, found)
    return None


def _addition(events: Events, built: Built | None, shape: str) -> Addition | str:
    """Return the added events, or the reason to rebuild."""
    now, name = events.now, events.table.value
    if built is None or built.known_until is None:
        return (
            "first build, or built by a version that kept no build record"
            if built is None
            else "there were no events at its last build"
        )
    other_events = built.events != str(now.metadata().id) or built.version > now.version()
    if built.shape != shape or other_events:
        return f"{name} was recreated" if other_events else "the settings or the row layout have changed"
    try:
        before = events.at(built.version)
    except LakeError:
        return f"version {built.version} of {name}, which it was built from, cannot be read"
    grown, replaced = growth(before, now), replaced_since(events.lake, events.table, built.version, now=now)
    if grown.removed or replaced:
        return f"events of {name} were replaced" if replaced else f"files of {name} were rewritten"
    new = fragments_of(now, grown.added)
    first = _first_known(new)
    if first is None or first > built.known_until:
        return Addition(before, new, built.known_until, np.append(built.known_until, known_by_file(new)))
    since, until = (datetime_of(moment).isoformat() for moment in (first, built.known_until))
    return (
        f"a new event of {name} was known at {since}, others before it up to {until}; days are appended where "
        "[domains.*] columns names a `created` that is set at delivery"
    )


def known_by_file(events: ds.Dataset) -> npt.NDArray[np.int64]:
    """Return the latest created time of each file, µs, ascending: int64 [M]. Delta's own statistics have only milliseconds."""
    latest = [_extreme(fragment, events.schema, "max") for fragment in events.get_fragments()]
    return np.unique(np.array([time for time in latest if time is not None], np.int64))


def _first_known(events: ds.Dataset) -> int | None:
    earliest = [_extreme(fragment, events.schema, "min") for fragment in events.get_fragments()]
    return min((time for time in earliest if time is not None), default=None)


def _extreme(fragment: Any, schema: pa.Schema, which: str) -> int | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    batches = fragment.to_batches(schema=schema, columns=[CREATED_TIMESTAMP], batch_readahead=2)
    found = [pc.min_max(batch.column(0).cast(pa.int64())).as_py()[which] for batch in batches]
    return {"min": min, "max": max}[which]((time for time in found if time is not None), default=None)


def all_ordered(db: Any, table: Table, events: DeltaTable, folder: Path) -> Iterator[pa.RecordBatch]:
    """Sort all events by key and time, with ties in the order that readers of histories expect. Partitions of keys are sorted one by one.

    Args:
        db: DuckDB connection.
        table: The table to build.
        events: The events.
        folder: Folder of the spilled partitions until the last batch is read.

    Yields: Batches of ``key, item`` (not for statistics), ``time, created`` (µs), ``before`` (0).
    """
    files, key = local_files(events), ITEM_ID if table is Table.TARGET_ITEM_STATS else USER_ID
    if files:
        edges = edges_of(db, parquet_sql(files), key, records_of(events))
        _view(db, table, "events", parquet_sql(files))
    else:
        db.register("keys", fragments_of(events))
        edges = edges_of(db, "keys", key, records_of(events))
        db.unregister("keys")
        _register(db, table, "events", fragments_of(events))
    query, path = "SELECT *, 0::BIGINT AS before FROM events", folder / f"{table.value}.arrow"
    heaps = ordered(db, query, _arranged(table), key="key", edges=edges, path=path)
    return rebatched((batch for heap in heaps for batch in heap), _BATCH)


def new_ordered(db: Any, table: Table, added: Addition, *, reach: int) -> pa.RecordBatchReader:
    """Sort the events that new rows need, as `sort_all_events` does: those of keys with new events.

    Of the events before a key's first new event only those within reach of a row are returned, with the number of earlier ones. All old
    events count as created at ``known_until``: every new row knows all of them, so their created times are not read.

    Args:
        db: DuckDB connection.
        table: The table to build.
        added: The new events.
        reach: For histories, the maximal number of events; for statistics, the window in µs.

    Returns: Also columns ``before``, the number of earlier events, and for statistics ``first``, the time of the first one, µs.
    """
    statistics = table is Table.TARGET_ITEM_STATS
    columns = "key, time, created" if statistics else "key, item, time, created"
    _register(db, table, "new_scan", added.new)
    _hold(db, "new_events", "FROM new_scan")
    _hold(db, "touched", "SELECT key, min(time) AS since FROM new_events GROUP BY key")
    # One scan of all old events for the counts, then one of the events late enough to be within a row's reach.
    _old(db, table, "counted", added)
    found = (
        f"count(*) FILTER (WHERE time <= since - {reach}) AS before, min(time) AS first, min(since) - {reach} + 1 AS horizon"
        if statistics
        # Events of the same time stay together, so slightly more than the reach may be kept.
        else f"count(*) FILTER (WHERE time < since) AS before, list_min(max(time, {reach}) FILTER (WHERE time < since)) AS horizon"
    )
    _hold(db, "former", f"SELECT key, {found} FROM counted JOIN touched USING (key) GROUP BY key")
    db.execute("UPDATE former SET horizon = since FROM touched WHERE former.key = touched.key AND horizon IS NULL")
    earliest = db.sql("SELECT min(horizon) FROM former").fetchall()[0][0]
    _old(db, table, "reached", added, earliest=earliest)
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


def _old(db: Any, table: Table, name: str, added: Addition, *, earliest: int | None = None) -> None:
    """Create a view of old events, or of those from a time on (µs), that reads as few columns and files as possible."""
    import pyarrow.dataset as ds

    if added.files:
        bound = "" if earliest is None else f" WHERE {EVENT_TIMESTAMP} >= make_timestamptz({earliest})"
        _view(db, table, name, f"{_held(db, added, added.files)}{bound}", known=added.known_until)
    else:
        where = None if earliest is None else ds.field(EVENT_TIMESTAMP) >= datetime_of(earliest)
        _register(db, table, name, fragments_of(added.old), where=where, known=added.known_until)


def _held(db: Any, added: Addition, files: list[str]) -> str:
    """Return the relation of the old events: few events are cached in the session, for all tables built from them."""
    if not added.are_held:
        return parquet_sql(files)
    held = f'"{added.old.metadata().id}@{added.old.version()}"'
    columns = ", ".join(_OLD_COLUMNS)
    db.execute(f"CREATE TEMP TABLE IF NOT EXISTS {held} AS SELECT {columns} FROM {parquet_sql(files)}")
    return held


def _register(
    db: Any, table: Table, name: str, events: ds.Dataset, *, where: ds.Expression | None = None, known: int | None = None
) -> None:
    """Create a view of the events with the columns of `sort_all_events`, which can be scanned once."""
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
    """Create a view of events with the columns of `sort_all_events`; ``known``: created time of all of them, µs."""
    created = f"epoch_us({CREATED_TIMESTAMP})" if known is None else f"{known}::BIGINT"
    names = f"{ITEM_ID} AS key" if table is Table.TARGET_ITEM_STATS else f"{USER_ID} AS key, {ITEM_ID} AS item"
    db.execute(
        f"CREATE OR REPLACE TEMP VIEW {name} AS SELECT {names}, epoch_us({EVENT_TIMESTAMP}) AS time, "
        f"{created} AS created FROM {relation}"
    )


def _arranged(table: Table) -> str:
    """Return the query that sorts a partition as `_order` does, hashing each item once."""
    if table is Table.TARGET_ITEM_STATS:
        return f"FROM heap ORDER BY {_order(table)}"
    hashed = f"SELECT item, {stable_hash_sql('item')} AS tie FROM (SELECT DISTINCT item FROM heap)"
    return f"SELECT heap.* FROM heap JOIN ({hashed}) USING (item) ORDER BY key, time, tie, item, created"


def _order(table: Table) -> str:
    ties = "" if table is Table.TARGET_ITEM_STATS else f"{stable_hash_sql('item')}, item, "
    return f"key, time, {ties}created"
