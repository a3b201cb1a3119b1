# SPDX-License-Identifier: Apache-2.0
"""The rows of a Parquet file, some at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["batches_of"]


def batches_of(file: pq.ParquetFile, rows: int, *, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows in order, in batches of so many at most.

    pyarrow keeps what it has read of every row group that it was asked for, until the last of them is read: of a long file, the file.
    So it is asked for as many as hold a batch.

    Args:
        file: The open file.
        rows: Most rows of a batch.
        columns: Which columns; default: all.
    """
    some: list[int] = []
    held = 0
    for number in range(file.num_row_groups):
        some.append(number)
        held += file.metadata.row_group(number).num_rows
        if held >= rows or number == file.num_row_groups - 1:
            yield from file.iter_batches(batch_size=rows, row_groups=some, columns=columns)
            some, held = [], 0
