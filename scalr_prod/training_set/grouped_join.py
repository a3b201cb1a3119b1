# SPDX-License-Identifier: Apache-2.0
"""Feature joins of spines that exceed one join: join by user and by item, then restore time order.

Histories are sorted by user and item statistics by item, so a join of consecutive users reads only its range of the table. In time order
each join would read the whole table, and the total would grow quadratically.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from scalr_prod.features import open_feature_store, references_by_key
from scalr_prod.schemas import USER_ID
from scalr_prod.training_set.feature_join import FEATURE_SERVICE, join_features
from scalr_prod.training_set.regroup import GroupedArrowFile
from scalr_prod.training_set.spine import KEYS
from scalr_prod.workspace import escape_glob, open_duckdb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from numpy.typing import NDArray

    from scalr_prod.config import Settings
    from scalr_prod.features import ExternalFeatures

__all__ = ["JoinGroups", "join_by_key"]

_ROW: Final = "row"
_BUCKET: Final = "bucket"
#: Spine rows per batch, keys only.
_BATCH: Final = 500_000


@dataclass(frozen=True)
class JoinGroups:
    """Assignment of spine rows to groups.

    Attributes:
        ends: int64 [N]. End row of each consecutive span of the spine.
        numbers: int64 [N]. Group of each span; -1: none.
    """

    ends: NDArray[np.int64]
    numbers: NDArray[np.int64]

    def group_numbers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the group of each row number."""
        return self.numbers[np.searchsorted(self.ends, rows, side="right")]

    def membership_sql(self, row: str) -> str:
        """Return SQL: whether a row is in any group."""
        spans: list[list[int]] = []
        since = 0
        for end, number in zip(self.ends.tolist(), self.numbers.tolist(), strict=True):
            if number >= 0 and spans and spans[-1][1] == since:
                spans[-1][1] = end
            elif number >= 0:
                spans.append([since, end])
            since = end
        return f"({' OR '.join(f'{row} >= {start} AND {row} < {end}' for start, end in spans)})"


@contextmanager
def join_by_key(
    settings: Settings, spine: Path, groups: JoinGroups,
    *, limit: int, external: ExternalFeatures | None, advance: Callable[[int], None],
) -> Iterator[Callable[[int], pa.Table]]:  # fmt: skip
    """Join the features of all groups; yield a function that returns one group's features in row order.

    Args:
        settings: The project's settings.
        spine: The labelled rows, one Parquet file in time order. The features are spilled next to it.
        groups: Groups of its rows.
        limit: Maximum rows per join.
        external: External features, which are joined by user.
        advance: Called with the number of rows as their user features are joined.

    Raises:
        TrainingSetError: A join returned other rows than requested.
        FeatureStoreError: A table cannot be read.
        LakeError: The disk is full.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with ExitStack() as stack:
        spills: list[GroupedArrowFile] = []
        with open_duckdb(settings, spine.parent) as connection:
            store = open_feature_store(settings)
            empty = pq.read_schema(spine).empty_table()
            columns = join_features(store, empty, external=external, connection=connection).column_names
            for key, references in sorted(references_by_key(store, FEATURE_SERVICE).items()):
                by_user = key == USER_ID
                spill = stack.enter_context(
                    GroupedArrowFile(spine.with_name(f"features by {key}.arrow"), _ROW, groups=int(groups.numbers.max()) + 1)
                )
                for rows in _batches_by_key(key, connection, spine, groups, limit):
                    found = join_features(
                        store,
                        rows,
                        references=references,
                        external=external if by_user else None,
                        connection=connection,
                    )
                    number = rows.column(_ROW)
                    spill.append(found.append_column(_ROW, number), groups.group_numbers(number.to_numpy()))
                    if by_user:
                        advance(len(rows))
                spills.append(spill)

        def features_of_group(group: int) -> pa.Table:
            found = [spill.read_group(group) for spill in spills]
            by_name = {name: table.column(name) for table in found for name in table.column_names}
            return pa.table([by_name[name] for name in columns], names=columns)

        yield features_of_group


def _batches_by_key(
    key: str, connection: DuckDBPyConnection, spine: Path, groups: JoinGroups, limit: int
) -> Iterator[pa.Table]:
    """Yield the keys and row numbers of all grouped rows in batches of consecutive users (or items), each small enough for one join."""
    count, bucketed = _bucketed(connection, spine, groups, key, limit)
    with GroupedArrowFile(spine.with_name(f"spine by {key}.arrow"), _ROW, groups=count) as buckets:
        for rows, numbers in bucketed:
            buckets.append(rows, numbers)
        for bucket in buckets.groups:
            rows = buckets.read_group(bucket)
            # One user (or item) with very many rows can exceed a join: split such a bucket by time.
            size = -(-len(rows) // -(-len(rows) // limit))
            yield from (rows.slice(since, size) for since in range(0, len(rows), size))


def _bucketed(
    connection: DuckDBPyConnection, spine: Path, groups: JoinGroups, key: str, limit: int
) -> tuple[int, Iterator[tuple[pa.Table, NDArray[np.int64]]]]:
    """Return the number of buckets, and the same rows in any order, each with its bucket; all rows of a user (or item) are in one."""
    import pyarrow as pa

    path = escape_glob(spine).replace("'", "''")
    wanted = f"read_parquet('{path}') WHERE {groups.membership_sql('file_row_number')}"
    connection.execute(f"CREATE OR REPLACE TEMP TABLE counted AS SELECT {key}, count(*) AS rows FROM {wanted} GROUP BY {key}")
    rows, most = connection.execute("SELECT sum(rows), max(rows) FROM counted").fetchall()[0]
    # Keys are not split, so a bucket may exceed the target by the rows of its last key.
    buckets = rows // max(limit - most, limit // 2) + 1
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE buckets AS
            SELECT {key}, CAST((sum(rows) OVER (ORDER BY {key}) - rows) * {buckets} // {rows} AS BIGINT) AS {_BUCKET}
            FROM counted"""
    )
    query = f"""
        SELECT {", ".join(KEYS)}, {_ROW}, {_BUCKET}
        FROM (SELECT {", ".join(KEYS)}, file_row_number AS {_ROW} FROM {wanted}) JOIN buckets USING ({key})"""
    tables = (pa.Table.from_batches([batch]) for batch in connection.sql(query).to_arrow_reader(_BATCH))
    return int(buckets), ((table.drop_columns(_BUCKET), table.column(_BUCKET).to_numpy()) for table in tables)
