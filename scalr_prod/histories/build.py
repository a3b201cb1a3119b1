# SPDX-License-Identifier: Apache-2.0
"""Build of the history tables: each in one commit, which appends the rows of new events or replaces the table."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from scalr_prod.core.delta_log import arrow_schema, diff_files, ensure_files_intact, row_count
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.core.progress import track
from scalr_prod.core.timestamps import DAY_US
from scalr_prod.errors import CommitFailed, LakeError
from scalr_prod.histories.full_build import TableBuild, write_all_rows
from scalr_prod.histories.incremental import BuildRecord, EventsTable, find_new_events, sort_new_events
from scalr_prod.histories.row_stream import RowStream, late_step_us, row_limit
from scalr_prod.lake import CommitMetadata, Lake, check_domains, commit_record, corrections_since
from scalr_prod.schemas import Table
from scalr_prod.workspace import SuppressionList, open_duckdb, staging_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from deltalake import DeltaTable

    from scalr_prod.config import HistorySettings, Settings
    from scalr_prod.histories.incremental import NewEvents


logger = logging.getLogger(__name__)

#: Part of every commit's key: increase it when the meaning of rows changes, so that tables are rebuilt.
_LAYOUT = 2
#: Times that a table is built if events are removed meanwhile.
_PASSES: Final = 3
_EVENTS = {
    Table.SOURCE_USER_HISTORY: Table.SOURCE_EVENTS,
    Table.TARGET_USER_HISTORY: Table.TARGET_EVENTS,
    Table.TARGET_ITEM_STATS: Table.TARGET_EVENTS,
}


@dataclass(frozen=True)
class TableReport:
    """Result of building one table.

    Attributes:
        events: Number of events that it was built from.
        rows: Its rows.
        version: Its Delta version.
        events_version: Delta version of those events.
        built: False if it was already up to date.
        appended: Whether the rows of new events were appended, instead of rebuilding the table.
    """

    events: int
    rows: int
    version: int
    events_version: int
    built: bool
    appended: bool = False


@dataclass(frozen=True)
class HistoriesReport(Jsonable):
    """Result of building the histories.

    Attributes:
        tables: Results by table name.
    """

    tables: dict[str, TableReport]

    def to_json(self) -> dict[str, Any]:
        """Return the tables' reports as JSON values, by name."""
        found: dict[str, Any] = super().to_json()["tables"]
        return found


def build_histories(settings: Settings, *, progress: bool = False) -> HistoriesReport:
    """Build both domains' user histories and the target's item statistics; tables that are up to date are skipped.

    A table that is built from all events is computed partition by partition, on Dask workers where that is faster; each worker's DuckDB
    keeps within ``[compute] memory_mb``. One commit writes a table.

    Args:
        settings: The project's settings.
        progress: Show progress bars on stderr.

    Raises:
        TableNotFound: Nothing has been ingested yet.
        ProjectsMixed: Home or lake belongs to another project. Nothing was written.
        DomainsMixed: The lake's tables were created for other domains.
        CommitFailed: The lake rejected a commit; that table is unchanged.
        ComputeError: A task on Dask workers failed, or the scheduler does not answer; that table is unchanged.
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
    events = _EVENTS[table]
    opened = lake.find_tables((table, events))
    return opened.keys() == {table, events} and _is_fresh(opened[table], _made_from(histories, table, opened[events]))


def rebuild_reason(settings: Settings) -> str | None:
    """Return why tables that were built from the current events would be built again, or None if they would not."""
    lake = Lake.open(settings)
    for table, events in _EVENTS.items():
        if _is_built(settings.histories, lake, table) or not (lake.exists(table) and lake.exists(events)):
            continue
        current = lake.open_table(table)
        if damage := _damage(current):
            return damage
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

    One DuckDB session reads the events, so tables of the same events share its cache. Tables that are built from all events are built at
    the same time.

    Args:
        settings: The project's settings.
        lake: The lake.
        opened: Its tables that are already open.
        progress: Show progress bars on stderr.

    Raises:
        TableNotFound: Nothing has been ingested yet.
        CommitFailed: The table is unchanged; others may have been built.
    """
    names = dict.fromkeys(_EVENTS.values())
    tables = {**opened, **lake.open_tables(name for name in (*names, *_EVENTS) if name not in opened)}
    events = {name: EventsTable(lake, name, tables[name]) for name in names}
    builds = {table: TableBuild(settings, lake, table, tables[table], events[name]) for table, name in _EVENTS.items()}
    for each in events.values():  # after the tables, to include what another process has just built from
        lake.refresh(each.table, each.current)
    outdated = [build for build in builds.values() if not _is_current(build)]
    appended, built = set(), {build.table for build in outdated}
    for _ in range(_PASSES):
        if not outdated:
            break
        added, again = _build(outdated, progress=progress)
        appended |= added
        builds |= {build.table: build for build in again}
        outdated = [build for build in again if not _is_current(build)]
    if outdated:
        raise CommitFailed(
            f"users were forgotten, or events removed, each of the {_PASSES} times that the table was built",
            where=lake.uri(outdated[0].table),
            next_step="run: scalr histories, once no other command removes events",
        )
    return {
        table.value: TableReport(
            events=row_count(build.source.current),
            rows=row_count(build.current),
            version=build.current.version(),
            events_version=build.source.current.version(),
            built=table in built,
            appended=table in appended,
        )
        for table, build in builds.items()
    }


def _build(builds: Sequence[TableBuild], *, progress: bool) -> tuple[set[Table], list[TableBuild]]:
    """Append the rows of new events to tables, or replace the tables, and update ``current``.

    Returns:
        The tables that rows were appended to, and those to build again, from the latest events.
    """
    settings = builds[0].settings
    with staging_folder(settings, "histories") as folder, open_duckdb(settings, folder) as connection:
        session, appended, whole = _Session(connection, folder), set(), []
        for build in builds:
            if damage := _damage(build.current):
                logger.warning("building %s from all events: %s", build.table.value, damage)
                whole.append(build)
                continue
            built = BuildRecord.from_record(commit_record(build.current))
            added = find_new_events(build.table, build.source, built, _shape(settings.histories, build.table))
            if added is None:
                whole.append(build)
                continue
            with track(build.table.value, show=progress, unit="events") as tell, _accept_equal_build(build):
                _append_rows(build, session, added, tell)
            appended.add(build.table)
        return appended, _replace_rows(whole, session, progress=progress) if whole else []


@contextmanager
def _accept_equal_build(build: TableBuild) -> Iterator[None]:
    """Accept a rejected commit if another process has built the same table in the meantime."""
    try:
        yield
    except CommitFailed:
        build.lake.refresh(build.table, build.current)
        if not _is_current(build):
            raise


def _append_rows(build: TableBuild, session: _Session, added: NewEvents, tell: Callable[[int], None]) -> None:
    import pyarrow as pa

    histories, table, current = build.settings.histories, build.table, build.current
    limit = row_limit(row_count(build.source.current)) - row_count(current)
    stream = RowStream(table, arrow_schema(current), histories, added.deadlines, added.known_until, limit, tell)
    lookback = histories.trailing_days * DAY_US if table is Table.TARGET_ITEM_STATS else histories.length
    ordered = sort_new_events(session.db, table, added, lookback=lookback)
    rows = pa.RecordBatchReader.from_batches(stream.schema, stream.rows(ordered))
    try:
        build.lake.append(table, rows, **_commit(build, int(added.deadlines[-1])))
    except CommitFailed:
        # The writer returns the stream's own error only as text.
        if stream.failure is not None:
            raise stream.failure from None
        raise


def _replace_rows(builds: Sequence[TableBuild], session: _Session, *, progress: bool) -> list[TableBuild]:
    """Replace the rows of tables; return those to build again, because somebody was forgotten meanwhile."""
    names = ", ".join(build.table.value for build in builds)
    events = sum(row_count(build.source.current) for build in builds)
    suppressed = _suppressed(builds[0].settings)
    with track(names, show=progress, total=events, unit="events") as tell:
        written = write_all_rows(builds, session.db, session.folder, tell=tell)
    uncommitted, again = dict(zip([build.table for build in builds], written, strict=True)), []
    try:
        for build in builds:
            latest = build.lake.open_table(build.source.table)
            if suppressed != _suppressed(build.settings) or _has_lost_events(build.source, latest):
                source = EventsTable(build.lake, build.source.table, latest)
                again.append(replace(build, source=source, current=build.lake.open_table(build.table)))
                continue
            rows = uncommitted.pop(build.table)
            with _accept_equal_build(build):
                build.lake.replace_with_files(build.table, rows.files, **_commit(build, rows.known_until))
    finally:
        for table, rows in uncommitted.items():
            builds[0].lake.remove_files(table, rows.files)
    return again


def _suppressed(settings: Settings) -> tuple[frozenset[str], frozenset[str]]:
    """Return the digests of the users and items that were forgotten."""
    found = SuppressionList.open(settings)
    return frozenset(found.users), frozenset(found.items)


def _has_lost_events(source: EventsTable, latest: DeltaTable) -> bool:
    """Return whether events were removed for good since they were opened. Tables of corrected events are built again by the next build."""
    removed = diff_files(source.current, latest).removed
    return bool(removed) and not corrections_since(source.lake, source.table, source.current.version(), opened=latest)


def _commit(build: TableBuild, known_until: int | None) -> dict[str, Any]:
    """Return the arguments of a commit on the table's current version."""
    histories, events, version = build.settings.histories, build.source.current, build.current.version()
    record = BuildRecord(_shape(histories, build.table), str(events.metadata().id), events.version(), known_until)
    return {
        "key": f"{_made_from(histories, build.table, events)}@{version}",
        "expected_version": version,
        "metadata": CommitMetadata(record.to_record()),
        "opened": build.current,
    }


def _shape(histories: HistorySettings, table: Table) -> str:
    """Return a text that identifies the settings that determine a table's rows, and the row layout."""
    reach = histories.trailing_days if table is Table.TARGET_ITEM_STATS else histories.length
    return f"{table.value}-{_LAYOUT}-{reach}-{late_step_us(histories, table)}"


def _made_from(histories: HistorySettings, table: Table, events: DeltaTable) -> str:
    """Return a text that identifies the events and settings that a table is built from."""
    return f"{_shape(histories, table)}-{events.metadata().id}-{events.version()}"


def _is_current(build: TableBuild) -> bool:
    return _is_fresh(build.current, _made_from(build.settings.histories, build.table, build.source.current))


def _is_fresh(current: DeltaTable, made_from: str) -> bool:
    """Return whether the table's current version was built from these events and settings, and has all of its files."""
    version = current.version()
    return version > 0 and current.transaction_version(f"{made_from}@{version - 1}") is not None and _damage(current) is None


def _damage(current: DeltaTable) -> str | None:
    """Return which file of a table is lost or cut off; None if none is."""
    try:
        ensure_files_intact(current)
    except LakeError as error:
        return error.found
    return None
