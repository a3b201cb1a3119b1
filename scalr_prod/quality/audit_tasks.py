# SPDX-License-Identifier: Apache-2.0
"""Audit of a run's candidates in tasks, one partition of users each.

Tasks write accepted and rejected rows; this process takes the files, and adds up what they count. Which task gets which rows follows from
the rows alone, so files and figures are the same wherever and by however many workers they are made.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.compute import FilePart, open_executor, plan_file_parts, shuffle_folder, write_segments, write_tables
from scalr_prod.core.delta_log import files_in_time_range, row_count_by_file
from scalr_prod.core.partitioned import hash_bounds, quantile_bounds
from scalr_prod.generation import candidate_schema
from scalr_prod.lake import Lake
from scalr_prod.quality.candidate_files import FILE, ROW, CandidateFiles, chunk_row_groups, list_row_groups
from scalr_prod.quality.partition_audit import (
    CONSENT_USERS,
    RULE_VIEWS,
    AuditCounts,
    AuditJob,
    PartitionInputs,
    audit_partition,
    create_rule_views,
)
from scalr_prod.quality.rules import EVENT_COLUMNS, timestamp_literal
from scalr_prod.quality.user_partitions import KEY_COLUMNS, CandidatePart, EventPart, RegroupJob, regroup_by_user
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table
from scalr_prod.workspace import ConsentState, escape_glob, not_held_out_sql, read_parquet_sql

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    from deltalake import DeltaTable
    from duckdb import DuckDBPyConnection

    from scalr_prod.compute import Executor, Segment, ShuffleFolder
    from scalr_prod.config import Settings
    from scalr_prod.ledger import RunSpec
    from scalr_prod.quality.candidate_files import RowGroup
    from scalr_prod.quality.partition_audit import AuditedPartition
    from scalr_prod.quality.rule_protocol import RowRule
    from scalr_prod.quality.user_partitions import UserPartitions


#: Table of the real events of each item, in the driver's connection.
ITEM_EVENTS: Final = "item_events"
#: Rows that a task of the first round reads, about.
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
    """

    accepted: Sequence[Path]
    rejected: Sequence[Path]
    counts: AuditCounts

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
class _Plan:
    """What the tasks of an audit read.

    Attributes:
        groups: Row groups of the candidates.
        conditions: SQL of which events of a domain are needed.
        parts: What each task of the first round reads.
        bounds: The first user of each partition but the first.
        rows: Number of events and candidates.
    """

    groups: Sequence[RowGroup]
    conditions: Mapping[Any, str]
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
) -> AuditedRows:
    """Judge a run's candidates, and create in the connection `RULE_VIEWS` and the table `ITEM_EVENTS`.

    Args:
        settings: The project's settings.
        spec: The run.
        files: Its candidate files, in one folder.
        rules: Rules for every row.
        connection: DuckDB connection.
        folder: Folder on this machine for the rows.

    Raises:
        QualityError: A rule's expression cannot be computed.
        ComputeError: A task failed.
    """
    lake = Lake.open(settings)
    opened = {name: lake.open_table(table, version=spec.table_versions.get(table.value)) for name, table in RULE_VIEWS.items()}
    create_rule_views(connection, opened, timestamp_literal(spec.as_of))
    schema = candidate_schema(lake)
    plan = _plan(connection, spec, opened, files, schema)
    with open_executor(
        settings, connection, tasks=plan.tasks, work_s=plan.rows * _SECONDS_PER_ROW, stage="validate", run_id=spec.run_id
    ) as executor:
        # Workers elsewhere share no folder with this machine, but they reach the lake.
        root = (str(folder), {}) if executor.is_local else (lake.uri(Table.TARGET_EVENTS), lake.storage_options)
        with shuffle_folder(*root) as shuffled:
            job = RegroupJob(
                lake,
                {RULE_VIEWS[name]: table.version() for name, table in opened.items()},
                plan.conditions,
                _share_candidates(files, schema, executor, shuffled),
                plan.bounds,
                hash_bounds(sum(group.rows for group in plan.groups)),
                shuffled,
            )
            regrouped = regroup_by_user(executor, job, plan.parts, connection)
            audit = AuditJob(
                job,
                rules,
                settings.domains.source_names,
                timestamp_literal(spec.as_of),
                _context_sql(spec),
                _write_items(connection, regrouped, shuffled),
                _schemas(lake, schema),
            )
            consent = _write_consent(settings, spec, job, connection)
            calls = ((audit, inputs) for inputs in _partition_inputs(plan, regrouped, consent))
            return _take_files(executor.map(audit_partition, calls), shuffled, folder)


def _plan(
    connection: DuckDBPyConnection, spec: RunSpec, opened: Mapping[str, DeltaTable], files: Sequence[Path], schema: pa.Schema
) -> _Plan:
    """Plan the tasks, from a sample of the users."""
    if files:
        connection.read_parquet([escape_glob(path) for path in files]).create_view("candidates")
    else:
        connection.register("candidates", schema.empty_table())
    start, end, time = timestamp_literal(spec.start), timestamp_literal(spec.end), "source_event_timestamp"
    ((first, last),) = connection.execute(
        f"SELECT epoch_us(least({start}, min({time}))), epoch_us(greatest({end}, max({time}))) FROM candidates"
    ).fetchall()
    known = f"{CREATED_TIMESTAMP} <= {timestamp_literal(spec.as_of)}"
    # The window, and the time range that candidates refer to.
    within = f"{EVENT_TIMESTAMP} >= make_timestamptz({first}) AND {EVENT_TIMESTAMP} <= make_timestamptz({last})"
    users = f"""(SELECT {USER_ID} FROM source_events WHERE {within} UNION ALL SELECT {USER_ID} FROM target_events
        UNION ALL SELECT {USER_ID} FROM candidates WHERE {USER_ID} IS NOT NULL)"""
    ((rows,),) = connection.execute(f"SELECT count(*) FROM {users}").fetchall()
    source, target = opened["source_events"], opened["target_events"]
    in_range = files_in_time_range(source, EVENT_TIMESTAMP, first, last)
    source_rows = {name: count for name, count in row_count_by_file(source).items() if name in in_range}
    groups = list_row_groups(files)
    return _Plan(
        groups,
        {"source": f"{known} AND {within}", "target": known},
        [
            *(EventPart("source", part) for part in plan_file_parts(source_rows, _TASK_ROWS)),
            # One task at least: items come from target events.
            *(EventPart("target", part) for part in plan_file_parts(row_count_by_file(target), _TASK_ROWS) or [FilePart(())]),
            *(CandidatePart(chunk) for chunk in chunk_row_groups(groups, _TASK_ROWS)),
        ],
        quantile_bounds(connection, users, USER_ID, rows),
        rows,
    )


def _share_candidates(files: Sequence[Path], schema: pa.Schema, executor: Executor, folder: ShuffleFolder) -> CandidateFiles:
    """Return the candidate files where tasks read them: in place on this machine, else copied to the folder."""
    if executor.is_local:
        return CandidateFiles(str(files[0].parent) if files else folder.root, {}, [path.name for path in files], schema)
    return CandidateFiles(folder.root, folder.storage_options, [folder.put(path) for path in files], schema)


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
        f"""SELECT {ITEM_ID}, true AS found, min(first_seen) AS first_seen
        FROM (SELECT {ITEM_ID}, first_seen FROM seen_items UNION ALL SELECT {ITEM_ID}, NULL FROM target_items)
        GROUP BY {ITEM_ID}"""
    ).to_arrow_table()
    connection.unregister("seen_items")
    return write_tables([(0, items)], folder=folder)[0]


def _schemas(lake: Lake, accepted: pa.Schema) -> dict[str, pa.Schema]:
    """Return the columns of the accepted rows, and of each table of a partition."""
    import pyarrow as pa

    events = {
        name: pa.schema([lake.schema(table).field(column) for column in KEY_COLUMNS])
        for name, table in (("source", Table.SOURCE_EVENTS), ("target", Table.TARGET_EVENTS))
    }
    ranks = pa.schema([(FILE, pa.int32()), (ROW, pa.int64()), ("rank", pa.int64())])
    users = pa.schema([accepted.field(USER_ID)])
    return events | {"accepted": accepted, "repeated_ids": ranks, CONSENT_USERS: users}


def _partition_inputs(
    plan: _Plan, regrouped: UserPartitions, consent: Mapping[int, Segment] | None
) -> Iterator[PartitionInputs]:
    groups: dict[int, list[RowGroup]] = defaultdict(list)
    for group in plan.groups:
        for number in group.partitions(plan.bounds):
            groups[number].append(group)
    for number in range(len(plan.bounds) + 1):
        segments = {name: found.get(number, []) for name, found in regrouped.events.items()}
        segments["repeated_ids"] = regrouped.repeated_ids.get(number, [])
        if consent is not None:
            segments[CONSENT_USERS] = [consent[number]] if number in consent else []
        yield PartitionInputs(number, groups[number], segments)


def _take_files(partitions: Iterable[AuditedPartition], shuffled: ShuffleFolder, folder: Path) -> AuditedRows:
    """Move the files of each partition to a folder of this machine, and add up its figures."""
    counts = AuditCounts()
    found: dict[str, list[Path]] = {"accepted": [], "rejected": []}
    for partition in partitions:
        counts.add(partition.counts)
        for verdict, path in (("accepted", partition.accepted), ("rejected", partition.rejected)):
            if path is not None:
                taken = folder / verdict / f"part-{partition.number:05d}.parquet"
                shuffled.take(path, taken)
                found[verdict].append(taken)
    return AuditedRows(sorted(found["accepted"]), sorted(found["rejected"]), counts)
