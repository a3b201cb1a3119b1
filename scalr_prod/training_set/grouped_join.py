# SPDX-License-Identifier: Apache-2.0
"""Feature joins of spines that exceed one join: join by user and by item, then restore time order.

Histories are sorted by user and item statistics by item, so a join of consecutive users reads only its range of the table. In time order
each join would read the whole table, and the total would grow quadratically.

Two rounds of tasks (`scalr_prod.compute`) regroup the rows. The first writes the spine's keys by ranges of users and by ranges of items.
The second joins the features of each range, and writes them by the group of files that each row belongs to.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from scalr_prod.compute import load_segments, read_segments, write_segments, write_tables
from scalr_prod.features import references_by_key
from scalr_prod.schemas import USER_ID
from scalr_prod.training_set.feature_join import join_features
from scalr_prod.training_set.spine import KEYS
from scalr_prod.workspace import parquet_sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from numpy.typing import NDArray

    from scalr_prod.compute import Executor, Segment, ShuffleFolder
    from scalr_prod.features import ExternalJoin, StoreSnapshot
    from scalr_prod.training_set.spine import Spine


#: Column of a row's number in the order of time.
ROW: Final = "row"
#: Spine rows that a task of the first round reads, about.
_TASK_ROWS: Final = 2_000_000


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
        spine: The labelled rows, with the column `ROW`.
    """

    files: tuple[tuple[str, int], ...]
    spine: Segment

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(rows for _, rows in self.files)


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
    executor: Executor, job: FeatureJob, groups: Sequence[SpineGroup], connection: DuckDBPyConnection, spine: Spine,
    spans: Sequence[tuple[int, int]], *, advance: Callable[[int], None],
) -> dict[int, GroupFeatures]:  # fmt: skip
    """Join the features of all groups, and return where they are, by the number of the group.

    Args:
        executor: Runs the tasks.
        job: What to join.
        groups: The groups, in the order of time.
        connection: DuckDB connection.
        spine: The labelled rows, in the order of time.
        spans: Half-open spans of the spine's rows that the groups consist of.
        advance: Called with the number of rows as their user features are joined.

    Raises:
        TrainingSetError: A join returned other rows than requested.
        FeatureStoreError: A table cannot be read.
        LakeError: The disk is full.
    """
    import pyarrow.parquet as pq

    store = job.store.open()
    empty = pq.read_schema(spine.path).empty_table()
    columns = join_features(store, empty, job.service, external=job.external, connection=connection).column_names
    references = dict(sorted(references_by_key(store, job.service).items()))
    bounds = {key: _range_bounds(connection, spine.path, spans, key, job.limit) for key in references}
    ranges: dict[tuple[str, int], list[Segment]] = defaultdict(list)
    for written in executor.map(_write_ranges, ((job, bounds, some) for some in _tasks(groups))):
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


def _tasks(groups: Sequence[SpineGroup]) -> Iterator[list[Segment]]:
    """Yield the rows that each task of the first round reads."""
    segments: list[Segment] = []
    rows = 0
    for group in groups:
        if segments and rows + group.rows > _TASK_ROWS:
            yield segments
            segments, rows = [], 0
        segments.append(group.spine)
        rows += group.rows
    yield segments


def _range_bounds(
    connection: DuckDBPyConnection, spine: Path, spans: Sequence[tuple[int, int]], key: str, limit: int
) -> list[Any]:
    """Return the first key of each range but the first: ranges of consecutive users (or items), each small enough for one join."""
    wanted = " OR ".join(f"file_row_number >= {start} AND file_row_number < {end}" for start, end in spans)
    counted = f"SELECT {key}, count(*) AS rows FROM {parquet_sql(spine)} WHERE {wanted} GROUP BY {key}"
    connection.execute(f"CREATE OR REPLACE TEMP TABLE counted AS {counted}")
    rows, most = connection.execute("SELECT sum(rows), max(rows) FROM counted").fetchall()[0]
    # Keys are not split, so a range may exceed the target by the rows of its last key.
    ranges = rows // max(limit - most, limit // 2) + 1
    first = connection.execute(f"""
        SELECT min({key}) AS first
        FROM (SELECT {key}, (sum(rows) OVER (ORDER BY {key}) - rows) * {ranges} // {rows} AS number FROM counted)
        GROUP BY number ORDER BY first""").fetchall()
    return [key for (key,) in first[1:]]


def _write_ranges(
    connection: DuckDBPyConnection, job: FeatureJob, bounds: Mapping[str, Sequence[Any]], spine: Sequence[Segment]
) -> dict[str, dict[int, Segment]]:
    """Task of the first round: write the keys of some rows by ranges of each key."""
    load_segments(connection, spine, folder=job.folder, name="spine_rows")
    keys = f"SELECT {', '.join(KEYS)}, {ROW} FROM spine_rows"
    found = {key: write_segments(connection, keys, key=key, bounds=bounds[key], folder=job.folder) for key in bounds}
    connection.execute("DROP TABLE spine_rows")
    return found


def _join_range(
    connection: DuckDBPyConnection,
    job: FeatureJob,
    key: str,
    references: str | Sequence[str],
    ends: NDArray[np.int64],
    segments: Sequence[Segment],
) -> _JoinedRange:
    """Task of the second round: join the features of a range of users (or items), and write them by group."""
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
