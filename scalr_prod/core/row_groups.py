# SPDX-License-Identifier: Apache-2.0
"""Batched reading of a Parquet file in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa
    import pyarrow.parquet as pq


def iter_batches(
    file: pq.ParquetFile, batch_size: int, *, columns: Sequence[str] | None = None, groups: range | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows in order, in batches of at most ``batch_size`` rows.

    pyarrow keeps all row groups of one request in memory until the last is read: for a long file, the whole file. So each request covers
    only as many row groups as fill a batch.

    Args:
        file: The open file.
        batch_size: Most rows per batch.
        columns: The columns to read; default: all.
        groups: The row groups to read; default: all.
    """
    some: list[int] = []
    pending = 0
    wanted = range(file.num_row_groups) if groups is None else groups
    for number in wanted:
        some.append(number)
        pending += file.metadata.row_group(number).num_rows
        if pending >= batch_size or number == wanted[-1]:
            yield from file.iter_batches(batch_size=batch_size, row_groups=some, columns=columns)
            some, pending = [], 0
