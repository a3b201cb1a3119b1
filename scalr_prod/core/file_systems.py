# SPDX-License-Identifier: Apache-2.0
"""One file system interface for folders of this machine and for object stores, and hard links."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

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
    from deltalake.fs import DeltaStorageHandler

    return PyFileSystem(DeltaStorageHandler(root, dict(storage_options)))


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
