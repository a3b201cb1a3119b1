# SPDX-License-Identifier: Apache-2.0
"""Ingest pipeline: validate staged logs against one another and the lake, then commit them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from scalr_prod.binding import MARKED, check_domains, description_of, project_of
from scalr_prod.contracts import (
    EVENT_EXTRAS,
    EVENT_ID,
    EVENT_TIMESTAMP,
    ITEM_ID,
    USER_ID,
    Table,
    id_type_of,
    item_key,
    schema_of,
)
from scalr_prod.duck import exact, open_duckdb, parquet_sql, staging_folder
from scalr_prod.errors import CommitFailed, EmptyInput, NoCommonUsers, SettingsError
from scalr_prod.growth import local_files, records_of, schema_of_table
from scalr_prod.ingest.catalogue import leave_out_unused, update_catalogue
from scalr_prod.ingest.commit import Addition, Log, commit_key
from scalr_prod.ingest.contract import held_to_limits, missing_from_file, refuse_doubled
from scalr_prod.ingest.idtypes import agreed_type
from scalr_prod.ingest.laid import Repeated, lay
from scalr_prod.ingest.merging import addition_of, latest_of_each_id
from scalr_prod.ingest.probe import probe
from scalr_prod.ingest.replacing import replacements_of
from scalr_prod.ingest.report import DomainReport, IngestReport
from scalr_prod.ingest.rows import SQL_TYPES, count_of, scan, staged_sql
from scalr_prod.ingest.staging import stage_events, stage_items
from scalr_prod.ingest.usermap import UserMap
from scalr_prod.ingest.users import Users
from scalr_prod.instants import datetime_of
from scalr_prod.lake import Lake, repeat_while_moving
from scalr_prod.progress import counting
from scalr_prod.tombstones import Tombstones

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime
    from pathlib import Path

    import pyarrow as pa
    from deltalake import DeltaTable

    from scalr_prod.contracts import Domain, IdType
    from scalr_prod.ingest.commit import Change
    from scalr_prod.ingest.laid import Laid
    from scalr_prod.ingest.staging import StagedEvents, StagedItems
    from scalr_prod.settings import Settings

__all__ = ["Work", "ingest"]

_BOTH: tuple[Domain, ...] = ("source", "target")


def ingest(
    settings: Settings, *, domain: str | None = None, replace: datetime | None = None, progress: bool = False
) -> IngestReport:
    """Ingest the logs and item files of all domains, and create the tables of later stages where they are missing.

    Args:
        settings: The project's settings.
        domain: Read ``source`` (all source domains), ``target``, or one of several, ``sources.<name>``; default: all.
        replace: Make the lake's events from this time on (UTC) equal to those of the logs: rows that a log no longer holds are
            removed. Earlier rows of the logs are ignored. Default: missing rows are added, nothing is removed.
        progress: Show progress bars on stderr.

    Raises:
        ProjectsMixed: Home or lake belongs to another project. Nothing was written.
        DomainsMixed: The lake's tables were created for other domains. Nothing was written.
        ForeignFiles: Home or lake holds files that this package did not create. Nothing was written.
        InputError: An input was rejected; names file, column and row. Nothing was written.
        NoCommonUsers: No user has events in the target domain and in a source domain. Nothing was written.
        SettingsError: There is no such domain.
        CommitFailed: The lake rejected a commit; it is safe to repeat the ingest.
    """
    places = _places(settings, domain)
    events: dict[str, StagedEvents] = {}
    items: dict[str, StagedItems | None] = {}
    lake = Lake.open(settings)
    opened = lake.check_ours(check_domains(settings, lake))
    user_map = UserMap.read(settings)
    if not settings.home.exists():  # checked before the home is created, so that a missing log leaves no files behind
        for place in places:
            probe(settings, place)
    with ExitStack() as stack:
        folder = stack.enter_context(staging_folder(settings, "ingest"))
        for place in places:
            with counting(f"read {place}", show=progress) as count:
                events[place] = stage_events(settings, place, folder, count=count)
            items[place] = stage_items(settings, place, folder)
        db = stack.enter_context(open_duckdb(settings, folder))
        work = Work(settings, db, lake, opened, events, items, folder, since=replace, user_map=user_map)
        common = work.common_users()
        work.compare()
        work.create_tables()
        reports = {place: work.commit(place, progress=progress) for place in places}
    return IngestReport(reports, common, work.users.mapped)


def _places(settings: Settings, domain: str | None) -> tuple[str, ...]:
    """Return the settings keys of the logs to read.

    Raises:
        SettingsError: There is no such domain.
    """
    source, target = settings.domains.places("source"), settings.domains.places("target")
    known = {place: (place,) for place in (*source, *target)} | {None: (*source, *target), "source": source}
    if domain not in known:
        there = ", ".join(str(name) for name in known if name)
        raise SettingsError(f"there is no domain '{domain}'; there are: {there}", where="domain", next_step="name one of those")
    return known[domain]


class Changing(Protocol):
    """Change of an events table by a log."""

    def compare(self) -> None:
        """Compute the change without writing."""

    def commit(self, count: Callable[[int], None]) -> Change:
        """Commit the change."""


class Work:
    """An ingest, after all of its input was staged.

    Args:
        settings: The project's settings.
        db: DuckDB connection.
        lake: The lake.
        opened: Its tables that existed when the ingest began.
        events: The staged logs, by settings key.
        items: The staged item files, by settings key; None without one.
        folder: Folder for data that does not fit in memory.
        since: Replace the lake's events from this time on (UTC) by those of the logs; None: add missing rows.
        user_map: Mapping of source users to target users; None: the ids are shared.

    Raises:
        BadValue: The id types are incompatible with one another or with the lake; or the mapping gives a user several ids.
    """

    def __init__(
        self,
        settings: Settings,
        db: Any,
        lake: Lake,
        opened: Mapping[Table, DeltaTable],
        events: dict[str, StagedEvents],
        items: dict[str, StagedItems | None],
        folder: Path,
        *,
        since: datetime | None = None,
        user_map: UserMap | None = None,
    ) -> None:
        self.settings, self.db, self.lake, self.events, self.items, self.folder = settings, db, lake, events, items, folder
        self.opened = dict(opened)
        self.several = settings.domains.several
        self.stones = Tombstones.open(settings)
        self.there = tuple(domain for domain in _BOTH if self._known(Table.events(domain)))
        self.read = {domain: [place for place in settings.domains.places(domain) if place in events] for domain in _BOTH}
        kept = next((self._kept(Table.events(domain), USER_ID) for domain in self.there), None)
        self.users = Users({domain: [events[place] for place in self.read[domain]] for domain in _BOTH}, kept, user_map)
        self.user = self.users.kind
        self.item, self.own = self._agree()
        #: Rows superseded by a later row with the same event id, and dropped repetitions, by settings key.
        self.renewed: dict[str, int] = {}
        #: Rows of erased users and items, by settings key.
        self.forgotten: dict[str, int] = {}
        #: Counts of repeated rows of the log, by settings key.
        self.repeated: dict[str, Repeated] = {}
        self.users.load(db)
        self.logs = {place: self._view(domain, place) for domain in _BOTH for place in self.read[domain]}
        self.since = since
        self.changes: Mapping[str, Changing] = (
            {place: addition_of(db, lake, log, settings.domains[place], folder) for place, log in self.logs.items()}
            if since is None
            else replacements_of(settings, db, lake, self.logs, since)
        )

    def _agree(self) -> tuple[dict[Domain, IdType], dict[str, IdType]]:
        """Return the types of the item ids in the lake, and in each log."""
        item: dict[Domain, IdType] = {}
        own: dict[str, IdType] = {}
        for domain in _BOTH:
            kept = self._kept(Table.events(domain), ITEM_ID) if domain in self.there else None
            known = self._stored_type_of_several() if domain == "source" and self.several else kept
            for place in self.read[domain]:
                catalogue = self.items[place]
                columns = [self.events[place].items, *([catalogue.items] if catalogue else [])]
                own[place] = agreed_type("item", columns, kept=known)
            if kept:
                item[domain] = kept[0]
            elif self.read[domain]:
                item[domain] = "string" if domain == "source" and self.several else own[self.read[domain][0]]
        return item, own

    def _kept(self, table: Table, column: str) -> tuple[IdType, str]:
        return id_type_of(schema_of_table(self.opened[table]), column), f"the table {table.value}"

    def _known(self, table: Table) -> bool:
        """Return whether a table exists; another ingest may have created it since this one began."""
        if table not in self.opened and self.lake.exists(table):
            self.opened[table] = self.lake.open_ours(table)
        return table in self.opened

    def _stored_type_of_several(self) -> tuple[IdType, str] | None:
        """Return int64 if all of several source domains had integer item ids: synthetic events return them as integers."""
        table = Table.SYNTHETIC_TARGET_EVENTS
        kept = self._kept(table, "source_item_id") if self._known(table) else None
        return kept if kept and kept[0] == "int64" else None

    def _view(self, domain: Domain, place: str) -> Log:
        staged, own = self.events[place], self.own[place]
        prefix = item_key(self.settings.domains[place].name) if domain == "source" and self.several else ""
        view = f"{place.replace('.', '_')}_log"
        query = staged_sql(staged.files, {USER_ID: self.users.in_log[domain], ITEM_ID: own}, prefix=prefix)
        query = self.users.without_forgotten(self.db, self.stones, query, domain)
        missing = [name for name in EVENT_EXTRAS if getattr(self.settings.domains[place].columns, name) is None]
        nothing = "".join(f", NULL::{'DOUBLE' if name == 'value' else 'VARCHAR'} AS {name}" for name in missing)
        named = f" REPLACE ('{prefix}' || {EVENT_ID} AS {EVENT_ID})" if prefix and EVENT_ID not in missing else ""
        self.db.execute(f"CREATE TEMP VIEW {view} AS SELECT *{named}{nothing} FROM ({query})")
        read = count_of(self.db, f"FROM {view}")
        self.forgotten[place] = staged.rows - read
        if not read:
            raise EmptyInput(
                "holds only rows of users or items that were forgotten",
                where=staged.origin,
                next_step=f"check what [domains.{place}] names",
            )
        laid = self._laid(place, view, read)
        return Log(domain, place, own, prefix, staged.origin, view, laid.rows, laid.pieces)

    def _laid(self, place: str, view: str, read: int) -> Laid:
        """Sort a log by time, after its settings' limits and with one row per event id."""
        section, rows = self.settings.domains[place], read
        if section.columns.event_id is not None:
            rows = latest_of_each_id(self.db, view, section)
        renewed = read - rows
        rows = held_to_limits(self.db, view, rows, section, self.events[place].left_out)
        mapped = {name for name in EVENT_EXTRAS if getattr(section.columns, name) is not None}
        laid = lay(self.db, view, rows, mapped, self.folder, drop=section.duplicates == "drop")
        self.renewed[place] = renewed + rows - laid.rows
        # Dropped repetitions are counted as superseded and no longer belong to the log.
        kept = Repeated(0, laid.rows, whole=False)
        self.repeated[place] = kept if section.duplicates == "drop" else laid.repeated
        self.db.execute(f"CREATE OR REPLACE TEMP VIEW {view} AS FROM {parquet_sql(exact(piece.path) for piece in laid.pieces)}")
        self.db.execute(f"DROP TABLE IF EXISTS {view}_latest")
        return laid

    def common_users(self) -> int | None:
        """Count the users of both the target domain and a source domain, in the logs read, or in the lake for a side not read.

        Raises:
            NoCommonUsers: There are none in the logs or the lake.
        """
        if any(not self.read[domain] and domain not in self.there for domain in _BOTH):
            return None
        domains = self.settings.domains
        for domain in _BOTH:
            self._load_users(domain, in_lake=domain in self.there and len(self.read[domain]) < len(domains.places(domain)))
        common = self._shared()
        if not common:
            for domain in self.there:
                self._load_users(domain, in_lake=True)
            common = self._shared()
        if not common:
            examples = [self._example(domain) for domain in _BOTH]
            sources = " and ".join(f"'{name}'" for name in domains.source_names)
            raise NoCommonUsers(
                f"{sources} and '{domains.target.name}' share no user, so there is nothing to learn a translation from "
                f"(user ids look like {examples[0]} and {examples[1]})",
                where=" and ".join(staged.origin for staged in self.events.values()),
                next_step="map columns that hold the same ids of the same users under [domains.*.columns] user; or, where the two know "
                "the same people by different ids, name a table of the pairs: [users] map",
            )
        return common

    def _load_users(self, domain: Domain, *, in_lake: bool) -> None:
        users = [f"SELECT NULL::{SQL_TYPES[self.user]} AS {USER_ID} WHERE false"]
        users += [f"SELECT {USER_ID} FROM {self.logs[place].view}" for place in self.read[domain]]
        if in_lake:
            table = Table.events(domain)
            self.db.register("lake_users", scan(self.lake, table, version=self.lake.version(table), columns=[USER_ID]))
            users.append(f"SELECT {USER_ID} FROM lake_users")
        self.db.execute(f"CREATE OR REPLACE TEMP TABLE {domain}_users AS {' UNION '.join(users)}")
        self.db.unregister("lake_users")

    def _shared(self) -> int:
        return count_of(self.db, f"SELECT {USER_ID} FROM source_users INTERSECT SELECT {USER_ID} FROM target_users")

    def _example(self, domain: Domain) -> str:
        return repr(self.db.sql(f"SELECT min({USER_ID}) FROM {domain}_users").fetchall()[0][0])

    def compare(self) -> None:
        """Compute the changes of each domain.

        Raises:
            BadValue: A log is already in the lake with other created times or weights, or under other users; or a replacement would
                remove more than the settings allow.
        """
        for place, change in self.changes.items():
            change.compare()
            self.users.check(self.db, self.lake, self.logs[place], adds=self._adds(place))
            if isinstance(change, Addition):
                section = self.settings.domains[place]
                refuse_doubled(change.log, section, self.repeated[place], again=change.again, there=change.there)

    def _adds(self, place: str) -> bool:
        """Return whether a log's rows are added to the lake's; events with ids are updated in place."""
        return self.since is None and self.settings.domains[place].columns.event_id is None

    def create_tables(self) -> None:
        """Create missing tables whose id types are known, and bind them to the project and their domains.

        Raises:
            ProjectsMixed: Another project's ingest has claimed the lake in the meantime.
            DomainsMixed: Another ingest has created a table for another domain in the meantime.
        """
        for domain, item in self.item.items():
            events = Table.events(domain)
            described = description_of(self.settings, domain)
            schema = schema_of(events, user=self.user, item=item, extras=self._extras(domain))
            self._make(events, schema, described, domain)
            own = [Table.items(domain), Table.history(domain)]
            for table in [*own, *([Table.TARGET_ITEM_STATS] if domain == "target" else [])]:
                self.lake.create(table, schema_of(table, user=self.user, item=item), opened=self.opened.get(table))
        if len(self.item) == len(_BOTH):
            source = self._item_of_source()
            for table in (Table.SYNTHETIC_TARGET_EVENTS, Table.SYNTHETIC_QUARANTINE):
                schema = schema_of(table, user=self.user, item=self.item["target"], source_item=source)
                self._make(table, schema, project_of(self.settings) if table == MARKED else None, None)
        check_domains(self.settings, self.lake)

    def _make(self, table: Table, schema: pa.Schema, described: str | None, domain: Domain | None) -> None:
        """Create a table with this description, or complete an existing table's description and columns."""
        made = self.lake.create(table, schema, description=described, opened=self.opened.get(table))
        if described is not None and self.lake.description(table, opened=made) != described:
            self._bind(table, domain)
            self.lake.follow(table, made)
        self.lake.complete(table, schema, opened=made)  # a table of an older version lacks the source domain column

    def _extras(self, domain: Domain) -> set[str]:
        """Return the columns of `EVENT_EXTRAS` that the settings map or the table has."""
        events, columns = Table.events(domain), [self.settings.domains[place].columns for place in self.read[domain]]
        there = schema_of_table(self.opened[events]).names if domain in self.there else ()
        return {name for name in EVENT_EXTRAS if name in there or any(getattr(mapped, name) is not None for mapped in columns)}

    def _item_of_source(self) -> IdType:
        """Return the type of ``source_item_id`` in synthetic events: that of the logs, if all source domains share it; else string."""
        if not self.several:
            return self.item["source"]
        return "int64" if {self.own.get(place) for place in self.settings.domains.places("source")} == {"int64"} else "string"

    def _bind(self, table: Table, domain: Domain | None) -> None:
        """Bind a table without a binding, or with a former name, to the current project or domain."""

        def bind(_version: int) -> None:
            check_domains(self.settings, self.lake)
            former = self.lake.description(table)
            described = project_of(self.settings, former) if domain is None else description_of(self.settings, domain)
            if described != former:
                self.lake.describe(table, described, key=commit_key())

        repeat_while_moving(self.lake, table, bind)

    def commit(self, place: str, *, progress: bool) -> DomainReport:
        """Commit one domain: its catalogue first, so that every event always has a catalogue row.

        Raises:
            CommitFailed: The lake rejected a commit; a repeated ingest finds what was committed before.
        """
        staged, log = self.events[place], self.logs[place]
        table = Table.events(log.domain)
        stones = Tombstones.open(self.settings)
        if stones.users.keys() != self.stones.users.keys() or stones.items.keys() != self.stones.items.keys():
            raise CommitFailed(
                "users or items were forgotten while the logs were read; nothing more was added",
                where=self.lake.uri(table),
                next_step="repeat the command",
            )
        size, duplicates = update_catalogue(self.db, self.lake, log, self.items[place])
        unnamed = missing_from_file(self.db, log) if self.items[place] else None
        with counting(f"add {place}", show=progress, total=staged.rows) as count:
            change = self.changes[place].commit(count)
        if self.since is not None:
            size -= leave_out_unused(self.db, self.lake, log)
        read, delta = self._extent(log.view), self.lake.open_table(table, version=change.version)
        rows = self._rows_in_lake(log, delta)
        # The table now contains the whole log, so equal sizes mean equal rows. (A replacement covers only its window.)
        kept = read if rows == log.rows and self.since is None else self._extent_in_lake(log, delta)
        return DomainReport(
            name=self.settings.domains[place].name,
            rows_read=staged.rows + sum(staged.left_out.counts.values()) - staged.left_out.counts["over_user_day"],
            users_read=read.users,
            items_read=read.items,
            first_read=read.first,
            last_read=read.last,
            rows_added=change.added,
            rows_removed=change.removed,
            rows_forgotten=self.forgotten[place],
            rows=rows,
            users=kept.users,
            items=kept.items,
            first_event=kept.first,
            last_event=kept.last,
            rows_updated=change.updated,
            left_out={reason: number for reason, number in sorted(staged.left_out.counts.items()) if number},
            duplicates=self.repeated[place].rows + self.renewed[place],
            unused_columns=staged.unused,
            items_not_in_file=unnamed,
            created_lifted=staged.lifted,
            catalogue=size,
            catalogue_duplicates=duplicates,
            user_id=self.user,
            item_id=log.item,
            version=change.version,
        )

    def _rows_in_lake(self, log: Log, table: DeltaTable) -> int:
        own = log.own()
        return records_of(table) if own is None else int(table.to_pyarrow_dataset().count_rows(filter=own))

    def _extent_in_lake(self, log: Log, table: DeltaTable) -> _Extent:
        files, own = local_files(table), log.own()
        if files and own is None:  # DuckDB reads local files with less overhead per file than Arrow
            return self._extent(parquet_sql(files))
        columns = [USER_ID, ITEM_ID, EVENT_TIMESTAMP]
        rows = scan(self.lake, Table.events(log.domain), version=table.version(), columns=columns, where=own)
        self.db.register("lake_rows", rows)
        try:
            return self._extent("lake_rows")
        finally:
            self.db.unregister("lake_rows")

    def _extent(self, view: str) -> _Extent:
        """Compute the extent of a relation in one scan."""
        users, items, first, last = self.db.sql(
            f"SELECT count(DISTINCT {USER_ID}), count(DISTINCT {ITEM_ID}), "
            f"epoch_us(min({EVENT_TIMESTAMP})), epoch_us(max({EVENT_TIMESTAMP})) FROM {view}"
        ).fetchall()[0]
        return _Extent(users, items, datetime_of(first), datetime_of(last))


class _Extent(NamedTuple):
    """Distinct users and items of some events, and the time of the first and last one (UTC)."""

    users: int
    items: int
    first: datetime
    last: datetime
