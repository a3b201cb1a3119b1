# SPDX-License-Identifier: Apache-2.0
"""Arrays in files without a name: those that are read are mapped into memory, of which the system keeps what it has room for.

A file is gone when nobody holds its array any more, however the process ends. On a file system that is itself memory (tmpfs) its arrays
take that memory. A full disk is reported when a file is written, and not when an array is read; so it is where the file system tells it
then, as those on local disks do.
"""

from __future__ import annotations

import mmap
import tempfile
import weakref
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.disk import disk_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["Rows", "let_go", "on_disk", "passed"]

#: A plain set, which can be copied in one step: arrays come and go in several threads, at any time.
_mapped: Final[set[weakref.ref[mmap.mmap]]] = set()


def on_disk(parts: Iterable[Sequence[NDArray[Any]]], dtypes: Sequence[Any], folder: Path | None) -> list[NDArray[Any]]:
    """What comes part by part, as arrays that cannot be written to.

    Args:
        parts: Of each array [n]. One part is held at a time.
        dtypes: Of the arrays.
        folder: Where their files lie; None: where the system has its temporary files.

    Returns:
        Each [sum of n].

    Raises:
        LakeError: The disk is full, or the folder cannot be written to.
    """
    with ExitStack() as opened:
        files = [opened.enter_context(_file_in(folder)) for _ in dtypes]
        for part in parts:
            with _told(folder):
                for file, array, dtype in zip(files, part, dtypes, strict=True):
                    file.write(np.ascontiguousarray(array, dtype).data)
        with _told(folder):
            return [_mapped_in(file, dtype) for file, dtype in zip(files, dtypes, strict=True)]


def _file_in(folder: Path | None) -> IO[bytes]:
    with _told(folder):
        return tempfile.TemporaryFile(dir=folder)


def _told(folder: Path | None) -> AbstractContextManager[None]:
    return disk_errors(folder or Path(tempfile.gettempdir()))


def _mapped_in(file: IO[bytes], dtype: Any) -> NDArray[Any]:
    file.flush()
    if not file.tell():  # nothing cannot be mapped
        return np.empty(0, dtype)
    pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _mapped.add(weakref.ref(pages, _mapped.discard))
    return np.frombuffer(pages, dtype)


def let_go() -> None:
    """Let the system have the memory of what was read of all arrays here. They stay as they are; what is asked for is read again."""
    if hasattr(mmap, "MADV_DONTNEED"):
        for held in _mapped.copy():
            pages = held()
            if pages is not None:
                pages.madvise(mmap.MADV_DONTNEED)


def passed(length: int, at_a_time: int = 1_000_000) -> Iterator[slice]:
    """Slices that cover ``length`` rows, ``at_a_time`` each, one at the least. After each, what was read of arrays is let go of."""
    for first in range(0, max(length, 1), at_a_time):
        yield slice(first, min(first + at_a_time, length))
        let_go()


class Rows(AbstractContextManager["Rows"]):
    """A matrix in a file, read and written some rows at a time; zeros where nothing was written. For one thread; closed on exit."""

    def __init__(self, rows: int, width: int, dtype: Any, folder: Path | None) -> None:
        """Make its file.

        Args:
            rows: How many.
            width: Of each.
            dtype: Of the numbers.
            folder: As in `on_disk`.

        Raises:
            LakeError: The file cannot be made.
        """
        self._dtype, self._width, self._folder = np.dtype(dtype), width, folder
        with _told(folder):
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed at the exit
            self._file.truncate(rows * width * self._dtype.itemsize)

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start`` to ``stop`` (half-open): [stop - start, width], the caller's own.

        Raises:
            IndexError: There are not as many.
        """
        found = np.empty((stop - start, self._width), self._dtype)
        left = _bytes_of(found)
        self._file.seek(start * self._width * self._dtype.itemsize)
        while len(left):
            count = self._file.readinto(left)
            if not count:
                raise IndexError(f"rows {start} to {stop} go beyond the last one")
            left = left[count:]
        return found

    def write(self, start: int, rows: NDArray[Any]) -> None:
        """Replace the rows from ``start`` on.

        Args:
            start: The first one's number.
            rows: [n, width].

        Raises:
            LakeError: The disk is full.
        """
        left = _bytes_of(np.ascontiguousarray(rows, self._dtype))
        with _told(self._folder):
            self._file.seek(start * self._width * self._dtype.itemsize)
            while len(left):
                left = left[self._file.write(left) :]


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return array.data.cast("B") if array.size else memoryview(b"")
