# SPDX-License-Identifier: Apache-2.0
"""A run's candidate files as tasks read them: row group by row group, with the place of each row."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from scalr_prod.core.file_systems import open_file_system
from scalr_prod.schemas import USER_ID
from scalr_prod.workspace import escape_glob, quote_literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa
    from duckdb import DuckDBPyConnection


#: Columns of a row's place: number of its file, and of the row in the file.
FILE: Final = "candidate_file"
ROW: Final = "candidate_row"
_BATCH: Final = 65_536


class RowGroup(NamedTuple):
    """A row group of a candidate file.

    Attributes:
        file: Number of the file.
        number: Number of the row group in the file.
        first_row: Number of its first row in the file.
        rows: Number of rows.
        users: Its first and last user; None: not known.
        lacks_users: Whether it may have rows without a user.
    """

    file: int
    number: int
    first_row: int
    rows: int
    users: tuple[Any, Any] | None
    lacks_users: bool

    def partitions(self, bounds: Sequence[Any]) -> set[int]:
        """Return the numbers of the user partitions that may have some of its rows; rows without a user are in the last one.

        Args:
            bounds: The first user of each partition but the first.
        """
        last = len(bounds)
        if self.users is None:
            return set(range(last + 1))
        found = set(range(bisect_right(bounds, self.users[0]), bisect_right(bounds, self.users[1]) + 1))
        return found | {last} if self.lacks_users else found


def list_row_groups(files: Sequence[Path]) -> list[RowGroup]:
    """List the row groups of candidate files, from the files' metadata."""
    import pyarrow.parquet as pq

    found: list[RowGroup] = []
    for file, path in enumerate(files):
        metadata, first_row = pq.read_metadata(path), 0
        column = metadata.schema.to_arrow_schema().get_field_index(USER_ID)
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            known = group.column(column).statistics
            users = None if known is None or not known.has_min_max else (known.min, known.max)
            lacks_users = known is None or not known.has_null_count or known.null_count > 0
            found.append(RowGroup(file, number, first_row, group.num_rows, users, lacks_users))
            first_row += group.num_rows
    return found


def chunk_row_groups(groups: Sequence[RowGroup], rows: int) -> Iterator[list[RowGroup]]:
    """Yield row groups in chunks of about so many rows."""
    chunk: list[RowGroup] = []
    pending = 0
    for group in groups:
        if chunk and pending + group.rows > rows:
            yield chunk
            chunk, pending = [], 0
        chunk.append(group)
        pending += group.rows
    if chunk:
        yield chunk


@dataclass(frozen=True)
class CandidateFiles:
    """A run's candidate files.

    Attributes:
        root: A folder or URL that all tasks reach.
        storage_options: Of the object store.
        names: The files' paths there.
        schema: Their columns.
    """

    root: str
    storage_options: Mapping[str, str]
    names: Sequence[str]
    schema: pa.Schema

    def create_view(
        self, connection: DuckDBPyConnection, name: str, groups: Sequence[RowGroup], columns: Sequence[str]
    ) -> None:
        """Create a view of row groups, with the place of each row. It can be read once; `unregister` it afterwards.

        Args:
            connection: DuckDB connection.
            name: The view's name.
            groups: Row groups, of each file consecutive ones; others between them may be read, too.
            columns: The columns to read.
        """
        if groups and "://" not in self.root:  # in place, by all threads
            spans = (self._span_sql(number, list(members), columns) for number, members in groupby(groups, key=_file))
            connection.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS {' UNION ALL '.join(spans)}")
            return
        import pyarrow as pa

        fields = [self.schema.field(column).with_nullable(nullable=True) for column in columns]
        schema = pa.schema([*fields, pa.field(FILE, pa.int32()), pa.field(ROW, pa.int64())])
        connection.register(name, pa.RecordBatchReader.from_batches(schema, self._iter_batches(groups, columns, schema)))

    def _span_sql(self, number: int, groups: Sequence[RowGroup], columns: Sequence[str]) -> str:
        path = quote_literal(escape_glob(Path(self.root, self.names[number])))
        return f"""SELECT {", ".join(columns)}, {number}::INTEGER AS {FILE}, file_row_number AS {ROW}
            FROM read_parquet({path}, file_row_number = true, hive_partitioning = false)
            WHERE file_row_number >= {groups[0].first_row} AND file_row_number < {groups[-1].first_row + groups[-1].rows}"""

    def _iter_batches(self, groups: Sequence[RowGroup], columns: Sequence[str], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        files = open_file_system(self.root, self.storage_options)
        for number, members in groupby(groups, key=_file):
            with files.open_input_file(self.names[number]) as opened:
                file = pq.ParquetFile(opened)
                for group in members:
                    row = group.first_row
                    for batch in file.iter_batches(_BATCH, row_groups=[group.number], columns=list(columns)):
                        place = [
                            pa.repeat(pa.scalar(number, pa.int32()), len(batch)),
                            pa.array(np.arange(row, row + len(batch))),
                        ]
                        yield pa.RecordBatch.from_arrays([*(batch.column(name) for name in columns), *place], schema=schema)
                        row += len(batch)


def _file(group: RowGroup) -> int:
    return group.file
