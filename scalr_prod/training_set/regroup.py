# SPDX-License-Identifier: Apache-2.0
"""On-disk regrouping of rows: written in one order, read back by group."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["GroupedArrowFile"]


class GroupedArrowFile:
    """An Arrow file with one record batch per group of each appended table; memory holds one table at a time.

    Args:
        path: The file; removed on exit.
        column: int64 column with unique row numbers, to sort a group by; None: a group's rows keep the order of arrival.
    """

    def __init__(self, path: Path, column: str | None = None) -> None:
        self._path, self._column = path, column
        self._batches: dict[int, list[int]] = {}
        self._count = 0
        self._files = ExitStack()
        self._writer: Any = None
        self._reader: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._files.close()
        finally:
            self._path.unlink(missing_ok=True)

    def append(self, rows: pa.Table, groups: NDArray[np.int64]) -> None:
        """Append rows.

        Args:
            rows: Rows with the same columns at every call.
            groups: int64 [N]. The group of each row.
        """
        import pyarrow as pa

        if self._writer is None:
            sink = self._files.enter_context(pa.OSFile(str(self._path), "wb"))
            # A thread pool costs more than it saves for batches of a few hundred rows.
            options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
            self._writer = self._files.enter_context(pa.ipc.new_file(sink, rows.schema, options=options))
        if not len(groups):
            return
        if (np.diff(groups) < 0).any():
            order = np.argsort(groups, kind="stable")
            rows, groups = rows.take(pa.array(order)), groups[order]
        ends = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(groups)]
        (batch,) = rows.combine_chunks().to_batches()  # each group's rows are a slice of it
        for start, stop in pairwise(ends):
            self._writer.write_batch(batch.slice(start, stop - start))
            self._batches.setdefault(int(groups[start]), []).append(self._count)
            self._count += 1

    @property
    def groups(self) -> list[int]:
        """Groups with rows, ascending."""
        return sorted(self._batches)

    def read_group(self, group: int) -> pa.Table:
        """Read the rows of a group, sorted by row number if there is one. Nothing can be appended afterwards."""
        import pyarrow as pa

        if self._reader is None:
            self._files.close()  # closing writes the footer with the batch offsets
            source = self._files.enter_context(pa.OSFile(str(self._path), "rb"))
            options = pa.ipc.IpcReadOptions(use_threads=False)
            self._reader = self._files.enter_context(pa.ipc.open_file(source, options=options))
        rows = pa.Table.from_batches([self._reader.get_batch(number) for number in self._batches[group]])
        if self._column is None:
            return rows
        numbers = rows.column(self._column).to_numpy()
        return rows if (np.diff(numbers) > 0).all() else rows.take(pa.array(np.argsort(numbers)))
