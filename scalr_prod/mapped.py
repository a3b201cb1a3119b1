# SPDX-License-Identifier: Apache-2.0
"""Arrays in files without a name: those that are read are mapped into memory, of which the system keeps what it has room for.

A file is gone when nobody holds its array any more, however the process ends. A disk that is full is told when the file is written,
never when the array is read.
"""

from __future__ import annotations

import mmap
import tempfile
import weakref
from contextlib import AbstractContextManager, ExitStack
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Rows", "let_go", "on_disk", "passed"]

_mapped: Final[weakref.WeakSet[mmap.mmap]] = weakref.WeakSet()


def on_disk(parts: Iterable[Sequence[NDArray[Any]]], dtypes: Sequence[Any], folder: Path | None) -> list[NDArray[Any]]:
    """What comes part by part, as arrays that cannot be written to.

    Args:
        parts: Of each array [n]. One part is held at a time.
        dtypes: Of the arrays.
        folder: Where their files lie; None: where the system has its temporary files.

    Returns:
        Each [sum of n].

    Raises:
        OSError: The files cannot be written.
    """
    with ExitStack() as opened:
        files = [opened.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in dtypes]
        for part in parts:
            for file, array, dtype in zip(files, part, dtypes, strict=True):
                file.write(np.ascontiguousarray(array, dtype).data)
        return [_mapped_in(file, dtype) for file, dtype in zip(files, dtypes, strict=True)]


def _mapped_in(file: IO[bytes], dtype: Any) -> NDArray[Any]:
    file.flush()
    if not file.tell():  # nothing cannot be mapped
        return np.empty(0, dtype)
    pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _mapped.add(pages)
    return np.frombuffer(pages, dtype)


def let_go() -> None:
    """Let the system have the memory of what was read of all arrays here. They stay as they are; what is asked for is read again."""
    if hasattr(mmap, "MADV_DONTNEED"):
        for pages in list(_mapped):
            pages.madvise(mmap.MADV_DONTNEED)


def passed(length: int, at_a_time: int) -> Iterator[slice]:
    """All places of arrays as long, so many at a time, one part at the least; what was read is let go of after each part."""
    for first in range(0, max(length, 1), at_a_time):
        yield slice(first, min(first + at_a_time, length))
        let_go()


class Rows(AbstractContextManager["Rows"]):
    """A matrix in a file, read and written some rows at a time; zeros where nothing was written. For one thread; leaving it ends it."""

    def __init__(self, rows: int, width: int, dtype: Any, folder: Path | None) -> None:
        """Make its file.

        Args:
            rows: How many.
            width: Of each.
            dtype: Of the numbers.
            folder: As in `on_disk`.

        Raises:
            OSError: The file cannot be made.
        """
        self._dtype, self._width = np.dtype(dtype), width
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed at the exit
        self._file.truncate(rows * width * self._dtype.itemsize)

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start`` to ``stop`` (half-open): [stop - start, width], the caller's own."""
        found = np.empty((stop - start, self._width), self._dtype)
        left = _bytes_of(found)
        self._file.seek(start * self._width * self._dtype.itemsize)
        while len(left):
            left = left[self._file.readinto(left) :]
        return found

    def write(self, start: int, rows: NDArray[Any]) -> None:
        """Replace the rows from ``start`` on.

        Args:
            start: The first one's number.
            rows: [n, width].

        Raises:
            OSError: The disk is full.
        """
        left = _bytes_of(np.ascontiguousarray(rows, self._dtype))
        self._file.seek(start * self._width * self._dtype.itemsize)
        while len(left):
            left = left[self._file.write(left) :]


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return array.data.cast("B") if array.size else memoryview(b"")
