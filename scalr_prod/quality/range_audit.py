# SPDX-License-Identifier: Apache-2.0
"""Audit of a training set by ranges of label times: a task judges the rows of one range, and counts those that break each rule.

Rules that compare rows compare rows of one time, which are in one range, whatever files they are in.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from scalr_prod.core.timestamps import to_micros
from scalr_prod.quality.row_verdicts import create_verdicts_table
from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID, USER_ID
from scalr_prod.workspace import escape_glob

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    from duckdb import DuckDBPyConnection

    from scalr_prod.compute import SharedFiles, ShuffleFolder
    from scalr_prod.quality.rule_protocol import RowRule


KEYS: Final = (USER_ID, ITEM_ID, EVENT_TIMESTAMP)
#: Columns that identify a row in examples.
_SHOWN: Final = (*KEYS, "label")
_EXAMPLES: Final = 3
#: Rows that a task judges, about.
_TASK_ROWS: Final = 500_000
_SELECT: Final = """
    SELECT {columns} FROM (
        SELECT rows.*, coalesce(copies.copy, 1) AS copy FROM rows LEFT JOIN copies USING (filename, file_row_number)) r
    LEFT JOIN contradicted b USING (filename, file_row_number)"""


class ValidatedPart(NamedTuple):
    """Rows that a previous version's gate passed.

    Attributes:
        rows: All rows.
        synthetic: Synthetic positives.
        first: The first label, µs.
        last: The last label, µs.
    """

    rows: int
    synthetic: int
    first: int
    last: int


@dataclass(frozen=True)
class RangeJob:
    """What every task needs to know.

    Attributes:
        rules: Rules for every row.
        is_outside: SQL of whether a row's label is outside of the window.
        folder: Where the files are.
    """

    rules: Sequence[RowRule]
    is_outside: str
    folder: ShuffleFolder


class TimeRange(NamedTuple):
    """The rows that one task judges. Rows without a time are in the first range.

    Attributes:
        since: First time, µs; None: no bound.
        until: First time after them, µs; None: no bound.
        paths: Files that may have some of them.
        spans: First and last label of each validated part that may share times with them.
    """

    since: int | None
    until: int | None
    paths: Sequence[str]
    spans: Sequence[tuple[int, int]]


class JudgedRange(NamedTuple):
    """The result of a task.

    Attributes:
        rows: All rows.
        accepted: Rows that pass every rule.
        synthetic: Synthetic rows.
        outside: Rows with a label outside of the window.
        shared: Rows with a label between the first and the last one of a validated part.
        broken: Name of a rule → rows that break it.
        examples: Name of a rule that is broken → its first rows.
    """

    rows: int
    accepted: int
    synthetic: int
    outside: int
    shared: int
    broken: Mapping[str, int]
    examples: Mapping[str, pa.Table]


class _RowGroup(NamedTuple):
    """A row group: its file, rows, first and last time (None: not known), and whether it may have rows without a time."""

    file: int
    rows: int
    times: tuple[int, int] | None
    lacks_times: bool


def plan_ranges(files: Sequence[Path], shared: SharedFiles, validated: Sequence[ValidatedPart]) -> list[TimeRange]:
    """Divide rows into ranges of time, from the files' metadata.

    Args:
        files: The files.
        shared: Where tasks read them.
        validated: Parts of the set that are not judged again.
    """
    groups = list(_iter_row_groups(files))
    if not groups:
        return []
    bounds = _bounds(groups)
    found: list[set[int]] = [set() for _ in range(len(bounds) + 1)]
    ends: list[list[int]] = [[] for _ in found]
    for group in groups:
        first, last = (0, len(bounds)) if group.times is None else (bisect_right(bounds, time) for time in group.times)
        for number in range(first, last + 1):
            found[number].add(group.file)
            ends[number] += group.times or ()
        if group.lacks_times:
            found[0].add(group.file)
    edges: list[int | None] = [None, *bounds, None]
    ranges = []
    for number, some in enumerate(found):
        known = ends[number]
        spans = [
            (part.first, part.last) for part in validated if known and part.last >= min(known) and part.first <= max(known)
        ]
        ranges.append(TimeRange(edges[number], edges[number + 1], [shared.paths[file] for file in sorted(some)], spans))
    return ranges


def _iter_row_groups(files: Iterable[Path]) -> Iterator[_RowGroup]:
    import pyarrow.parquet as pq

    for file, path in enumerate(files):
        metadata = pq.read_metadata(path)
        paths = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            if not group.num_rows:
                continue
            known = group.column(paths.index(EVENT_TIMESTAMP)).statistics
            times = None if known is None or not known.has_min_max else (to_micros(known.min), to_micros(known.max))
            yield _RowGroup(file, group.num_rows, times, known is None or not known.has_null_count or known.null_count > 0)


def _bounds(groups: Iterable[_RowGroup]) -> list[int]:
    """Return the first time of each range but the first: that of a row group, so that ranges of sorted files have equally many rows."""
    bounds: list[int] = []
    lowest, rows = None, 0
    for low, size in sorted((group.times[0], group.rows) for group in groups if group.times):
        if rows + size > _TASK_ROWS and lowest is not None and low > (bounds[-1] if bounds else lowest):
            bounds.append(low)
            rows = 0
        lowest = low if lowest is None else lowest
        rows += size
    return bounds


def judge_range(connection: DuckDBPyConnection, job: RangeJob, part: TimeRange) -> JudgedRange:
    """Task: judge the rows of a range.

    Raises:
        QualityError: A rule's expression cannot be computed.
    """
    with job.folder.open_local_files(part.paths) as paths:
        connection.read_parquet(
            [escape_glob(path) for path in paths], filename=True, file_row_number=True, hive_partitioning=False
        ).create_view("all_rows")
        connection.execute(f"CREATE OR REPLACE TEMP VIEW rows AS SELECT * FROM all_rows WHERE {_within_sql(part)}")
        _find_repeated(connection)
        columns = [f"r.{name}" for name in (*_SHOWN, "is_synthetic")]
        create_verdicts_table(connection, "verdicts", _SELECT, job.rules, columns=columns)
        judged = _count(connection, job, part)
        connection.execute("DROP VIEW rows; DROP VIEW all_rows")
        for name in ("copies", "contradicted", "repeated", "verdicts"):
            connection.execute(f"DROP TABLE {name}")
    return judged


def _within_sql(part: TimeRange) -> str:
    until = "true" if part.until is None else f"{EVENT_TIMESTAMP} < make_timestamptz({part.until})"
    if part.since is None:
        return f"({until} OR {EVENT_TIMESTAMP} IS NULL)"
    return f"{EVENT_TIMESTAMP} >= make_timestamptz({part.since}) AND {until}"


def _find_repeated(connection: DuckDBPyConnection) -> None:
    """Create the tables ``copies`` and ``contradicted``, which are mostly empty.

    ``copies`` has the rank of each synthetic row after the first of its user, item and time. ``contradicted`` has the rows whose user, item
    and time occur with the other label, too. Only rows with a shared hash of these are sorted.
    """
    keys = ", ".join(KEYS)
    known = " AND ".join(f"{key} IS NOT NULL" for key in KEYS)
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE repeated AS
        WITH shared AS (SELECT hash({keys}) AS digest FROM rows GROUP BY digest HAVING count(*) > 1)
        SELECT filename, file_row_number, {keys}, label, is_synthetic FROM rows WHERE hash({keys}) IN (FROM shared)"""
    )
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE copies AS SELECT filename, file_row_number,
            row_number() OVER (PARTITION BY {keys} ORDER BY filename, file_row_number) AS copy
        FROM repeated WHERE is_synthetic QUALIFY copy > 1"""
    )
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE contradicted AS SELECT filename, file_row_number, true AS found
        FROM repeated WHERE {known} QUALIFY min(label) OVER (PARTITION BY {keys}) <> max(label) OVER (PARTITION BY {keys})"""
    )


def _count(connection: DuckDBPyConnection, job: RangeJob, part: TimeRange) -> JudgedRange:
    """Count the rows of the table ``verdicts``, and find examples."""
    between = (f"epoch_us({EVENT_TIMESTAMP}) BETWEEN {first} AND {last}" for first, last in part.spans)
    conditions = ["accepted", "is_synthetic", job.is_outside, " OR ".join(between) or "false"]
    conditions += [f"NOT {rule.name}" for rule in job.rules]
    counts = ", ".join(f"count(*) FILTER ({condition})" for condition in conditions)
    ((rows, accepted, synthetic, outside, shared, *broken),) = connection.execute(
        f"SELECT count(*), {counts} FROM verdicts"
    ).fetchall()
    by_rule = {rule.name: number for rule, number in zip(job.rules, broken, strict=True)}
    examples = {name: _examples(connection, name) for name, number in by_rule.items() if number}
    return JudgedRange(rows, accepted, synthetic, outside, shared, by_rule, examples)


def _examples(connection: DuckDBPyConnection, rule: str) -> pa.Table:
    shown = ", ".join(_SHOWN)
    query = f"SELECT {shown} FROM verdicts WHERE NOT {rule} ORDER BY {shown} LIMIT {_EXAMPLES}"
    return connection.sql(query).to_arrow_table()


def first_examples(rule: str, ranges: Iterable[JudgedRange]) -> list[dict[str, Any]]:
    """Return the first rows of all ranges that break a rule."""
    import pyarrow as pa

    found = [judged.examples[rule] for judged in ranges if rule in judged.examples]
    if not found:
        return []
    rows = pa.concat_tables(found).sort_by([(name, "ascending") for name in _SHOWN]).slice(0, _EXAMPLES).to_pylist()
    return [{key: value if isinstance(value, int) else str(value) for key, value in row.items()} for row in rows]
