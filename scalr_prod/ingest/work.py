"""From two staged domains to commits: what they must agree on, and what is written in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from scalr_prod.binding import bound_domain, check_domains, description_of
from scalr_prod.contracts import EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table, id_type_of, schema_of
from scalr_prod.errors import NoCommonUsers
from scalr_prod.ingest.catalogue import update_catalogue
from scalr_prod.ingest.commit import Addition, Log, commit_key, repeat_while_moving, scan, staged_sql
from scalr_prod.ingest.idtypes import agreed_type
from scalr_prod.ingest.report import DomainReport
from scalr_prod.instants import datetime_of
from scalr_prod.progress import counting

if TYPE_CHECKING:
    from datetime import datetime

    from scalr_prod.contracts import Domain, IdType
    from scalr_prod.ingest.staging import StagedEvents, StagedItems
    from scalr_prod.lake import Lake
    from scalr_prod.settings import Settings

__all__ = ["Work"]

_BOTH: tuple[Domain, ...] = ("source", "target")


class Work:
    """One ingest after all of its input has been staged.

    Args:
        db: DuckDB connection.
        lake: The lake.
        events: The staged logs.
        items: The staged item files, None where there is none.

    Raises:
        BadValue: The inputs' id types do not agree with one another or with the lake.
    """

    def __init__(
        self, db: Any, lake: Lake, events: dict[Domain, StagedEvents], items: dict[Domain, StagedItems | None]
    ) -> None:
        self.db, self.lake, self.events, self.items = db, lake, events, items
        self.there = tuple(domain for domain in _BOTH if lake.exists(Table.events(domain)))
        self.user, self.item = self._agree()
        self.logs = {domain: self._view(domain) for domain in events}
        self.additions = {domain: Addition(db, lake, log) for domain, log in self.logs.items()}

    def _agree(self) -> tuple[IdType, dict[Domain, IdType]]:
        users = next((self._kept(domain, USER_ID) for domain in self.there), None)
        user = agreed_type("user", [staged.users for staged in self.events.values()], kept=users)
        item: dict[Domain, IdType] = {}
        for domain in _BOTH:
            kept = self._kept(domain, ITEM_ID) if domain in self.there else None
            if domain in self.events:
                catalogue = self.items[domain]
                columns = [self.events[domain].items, *([catalogue.items] if catalogue else [])]
                item[domain] = agreed_type("item", columns, kept=kept)
            elif kept:
                item[domain] = kept[0]
        return user, item

    def _kept(self, domain: Domain, column: str) -> tuple[IdType, str]:
        table = Table.events(domain)
        return id_type_of(self.lake.schema(table), column), f"the table {table.value}"

    def _view(self, domain: Domain) -> Log:
        view = f"{domain}_log"
        query = staged_sql(self.events[domain].files, {USER_ID: self.user, ITEM_ID: self.item[domain]})
        self.db.execute(f"CREATE TEMP VIEW {view} AS {query}")
        first, last = self.db.sql(
            f"SELECT epoch_us(min({EVENT_TIMESTAMP})), epoch_us(max({EVENT_TIMESTAMP})) FROM {view}"
        ).fetchall()[0]
        staged = self.events[domain]
        return Log(domain, staged.origin, view, staged.rows, datetime_of(first), datetime_of(last))

    def common_users(self, settings: Settings) -> int | None:
        """Users that the two domains share, counted over what was read (or, for a domain that was not, over the lake).

        Raises:
            NoCommonUsers: There is none, nor is there one in the lake.
        """
        sides = [domain for domain in _BOTH if domain in self.events or domain in self.there]
        if len(sides) < len(_BOTH):
            return None
        for domain in _BOTH:
            self._load_users(domain, in_lake=domain not in self.events)
        common = self._shared()
        if not common:
            for domain in self.there:
                self._load_users(domain, in_lake=True)
            common = self._shared()
        if not common:
            examples = [self._example(domain) for domain in _BOTH]
            names = [f"'{settings.domains[domain].name}'" for domain in _BOTH]
            raise NoCommonUsers(
                f"{names[0]} and {names[1]} share no user, so there is nothing to learn a translation from "
                f"(user ids look like {examples[0]} and {examples[1]})",
                where=" and ".join(self.events[domain].origin for domain in _BOTH if domain in self.events),
                next_step="map columns that hold the same ids of the same users under [domains.*.columns] user",
            )
        return common

    def _load_users(self, domain: Domain, *, in_lake: bool) -> None:
        name = f"{domain}_users"
        if not in_lake:
            self.db.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT DISTINCT {USER_ID} FROM {self.logs[domain].view}")
            return
        table = Table.events(domain)
        self.db.register("lake_users", scan(self.lake, table, version=self.lake.version(table), columns=[USER_ID]))
        self.db.execute(f"CREATE TEMP TABLE IF NOT EXISTS {name} AS SELECT {USER_ID} FROM lake_users LIMIT 0")
        self.db.execute(f"INSERT INTO {name} SELECT DISTINCT {USER_ID} FROM lake_users")
        self.db.unregister("lake_users")

    def _shared(self) -> int:
        found = self.db.sql(
            f"SELECT count(*) FROM (SELECT {USER_ID} FROM source_users INTERSECT SELECT {USER_ID} FROM target_users)"
        ).fetchall()[0]
        return int(found[0])

    def _example(self, domain: Domain) -> str:
        return repr(self.db.sql(f"SELECT min({USER_ID}) FROM {domain}_users").fetchall()[0][0])

    def compare(self) -> None:
        """Find what each domain adds.

        Raises:
            BadValue: A log is in the lake already, but with other created times or weights.
        """
        for addition in self.additions.values():
            addition.compare()

    def create_tables(self, settings: Settings) -> None:
        """Make every table that is missing and whose id types are known, each domain's bound to its name.

        Raises:
            DomainsMixed: Another ingest has made a table for another domain in the meantime.
        """
        for domain, item in self.item.items():
            events = Table.events(domain)
            described = description_of(settings, domain)
            self.lake.create(events, schema_of(events, user=self.user, item=item), description=described)
            self._bind(settings, domain)
            own = [Table.items(domain), Table.history(domain)]
            for table in [*own, *([Table.TARGET_ITEM_STATS] if domain == "target" else [])]:
                self.lake.create(table, schema_of(table, user=self.user, item=item))
        if len(self.item) == len(_BOTH):
            for table in (Table.SYNTHETIC_TARGET_EVENTS, Table.SYNTHETIC_QUARANTINE):
                self.lake.create(
                    table, schema_of(table, user=self.user, item=self.item["target"], source_item=self.item["source"])
                )

    def _bind(self, settings: Settings, domain: Domain) -> None:
        """Give a table that was bound to no domain, or to a former name, the domain's name."""

        def bind(_version: int) -> None:
            check_domains(settings, self.lake)
            if bound_domain(self.lake, domain) != settings.domains[domain].name:
                self.lake.describe(Table.events(domain), description_of(settings, domain), key=commit_key())

        repeat_while_moving(self.lake, Table.events(domain), bind)

    def commit(self, domain: Domain, name: str, *, progress: bool) -> DomainReport:
        """Write one domain: its catalogue first, so that no event is ever without a catalogue row.

        Raises:
            CommitFailed: The lake refused; what was committed before is found again when the ingest is repeated.
        """
        staged, log, table = self.events[domain], self.logs[domain], Table.events(domain)
        size, duplicates = update_catalogue(self.db, self.lake, log, self.items[domain], self.item[domain])
        with counting(f"add {domain}", show=progress, total=staged.rows) as count:
            added, version = self.additions[domain].commit(count)
        read = self._extent(log.view)
        rows = self.lake.dataset(table, version=version).count_rows()
        # All of the log is in the table now: of equal size, the two are equal.
        kept = read if rows == staged.rows else self._extent_in_lake(table, version)
        return DomainReport(
            name=name,
            rows_read=staged.rows,
            users_read=read.users,
            items_read=read.items,
            first_read=read.first,
            last_read=read.last,
            rows_added=added,
            rows=rows,
            users=kept.users,
            items=kept.items,
            first_event=kept.first,
            last_event=kept.last,
            created_lifted=staged.lifted,
            catalogue=size,
            catalogue_duplicates=duplicates,
            user_id=self.user,
            item_id=self.item[domain],
            version=version,
        )

    def _extent_in_lake(self, table: Table, version: int) -> _Extent:
        self.db.register("lake_rows", scan(self.lake, table, version=version, columns=[USER_ID, ITEM_ID, EVENT_TIMESTAMP]))
        try:
            return self._extent("lake_rows")
        finally:
            self.db.unregister("lake_rows")

    def _extent(self, view: str) -> _Extent:
        """Read a view once."""
        users, items, first, last = self.db.sql(
            f"SELECT count(DISTINCT {USER_ID}), count(DISTINCT {ITEM_ID}), "
            f"epoch_us(min({EVENT_TIMESTAMP})), epoch_us(max({EVENT_TIMESTAMP})) FROM {view}"
        ).fetchall()[0]
        return _Extent(users, items, datetime_of(first), datetime_of(last))


class _Extent(NamedTuple):
    """Whose events there are, on what, and from when to when (UTC)."""

    users: int
    items: int
    first: datetime
    last: datetime
