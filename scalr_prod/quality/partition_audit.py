# SPDX-License-Identifier: Apache-2.0
"""Audit of one partition of users: a task that judges its candidates, writes accepted and rejected rows, and counts them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.compute import load_segments, read_segments
from scalr_prod.core.partitioned import rebatch
from scalr_prod.quality.candidate_files import FILE, ROW
from scalr_prod.quality.drift import count_values
from scalr_prod.quality.row_verdicts import create_verdicts_table
from scalr_prod.quality.rules import EVENT_COLUMNS
from scalr_prod.quality.user_partitions import KEY, RANK_COLUMNS, rank_sql
from scalr_prod.schemas import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    ITEM_ID,
    USER_ID,
    Table,
    source_domain_sql,
    source_item_key_sql,
)
from scalr_prod.workspace import create_delta_view, quote_literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa
    from deltalake import DeltaTable
    from duckdb import DuckDBPyConnection

    from scalr_prod.compute import Segment
    from scalr_prod.quality.candidate_files import RowGroup
    from scalr_prod.quality.rule_protocol import RowRule
    from scalr_prod.quality.user_partitions import RegroupJob


#: View that rules may name → table of the lake.
RULE_VIEWS: Final = {
    "source_events": Table.SOURCE_EVENTS,
    "target_events": Table.TARGET_EVENTS,
    "target_items": Table.TARGET_ITEMS,
}
#: Table of the users whose consent decides, if the run asks for it.
CONSENT_USERS: Final = "consent_users"
#: Accepted rows per row group.
_BATCH: Final = 100_000
#: Columns that identify the context of an event.
_CONTEXT: Final = f"{USER_ID}, source_domain, source_item_id, source_event_timestamp"
_ORDER: Final = f"{USER_ID}, {EVENT_TIMESTAMP}, {ITEM_ID}"


@dataclass(frozen=True)
class AuditJob:
    """What every task needs to know.

    Attributes:
        regrouped: The job that regrouped its inputs.
        rules: Rules for every row.
        sources: The project's source domains.
        as_of: SQL of the time by which rows of the lake were known.
        is_context: SQL: whether a source event is one that the run translates.
        items: Each known item of the target domain: ``found``, ``first_seen``, and the number of its ``events``.
        history_length: Upper limit of the history length that drift is measured by; None: drift is not measured.
        schemas: Columns of the accepted rows (``accepted``), and of each table of `PartitionInputs`.
    """

    regrouped: RegroupJob
    rules: Sequence[RowRule]
    sources: Sequence[str]
    as_of: str
    is_context: str
    items: Segment
    history_length: int | None
    schemas: Mapping[str, pa.Schema]


@dataclass(frozen=True)
class PartitionInputs:
    """What one task reads.

    Attributes:
        number: Number of the partition.
        groups: Row groups that may have candidates of its users.
        segments: Table → its rows: ``source``, ``target``, ``repeated_ids``, and perhaps ``published`` and `CONSENT_USERS`.
    """

    number: int
    groups: Sequence[RowGroup]
    segments: Mapping[str, Sequence[Segment]]


@dataclass
class AuditCounts:
    """Figures of audited partitions, which add up since no user is in two of them.

    Attributes:
        source_events: Domain → distinct source events that the run translates.
        source_users: Number of their users.
        candidates: Source domain → candidates.
        accepted: Source domain → accepted rows.
        users: Number of users of accepted rows.
        squares: Sum over these users of the square of their accepted rows.
        contexts: Number of contexts of accepted rows.
        max_per_context: Largest number of accepted rows of a context.
        max_copies: Largest number of accepted rows of a user and item.
    """

    source_events: Counter[str] = field(default_factory=Counter)
    source_users: int = 0
    candidates: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    users: int = 0
    squares: int = 0
    contexts: int = 0
    max_per_context: int = 0
    max_copies: int = 0

    def add(self, other: AuditCounts) -> None:
        """Add the figures of other partitions."""
        for mine, theirs in (
            (self.source_events, other.source_events),
            (self.candidates, other.candidates),
            (self.accepted, other.accepted),
        ):
            mine.update(theirs)
        self.source_users += other.source_users
        self.users += other.users
        self.squares += other.squares
        self.contexts += other.contexts
        self.max_per_context = max(self.max_per_context, other.max_per_context)
        self.max_copies = max(self.max_copies, other.max_copies)

    @property
    def effective_users(self) -> float:
        """(Σ n)²/Σ n²: users with n accepted rows each carry the evidence of so many users with equally many."""
        total = self.accepted.total()
        return total * total / self.squares if self.squares else 0.0


@dataclass(frozen=True)
class AuditedPartition:
    """The result of a task; files are in the folder that it writes to.

    Attributes:
        number: Number of the partition.
        accepted: File of the accepted rows, by user and time; None: there are none, and it is not the first partition.
        rejected: File of the other rows, with a column for each rule; None: there are none.
        counts: Its figures.
        values: `count_values` of the published and of the accepted events; None: drift is not measured.
    """

    number: int
    accepted: str | None
    rejected: str | None
    counts: AuditCounts
    values: tuple[pa.Table, pa.Table] | None


def audit_partition(connection: DuckDBPyConnection, job: AuditJob, inputs: PartitionInputs) -> AuditedPartition:
    """Task: judge the candidates of a partition.

    Raises:
        QualityError: A rule's expression cannot be computed.
    """
    tables = _load(connection, job, inputs)
    columns = [f"c.{name}" for name in (*EVENT_COLUMNS, FILE, ROW)]
    create_verdicts_table(connection, "verdicts", _joined_sql(job.sources), job.rules, columns=columns)
    counts = _count(connection, job)
    accepted: str | None = None
    rejected: str | None = None
    total = counts.accepted.total()
    if total or not inputs.number:
        names = ", ".join(EVENT_COLUMNS)
        query = f"SELECT {names} FROM verdicts WHERE accepted ORDER BY {_ORDER}"
        accepted = _write_rows(connection, job, query, job.schemas["accepted"])
    if counts.candidates.total() > total:
        query = f"SELECT * EXCLUDE ({FILE}, {ROW}) FROM verdicts WHERE NOT accepted ORDER BY {_ORDER}, {FILE}, {ROW}"
        rejected = _write_rows(connection, job, query)
    values: tuple[pa.Table, pa.Table] | None = None
    if job.history_length is not None:
        published = count_values(connection, "FROM published", job.history_length)
        values = published, count_values(connection, "FROM verdicts WHERE accepted", job.history_length)
    connection.execute("DROP VIEW c")
    for name in ("verdicts", *tables):
        connection.execute(f"DROP TABLE {name}")
    connection.unregister("items")
    return AuditedPartition(inputs.number, accepted, rejected, counts, values)


def create_rule_views(connection: DuckDBPyConnection, opened: Mapping[str, DeltaTable], as_of: str) -> None:
    """Create views that rules may name: tables of the lake as known by a time.

    Args:
        connection: DuckDB connection.
        opened: Tables by the view's name, some of `RULE_VIEWS`.
        as_of: SQL of the time.
    """
    for name, table in opened.items():
        if RULE_VIEWS[name] is Table.TARGET_ITEMS:
            create_delta_view(connection, name, table)
            continue
        create_delta_view(connection, f"all_{name}", table)
        connection.execute(
            f"CREATE OR REPLACE TEMP VIEW {name} AS SELECT * FROM all_{name} WHERE {CREATED_TIMESTAMP} <= {as_of}"
        )


def _load(connection: DuckDBPyConnection, job: AuditJob, inputs: PartitionInputs) -> list[str]:
    """Create the tables and views of `_joined_sql`, and those that rules name; return the tables' names."""
    regrouped = job.regrouped
    named = {name for rule in job.rules for name in RULE_VIEWS if name in rule.holds.lower()}
    tables = regrouped.lake.open_tables((RULE_VIEWS[name] for name in named), versions=regrouped.versions)
    create_rule_views(connection, {name: tables[RULE_VIEWS[name]] for name in named}, job.as_of)
    for name, segments in inputs.segments.items():
        load_segments(connection, segments, folder=regrouped.folder, name=name, schema=job.schemas[name])
    connection.register("items", read_segments([job.items], folder=regrouped.folder))
    regrouped.candidates.create_view(connection, "candidate_rows", inputs.groups, EVENT_COLUMNS)
    mine = _within_sql(regrouped.bounds, inputs.number)
    connection.execute(f"CREATE OR REPLACE TEMP TABLE partition_rows AS SELECT * FROM candidate_rows WHERE {mine}")
    connection.unregister("candidate_rows")
    shared = f"hash({KEY}) IN (SELECT hash({KEY}) AS digest FROM partition_rows GROUP BY digest HAVING count(*) > 1)"
    ranked = rank_sql("partition_rows", KEY, shared, order=f"event_id, {FILE}, {ROW}")
    connection.execute(f"CREATE OR REPLACE TEMP TABLE repeated_keys AS SELECT {RANK_COLUMNS} FROM ({ranked})")
    connection.execute(
        f"""CREATE OR REPLACE TEMP VIEW c AS
        SELECT partition_rows.*, coalesce(of_id.rank, 1) AS same_event_id, coalesce(of_key.rank, 1) AS same_user_item_time
        FROM partition_rows
        LEFT JOIN repeated_ids of_id USING ({FILE}, {ROW})
        LEFT JOIN repeated_keys of_key USING ({FILE}, {ROW})"""
    )
    return [*inputs.segments, "partition_rows", "repeated_keys"]


def _within_sql(bounds: Sequence[Any], number: int) -> str:
    """Return SQL of whether a row's user is in a partition; rows without a user are in the last one."""
    first = [f"{USER_ID} >= {quote_literal(bounds[number - 1])}"] if number else []
    if number < len(bounds):
        return " AND ".join([*first, f"{USER_ID} < {quote_literal(bounds[number])}"])
    return f"({first[0]} OR {USER_ID} IS NULL)" if first else "true"


def _joined_sql(sources: Sequence[str]) -> str:
    """Return the query of candidates ``c`` with source event ``s``, item ``i`` and the user's own consumption of the item ``u``."""
    source_key = source_item_key_sql("source_domain", "source_item_id", sources)
    return f"""
        WITH u AS (
            SELECT {USER_ID}, {ITEM_ID}, min({EVENT_TIMESTAMP}) AS first_consumed FROM target t
            SEMI JOIN partition_rows p ON t.{USER_ID} = p.{USER_ID} AND t.{ITEM_ID} = p.{ITEM_ID}
            GROUP BY {USER_ID}, {ITEM_ID})
        SELECT {{columns}} FROM (
            SELECT c.*, struct_pack(found := ({USER_ID}, {source_key}, source_event_timestamp) IN (FROM source)) AS s FROM c) c
        LEFT JOIN items i ON i.{ITEM_ID} = c.{ITEM_ID}
        LEFT JOIN u ON u.{USER_ID} = c.{USER_ID} AND u.{ITEM_ID} = c.{ITEM_ID}"""


def _count(connection: DuckDBPyConnection, job: AuditJob) -> AuditCounts:
    """Compute the figures of a partition, from the tables ``verdicts`` and ``source``."""
    connection.execute(f"CREATE OR REPLACE TEMP TABLE contexts AS SELECT DISTINCT {KEY} FROM source WHERE {job.is_context}")
    domain = source_domain_sql(ITEM_ID, job.sources)
    source_events = connection.execute(f"SELECT {domain}, count(*) FROM contexts GROUP BY ALL").fetchall()
    ((source_users,),) = connection.execute(f"SELECT count(DISTINCT {USER_ID}) FROM contexts").fetchall()
    connection.execute("DROP TABLE contexts")
    rows = connection.execute(
        "SELECT source_domain, count(*), count(*) FILTER (accepted) FROM verdicts GROUP BY source_domain"
    ).fetchall()
    ((contexts, max_per_context),) = connection.execute(
        f"""SELECT count(*), coalesce(max(events), 0)
        FROM (SELECT count(*) AS events FROM verdicts WHERE accepted GROUP BY {_CONTEXT})"""
    ).fetchall()
    ((users, squares, max_copies),) = connection.execute(
        f"""WITH pairs AS (SELECT {USER_ID}, count(*) AS copies FROM verdicts WHERE accepted GROUP BY {USER_ID}, {ITEM_ID}),
        users AS (SELECT sum(copies) AS events, max(copies) AS copies FROM pairs GROUP BY {USER_ID})
        SELECT count(*), coalesce(sum(events * events), 0), coalesce(max(copies), 0) FROM users"""
    ).fetchall()
    return AuditCounts(
        source_events=Counter(dict(source_events)),
        source_users=source_users,
        candidates=Counter({name: count for name, count, _ in rows}),
        accepted=Counter({name: count for name, _, count in rows}),
        users=users,
        squares=int(squares),
        contexts=contexts,
        max_per_context=max_per_context,
        max_copies=int(max_copies),
    )


def _write_rows(connection: DuckDBPyConnection, job: AuditJob, query: str, schema: pa.Schema | None = None) -> str:
    """Write the rows of a query to a Parquet file, as a schema if one is given, and return its path in the folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = job.regrouped.folder
    path, rows = folder.new_path(".parquet"), connection.sql(query).to_arrow_reader(_BATCH)
    wanted = rows.schema if schema is None else schema
    with pq.ParquetWriter(path, wanted, filesystem=folder.open(), compression="zstd") as writer:
        for batch in rebatch(rows, _BATCH):
            writer.write_table(pa.Table.from_batches([batch]).cast(wanted), len(batch))
    return path
