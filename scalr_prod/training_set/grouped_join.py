# SPDX-License-Identifier: Apache-2.0
"""Feature joins of spines that exceed one join: join by user and by item, then restore time order.

Histories are sorted by user and item statistics by item, so a join of consecutive users reads only its range of the table. In time order
each join would read the whole table, and the total would grow quadratically.

Three rounds of tasks (`scalr_prod.compute`) regroup the rows. The first counts the rows of each user and item in a sample; a task for each
key then bounds the ranges. The second writes the spine's keys by ranges of users and by ranges of items. The third joins the features of
each range, and writes them by the group of files that each row belongs to.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from scalr_prod.compute import load_segments, read_segments, rows_per_task, write_segments, write_tables
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
#: Spine rows that a task of the first two rounds reads at most, about.
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
    """Rows whose files are written together.

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
class GroupFeatures:
    """Where the features of a group's rows are.

    Attributes:
        columns: Names of the features, in order.
        segments: One list for each key, in any order, with the column `ROW`.
    """

    columns: Sequence[str]
    segments: Sequence[Sequence[Segment]]

    def read(self, folder: ShuffleFolder) -> pa.Table:
        """Read the features in the order of the rows."""
        import pyarrow as pa

        tables = [_sort_by_row(read_segments(some, folder=folder)) for some in self.segments]
        by_name = {name: table.column(name) for table in tables for name in table.column_names}
        return pa.table([by_name[name] for name in self.columns], names=self.columns)


class _JoinedRange(NamedTuple):
    key: str
    rows: int
    #: Group → segment, for each join.
    segments: list[dict[int, Segment]]


def join_by_key(
    tasks: BuildTasks,
    job: FeatureJob,
    groups: Sequence[SpineGroup],
    schema: pa.Schema,
    *,
    advance: Callable[[int], None],
) -> dict[int, GroupFeatures]:
    """Join the features of all groups, and return where they are, by the number of the group.

    Args:
        tasks: Runs the tasks.
        job: What to join.
        groups: The groups, in the order of time.
        schema: Columns of the spine.
        advance: Called with the number of rows as their user features are joined.

    Raises:
        TrainingSetError: A join returned other rows than requested.
        FeatureStoreError: A table cannot be read.
        LakeError: The disk is full.
    """
    store, connection, executor = job.store.open(), tasks.connection, tasks.executor
    columns = join_features(store, schema.empty_table(), job.service, external=job.external, connection=connection).column_names
    references = dict(sorted(references_by_key(store, job.service).items()))
    counted: dict[str, list[Segment]] = {key: [] for key in references}
    for counts in executor.map(_count_rows, ((job, list(references), some) for some in _by_task(groups))):
        for key, segment in counts.items():
            counted[key].append(segment)
    bounds = dict(executor.map(_range_bounds, ((job, key, segments) for key, segments in counted.items())))
    ranges: dict[tuple[str, int], list[Segment]] = defaultdict(list)
    for written in executor.map(_write_ranges, ((job, bounds, some) for some in _by_task(groups))):
        for key, segments in written.items():
            for number, segment in segments.items():
                ranges[key, number].append(segment)
    ends = np.cumsum([group.rows for group in groups])
    found: dict[int, dict[str, list[Segment]]] = {number: {key: [] for key in references} for number in range(len(groups))}
    calls = ((job, key, references[key], ends, segments) for (key, _), segments in sorted(ranges.items()))
    for joined in executor.map(_join_range, calls):
        for segments in joined.segments:
            for group, segment in segments.items():
                found[group][joined.key].append(segment)
        if joined.key == USER_ID:
            advance(joined.rows)
    return {number: GroupFeatures(columns, list(by_key.values())) for number, by_key in found.items()}


def _by_task(groups: Sequence[SpineGroup]) -> Iterator[list[SpineGroup]]:
    """Yield the groups that each task of the first two rounds reads."""
    some: list[SpineGroup] = []
    rows, most = 0, rows_per_task(sum(group.rows for group in groups), _TASK_ROWS)
    for group in groups:
        if some and rows + group.rows > most:
            yield some
            some, rows = [], 0
        some.append(group)
        rows += group.rows
    yield some


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


def _join_range(
    connection: DuckDBPyConnection,
    job: FeatureJob,
    key: str,
    references: str | Sequence[str],
    ends: NDArray[np.int64],
    segments: Sequence[Segment],
) -> _JoinedRange:
    """Task of the third round: join the features of a range of users (or items), and write them by group."""
    rows, store = _sort_by_row(read_segments(segments, folder=job.folder)), job.store.open()
    external, files = job.external if key == USER_ID else None, []
    # One user (or item) with very many rows can exceed a join: split such a range by time.
    size = -(-len(rows) // -(-len(rows) // job.limit))
    for since in range(0, len(rows), size):
        some = rows.slice(since, size)
        found = join_features(store, some, references, external=external, connection=connection)
        files.append(write_tables(_by_group(found.append_column(ROW, some.column(ROW)), ends), folder=job.folder))
    return _JoinedRange(key, len(rows), files)


def _by_group(rows: pa.Table, ends: NDArray[np.int64]) -> Iterator[tuple[int, pa.Table]]:
    """Split rows, which are sorted by their number, into groups with these ends."""
    stops = np.searchsorted(rows.column(ROW).to_numpy(), ends)
    since = 0
    for group, stop in enumerate(stops.tolist()):
        if stop > since:
            yield group, rows.slice(since, stop - since)
        since = stop


def _sort_by_row(rows: pa.Table) -> pa.Table:
    import pyarrow as pa

    numbers = rows.column(ROW).to_numpy()
    return rows if (np.diff(numbers) > 0).all() else rows.take(pa.array(np.argsort(numbers)))
