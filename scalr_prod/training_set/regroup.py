# SPDX-License-Identifier: Apache-2.0
"""On-disk regrouping of rows: written in one order, read back by group.

Each appended table is split into at most `_FAN_OUT` record batches. If there are more groups, consecutive ones share a batch, and are
written apart to a file of their own when they are read. Otherwise the batches of many groups would have a few rows each, and their number
would grow with the square of the rows.
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    import pyarrow as pa
    from numpy.typing import NDArray


#: Most record batches of an appended table. A second pass costs as much as batches of about 30 rows.
_FAN_OUT: Final = 1_000
#: Rows written apart at once.
_ROWS_AT_ONCE: Final = 100_000
_GROUP: Final = "group"


class GroupedArrowFile:
    """An Arrow file whose rows are read by group; memory holds one table at a time.

    Args:
        path: The file; removed on exit.
        groups: Number of groups, which are numbered from 0 on.
    """

    def __init__(self, path: Path, *, groups: int = _FAN_OUT) -> None:
        self._path = path
        #: Consecutive groups that share a batch: a part.
        self._width = -(-groups // _FAN_OUT)
        self._present: set[int] = set()
        self._batches: dict[int, list[int]] = {}
        #: The part that is written apart, and its file.
        self._apart: tuple[int, GroupedArrowFile] | None = None
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
            if self._apart is not None:
                self._apart[1].__exit__(kind, error, trace)

    def append(self, rows: pa.Table, groups: NDArray[np.int64]) -> None:
        """Append rows.

        Args:
            rows: Rows with the same columns at every call.
            groups: int64 [N]. The group of each row.
        """
        import pyarrow as pa

        self._present.update(np.unique(groups).tolist())
        if self._width > 1:
            rows, groups = rows.append_column(_GROUP, pa.array(groups)), groups // self._width
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
        (batch,) = rows.combine_chunks().to_batches()  # each part's rows are a slice of it
        for start, stop in pairwise(ends):
            self._writer.write_batch(batch.slice(start, stop - start))
            self._batches.setdefault(int(groups[start]), []).append(self._count)
            self._count += 1

    @property
    def groups(self) -> list[int]:
        """Groups with rows, ascending."""
        return sorted(self._present)

    def read_group(self, group: int) -> pa.Table:
        """Read the rows of a group, in the order of arrival. Nothing can be appended afterwards.

        Read groups in their order: if there are many, each step from one part to another writes a part apart.
        """
        import pyarrow as pa

        part, number = divmod(group, self._width)
        if self._width > 1:
            return self._write_apart(part).read_group(number)
        reader = self._open_reader()
        return pa.Table.from_batches([reader.get_batch(number) for number in self._batches[part]])

    def _write_apart(self, part: int) -> GroupedArrowFile:
        """Return the file of a part's groups, which are numbered from 0 on there."""
        import pyarrow as pa

        if self._apart is not None and self._apart[0] == part:
            return self._apart[1]
        if self._apart is not None:
            self._apart[1].__exit__(None, None, None)
        file = GroupedArrowFile(self._path.with_name(f"{self._path.name}.part"), groups=self._width)
        self._apart = part, file
        pending: list[pa.RecordBatch] = []
        numbers = self._batches[part]
        for number in numbers:
            pending.append(self._open_reader().get_batch(number))
            if sum(map(len, pending)) >= _ROWS_AT_ONCE or number == numbers[-1]:
                rows = pa.Table.from_batches(pending)
                file.append(rows.drop_columns(_GROUP), rows.column(_GROUP).to_numpy() - part * self._width)
                pending = []
        return file

    def _open_reader(self) -> Any:
        import pyarrow as pa

        if self._reader is None:
            self._files.close()  # closing writes the footer with the batch offsets
            source = self._files.enter_context(pa.OSFile(str(self._path), "rb"))
            options = pa.ipc.IpcReadOptions(use_threads=False)
            self._reader = self._files.enter_context(pa.ipc.open_file(source, options=options))
        return self._reader
