# SPDX-License-Identifier: Apache-2.0
"""One file system interface for folders of this machine and for object stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

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
