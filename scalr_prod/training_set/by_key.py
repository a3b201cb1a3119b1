# SPDX-License-Identifier: Apache-2.0
"""The features of more rows than one join takes: joined in the order of users, and of items, and had back in the order of time.

Histories lie by user, and statistics by item, so that a join of users that follow each other reads its own rows of the table. In the
order of time each join would read all of it, and what all of them read would grow with rows × rows.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.contracts import USER_ID
from scalr_prod.duck import exact, open_duckdb
from scalr_prod.feast_store import open_feature_store, references_by_key
from scalr_prod.training_set.joining import FEATURE_SERVICE, features_of
from scalr_prod.training_set.regrouped import Regrouped
from scalr_prod.training_set.spine import KEYS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

    from scalr_prod.feast_store import OwnFeatures
    from scalr_prod.settings import Settings

__all__ = ["Groups", "joined_by_key"]

_ROW: Final = "row"
_SHARE: Final = "share"
#: Rows of the spine that are shared out at once, keys alone.
_BATCH: Final = 500_000


@dataclass(frozen=True)
class Groups:
    """Which rows of the spine are wanted, and which of them together.

    Attributes:
        ends: int64 [N]. Where consecutive pieces of the spine end, rows.
        numbers: int64 [N]. The group of each piece; -1: none.
    """

    ends: NDArray[np.int64]
    numbers: NDArray[np.int64]

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The group of each of these rows, by their numbers."""
        return self.numbers[np.searchsorted(self.ends, rows, side="right")]

    def sql(self, row: str) -> str:
        """SQL: whether a row is in any group."""
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
def joined_by_key(
    settings: Settings, spine: Path, groups: Groups,
    *, limit: int, own: OwnFeatures | None, advance: Callable[[int], None],
) -> Iterator[Callable[[int], pa.Table]]:  # fmt: skip
    """Join the features of all groups; gives what gives those of a group, in the order of its rows.

    Args:
        settings: The project's settings.
        spine: The labelled rows, one Parquet file in the order of time. The features of all groups are kept beside it meanwhile.
        groups: Of its rows.
        limit: Rows of a join.
        own: The user's own features, which are joined in the order of users.
        advance: Called with the number of rows as their users' features are joined.

    Raises:
        TrainingSetError: A join gave other rows than it was asked for.
        FeatureStoreError: A table cannot be read.
        LakeError: The disk is full.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with ExitStack() as stack:
        made: list[Regrouped] = []
        with open_duckdb(settings, spine.parent) as connection:
            store = open_feature_store(settings)
            join = partial(features_of, settings, store=store, within=connection)
            columns = join(pq.read_schema(spine).empty_table(), own=own).column_names
            for key, asked in sorted(references_by_key(store, FEATURE_SERVICE).items()):
                users = key == USER_ID
                kept = stack.enter_context(Regrouped(spine.with_name(f"features by {key}.arrow"), _ROW))
                for rows in _in_the_order_of(key, connection, spine, groups, limit):
                    found = join(rows, asked=asked, own=own if users else None)
                    number = rows.column(_ROW)
                    kept.put(found.append_column(_ROW, number), groups.of(number.to_numpy()))
                    if users:
                        advance(len(rows))
                made.append(kept)

        def of(group: int) -> pa.Table:
            found = [kept.take(group) for kept in made]
            by_name = {name: table.column(name) for table in found for name in table.column_names}
            return pa.table([by_name[name] for name in columns], names=columns)

        yield of


def _in_the_order_of(key: str, connection: Any, spine: Path, groups: Groups, limit: int) -> Iterator[pa.Table]:
    """The keys of all rows of the groups, each with its number, as many as a join takes: of users, or items, that follow each other."""
    with Regrouped(spine.with_name(f"spine by {key}.arrow"), _ROW) as shares:
        for rows, numbers in _shared_out(connection, spine, groups, key, limit):
            shares.put(rows, numbers)
        for share in shares.groups:
            rows = shares.take(share)
            # A share with a user, or an item, of very many rows is larger than a join: it is cut in the order of time.
            size = -(-len(rows) // -(-len(rows) // limit))
            yield from (rows.slice(since, size) for since in range(0, len(rows), size))


def _shared_out(
    connection: Any, spine: Path, groups: Groups, key: str, limit: int
) -> Iterator[tuple[pa.Table, NDArray[np.int64]]]:
    """The same rows in any order, each with its share: of a user, or an item, all are in one."""
    import pyarrow as pa

    path = exact(spine).replace("'", "''")
    wanted = f"read_parquet('{path}') WHERE {groups.sql('file_row_number')}"
    connection.execute(f"CREATE OR REPLACE TEMP TABLE counted AS SELECT {key}, count(*) AS rows FROM {wanted} GROUP BY {key}")
    rows, most = connection.execute("SELECT sum(rows), max(rows) FROM counted").fetchall()[0]
    # As a key is not cut in two, a share may hold as many rows more as its last key has.
    shares = rows // max(limit - most, limit // 2) + 1
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE shares AS
            SELECT {key}, CAST((sum(rows) OVER (ORDER BY {key}) - rows) * {shares} // {rows} AS BIGINT) AS {_SHARE}
            FROM counted"""
    )
    query = f"""
        SELECT {", ".join(KEYS)}, {_ROW}, {_SHARE}
        FROM (SELECT {", ".join(KEYS)}, file_row_number AS {_ROW} FROM {wanted}) JOIN shares USING ({key})"""
    for batch in connection.sql(query).to_arrow_reader(_BATCH):
        found = pa.Table.from_batches([batch])
        yield found.drop_columns(_SHARE), found.column(_SHARE).to_numpy()
