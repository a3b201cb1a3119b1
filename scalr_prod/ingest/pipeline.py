# SPDX-License-Identifier: Apache-2.0
"""Ingest pipeline: validate staged logs against one another and the lake, then commit them."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from scalr_prod.compute import run_rounds
from scalr_prod.core.delta_log import arrow_schema, duckdb_readable_files, row_count
from scalr_prod.core.partitioned import sample_bounds
from scalr_prod.core.progress import track
from scalr_prod.core.timestamps import micros_to_datetime
from scalr_prod.errors import BadValue, CommitFailed, EmptyInput, NoCommonUsers, SettingsError
from scalr_prod.ingest.append import AppendMissing, StagedLog, commit_key, item_prefix_filter
from scalr_prod.ingest.catalogue import remove_unused_items, update_catalogue
from scalr_prod.ingest.column_parsers import common_id_type
from scalr_prod.ingest.consent import record_consent
from scalr_prod.ingest.id_mapping import IdMapping
from scalr_prod.ingest.ingest_report import DomainReport, IngestReport
from scalr_prod.ingest.input_state import input_state, record_input_state
from scalr_prod.ingest.known_users import UserIdResolver
from scalr_prod.ingest.log_limits import MIN_ROWS, count_items_missing_from_file, ensure_not_doubled
from scalr_prod.ingest.log_tasks import open_log_tasks
from scalr_prod.ingest.preflight import check_domain_input
from scalr_prod.ingest.replace_window import plan_replacements
from scalr_prod.ingest.rows import SQL_TYPES, count_rows, scan_table, staged_rows_sql
from scalr_prod.ingest.sort_by_time import (
    DuplicateCounts,
    SortJob,
    StagedRows,
    ViewRows,
    count_common_users,
    create_ids_table,
    ids_bounds,
    log_digest,
    sort_columns,
    sort_logs,
)
from scalr_prod.ingest.staging import LEFT_OUT_COLUMNS, open_log_input, stage_items, stage_logs
from scalr_prod.ingest.upsert import keep_latest_per_event_id, plan_append, record_left_out
from scalr_prod.ingest.user_days import UserDayLimit
from scalr_prod.lake import (
    PROJECT_MARKED_TABLE,
    Lake,
    check_domains,
    domain_description,
    project_description,
    retry_on_new_version,
)
from scalr_prod.schemas import (
    EVENT_ID,
    EVENT_TIMESTAMP,
    ITEM_ID,
    OPTIONAL_EVENT_COLUMNS,
    USER_ID,
    Table,
    id_type_of,
    item_id_prefix,
    table_schema,
)
from scalr_prod.workspace import SuppressionList, open_duckdb, parquet_sql, read_parquet_sql, staging_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    import pyarrow as pa
    from deltalake import DeltaTable

    from scalr_prod.config import DomainSettings, Settings
    from scalr_prod.ingest.append import CommitSummary
    from scalr_prod.ingest.log_tasks import LogTasks
    from scalr_prod.ingest.sort_by_time import LogRows, SortedLog
    from scalr_prod.ingest.staging import StagedEvents, StagedItems
    from scalr_prod.schemas import Domain, IdType


logger = logging.getLogger(__name__)


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
        ComputeError: A task failed. Nothing was added to the lake's tables, or it is safe to repeat the ingest.
        InputError: An input was rejected; names file, column and row. Nothing was written.
        NoCommonUsers: No user has events in the target domain and in a source domain. Nothing was written.
        SettingsError: There is no such domain.
        CommitFailed: The lake rejected a commit; it is safe to repeat the ingest.
    """
    places = _places(settings, domain)
    lake = Lake.open(settings)
    opened = lake.check_ownership(check_domains(settings, lake))
    user_map = IdMapping.from_settings(settings)
    if not settings.home.exists():  # checked before the home is created, so that a missing log leaves no files behind
        for place in places:
            check_domain_input(settings, place)
    state = input_state(settings, places)  # before reading: rows that a log gets meanwhile count as changed
    with ExitStack() as stack:
        folder = stack.enter_context(staging_folder(settings, "ingest"))
        db = stack.enter_context(open_duckdb(settings, folder))
        logs = {place: open_log_input(settings, place) for place in places}
        files = {place: log.plan() for place, log in logs.items()}
        tasks = stack.enter_context(open_log_tasks(settings, lake, db, folder, files.values()))
        with track(f"read {', '.join(places)}", show=progress) as count:
            events = stage_logs(settings, logs, files, tasks, count=count)
        for place in places:
            if _is_sorted_here(settings, place, replace):
                events[place].files = tasks.fetch([path for paths in events[place].parts for path in paths])
        items = {place: stage_items(settings, place, folder) for place in places}
        staged = StagedInput(events, items)
        pipeline = IngestPipeline(settings, tasks, lake, opened, staged, since=replace, user_map=user_map)
        pipeline.ensure_different_logs()
        common = pipeline.count_common_users()
        pipeline.compare()
        pipeline.create_tables()
        for place in places:
            pipeline.commit_catalogue(place)
        reports = {place: pipeline.commit(place, progress=progress) for place in places}
    if replace is None:  # a replacement ignores earlier rows
        record_input_state(settings, state)
    return IngestReport(reports, common, pipeline.user_ids.mapping_counts)


def _is_sorted_here(settings: Settings, place: str, since: datetime | None) -> bool:
    """Return whether this process sorts a log: other logs or all of its rows decide about each row, or the lake's events are replaced."""
    section = settings.domains[place]
    by_row = section.columns.event_id is None and section.max_user_day is None and not settings.users.is_configured
    return since is not None or not by_row


def _places(settings: Settings, domain: str | None) -> tuple[str, ...]:
    """Return the settings keys of the logs to read.

    Raises:
        SettingsError: There is no such domain.
    """
    source, target = settings.domains.log_keys("source"), settings.domains.log_keys("target")
    known = {place: (place,) for place in (*source, *target)} | {None: (*source, *target), "source": source}
    if domain not in known:
        names = ", ".join(str(name) for name in known if name)
        raise SettingsError(f"there is no domain '{domain}'; there are: {names}", where="domain", next_step="name one of those")
    return known[domain]


class LogChange(Protocol):
    """Change of an events table by a log."""

    def compare(self) -> None:
        """Compute the change without writing."""

    def commit(self, count: Callable[[int], None], ensure_none_erased: Callable[[], None]) -> CommitSummary:
        """Commit the change; ``ensure_none_erased`` raises, before each attempt, if users or items were erased meanwhile."""


@dataclass(frozen=True)
class StagedInput:
    """The input of an ingest, staged as files.

    Attributes:
        events: The logs, by settings key.
        items: The item files, by settings key; None without one.
    """

    events: Mapping[str, StagedEvents]
    items: Mapping[str, StagedItems | None]


class _CatalogueCounts(NamedTuple):
    """Counts of a domain's catalogue.

    Attributes:
        items: Items of the catalogue.
        duplicates: Rows of the item file that a later row replaced.
        missing: Items with events that the item file lacks; None without a file.
    """

    items: int
    duplicates: int
    missing: int | None


class IngestPipeline:
    """An ingest, after all of its input was staged.

    Args:
        settings: The project's settings.
        tasks: Runs the tasks.
        lake: The lake.
        opened: Its tables that existed when the ingest began.
        staged: The staged input.
        since: Replace the lake's events from this time on (UTC) by those of the logs; None: add missing rows.
        user_map: Mapping of source users to target users; None: the ids are shared.

    Raises:
        BadValue: The id types are incompatible with one another or with the lake; or the mapping gives a user several ids.
    """

    def __init__(
        self,
        settings: Settings,
        tasks: LogTasks,
        lake: Lake,
        opened: Mapping[Table, DeltaTable],
        staged: StagedInput,
        *,
        since: datetime | None = None,
        user_map: IdMapping | None = None,
    ) -> None:
        self.settings, self.tasks, self.db, self.lake = settings, tasks, tasks.connection, lake
        self.events, self.items = staged.events, staged.items
        self.opened = dict(opened)
        self.has_several_sources = settings.domains.has_several_sources
        self.suppressed = SuppressionList.open(settings)
        self.domains_in_lake = tuple(domain for domain in _BOTH if self._exists(Table.events(domain)))
        self.places_read = {
            domain: [place for place in settings.domains.log_keys(domain) if place in self.events] for domain in _BOTH
        }
        lake_type = next((self._id_type(Table.events(domain), USER_ID) for domain in self.domains_in_lake), None)
        self.user_ids = UserIdResolver(
            {domain: [self.events[place] for place in self.places_read[domain]] for domain in _BOTH}, lake_type, user_map
        )
        self.user_type = self.user_ids.id_type
        self.item_types, self.log_item_types = self._resolve_item_types()
        #: Rows superseded by a later row with the same event id, and dropped repetitions, by settings key.
        self.superseded_rows: dict[str, int] = {}
        #: Rows of erased users and items, by settings key.
        self.suppressed_rows: dict[str, int] = {}
        #: Counts of repeated rows of the log, by settings key.
        self.duplicates: dict[str, DuplicateCounts] = {}
        #: Committed catalogues, by settings key.
        self._catalogues: dict[str, _CatalogueCounts] = {}
        #: Limits of events per user and day, by settings key, if there is one.
        self.user_day_limits: dict[str, UserDayLimit] = {}
        self.since = since
        self.user_ids.load_mapping(self.db)
        #: What runs the tasks of each log, by settings key.
        self.log_tasks: dict[str, LogTasks] = {}
        self.logs = self._create_logs()
        self.changes: Mapping[str, LogChange] = (
            {place: plan_append(self.log_tasks[place], lake, log, settings.domains[place]) for place, log in self.logs.items()}
            if since is None
            else plan_replacements(settings.domains, self.db, lake, self.logs, since)
        )

    def _resolve_item_types(self) -> tuple[dict[Domain, IdType], dict[str, IdType]]:
        """Return the types of the item ids in the lake, and in each log."""
        item: dict[Domain, IdType] = {}
        own: dict[str, IdType] = {}
        for domain in _BOTH:
            lake_type = self._id_type(Table.events(domain), ITEM_ID) if domain in self.domains_in_lake else None
            known = self._stored_source_item_type() if domain == "source" and self.has_several_sources else lake_type
            for place in self.places_read[domain]:
                catalogue = self.items[place]
                columns = [self.events[place].item_ids, *([catalogue.item_ids] if catalogue else [])]
                own[place] = common_id_type("item", columns, lake_type=known)
            if lake_type:
                item[domain] = lake_type[0]
            elif self.places_read[domain]:
                item[domain] = "string" if domain == "source" and self.has_several_sources else own[self.places_read[domain][0]]
        return item, own

    def _id_type(self, table: Table, column: str) -> tuple[IdType, str]:
        return id_type_of(arrow_schema(self.opened[table]), column), f"the table {table.value}"

    def _exists(self, table: Table) -> bool:
        """Return whether a table exists; another ingest may have created it since this one began."""
        if table not in self.opened and self.lake.exists(table):
            self.opened[table] = self.lake.open_owned(table)
        return table in self.opened

    def _stored_source_item_type(self) -> tuple[IdType, str] | None:
        """Return int64 if existing synthetic events store source item ids as integers; else None."""
        table = Table.SYNTHETIC_QUARANTINE
        stored = self._id_type(table, "source_item_id") if self._exists(table) else None
        return stored if stored and stored[0] == "int64" else None

    def _create_logs(self) -> dict[str, StagedLog]:
        """Sort the logs by time, and create the tables of their items."""
        ids = ids_bounds(max((staged.rows for staged in self.events.values()), default=0))
        domains = {place: domain for domain in _BOTH for place in self.places_read[domain]}
        plans = {
            place: self._plan_sort(domain, place, ids) for place, domain in domains.items() if not self._is_sorted_here(place)
        }
        in_tasks = sort_logs(self.tasks, [(plan.job, plan.parts) for plan in plans.values()])
        found = dict(zip(plans, in_tasks, strict=True))
        logs = {}
        for place, domain in domains.items():
            if place not in found:
                plan = plans[place] = self._plan_sort(domain, place, ids)
                (found[place],) = sort_logs(plan.tasks, [(plan.job, plan.parts)])
            logs[place] = self._create_log(plans[place], found[place])
        return logs

    def _is_sorted_here(self, place: str) -> bool:
        return _is_sorted_here(self.settings, place, self.since)

    def _plan_sort(self, domain: Domain, place: str, ids: Sequence[int]) -> _SortPlan:
        """Plan how a log is sorted; create the view of a log that this process sorts."""
        staged, own, section = self.events[place], self.log_item_types[place], self.settings.domains[place]
        prefix = item_id_prefix(section.name) if domain == "source" and self.has_several_sources else ""
        view = f"{place.replace('.', '_')}_log"
        rows: LogRows = StagedRows(domain, {USER_ID: self.user_ids.log_id_types[domain], ITEM_ID: own}, prefix, self.suppressed)
        tasks, parts, renewed = self.tasks, staged.parts, 0
        read: int | None = None
        if self._is_sorted_here(place):
            read, renewed = self._create_view(domain, place, view, prefix)
            rows, tasks, parts = ViewRows(view), self.tasks.in_this_process(), [[]]
        mapped = {name for name in OPTIONAL_EVENT_COLUMNS if getattr(section.columns, name) is not None}
        bounds = sample_bounds(staged.sample, staged.rows)
        job = SortJob(rows, sort_columns(mapped), bounds, ids, section.duplicates == "drop", tasks.folder)
        return _SortPlan(domain, place, prefix, view, tasks, job, parts, read, renewed)

    def _create_log(self, plan: _SortPlan, sorted_log: SortedLog) -> StagedLog:
        """Return a log that was sorted, and create the table of its items."""
        place, staged, tasks, view = plan.place, self.events[plan.place], plan.tasks, plan.view
        self.log_tasks[place] = tasks
        read = sorted_log.rows_read if plan.read is None else plan.read
        self.suppressed_rows[place] = staged.rows - read
        if not read:
            raise self._only_erased(place)
        self.superseded_rows[place] = plan.renewed + sorted_log.rows_read - sorted_log.rows
        # Dropped repetitions are counted as superseded and no longer belong to the log.
        without_duplicates = DuplicateCounts(0, sorted_log.rows, all_repeated=False)
        self.duplicates[place] = without_duplicates if plan.job.drop_duplicates else sorted_log.duplicates
        if isinstance(plan.job.rows, ViewRows):
            files = tasks.fetch([file.path for file in sorted_log.files])
            self.db.execute(f"CREATE OR REPLACE TEMP VIEW {view} AS FROM {parquet_sql(*files)}")
            self.db.execute(f"DROP TABLE IF EXISTS {view}_latest; DROP TABLE IF EXISTS {view}_ids")
        log = StagedLog(
            domain=plan.domain,
            place=place,
            item_type=self.log_item_types[place],
            item_prefix=plan.prefix,
            origin=staged.origin,
            view=view,
            rows=sorted_log.rows,
            files=sorted_log.files,
            users=sorted_log.users,
            items=sorted_log.items,
        )
        create_ids_table(self.db, log.items_table, [(tasks.folder, log.items)])
        return log

    def _only_erased(self, place: str) -> EmptyInput:
        return EmptyInput(
            "contains only rows of erased users or items",
            where=self.events[place].origin,
            next_step=f"check what [domains.{place}] names",
        )

    def _create_view(self, domain: Domain, place: str, view: str, prefix: str) -> tuple[int, int]:
        """Create the view of a log that this process sorts: the last row of each event id, within the limit of events per user and day.

        Returns:
            Rows that were read, without those of erased users and items; and how many of them a later row superseded.
        """
        staged, section = self.events[place], self.settings.domains[place]
        types = {USER_ID: self.user_ids.log_id_types[domain], ITEM_ID: self.log_item_types[place]}
        staged_rows = staged_rows_sql(staged.files, types, prefix=prefix)
        query = self.user_ids.exclude_suppressed(self.db, self.suppressed, staged_rows, domain)
        missing = [name for name in OPTIONAL_EVENT_COLUMNS if getattr(section.columns, name) is None]
        nothing = "".join(f", NULL::{'DOUBLE' if name == 'value' else 'VARCHAR'} AS {name}" for name in missing)
        named = f" REPLACE ('{prefix}' || {EVENT_ID} AS {EVENT_ID})" if prefix and EVENT_ID not in missing else ""
        self.db.execute(f"CREATE TEMP VIEW {view} AS SELECT *{named}{nothing} FROM ({query})")
        rows = read = count_rows(self.db, f"FROM {view}")
        if not read:
            raise self._only_erased(place)
        if EVENT_ID not in missing:
            left_out = f" UNION ALL FROM {parquet_sql(*staged.left_out_files)}" if staged.left_out_files else ""
            every_row = f"SELECT *{named} FROM (SELECT {', '.join(LEFT_OUT_COLUMNS)} FROM ({staged_rows}){left_out})"
            rows = keep_latest_per_event_id(self.db, view, section, every_row)
        if not rows:
            raise EmptyInput(
                "contains only events that are left out",
                where=staged.origin,
                next_step=f"check types and unknown_types of [domains.{place}]",
            )
        if section.max_user_day is not None:
            self._limit_user_days(domain, place, view, section, prefix)
            if section.columns.event_id is not None:
                record_left_out(self.db, view)
        return read, read - rows

    def _limit_user_days(self, domain: Domain, place: str, view: str, section: DomainSettings, prefix: str) -> None:
        """Apply a log's limit of events per user and day.

        Raises:
            BadValue: Too many are.
            EmptyInput: All are.
        """
        settings, staged = self.settings, self.events[place]
        limit = UserDayLimit(
            self.db, view, place, section, timezone=settings.project.timezone, home=settings.home, since=self.since
        )
        opened = self.opened[Table.events(domain)] if domain in self.domains_in_lake else None
        limit.apply(opened, item_prefix_filter(prefix), staged.left_out)
        if not count_rows(self.db, f"FROM {view}"):
            raise EmptyInput(
                "contains only users and days with more than max_user_day events",
                where=staged.origin,
                next_step=f"raise max_user_day of [domains.{place}]",
            )
        self.user_day_limits[place] = limit

    def ensure_different_logs(self) -> None:
        """Ensure that no source log holds exactly the target log's events, whatever their order and files; tiny logs may be equal.

        Raises:
            BadValue: One does: the settings name one log twice.
        """
        for target in self.places_read["target"]:
            for source in self.places_read["source"]:
                rows = self.logs[target].rows
                if MIN_ROWS <= rows == self.logs[source].rows and self._digest(source) == self._digest(target):
                    raise BadValue(
                        f"contains the same {rows} events as [domains.{source}]",
                        where=f"{self.events[target].origin}, [domains.{target}]",
                        next_step="name the logs of two different domains; for two parts of one log, select them by a query, or by types "
                        'and unknown_types = "drop"',
                    )

    def _digest(self, place: str) -> tuple[int, int]:
        return log_digest(self.log_tasks[place], self.logs[place].files, self.logs[place].item_prefix)

    def count_common_users(self) -> int | None:
        """Count the users of both the target domain and a source domain, in the logs read, or in the lake for a side not read.

        Raises:
            NoCommonUsers: There are none in the logs or the lake.
        """
        if any(not self.places_read[domain] and domain not in self.domains_in_lake for domain in _BOTH):
            return None
        domains = self.settings.domains
        in_lake = {
            domain: domain in self.domains_in_lake and len(self.places_read[domain]) < len(domains.log_keys(domain))
            for domain in _BOTH
        }
        if not any(in_lake.values()) and (common := self._count_common_in_logs()):
            return common
        for domain in _BOTH:
            self._load_users(domain, in_lake=in_lake[domain])
        common = self._count_shared_users()
        if not common:
            for domain in self.domains_in_lake:
                self._load_users(domain, in_lake=True)
            common = self._count_shared_users()
        if not common:
            examples = [self._example_user(domain) for domain in _BOTH]
            sources = " and ".join(f"'{name}'" for name in domains.source_names)
            raise NoCommonUsers(
                f"{sources} and '{domains.target.name}' share no user, so there is nothing to learn a translation from "
                f"(user ids look like {examples[0]} and {examples[1]})",
                where=" and ".join(staged.origin for staged in self.events.values()),
                next_step="map columns that have the same ids of the same users under [domains.*.columns] user; or, where the two know "
                "the same people by different ids, name a table of the pairs: [users] map",
            )
        return common

    def _count_common_in_logs(self) -> int:
        """Count the users of both a target log and a source log, in tasks; in this process if it sorted one of them."""
        sides = [[(self.log_tasks[place].folder, self.logs[place].users) for place in self.places_read[side]] for side in _BOTH]
        parts = sorted(set.intersection(*({number for _, ids in side for number in ids.parts} for side in sides)))
        calls = [
            ([[(folder, ids.parts[number]) for folder, ids in side if number in ids.parts] for side in sides],)
            for number in parts
        ]
        is_sorted_here = any(self._is_sorted_here(place) for place in self.logs)
        executor = self.tasks.in_this_process().executor if is_sorted_here else self.tasks.executor
        return sum(executor.map(count_common_users, calls))

    def _load_users(self, domain: Domain, *, in_lake: bool) -> None:
        users = [f"SELECT NULL::{SQL_TYPES[self.user_type]} AS {USER_ID} WHERE false"]
        if self.places_read[domain]:
            logs = [(self.log_tasks[place].folder, self.logs[place].users) for place in self.places_read[domain]]
            create_ids_table(self.db, f"{domain}_log_users", logs)
            users.append(f"SELECT {USER_ID} FROM {domain}_log_users")
        if in_lake:
            self.db.register("lake_users", scan_table(self.lake.open_table(Table.events(domain)), columns=[USER_ID]))
            users.append(f"SELECT {USER_ID} FROM lake_users")
        self.db.execute(f"CREATE OR REPLACE TEMP TABLE {domain}_users AS {' UNION '.join(users)}")
        self.db.unregister("lake_users")

    def _count_shared_users(self) -> int:
        return count_rows(self.db, f"SELECT {USER_ID} FROM source_users INTERSECT SELECT {USER_ID} FROM target_users")

    def _example_user(self, domain: Domain) -> str:
        return repr(self.db.sql(f"SELECT min({USER_ID}) FROM {domain}_users").fetchall()[0][0])

    def compare(self) -> None:
        """Compute the changes of each domain.

        Raises:
            BadValue: A log is already in the lake with other created times or weights, or under other users; or a replacement would
                remove more than the settings allow.
            EmptyInput: A replacement would leave a domain without events.
        """
        beside = {place: change for place, change in self.changes.items() if not self._is_sorted_here(place)}
        run_rounds(
            self.tasks.executor, [change.compare_rounds() for change in beside.values() if isinstance(change, AppendMissing)]
        )
        for place, change in self.changes.items():
            if place not in beside:
                change.compare()
            self.user_ids.ensure_consistent(self.db, self.lake, self.logs[place], appends=self._is_appended(place))
            if isinstance(change, AppendMissing):
                section = self.settings.domains[place]
                ensure_not_doubled(
                    change.log,
                    section,
                    self.duplicates[place],
                    extra_copies=change.extra_copies,
                    rows_in_window=change.rows_in_window,
                )

    def _is_appended(self, place: str) -> bool:
        """Return whether a log's rows are added to the lake's; events with ids are updated in place."""
        return self.since is None and self.settings.domains[place].columns.event_id is None

    def create_tables(self) -> None:
        """Create missing tables whose id types are known, and bind them to the project and their domains.

        Raises:
            ProjectsMixed: Another project's ingest has claimed the lake in the meantime.
            DomainsMixed: Another ingest has created a table for another domain in the meantime.
        """
        for domain, item in self.item_types.items():
            events = Table.events(domain)
            described = domain_description(self.settings, domain)
            schema = table_schema(events, user=self.user_type, item=item, extras=self._optional_columns(domain))
            self._create_or_complete(events, schema, described, domain)
            own = [Table.items(domain), Table.history(domain)]
            for table in [*own, *([Table.TARGET_ITEM_STATS] if domain == "target" else [])]:
                schema = table_schema(table, user=self.user_type, item=item)
                self.opened[table] = self.lake.create(table, schema, opened=self.opened.get(table))
        if len(self.item_types) == len(_BOTH):
            source = self._source_item_type()
            for table in (Table.SYNTHETIC_TARGET_EVENTS, Table.SYNTHETIC_EVENT_PROVENANCE, Table.SYNTHETIC_QUARANTINE):
                schema = table_schema(table, user=self.user_type, item=self.item_types["target"], source_item=source)
                self._create_or_complete(
                    table, schema, project_description(self.settings) if table == PROJECT_MARKED_TABLE else None, None
                )
        check_domains(self.settings, self.lake)

    def _create_or_complete(self, table: Table, schema: pa.Schema, described: str | None, domain: Domain | None) -> None:
        """Create a table with this description, or complete an existing table's description and columns."""
        made = self.lake.create(table, schema, description=described, opened=self.opened.get(table))
        if described is not None and self.lake.description(table, opened=made) != described:
            self._bind_table(table, domain)
            self.lake.refresh(table, made)
        self.lake.add_missing_columns(table, schema, opened=made)  # such as one that the settings map now

    def _optional_columns(self, domain: Domain) -> set[str]:
        """Return the columns of `OPTIONAL_EVENT_COLUMNS` that the settings map or the table has."""
        events, columns = Table.events(domain), [self.settings.domains[place].columns for place in self.places_read[domain]]
        existing = arrow_schema(self.opened[events]).names if domain in self.domains_in_lake else ()
        return {
            name
            for name in OPTIONAL_EVENT_COLUMNS
            if name in existing or any(getattr(mapped, name) is not None for mapped in columns)
        }

    def _source_item_type(self) -> IdType:
        """Return the type of ``source_item_id`` in synthetic events: that of the logs, if all source domains share it; else string."""
        if not self.has_several_sources:
            return self.item_types["source"]
        return (
            "int64"
            if {self.log_item_types.get(place) for place in self.settings.domains.log_keys("source")} == {"int64"}
            else "string"
        )

    def _bind_table(self, table: Table, domain: Domain | None) -> None:
        """Bind a table without a binding, or with an earlier name, to the current project or domain."""

        def bind(_version: int) -> None:
            check_domains(self.settings, self.lake)
            former = self.lake.description(table)
            described = (
                project_description(self.settings, former) if domain is None else domain_description(self.settings, domain)
            )
            if described != former:
                self.lake.set_description(table, described, key=commit_key())

        retry_on_new_version(self.lake, table, bind)

    def _ensure_none_erased(self, table: Table) -> None:
        """Ensure that no user or item was erased since the logs were read.

        Called before each attempt to commit: a first erasure commits to every table, so that an attempt under way fails and is made again.

        Raises:
            CommitFailed: Some were.
        """
        suppressed = SuppressionList.open(self.settings)
        if suppressed.users.keys() != self.suppressed.users.keys() or suppressed.items.keys() != self.suppressed.items.keys():
            raise CommitFailed(
                "users or items were erased while the logs were read; nothing more was added",
                where=self.lake.uri(table),
                next_step="repeat the command",
            )

    def commit_catalogue(self, place: str) -> None:
        """Commit one domain's consents and catalogue; before any events, so that none is without an answer or a catalogue row.

        Raises:
            CommitFailed: The lake rejected a commit, or users or items were erased while the logs were read.
        """
        staged, log = self.events[place], self.logs[place]
        self._ensure_none_erased(Table.items(log.domain))
        if self.settings.domains[place].requires_consent:
            read_answers = staged_rows_sql(staged.consent_files, {USER_ID: self.user_ids.log_id_types[log.domain]})
            answers = self.user_ids.exclude_suppressed(self.db, self.suppressed, read_answers, log.domain)
            create_ids_table(self.db, "log_users", [(self.log_tasks[place].folder, log.users)])
            record_consent(self.settings, self.db, self.lake, log, answers, since=self.since)
        size, duplicates = update_catalogue(
            self.db, self.lake, log, self.items[place], opened=self.opened[Table.items(log.domain)]
        )
        unnamed = count_items_missing_from_file(self.db, log) if self.items[place] else None
        self._catalogues[place] = _CatalogueCounts(size, duplicates, unnamed)

    def commit(self, place: str, *, progress: bool) -> DomainReport:
        """Commit one domain's events, after `commit_catalogue` of all domains.

        Raises:
            CommitFailed: The lake rejected a commit; a repeated ingest finds what was committed before.
        """
        staged, log = self.events[place], self.logs[place]
        table = Table.events(log.domain)
        self._ensure_none_erased(table)
        size, duplicates, unnamed = self._catalogues[place]
        over_limit = self.user_day_limits[place].commit(self.lake, log) if place in self.user_day_limits else 0
        with track(f"add {place}", show=progress, total=staged.rows) as count:
            change = self.changes[place].commit(count, partial(self._ensure_none_erased, table))
        if self.since is not None or change.updated or change.removed or over_limit:
            size -= remove_unused_items(self.db, self.lake, log)
        read, delta = self._extent_of(log), self.lake.open_table(table, version=change.version)
        rows = self._rows_in_lake(log, delta)
        # The table now contains the whole log, so equal sizes mean equal rows. (A replacement covers only its window.)
        extent = read if rows == log.rows and self.since is None else self._extent_in_lake(log, delta)
        if self.since is None and log.rows < rows and read.first <= extent.first:  # a log of the last days begins later
            logger.warning(
                "%s: %d events, and the lake has %d of this log: an ingest removes none. Restore the rows that the log lost; if they are "
                "to go, run: scalr ingest --domain %s --replace %s",
                *(log.origin, log.rows, rows, place, extent.first.date()),
            )
        return DomainReport(
            name=self.settings.domains[place].name,
            rows_read=staged.rows + sum(staged.left_out.counts.values()) - staged.left_out.counts["over_user_day"],
            users_read=read.users,
            items_read=read.items,
            first_read=read.first,
            last_read=read.last,
            rows_added=change.added,
            rows_removed=change.removed + over_limit,
            rows_forgotten=self.suppressed_rows[place],
            rows=rows,
            users=extent.users,
            items=extent.items,
            first_event=extent.first,
            last_event=extent.last,
            rows_updated=change.updated,
            left_out={reason: number for reason, number in sorted(staged.left_out.counts.items()) if number},
            duplicates=self.duplicates[place].rows + self.superseded_rows[place],
            unused_columns=staged.unused_columns,
            items_not_in_file=unnamed,
            created_lifted=staged.created_lifted,
            recommended=sum(file.recommended for file in log.files),
            catalogue=size,
            catalogue_duplicates=duplicates,
            user_id=self.user_type,
            item_id=log.item_type,
            version=change.version,
        )

    def _rows_in_lake(self, log: StagedLog, table: DeltaTable) -> int:
        own = log.lake_filter()
        return row_count(table) if own is None else int(table.to_pyarrow_dataset().count_rows(filter=own))

    def _extent_of(self, log: StagedLog) -> _Extent:
        return _Extent(log.users.size, log.items.size, log.first_event, log.last_event)

    def _extent_in_lake(self, log: StagedLog, table: DeltaTable) -> _Extent:
        files, own = duckdb_readable_files(table), log.lake_filter()
        if files and own is None:  # DuckDB reads local files with less overhead per file than Arrow
            return self._extent(read_parquet_sql(files))
        columns = [USER_ID, ITEM_ID, EVENT_TIMESTAMP]
        self.db.register("lake_rows", scan_table(table, columns=columns, where=own))
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
        return _Extent(users, items, micros_to_datetime(first), micros_to_datetime(last))


class _SortPlan(NamedTuple):
    """How a log is sorted.

    Attributes:
        domain: Its side.
        place: Its settings key.
        prefix: Prefix of its item ids in the lake, perhaps empty.
        view: Name of the view of its rows, where this process sorts it.
        tasks: Runs the tasks.
        job: What they need to know.
        parts: The staged files that each task of the first round reads.
        read: Rows that were read, without those of erased users and items; None: the tasks count them.
        renewed: How many of them a later row superseded, before the log is sorted.
    """

    domain: Domain
    place: str
    prefix: str
    view: str
    tasks: LogTasks
    job: SortJob
    parts: Sequence[Sequence[str]]
    read: int | None
    renewed: int


class _Extent(NamedTuple):
    """Distinct users and items of some events, and the time of the first and last one (UTC)."""

    users: int
    items: int
    first: datetime
    last: datetime
