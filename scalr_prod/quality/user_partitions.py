# SPDX-License-Identifier: Apache-2.0
"""Inputs of an audit by partition of users, regrouped in two rounds of tasks of `scalr_prod.compute`.

Rules about a row, or about a user's rows, need one partition only. Event ids alone are compared across all rows: the first round writes
them by their hash, and the second ranks rows with an equal one. Generation writes candidates in the order of their users, so that each
partition reads its row groups where they are.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from scalr_prod.compute import create_file_part_view, load_segments, read_segments, write_segments, write_tables
from scalr_prod.core.partitioned import partition_number_sql
from scalr_prod.quality.candidate_files import FILE, ROW
from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa
    from duckdb import DuckDBPyConnection

    from scalr_prod.compute import Executor, FilePart, Segment, ShuffleFolder
    from scalr_prod.lake import Lake
    from scalr_prod.quality.candidate_files import CandidateFiles, RowGroup


#: Columns that identify an event.
KEY_COLUMNS: Final = (USER_ID, ITEM_ID, EVENT_TIMESTAMP)
KEY: Final = ", ".join(KEY_COLUMNS)
#: Columns of a row's place and rank.
RANK_COLUMNS: Final = f"{FILE}, {ROW}, rank"
#: Table of the users of the run's rows.
RUN_USERS: Final = "run_users"

#: Events that are regrouped: those of both domains, and those of the run that drift is measured from.
Kind = Literal["source", "target", "published"]

TABLES: Final[Mapping[Kind, Table]] = {
    "source": Table.SOURCE_EVENTS,
    "target": Table.TARGET_EVENTS,
    "published": Table.SYNTHETIC_TARGET_EVENTS,
}
#: Columns of the events of each kind.
COLUMNS: Final[Mapping[Kind, tuple[str, ...]]] = {
    "source": KEY_COLUMNS,
    "target": KEY_COLUMNS,
    "published": (*KEY_COLUMNS, "probability"),
}


@dataclass(frozen=True)
class RegroupJob:
    """What the tasks need to know.

    Attributes:
        lake: The lake.
        versions: The version of each table that is read.
        conditions: SQL of which events of a kind are needed.
        users: Rows of the table `RUN_USERS`, if the condition of source events names it.
        candidates: The candidates.
        bounds: The first user of each partition but the first.
        id_bounds: The first hash of an event id of each of their partitions but the first.
        folder: Where tasks write.
    """

    lake: Lake
    versions: Mapping[Table, int]
    conditions: Mapping[Kind, str]
    users: Segment | None
    candidates: CandidateFiles
    bounds: Sequence[Any]
    id_bounds: Sequence[int]
    folder: ShuffleFolder


class EventPart(NamedTuple):
    """Events that one task reads."""

    kind: Kind
    files: FilePart


class CandidatePart(NamedTuple):
    """Candidates that one task reads."""

    groups: Sequence[RowGroup]


class _WrittenSegments(NamedTuple):
    kind: Literal[Kind, "event_ids"]
    segments: dict[int, Segment]
    items: Segment | None = None


@dataclass(frozen=True)
class UserPartitions:
    """The inputs by number of the partition; those without rows are missing.

    Attributes:
        events: Kind → events, with `COLUMNS`.
        repeated_ids: Ranks of the candidates that are not the first with their event id; see `rank_sql`.
        items: Each item of the target events: ``first_seen``, and the number of its ``events``.
    """

    events: Mapping[Kind, Mapping[int, Sequence[Segment]]]
    repeated_ids: Mapping[int, Sequence[Segment]]
    items: pa.Table


def regroup_by_user(
    executor: Executor, job: RegroupJob, parts: Sequence[EventPart | CandidatePart], connection: DuckDBPyConnection
) -> UserPartitions:
    """Run both rounds.

    Args:
        executor: Runs the tasks.
        job: What they need to know.
        parts: What each task of the first round reads, target events among them.
        connection: DuckDB connection.
    """
    written: dict[Any, dict[int, list[Segment]]] = {kind: defaultdict(list) for kind in (*job.conditions, "event_ids")}
    items: list[Segment] = []
    for each in executor.map(_write_by_partition, ((job, part) for part in parts)):
        items += [each.items] if each.items else []
        for number, segment in each.segments.items():
            written[each.kind][number].append(segment)
    repeated: dict[int, list[Segment]] = defaultdict(list)
    for ranked in executor.map(_rank_event_ids, ((job, segments) for _, segments in sorted(written.pop("event_ids").items()))):
        for number, segment in ranked.items():
            repeated[number].append(segment)
    return UserPartitions(written, repeated, _sum_items(job, connection, items))


def rank_sql(rows: str, key: str, is_shared: str, *, order: str) -> str:
    """Return a query that adds a column ``rank`` to the rows that are not the first with their key; the first is the likeliest one.

    Args:
        rows: Relation of the rows.
        key: Columns of the key.
        is_shared: SQL: whether another row has the key's hash. Only such rows are sorted.
        order: Columns that order rows that are as likely.
    """
    return f"""SELECT *, row_number() OVER (PARTITION BY {key} ORDER BY probability DESC, {order}) AS rank
        FROM {rows} WHERE {is_shared} QUALIFY rank > 1"""


def _write_by_partition(connection: DuckDBPyConnection, job: RegroupJob, part: EventPart | CandidatePart) -> _WrittenSegments:
    """Task of the first round: write events by partition of users, or event ids by partition of their hashes."""
    return _write_events(connection, job, part) if isinstance(part, EventPart) else _write_event_ids(connection, job, part)


def _write_events(connection: DuckDBPyConnection, job: RegroupJob, part: EventPart) -> _WrittenSegments:
    table = TABLES[part.kind]
    items: Segment | None = None
    if job.users is not None and part.kind == "source":
        load_segments(connection, [job.users], folder=job.folder, name=RUN_USERS)
    create_file_part_view(connection, "events", job.lake.open_table(table, version=job.versions[table]), part.files)
    query = f"SELECT {', '.join(COLUMNS[part.kind])} FROM events WHERE {job.conditions[part.kind]}"
    if part.kind == "target":
        connection.execute(f"CREATE OR REPLACE TEMP TABLE known_events AS {query}")
        query = "FROM known_events"
        seen = (
            f"SELECT {ITEM_ID}, min({EVENT_TIMESTAMP}) AS first_seen, count(*) AS events FROM known_events GROUP BY {ITEM_ID}"
        )
        items = write_tables([(0, connection.sql(seen).to_arrow_table())], folder=job.folder)[0]
    segments = write_segments(connection, query, key=USER_ID, bounds=job.bounds, folder=job.folder)
    connection.execute("DROP TABLE IF EXISTS known_events")
    connection.unregister("events")
    connection.execute("DROP VIEW IF EXISTS events")
    return _WrittenSegments(part.kind, segments, items)


def _write_event_ids(connection: DuckDBPyConnection, job: RegroupJob, part: CandidatePart) -> _WrittenSegments:
    job.candidates.create_view(connection, "candidate_ids", part.groups, ["event_id", "probability", USER_ID])
    # Two hashes in place of the id, a text: 127 bits, which distinct ids do not share.
    query = f"""SELECT (hash(event_id) >> 1)::BIGINT AS digest, hash(reverse(event_id)) AS other_digest, probability, {FILE}, {ROW},
            {partition_number_sql(USER_ID, job.bounds)} AS user_partition
        FROM candidate_ids"""
    segments = write_segments(connection, query, key="digest", bounds=job.id_bounds, folder=job.folder)
    connection.unregister("candidate_ids")
    return _WrittenSegments("event_ids", segments)


def _rank_event_ids(connection: DuckDBPyConnection, job: RegroupJob, segments: Sequence[Segment]) -> dict[int, Segment]:
    """Task of the second round: write the ranks of rows with an equal event id, by partition of users."""
    load_segments(connection, segments, folder=job.folder, name="id_rows")
    shared = "digest IN (SELECT digest FROM id_rows GROUP BY digest HAVING count(*) > 1)"
    ranked = rank_sql("id_rows", "digest, other_digest", shared, order=f"{FILE}, {ROW}")
    connection.execute(f"CREATE OR REPLACE TEMP TABLE ranked AS {ranked}")
    numbers = range(1, len(job.bounds) + 1)
    found: dict[int, Segment] = {}
    if connection.execute("SELECT count(*) FROM ranked").fetchall()[0][0]:
        query = f"SELECT {RANK_COLUMNS}, user_partition FROM ranked"
        found = write_segments(connection, query, key="user_partition", bounds=numbers, folder=job.folder)
    connection.execute("DROP TABLE ranked")
    connection.execute("DROP TABLE id_rows")
    return found


def _sum_items(job: RegroupJob, connection: DuckDBPyConnection, segments: Sequence[Segment]) -> pa.Table:
    """Return the items of all target events."""
    connection.register("item_parts", read_segments(segments, folder=job.folder))
    summed = connection.sql(
        f"SELECT {ITEM_ID}, min(first_seen) AS first_seen, sum(events)::BIGINT AS events FROM item_parts GROUP BY {ITEM_ID}"
    ).to_arrow_table()
    connection.unregister("item_parts")
    return summed
