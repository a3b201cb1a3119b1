# SPDX-License-Identifier: Apache-2.0
"""Feature joins of spines that exceed one join: join by user and by item, then restore time order.

Histories are sorted by user and item statistics by item, so a join of consecutive users reads only its range of the table. In time order
each join would read the whole table, and the total would grow quadratically.

Three rounds of tasks (`scalr_prod.compute`) regroup the rows. The first counts the rows of each user and item in a sample; a task for each
key then bounds the ranges. The second writes the spine's keys by ranges of users and by ranges of items. The third joins the features of
each range, and writes them by batch: the rows whose files one task writes. There are 64 batches, or as many as two million rows each
make, so that a range is not cut into a piece for each file; the task that writes a batch divides it once more, on its own machine.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from scalr_prod.compute import (
    iter_segment_tables,
    load_segments,
    read_segments,
    rows_per_task,
    task_size,
    write_segments,
    write_tables,
)
from scalr_prod.features import references_by_key
from scalr_prod.schemas import USER_ID
from scalr_prod.training_set.feature_join import join_features

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from numpy.typing import NDArray

    from scalr_prod.compute import Segment, ShuffleFolder
    from scalr_prod.features import ExternalJoin, StoreSnapshot
    from scalr_prod.training_set.build_tasks import BuildTasks
    from scalr_prod.training_set.spine import SpineRows


#: Column of a row's number in the order of time.
ROW: Final = "row"
#: Spine rows that a task of the first two rounds reads, or that a batch has, at most, about.
_TASK_ROWS: Final = 2_000_000
#: Rows of a range that are counted to bound it: its size then varies by two percent.
_COUNTED_ROWS: Final = 2_000
#: Share of the rows of a join that a range has: few ranges are larger than a join, and joined in two parts.
_RANGE_SHARE: Final = 0.95


@dataclass(frozen=True)
class FeatureJob:
    """What every task needs to know.

    Attributes:
        store: The project's Feast store.
        service: The Feast service whose features are joined.
        external: Joins external features, by user.
        limit: Maximum rows per join.
        folder: Where tasks write.
    """

    store: StoreSnapshot
    service: str
    external: ExternalJoin | None
    limit: int
    folder: ShuffleFolder


@dataclass(frozen=True)
class SpineGroup:
    """Rows that one join takes, of one or more files.

    Attributes:
        files: Name and number of rows of each file.
        spine: Where the labelled rows of each file are.
        first: Number of the first row among all that are written.
    """

    files: tuple[tuple[str, int], ...]
    spine: tuple[SpineRows, ...]
    first: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(rows for _, rows in self.files)

    @property
    def end(self) -> int:
        """Number of the first row after it."""
        return self.first + self.rows

    def read(self, folder: ShuffleFolder) -> pa.Table:
        """Read the rows."""
        import pyarrow as pa

        return pa.concat_tables([rows.read(folder) for rows in self.spine])

    def read_keys(self, folder: ShuffleFolder) -> pa.Table:
        """Read the keys of the rows, and number the rows."""
        import pyarrow as pa

        keys = pa.concat_tables([rows.read_keys(folder) for rows in self.spine])
        return keys.append_column(ROW, pa.array(np.arange(self.first, self.first + self.rows)))


@dataclass(frozen=True)
class BatchFeatures:
    """Where the features of a batch's rows are.

    Attributes:
        columns: Names of the features, in order.
        segments: One list for each key, in any order, with the column `ROW`.
    """

    columns: Sequence[str]
    segments: Sequence[Sequence[Segment]]

    def iter_tables(self, groups: Sequence[SpineGroup], job: FeatureJob) -> Iterator[pa.Table]:
        """Yield the features of each group of the batch, in the order of its rows. One group at a time is in memory."""
        if len(groups) == 1:
            yield self._read(self.segments, job.folder)
            return
        with job.folder.open_local_folder() as local:
            by_group: list[list[list[Segment]]] = [[[] for _ in self.segments] for _ in groups]
            ends = np.array([group.end for group in groups])
            for key, segments in enumerate(self.segments):
                for rows in _iter_joined(iter_segment_tables(segments, folder=job.folder), job.limit):
                    for number, segment in write_tables(_split_rows(rows, ends), folder=local).items():
                        by_group[number][key].append(segment)
            for found in by_group:
                yield self._read(found, local)

    def _read(self, segments: Sequence[Sequence[Segment]], folder: ShuffleFolder) -> pa.Table:
        import pyarrow as pa

        tables = [_sort_by_row(read_segments(some, folder=folder)) for some in segments]
        by_name = {name: table.column(name) for table in tables for name in table.column_names}
        return pa.table([by_name[name] for name in self.columns], names=self.columns)


class _JoinedRanges(NamedTuple):
    key: str
    rows: int
    #: Batch → segment, for each join.
    segments: list[dict[int, Segment]]


def divide_into_batches(groups: Sequence[SpineGroup], limit: int) -> list[list[SpineGroup]]:
    """Divide consecutive groups into batches, each of which a task writes.

    Args:
        groups: The groups, in the order of time.
        limit: Maximum rows of a group.
    """
    size = task_size(sum(group.rows for group in groups), least=limit, most=max(limit, _TASK_ROWS))
    return [[group] for group in groups] if size <= limit else _divide(groups, size)


def join_by_key(
    tasks: BuildTasks,
    job: FeatureJob,
    batches: Sequence[Sequence[SpineGroup]],
    schema: pa.Schema,
    *,
    advance: Callable[[int], None],
) -> list[BatchFeatures]:
    """Join the features of all rows, and return where those of each batch are.

    Args:
        tasks: Runs the tasks.
        job: What to join.
        batches: The groups of each batch, in the order of time.
        schema: Columns of the spine.
        advance: Called with the number of rows as their user features are joined.

    Raises:
        TrainingSetError: A join returned other rows than requested.
        FeatureStoreError: A table cannot be read.
        LakeError: The disk is full.
    """
    store, connection, executor = job.store.open(), tasks.connection, tasks.executor
    columns = join_features(store, schema.empty_table(), job.service, external=job.external, connection=connection).column_names
    # Users first: their joins take longest, and short tasks fill the gaps at the end.
    references = dict(sorted(references_by_key(store, job.service).items(), key=lambda item: (item[0] != USER_ID, item[0])))
    groups = [group for batch in batches for group in batch]
    read = _divide(groups, rows_per_task(groups[-1].end, _TASK_ROWS))
    counted: dict[str, list[Segment]] = {key: [] for key in references}
    for counts in executor.map(_count_rows, ((job, list(references), some) for some in read)):
        for key, segment in counts.items():
            counted[key].append(segment)
    bounds = dict(executor.map(_range_bounds, ((job, key, segments) for key, segments in counted.items())))
    ranges: dict[tuple[str, int], list[Segment]] = defaultdict(list)
    for written in executor.map(_write_ranges, ((job, bounds, some) for some in read)):
        for key, segments in written.items():
            for number, segment in segments.items():
                ranges[key, number].append(segment)
    ends = np.array([batch[-1].end for batch in batches])
    found: list[dict[str, list[Segment]]] = [{key: [] for key in references} for _ in batches]
    calls = (
        (job, key, references[key], ends, some)
        for key in references
        for some in _bundle([segments for (of_key, _), segments in sorted(ranges.items()) if of_key == key])
    )
    for joined in executor.map(_join_ranges, calls):
        for segments in joined.segments:
            for batch, segment in segments.items():
                found[batch][joined.key].append(segment)
        if joined.key == USER_ID:
            advance(joined.rows)
    return [BatchFeatures(columns, list(by_key.values())) for by_key in found]


def _divide(groups: Sequence[SpineGroup], size: float) -> list[list[SpineGroup]]:
    """Divide consecutive groups evenly into parts of about so many rows, or of one group."""
    first, rows = groups[0].first, groups[-1].end - groups[0].first
    parts = math.ceil(rows / size)

    def part_of(group: SpineGroup) -> int:
        middle = (group.first + group.end) / 2 - first
        return int(middle * parts / rows)

    return [list(part) for _, part in itertools.groupby(groups, part_of)]


def _load_keys(connection: DuckDBPyConnection, job: FeatureJob, groups: Iterable[SpineGroup]) -> None:
    """Create the table ``spine_keys`` of the groups' rows."""
    import pyarrow as pa

    connection.register("group_keys", pa.concat_tables([group.read_keys(job.folder) for group in groups]))
    connection.execute("CREATE OR REPLACE TEMP TABLE spine_keys AS FROM group_keys")
    connection.unregister("group_keys")


def _count_rows(
    connection: DuckDBPyConnection, job: FeatureJob, keys: Sequence[str], groups: Sequence[SpineGroup]
) -> dict[str, Segment]:
    """Task of the first round: count the rows of each user and of each item in an even sample of some rows."""
    _load_keys(connection, job, groups)
    stride = max(job.limit // _COUNTED_ROWS, 1)
    counts = (
        connection.sql(
            # By hash: rows of an event and its negatives alternate.
            f"SELECT {key}, count(*) * {stride} AS rows FROM spine_keys WHERE hash({ROW}) % {stride} = 0 GROUP BY {key}"
        ).to_arrow_table()
        for key in keys
    )
    segments = write_tables(enumerate(counts), folder=job.folder)
    connection.execute("DROP TABLE spine_keys")
    return {key: segments[number] for number, key in enumerate(keys)}


def _range_bounds(
    connection: DuckDBPyConnection, job: FeatureJob, key: str, counts: Sequence[Segment]
) -> tuple[str, list[Any]]:
    """Task after the first round: bound ranges of consecutive users (or items), each small enough for one join.

    Returns:
        The key, and the first user (or item) of each range but the first.
    """
    load_segments(connection, counts, folder=job.folder, name="counts")
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE counted AS SELECT {key}, sum(rows)::BIGINT AS rows FROM counts GROUP BY {key}"
    )
    rows, most = connection.execute("SELECT sum(rows)::BIGINT, max(rows) FROM counted").fetchall()[0]
    # Keys are not split, so a range may exceed the target by the rows of its last key.
    limit = int(job.limit * _RANGE_SHARE) if job.limit > _COUNTED_ROWS else job.limit
    ranges = rows // max(limit - most, limit // 2) + 1
    first = connection.execute(f"""
        SELECT min({key}) AS first
        FROM (SELECT {key}, (sum(rows) OVER (ORDER BY {key}) - rows) * {ranges} // {rows} AS number FROM counted)
        GROUP BY number ORDER BY first""").fetchall()
    connection.execute("DROP TABLE counts")
    connection.execute("DROP TABLE counted")
    return key, [value for (value,) in first[1:]]


def _write_ranges(
    connection: DuckDBPyConnection, job: FeatureJob, bounds: Mapping[str, Sequence[Any]], groups: Sequence[SpineGroup]
) -> dict[str, dict[int, Segment]]:
    """Task of the second round: write the keys of some rows by ranges of each key."""
    _load_keys(connection, job, groups)
    found = {
        key: write_segments(connection, "FROM spine_keys", key=key, bounds=bounds[key], folder=job.folder) for key in bounds
    }
    connection.execute("DROP TABLE spine_keys")
    return found


def _bundle(ranges: Sequence[Sequence[Segment]]) -> Iterator[Sequence[Sequence[Segment]]]:
    """Yield the ranges that a task joins, one after the other."""
    size = task_size(len(ranges), least=1, most=max(len(ranges), 1))
    edges = [*(round(number * size) for number in range(math.ceil(len(ranges) / size))), len(ranges)]
    yield from (ranges[since:until] for since, until in itertools.pairwise(edges))


def _join_ranges(
    connection: DuckDBPyConnection,
    job: FeatureJob,
    key: str,
    references: str | Sequence[str],
    ends: NDArray[np.int64],
    ranges: Sequence[Sequence[Segment]],
) -> _JoinedRanges:
    """Task of the third round: join the features of ranges of users (or items), and write them by batch."""
    store, external = job.store.open(), job.external if key == USER_ID else None
    joined, files = 0, []
    for segments in ranges:
        rows = _sort_by_row(read_segments(segments, folder=job.folder))
        # One user (or item) with very many rows can exceed a join: split such a range by time.
        size = -(-len(rows) // -(-len(rows) // job.limit))
        for since in range(0, len(rows), size):
            some = rows.slice(since, size)
            found = join_features(store, some, references, external=external, connection=connection)
            files.append(write_tables(_split_rows(found.append_column(ROW, some.column(ROW)), ends), folder=job.folder))
        joined += len(rows)
    return _JoinedRanges(key, joined, files)


def _split_rows(rows: pa.Table, ends: NDArray[np.int64]) -> Iterator[tuple[int, pa.Table]]:
    """Split rows, which are sorted by their number, at these numbers."""
    stops = np.searchsorted(rows.column(ROW).to_numpy(), ends)
    since = 0
    for part, stop in enumerate(stops.tolist()):
        if stop > since:
            yield part, rows.slice(since, stop - since)
        since = stop


def _iter_joined(tables: Iterable[pa.Table], limit: int) -> Iterator[pa.Table]:
    """Yield the rows of tables, sorted by their number, about so many at once."""
    import pyarrow as pa

    some: list[pa.Table] = []
    for table in tables:
        some.append(table)
        if sum(map(len, some)) >= limit:
            yield _sort_by_row(pa.concat_tables(some))
            some = []
    if some:
        yield _sort_by_row(pa.concat_tables(some))


def _sort_by_row(rows: pa.Table) -> pa.Table:
    import pyarrow as pa

    numbers = rows.column(ROW).to_numpy()
    return rows if (np.diff(numbers) > 0).all() else rows.take(pa.array(np.argsort(numbers)))
