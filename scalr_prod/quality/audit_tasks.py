# SPDX-License-Identifier: Apache-2.0
"""Audit of a run's candidates in tasks, one partition of users each.

Tasks write accepted and rejected rows; this process takes the files, and adds up what they count. Which task gets which rows follows from
the rows alone, so files and figures are the same wherever and by however many workers they are made.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.compute import (
    FilePart,
    open_executor,
    plan_file_parts,
    rows_per_task,
    shuffle_folder,
    write_segments,
    write_tables,
)
from scalr_prod.core.delta_log import arrow_schema, files_in_time_range, row_count_by_file
from scalr_prod.core.partitioned import hash_bounds, quantile_bounds
from scalr_prod.core.timestamps import to_micros
from scalr_prod.generation import candidate_schema
from scalr_prod.lake import Lake
from scalr_prod.quality.candidate_files import FILE, ROW, CandidateFiles, chunk_row_groups, list_row_groups
from scalr_prod.quality.drift import history_length
from scalr_prod.quality.partition_audit import (
    CONSENT_USERS,
    RULE_VIEWS,
    AuditCounts,
    AuditJob,
    PartitionInputs,
    audit_partition,
    create_rule_views,
)
from scalr_prod.quality.rules import EVENT_COLUMNS
from scalr_prod.quality.user_partitions import COLUMNS, RUN_USERS, TABLES, CandidatePart, EventPart, RegroupJob, regroup_by_user
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table
from scalr_prod.workspace import (
    ConsentState,
    create_delta_view,
    escape_glob,
    not_held_out_sql,
    quote_literal,
    read_parquet_sql,
    timestamp_literal,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    from deltalake import DeltaTable
    from duckdb import DuckDBPyConnection

    from scalr_prod.compute import Executor, Segment, ShuffleFolder
    from scalr_prod.config import Settings
    from scalr_prod.ledger import Publication, RunSpec
    from scalr_prod.quality.candidate_files import RowGroup
    from scalr_prod.quality.partition_audit import AuditedPartition
    from scalr_prod.quality.rule_protocol import RowRule
    from scalr_prod.quality.user_partitions import Kind, UserPartitions


#: Table of the real events of each item, in the driver's connection.
ITEM_EVENTS: Final = "item_events"
#: Most users whose source events alone are read to measure drift; of more, those of all users are read.
_FEW_USERS: Final = 1_000_000
#: Rows that a task of the first round reads at most, about.
_TASK_ROWS: Final = 1_000_000
#: Processor time of a row, event or candidate, in all rounds.
_SECONDS_PER_ROW: Final = 3e-6


@dataclass(frozen=True)
class AuditedRows:
    """The rows of a run by verdict.

    Attributes:
        accepted: Files of the accepted rows, by user and time.
        rejected: Files of the other rows, with a column for each rule.
        counts: Figures of them.
        values: `count_values` of the published and of the accepted events of each partition; none if drift is not measured.
    """

    accepted: Sequence[Path]
    rejected: Sequence[Path]
    counts: AuditCounts
    values: Sequence[tuple[pa.Table, pa.Table]]

    def to_sql(self, rules: Sequence[RowRule]) -> str:
        """Return a query of all rows: columns of events, one boolean per rule, and ``accepted``."""
        verdicts, columns = [*(rule.name for rule in rules), "accepted"], ", ".join(EVENT_COLUMNS)
        query = f"SELECT {columns}, {', '.join(f'true AS {name}' for name in verdicts)} FROM {_read(self.accepted)}"
        if not self.rejected:
            return query
        return f"{query} UNION ALL SELECT {columns}, {', '.join(verdicts)} FROM {_read(self.rejected)}"


def _read(files: Sequence[Path]) -> str:
    return read_parquet_sql(map(escape_glob, files))


@dataclass(frozen=True)
class _AuditPlan:
    """What the tasks of an audit read.

    Attributes:
        groups: Row groups of the candidates.
        conditions: SQL of which events of a kind are needed.
        parts: What each task of the first round reads.
        bounds: The first user of each partition but the first.
        rows: Number of events and candidates.
    """

    groups: Sequence[RowGroup]
    conditions: Mapping[Kind, str]
    parts: Sequence[EventPart | CandidatePart]
    bounds: Sequence[Any]
    rows: int

    @property
    def tasks(self) -> int:
        """Number of tasks of the larger round."""
        return max(len(self.parts), len(self.bounds) + 1)


def audit_candidates(
    settings: Settings,
    spec: RunSpec,
    files: Sequence[Path],
    rules: Sequence[RowRule],
    connection: DuckDBPyConnection,
    folder: Path,
    *,
    reference: Publication | None = None,
) -> AuditedRows:
    """Judge a run's candidates, and create in the connection `RULE_VIEWS` and the table `ITEM_EVENTS`.

    Args:
        settings: The project's settings.
        spec: The run.
        files: Its candidate files, in one folder.
        rules: Rules for every row.
        connection: DuckDB connection.
        folder: Folder on this machine for the rows.
        reference: The publication that drift is measured from.

    Raises:
        QualityError: A rule's expression cannot be computed.
        ComputeError: A task failed.
    """
    lake = Lake.open(settings)
    tables = lake.open_tables(dict.fromkeys([*RULE_VIEWS.values(), *TABLES.values()]), versions=spec.table_versions)
    opened = {name: tables[table] for name, table in RULE_VIEWS.items()}
    create_rule_views(connection, opened, timestamp_literal(spec.as_of))
    if reference is not None:
        opened["published"] = tables[TABLES["published"]]
    schema = candidate_schema(lake)
    plan = _plan(connection, spec, opened, files, schema, reference)
    with open_executor(
        settings, connection, tasks=plan.tasks, work_s=plan.rows * _SECONDS_PER_ROW, stage="validate", run_id=spec.run_id
    ) as executor:
        # Workers elsewhere share no folder with this machine, but they reach the lake.
        root = (str(folder), {}) if executor.is_local else (lake.uri(Table.TARGET_EVENTS), lake.storage_options)
        with shuffle_folder(*root) as shuffled:
            job = RegroupJob(
                lake=lake,
                versions={RULE_VIEWS.get(name, TABLES["published"]): table.version() for name, table in opened.items()},
                conditions=plan.conditions,
                users=_write_run_users(connection, plan, shuffled),
                candidates=_share_candidates(files, schema, executor, shuffled),
                bounds=plan.bounds,
                id_bounds=hash_bounds(sum(group.rows for group in plan.groups)),
                folder=shuffled,
            )
            regrouped = regroup_by_user(executor, job, plan.parts, connection)
            audit = AuditJob(
                regrouped=job,
                rules=rules,
                sources=settings.domains.source_names,
                as_of=timestamp_literal(spec.as_of),
                is_context=_context_sql(spec),
                items=_write_items(connection, regrouped, shuffled),
                history_length=None if reference is None else history_length(spec),
                schemas=_schemas(tables, schema),
            )
            consent = _write_consent(settings, spec, job, connection)
            calls = ((audit, inputs) for inputs in _partition_inputs(plan, regrouped, consent))
            return _take_files(executor.map(audit_partition, calls), shuffled, folder)


def _plan(
    connection: DuckDBPyConnection,
    spec: RunSpec,
    opened: Mapping[str, DeltaTable],
    files: Sequence[Path],
    schema: pa.Schema,
    reference: Publication | None,
) -> _AuditPlan:
    """Plan the tasks, from a sample of the users."""
    if files:
        connection.read_parquet([escape_glob(path) for path in files], hive_partitioning=False).create_view("candidates")
    else:
        connection.register("candidates", schema.empty_table())
    start, end, time = timestamp_literal(spec.start), timestamp_literal(spec.end), "source_event_timestamp"
    ((first, last),) = connection.execute(
        f"SELECT epoch_us(least({start}, min({time}))), epoch_us(greatest({end}, max({time}))) FROM candidates"
    ).fetchall()
    # The window, and the time range that candidates refer to.
    within = f"{EVENT_TIMESTAMP} >= make_timestamptz({first}) AND {EVENT_TIMESTAMP} <= make_timestamptz({last})"
    conditions: dict[Kind, str] = {"source": within, "target": "true"}
    in_range = {"source": files_in_time_range(opened["source_events"], EVENT_TIMESTAMP, first, last)}
    if reference is not None:
        since, until = to_micros(reference.start), to_micros(reference.end)
        conditions["published"] = (
            f"{EVENT_TIMESTAMP} >= make_timestamptz({since}) AND {EVENT_TIMESTAMP} < make_timestamptz({until}) "
            f"AND run_id = {quote_literal(reference.run_id)}"
        )
        create_delta_view(connection, "published_events", opened["published"])
        conditions["source"] = _history_sql(connection, within, conditions["published"])
        in_range = {"published": files_in_time_range(opened["published"], EVENT_TIMESTAMP, since, until)}
    views = [f"{kind}_events WHERE {condition}" for kind, condition in conditions.items()]
    keys = " UNION ALL ".join(f"SELECT {USER_ID} FROM {view}" for view in (*views, f"candidates WHERE {USER_ID} IS NOT NULL"))
    ((rows,),) = connection.execute(f"SELECT count(*) FROM ({keys})").fetchall()
    groups, task_rows = list_row_groups(files), rows_per_task(rows, _TASK_ROWS)
    parts: list[EventPart | CandidatePart] = [CandidatePart(chunk) for chunk in chunk_row_groups(groups, task_rows)]
    for kind in conditions:
        counted = row_count_by_file(opened[kind if kind == "published" else f"{kind}_events"])
        wanted = {name: count for name, count in counted.items() if name in in_range.get(kind, counted)}
        # One task at least, since items come from target events.
        parts += [EventPart(kind, part) for part in plan_file_parts(wanted, task_rows) or [FilePart(())]]
    bounds = quantile_bounds(connection, f"({keys})", USER_ID, rows)
    # Tasks read the tables, and not the views of what was known.
    known = f"{CREATED_TIMESTAMP} <= {timestamp_literal(spec.as_of)}"
    read = {kind: sql if kind == "published" else f"{known} AND {sql}" for kind, sql in conditions.items()}
    return _AuditPlan(groups, read, parts, bounds, rows)


def _history_sql(connection: DuckDBPyConnection, within: str, published: str) -> str:
    """Return SQL of the source events that drift needs: also all of the rows' users, who are in `RUN_USERS` if they are few."""
    connection.execute(
        f"""CREATE TEMP TABLE {RUN_USERS} AS SELECT DISTINCT {USER_ID} FROM (
            SELECT {USER_ID} FROM candidates WHERE {USER_ID} IS NOT NULL
            UNION ALL SELECT {USER_ID} FROM published_events WHERE {published})"""
    )
    ((users,),) = connection.execute(f"SELECT count(*) FROM {RUN_USERS}").fetchall()
    return "true" if users > _FEW_USERS else f"({within} OR {USER_ID} IN (FROM {RUN_USERS}))"


def _write_run_users(connection: DuckDBPyConnection, plan: _AuditPlan, folder: ShuffleFolder) -> Segment | None:
    if RUN_USERS not in plan.conditions["source"]:
        return None
    return write_tables([(0, connection.table(RUN_USERS).to_arrow_table())], folder=folder)[0]


def _share_candidates(files: Sequence[Path], schema: pa.Schema, executor: Executor, folder: ShuffleFolder) -> CandidateFiles:
    """Return the candidate files where tasks read them: in place on this machine, else copied to the folder."""
    if executor.is_local:
        return CandidateFiles(str(files[0].parent) if files else folder.root, {}, [path.name for path in files], schema)
    return CandidateFiles(folder.root, folder.storage_options, folder.put_all(files), schema)


def _context_sql(spec: RunSpec) -> str:
    """Return SQL: whether a source event is one that the run translates; see `_write_consent`."""
    consent = ConsentState.from_run(spec.settings)
    return " AND ".join(
        [
            f"{EVENT_TIMESTAMP} >= {timestamp_literal(spec.start)} AND {EVENT_TIMESTAMP} < {timestamp_literal(spec.end)}",
            not_held_out_sql(spec.settings, USER_ID),
            "true" if consent is None else consent.permits_sql(USER_ID, f"SELECT {USER_ID} FROM {CONSENT_USERS}"),
        ]
    )


def _write_consent(
    settings: Settings, spec: RunSpec, job: RegroupJob, connection: DuckDBPyConnection
) -> Mapping[int, Segment] | None:
    """Write the users whose consent decides by partition, since tasks do not read the home; None: the run asks for no consent."""
    consent = ConsentState.from_run(spec.settings)
    if consent is None:
        return None
    return write_segments(
        connection, consent.deciding_users_sql(settings.home), key=USER_ID, bounds=job.bounds, folder=job.folder
    )


def _write_items(connection: DuckDBPyConnection, regrouped: UserPartitions, folder: ShuffleFolder) -> Segment:
    """Write each known item of the target domain, and create `ITEM_EVENTS`."""
    connection.register("seen_items", regrouped.items)
    connection.execute(f"CREATE TEMP TABLE {ITEM_EVENTS} AS SELECT {ITEM_ID}, events FROM seen_items")
    items = connection.sql(
        f"""SELECT {ITEM_ID}, true AS found, min(first_seen) AS first_seen, max(events) AS events
        FROM (SELECT {ITEM_ID}, first_seen, events FROM seen_items UNION ALL SELECT {ITEM_ID}, NULL, NULL FROM target_items)
        GROUP BY {ITEM_ID}"""
    ).to_arrow_table()
    connection.unregister("seen_items")
    return write_tables([(0, items)], folder=folder)[0]


def _schemas(opened: Mapping[Table, DeltaTable], accepted: pa.Schema) -> dict[str, pa.Schema]:
    """Return the columns of the accepted rows, and of each table of a partition."""
    import pyarrow as pa

    events = {
        kind: pa.schema([arrow_schema(opened[table]).field(name) for name in COLUMNS[kind]]) for kind, table in TABLES.items()
    }
    ranks = pa.schema([(FILE, pa.int32()), (ROW, pa.int64()), ("rank", pa.int64())])
    users = pa.schema([accepted.field(USER_ID)])
    return events | {"accepted": accepted, "repeated_ids": ranks, CONSENT_USERS: users}


def _partition_inputs(
    plan: _AuditPlan, regrouped: UserPartitions, consent: Mapping[int, Segment] | None
) -> Iterator[PartitionInputs]:
    groups: dict[int, list[RowGroup]] = defaultdict(list)
    for group in plan.groups:
        for number in group.partitions(plan.bounds):
            groups[number].append(group)
    for number in range(len(plan.bounds) + 1):
        segments: dict[str, Sequence[Segment]] = {kind: found.get(number, []) for kind, found in regrouped.events.items()}
        segments["repeated_ids"] = regrouped.repeated_ids.get(number, [])
        if consent is not None:
            segments[CONSENT_USERS] = [consent[number]] if number in consent else []
        yield PartitionInputs(number, groups[number], segments)


def _take_files(partitions: Iterable[AuditedPartition], shuffled: ShuffleFolder, folder: Path) -> AuditedRows:
    """Move the files of each partition to a folder of this machine, and add up its figures."""
    counts = AuditCounts()
    values: list[tuple[pa.Table, pa.Table]] = []
    found: dict[str, list[Path]] = {"accepted": [], "rejected": []}
    for partition in partitions:
        counts.add(partition.counts)
        values += [partition.values] if partition.values else []
        for verdict, path in (("accepted", partition.accepted), ("rejected", partition.rejected)):
            if path is not None:
                taken = folder / verdict / f"part-{partition.number:05d}.parquet"
                shuffled.take(path, taken)
                found[verdict].append(taken)
    return AuditedRows(sorted(found["accepted"]), sorted(found["rejected"]), counts, values)
