# SPDX-License-Identifier: Apache-2.0
"""Sort logs by time into files of bounded size, in rounds of tasks, so that equal rows are side by side.

Tasks of the first round write rows of a staged log by ranges of time. Those of the second sort a range. Which task gets which rows follows
from the rows alone, so files are the same wherever and by however many workers they are made.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np

from scalr_prod.compute import TaskRound, iter_segment_tables, load_segments, run_rounds, write_segments, write_tables
from scalr_prod.core import partitioned, row_groups
from scalr_prod.core.partitioned import PARTITION_NUMBER, hash_bounds, iter_numbered, partition_number_sql
from scalr_prod.core.timestamps import micros_to_datetime
from scalr_prod.ingest.rows import BATCH_ROWS, staged_rows_sql
from scalr_prod.ingest.suppression import exclude_suppressed
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, OPTIONAL_EVENT_COLUMNS, RECOMMENDED_BY, USER_ID
from scalr_prod.workspace import parquet_sql

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    import numpy.typing as npt
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

    from scalr_prod.compute import Segment, ShuffleFolder
    from scalr_prod.ingest.log_tasks import LogTasks
    from scalr_prod.schemas import Domain, IdType
    from scalr_prod.workspace import SuppressionList


#: Sort order of events. Rows that are equal in these columns may differ in other mapped ones.
SORT_COLUMNS: Final = (EVENT_TIMESTAMP, USER_ID, ITEM_ID, CREATED_TIMESTAMP, "weight")
_BATCH: Final = 65_536
#: Rows for which a log has one id, about: a task merges the ids of `partitioned.PARTITION_ROWS` times as many rows.
_ROWS_PER_ID: Final = 8
#: Most parts of a log's ids: a task reads its part from the file of each range.
_MOST_PARTS: Final = 64


@dataclass(frozen=True)
class SortedFile:
    """A file of sorted rows between two instants.

    Attributes:
        path: The Parquet file, in the folder that tasks write to.
        first: Time of the first row (UTC).
        last: Time of the last row (UTC).
        rows: Number of rows.
        recommended: Rows that a recommendation led to (``recommended_by``).
    """

    path: str
    first: datetime
    last: datetime
    rows: int
    recommended: int


@dataclass(frozen=True)
class DuplicateCounts:
    """Counts of a log's repeated rows.

    Attributes:
        rows: Rows that repeat another one.
        distinct: Distinct rows.
        all_repeated: Whether every row is repeated.
    """

    rows: int
    distinct: int
    all_repeated: bool


class IdsPart(NamedTuple):
    """Distinct users or items whose hashes are in one range.

    Attributes:
        segment: Where they are, in the folder that tasks write to.
        size: Their number.
    """

    segment: Segment
    size: int


@dataclass(frozen=True)
class DistinctIds:
    """Distinct users or items of some rows.

    Attributes:
        parts: They, by the number of the range of their hashes; a range without ids has no part. See `ids_bounds`.
    """

    parts: Mapping[int, IdsPart]

    @property
    def size(self) -> int:
        """Their number."""
        return sum(part.size for part in self.parts.values())


@dataclass(frozen=True)
class SortedLog:
    """A log that was sorted by time.

    Attributes:
        files: The files in time order; no two share an instant.
        rows: Rows of the files.
        rows_read: Rows before repeated ones were dropped.
        duplicates: Counts of repeated rows, before they were dropped.
        users: Its users.
        items: Its items.
    """

    files: tuple[SortedFile, ...]
    rows: int
    rows_read: int
    duplicates: DuplicateCounts
    users: DistinctIds
    items: DistinctIds


class LogRows(Protocol):
    """The rows of a log, with ids in the lake's types."""

    def to_sql(self, connection: Any, files: Sequence[Path]) -> str:
        """Return the query of the rows in some staged files."""


@dataclass(frozen=True)
class StagedRows:
    """The rows of a log as its staged files have them, without those of erased users and items.

    Attributes:
        domain: The log's side.
        types: Types of the ids.
        item_prefix: Prefix of the item ids in the lake, perhaps empty.
        suppressed: The erased users and items.
    """

    domain: Domain
    types: dict[str, IdType]
    item_prefix: str
    suppressed: SuppressionList

    def to_sql(self, connection: Any, files: Sequence[Path]) -> str:
        """See `LogRows`."""
        rows = staged_rows_sql(files, self.types, prefix=self.item_prefix)
        return exclude_suppressed(connection, self.suppressed, rows, self.domain)


@dataclass(frozen=True)
class ViewRows:
    """The rows of a view, which tasks in this process see."""

    view: str

    def to_sql(self, _connection: Any, _files: Sequence[Path]) -> str:
        """See `LogRows`."""
        return f"FROM {self.view}"


@dataclass(frozen=True)
class SortJob:
    """What every task needs to know.

    Attributes:
        rows: The rows.
        columns: Their columns, in the order that rows are sorted by.
        bounds: The first time (µs) of each range but the first.
        ids_bounds: The first hash of each part of the ids but the first; the same in all logs, whose users are compared.
        drop_duplicates: Keep each distinct row once.
        folder: Where the staged files are, and where tasks write.
    """

    rows: LogRows
    columns: Sequence[str]
    bounds: Sequence[int]
    ids_bounds: Sequence[int]
    drop_duplicates: bool
    folder: ShuffleFolder


class _SortedRange(NamedTuple):
    number: int
    file: SortedFile | None
    duplicates: DuplicateCounts
    users: DistinctIds
    items: DistinctIds


def sort_columns(mapped: Collection[str]) -> list[str]:
    """Return the columns of a log that has some of `OPTIONAL_EVENT_COLUMNS`, in the order that its rows are sorted by."""
    return [*SORT_COLUMNS, *(name for name in OPTIONAL_EVENT_COLUMNS if name in mapped)]


def ids_bounds(rows: int) -> list[int]:
    """Return the bounds that split the hashes of the ids of so many rows into parts that a task merges at once."""
    ids = rows // _ROWS_PER_ID
    return hash_bounds(ids, max(partitioned.PARTITION_ROWS, -(-ids // _MOST_PARTS)))


def sort_logs(tasks: LogTasks, logs: Sequence[tuple[SortJob, Sequence[Sequence[str]]]]) -> list[SortedLog]:
    """Sort logs by time into Parquet files, at the same time, and collect their users and items.

    Args:
        tasks: Runs the tasks.
        logs: The logs; for each, the staged files that each task of the first round reads.

    Raises:
        ComputeError: A task failed.
    """
    return run_rounds(tasks.executor, [_sort_log(job, parts) for job, parts in logs])


def _sort_log(job: SortJob, parts: Sequence[Sequence[str]]) -> Generator[TaskRound, list[Any], SortedLog]:
    """Yield the rounds of a log: write its rows by ranges of time, sort each range, merge the ids of the ranges."""
    segments: dict[int, list[Segment]] = defaultdict(list)
    for written in (yield TaskRound(_write_by_time, [(job, paths) for paths in parts])):
        for number, segment in written.items():
            segments[number].append(segment)
    ranges: list[_SortedRange] = yield TaskRound(_sort_range, [(job, *each) for each in sorted(segments.items())])
    ranges.sort(key=attrgetter("number"))
    users, items = yield from _merge_ids_of_ranges(job.folder, ranges)
    files = tuple(found.file for found in ranges if found.file is not None)
    repeated, distinct = (sum(getattr(found.duplicates, each) for found in ranges) for each in ("rows", "distinct"))
    return SortedLog(
        files,
        sum(file.rows for file in files),
        repeated + distinct,
        DuplicateCounts(repeated, distinct, all(found.duplicates.all_repeated for found in ranges) and bool(files)),
        users,
        items,
    )


def _merge_ids_of_ranges(
    folder: ShuffleFolder, ranges: Sequence[_SortedRange]
) -> Generator[TaskRound, list[Any], tuple[DistinctIds, DistinctIds]]:
    """Yield the round that merges the distinct users and items of all ranges, part by part."""
    parts: dict[tuple[str, int], list[IdsPart]] = defaultdict(list)
    for found in ranges:
        for column, ids in ((USER_ID, found.users), (ITEM_ID, found.items)):
            for number, part in ids.parts.items():
                parts[column, number].append(part)
    merged = {key: some[0] for key, some in parts.items() if len(some) == 1}
    calls = [(folder, key, some) for key, some in sorted(parts.items()) if len(some) > 1]
    if calls:
        merged |= dict((yield TaskRound(_merge_ids, calls)))
    users, items = (
        DistinctIds({number: part for (name, number), part in merged.items() if name == column})
        for column in (USER_ID, ITEM_ID)
    )
    return users, items


def _merge_ids(
    connection: DuckDBPyConnection, folder: ShuffleFolder, key: tuple[str, int], parts: Sequence[IdsPart]
) -> tuple[tuple[str, int], IdsPart]:
    """Task: write the distinct ids of one part of all ranges; return its column and number, and the ids."""
    _create_ids_table(connection, "merged_ids", [(folder, part) for part in parts])
    ids = connection.sql("FROM merged_ids").to_arrow_table()
    (segment,) = write_tables([(0, ids)], folder=folder).values()
    connection.execute("DROP TABLE merged_ids")
    return key, IdsPart(segment, len(ids))


def create_ids_table(connection: Any, name: str, ids: Sequence[tuple[ShuffleFolder, DistinctIds]]) -> None:
    """Create or replace a temporary DuckDB table of distinct ids, from the folders that they are in."""
    _create_ids_table(connection, name, [(folder, part) for folder, some in ids for part in some.parts.values()])


def _create_ids_table(connection: Any, name: str, parts: Sequence[tuple[ShuffleFolder, IdsPart]]) -> None:
    import pyarrow as pa

    segments: dict[str, tuple[ShuffleFolder, list[Segment]]] = {}
    for folder, part in parts:
        segments.setdefault(f"{folder.root} {folder.prefix}", (folder, []))[1].append(part.segment)
    tables = (table for folder, some in segments.values() for table in iter_segment_tables(some, folder=folder))
    first = next(tables)
    batches = (batch for table in chain([first], tables) for batch in table.to_batches())
    connection.register("ids", pa.RecordBatchReader.from_batches(first.schema, batches))
    connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT DISTINCT * FROM ids")
    connection.unregister("ids")


def count_common_users(connection: Any, sides: Sequence[Sequence[tuple[ShuffleFolder, IdsPart]]]) -> int:
    """Task: count the users that both sides have, of one part."""
    for number, users in enumerate(sides):
        _create_ids_table(connection, f"users_{number}", users)
    common = connection.sql(f"SELECT count(*) FROM users_0 SEMI JOIN users_1 USING ({USER_ID})").fetchall()[0][0]
    connection.execute("DROP TABLE users_0; DROP TABLE users_1")
    return int(common)


def _write_by_time(connection: DuckDBPyConnection, job: SortJob, paths: Sequence[str]) -> dict[int, Segment]:
    """Task of the first round: write some rows by ranges of time."""
    with job.folder.open_local_files(paths) as files:
        query = f"SELECT {', '.join(job.columns)} FROM ({job.rows.to_sql(connection, files)})"
        return write_segments(connection, query, key=f"epoch_us({EVENT_TIMESTAMP})", bounds=job.bounds, folder=job.folder)


def _sort_range(connection: DuckDBPyConnection, job: SortJob, number: int, segments: Sequence[Segment]) -> _SortedRange:
    """Task of the second round: sort the rows of a range."""
    load_segments(connection, segments, folder=job.folder, name="partition_rows")
    counter = _DuplicateCounter()
    batches = connection.sql(f"FROM partition_rows ORDER BY {', '.join(job.columns)}").to_arrow_reader(_BATCH)
    file = write_sorted_file(counter.count(batches, drop=job.drop_duplicates), job.folder)
    users, items = (_write_ids(connection, name, job) for name in (USER_ID, ITEM_ID))
    connection.execute("DROP TABLE partition_rows")
    return _SortedRange(number, file, counter.counts, users, items)


def _write_ids(connection: DuckDBPyConnection, name: str, job: SortJob) -> DistinctIds:
    """Write the distinct ids of a range by parts of their hashes."""
    number = partition_number_sql(f"(hash({name}) >> 1)::BIGINT", job.ids_bounds)
    ids = connection.sql(
        f"SELECT {name}, {number} AS {PARTITION_NUMBER} FROM (SELECT DISTINCT {name} FROM partition_rows) ORDER BY {PARTITION_NUMBER}"
    ).to_arrow_table()
    parts = dict(iter_numbered(ids.to_batches(), PARTITION_NUMBER))
    segments = write_tables(parts.items(), folder=job.folder)
    return DistinctIds({part: IdsPart(segments[part], len(rows)) for part, rows in parts.items()})


def write_sorted_file(batches: Iterable[pa.RecordBatch], folder: ShuffleFolder) -> SortedFile | None:
    """Write sorted rows to a new file, with null columns for missing `OPTIONAL_EVENT_COLUMNS`; None, and no file, if there are no rows.

    Raises:
        OSError: The file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer: Any = None
    path = folder.new_path(".parquet")
    first = last = count = recommended = 0
    try:
        for batch in batches:
            if not len(batch):
                continue
            rows, times = _with_extras(batch), batch.column(EVENT_TIMESTAMP).cast(pa.int64())
            if writer is None:
                options = {"filesystem": folder.open(), "compression": "lz4", "use_dictionary": False}
                writer, first = pq.ParquetWriter(path, rows.schema, **options), times[0].as_py()
            last = times[-1].as_py()
            count += len(rows)
            recommended += len(rows) - rows.column(RECOMMENDED_BY).null_count
            writer.write_batch(rows)
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        return None
    return SortedFile(path, micros_to_datetime(first), micros_to_datetime(last), count, recommended)


def _with_extras(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Add the missing columns of `OPTIONAL_EVENT_COLUMNS` to a batch, as nulls."""
    import pyarrow as pa

    missing = [name for name in OPTIONAL_EVENT_COLUMNS if name not in batch.schema.names]
    nulls = [pa.nulls(len(batch), pa.float64() if name == "value" else pa.string()) for name in missing]
    return pa.RecordBatch.from_arrays([*batch.columns, *nulls], [*batch.schema.names, *missing])


def iter_sorted_batches(file: SortedFile, folder: ShuffleFolder) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a sorted file."""
    import pyarrow.parquet as pq

    with folder.open().open_input_file(file.path) as opened, pq.ParquetFile(opened) as rows:
        yield from row_groups.iter_batches(rows, BATCH_ROWS)


def log_digest(tasks: LogTasks, files: Iterable[SortedFile], item_prefix: str) -> tuple[int, int]:
    """Return the sum and the exclusive or of hashes of a log's users, items and times, which do not depend on the rows' order."""
    total, mixed = 0, 0
    for added, bits in tasks.executor.map(_hash_rows, ((tasks.folder, file, item_prefix) for file in files)):
        total, mixed = total + added, mixed ^ bits
    return total, mixed


def _hash_rows(connection: DuckDBPyConnection, folder: ShuffleFolder, file: SortedFile, item_prefix: str) -> tuple[int, int]:
    """Task: sum up the hashes of a file's rows."""
    item = f"substr({ITEM_ID}::VARCHAR, {len(item_prefix) + 1})"
    hashes = f"hash({USER_ID}::VARCHAR, {item}, {EVENT_TIMESTAMP})"
    with folder.open_local_files([file.path]) as paths:
        query = f"SELECT sum({hashes}::HUGEINT), bit_xor({hashes}) FROM {parquet_sql(*paths)}"
        ((total, mixed),) = connection.execute(query).fetchall()
    return int(total), int(mixed)


class _DuplicateCounter:
    """Count the rows of a sorted stream that equal the row before them.

    Attributes:
        rows: Rows seen.
        different: Distinct rows seen.
    """

    def __init__(self) -> None:
        self.rows = self.different = 0
        self._before: pa.RecordBatch | None = None
        self._firsts: list[npt.NDArray[np.int64]] = []

    def count(self, batches: Iterable[pa.RecordBatch], *, drop: bool) -> Iterator[pa.RecordBatch]:
        """Pass batches through while counting; with ``drop``, without repeated rows."""
        import pyarrow as pa

        for batch in batches:
            if not len(batch):
                continue
            new = np.ones(len(batch), bool)
            joined = batch if self._before is None else pa.concat_batches([self._before, batch])
            new[len(batch) - len(joined) + 1 :] = _differ(joined)
            self._before = batch.slice(len(batch) - 1)
            self._firsts.append(np.flatnonzero(new) + self.rows)
            self.rows += len(batch)
            self.different += len(self._firsts[-1])
            yield batch.filter(pa.array(new)) if drop else batch

    @property
    def counts(self) -> DuplicateCounts:
        """The repeated and the distinct rows."""
        firsts = np.append(np.concatenate([*self._firsts, np.empty(0, np.int64)]), self.rows)
        return DuplicateCounts(self.rows - self.different, self.different, bool((np.diff(firsts) > 1).all()))


def _differ(batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    """Return whether each row but the first differs from the one before it; nulls are equal: bool [N - 1]."""
    import pyarrow.compute as pc

    different = np.zeros(len(batch) - 1, bool)
    for column in batch.columns:
        now, before = column.slice(1), column.slice(0, len(batch) - 1)
        differ = pc.fill_null(pc.not_equal(now, before), fill_value=False)
        if column.null_count:
            differ = pc.or_(differ, pc.xor(pc.is_null(now), pc.is_null(before)))
        different |= differ.to_numpy(zero_copy_only=False)
    return different
