# SPDX-License-Identifier: Apache-2.0
"""One file system interface for folders of this machine and for object stores, and hard links."""

from __future__ import annotations

import os
import shutil
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pyarrow.fs import FileSystem


def open_file_system(root: str, storage_options: Mapping[str, str]) -> FileSystem:
    """Open a folder or URL as a pyarrow file system whose paths are relative to it.

    Object stores are opened by the Delta library, so they need the same storage options as the lake's tables.
    """
    from pyarrow.fs import LocalFileSystem, PyFileSystem, SubTreeFileSystem

    if "://" not in root:
        return SubTreeFileSystem(root, LocalFileSystem())
    return PyFileSystem(_handler_class()(root, dict(storage_options)))


@cache
def _handler_class() -> Any:
    import pyarrow as pa
    from deltalake.fs import DeltaStorageHandler

    class Handler(DeltaStorageHandler):
        def open_output_stream(self, path: str, metadata: dict[str, str] | None = None) -> pa.PythonFile:
            return pa.PythonFile(_BytesWriter(self._handler.open_output_stream(path, metadata)), mode="w")

    return Handler


class _BytesWriter:
    """A file that is given bytes only: pyarrow writes large columns as buffers, which the Delta library's files refuse."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: Any) -> Any:
        return self._file.write(bytes(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def link_or_copy(source: Path, destination: Path) -> None:
    """Give a file that never changes a second path: a hard link, or a copy if the file system has no hard links.

    Raises:
        OSError: The destination exists or cannot be written.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, destination)
    except FileExistsError:
        raise
    except OSError:  # no hard links here, or nothing can be written: the copy's error names the destination
        shutil.copyfile(source, destination)
