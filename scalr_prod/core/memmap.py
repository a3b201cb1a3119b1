# SPDX-License-Identifier: Apache-2.0
"""Arrays in unnamed temporary files, mapped into memory: the system caches the pages that it has room for.

A file disappears with the last reference to its array, however the process ends. On tmpfs the arrays take memory. A full disk is reported
when a file is written, not when an array is read, on file systems that report it then (local disks do).
"""

from __future__ import annotations

import mmap
import tempfile
import weakref
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core.disk_errors import translate_disk_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray


#: A plain set: copying it is atomic, while other threads create and release arrays.
_mapped: Final[set[weakref.ref[mmap.mmap]]] = set()


def spill_arrays(batches: Iterable[Sequence[NDArray[Any]]], dtypes: Sequence[Any], folder: Path | None) -> list[NDArray[Any]]:
    """Write batches of arrays to temporary files and map each whole array read-only.

    Args:
        batches: Batches: per array [n]. One batch is held at a time.
        dtypes: Dtypes of the arrays.
        folder: Folder of the files; None: the system's temporary folder.

    Returns:
        Each [sum of n].

    Raises:
        LakeError: The disk is full, or the folder cannot be written to.
    """
    with ExitStack() as opened:
        files = [opened.enter_context(_temporary_file(folder)) for _ in dtypes]
        for batch in batches:
            with _disk_errors_in(folder):
                for file, array, dtype in zip(files, batch, dtypes, strict=True):
                    file.write(np.ascontiguousarray(array, dtype).data)
        with _disk_errors_in(folder):
            return [_map_array(file, dtype) for file, dtype in zip(files, dtypes, strict=True)]


def map_bytes(chunks: Iterable[bytes | memoryview], folder: Path | None, *, writable: bool = False) -> mmap.mmap:
    """Write bytes to a temporary file and map it; the buffer begins at the start of a page.

    Args:
        chunks: The bytes, at least one. One chunk is held at a time.
        folder: As in `spill_arrays`.
        writable: Whether the buffer may be changed. Changes stay in memory, and `drop_pages` leaves the buffer alone.

    Raises:
        LakeError: The disk is full, or the folder cannot be written to.
    """
    with _temporary_file(folder) as file, _disk_errors_in(folder):
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY if writable else mmap.ACCESS_READ)
    if not writable:
        _mapped.add(weakref.ref(pages, _mapped.discard))
    return pages


def _temporary_file(folder: Path | None) -> IO[bytes]:
    with _disk_errors_in(folder):
        return tempfile.TemporaryFile(dir=folder)


def _disk_errors_in(folder: Path | None) -> AbstractContextManager[None]:
    return translate_disk_errors(folder or Path(tempfile.gettempdir()))


def _map_array(file: IO[bytes], dtype: Any) -> NDArray[Any]:
    file.flush()
    if not file.tell():  # an empty file cannot be mapped
        return np.empty(0, dtype)
    pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _mapped.add(weakref.ref(pages, _mapped.discard))
    return np.frombuffer(pages, dtype)


def drop_pages() -> None:
    """Release the resident pages of all mapped arrays. The arrays stay valid: pages are read again on access."""
    if hasattr(mmap, "MADV_DONTNEED"):
        for held in _mapped.copy():
            pages = held()
            if pages is not None:
                pages.madvise(mmap.MADV_DONTNEED)


def iter_row_slices(length: int, rows_per_slice: int = 1_000_000) -> Iterator[slice]:
    """Yield slices of ``rows_per_slice`` rows that cover ``length`` rows, at least one; after each, resident pages are released."""
    for first in range(0, max(length, 1), rows_per_slice):
        yield slice(first, min(first + rows_per_slice, length))
        drop_pages()


class DiskMatrix(AbstractContextManager["DiskMatrix"]):
    """A matrix in a file, read and written by rows; zeros where nothing was written. For one thread; closed on exit."""

    def __init__(self, rows: int, width: int, dtype: Any, folder: Path | None) -> None:
        """Create the file.

        Args:
            rows: Number of rows.
            width: Number of columns.
            dtype: Dtype of the elements.
            folder: As in `spill_arrays`.

        Raises:
            LakeError: The file cannot be created.
        """
        self._dtype, self._width, self._folder = np.dtype(dtype), width, folder
        with _disk_errors_in(folder):
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed on exit
            self._file.truncate(rows * width * self._dtype.itemsize)

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Read rows ``start`` to ``stop`` (half-open) into a new array: [stop - start, width].

        Raises:
            IndexError: The matrix has fewer rows.
        """
        rows = np.empty((stop - start, self._width), self._dtype)
        left = _bytes_of(rows)
        self._file.seek(start * self._width * self._dtype.itemsize)
        while len(left):
            count = self._file.readinto(left)
            if not count:
                raise IndexError(f"rows {start} to {stop} go beyond the last one")
            left = left[count:]
        return rows

    def write(self, start: int, rows: NDArray[Any]) -> None:
        """Replace the rows from ``start`` on.

        Args:
            start: Number of the first row.
            rows: [n, width].

        Raises:
            LakeError: The disk is full.
        """
        left = _bytes_of(np.ascontiguousarray(rows, self._dtype))
        with _disk_errors_in(self._folder):
            self._file.seek(start * self._width * self._dtype.itemsize)
            while len(left):
                left = left[self._file.write(left) :]


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return array.data.cast("B") if array.size else memoryview(b"")
