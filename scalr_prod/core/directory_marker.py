# SPDX-License-Identifier: Apache-2.0
"""Marker file of a project's folder: the project's name and a stable id that identifies the folder wherever it is mounted."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path


#: Valid project names: used in SQL rows, Feast projects, Redis keys and folders.
PROJECT_NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9_]{0,62}$"
_FILE: Final = ".scalr-project"


@dataclass(frozen=True)
class DirectoryMarker:
    """Content of a marker.

    Attributes:
        id: 32 hex digits.
        project: The project's name.
    """

    id: str
    project: str


def read_marker(folder: Path) -> DirectoryMarker | None:
    """Read a folder's marker, or None if there is no readable one."""
    try:
        return _read(folder)
    except OSError:
        return None


def _read(folder: Path) -> DirectoryMarker | None:
    """Read a folder's marker, or None if it is missing or invalid.

    Raises:
        OSError: It cannot be read at the moment.
    """
    try:
        content = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        mark = DirectoryMarker(id=str(content["id"]), project=str(content["project"]))
        return mark if re.fullmatch(PROJECT_NAME_PATTERN, mark.project) else None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def ensure_marker(folder: Path, project: str) -> DirectoryMarker:
    """Return a folder's marker, written first if missing; of several processes at once, the first wins.

    Raises:
        OSError: It cannot be read or written at the moment. An existing marker is never overwritten.
    """
    if (marker := _read(folder)) is not None:
        return marker
    mark = DirectoryMarker(uuid.uuid4().hex, project)
    _write(folder / _FILE, mark)
    return read_marker(folder) or mark


def rename_marker(folder: Path, mark: DirectoryMarker, project: str) -> None:
    """Change the project's name in a folder's marker.

    Raises:
        OSError: It cannot be written.
    """
    _write(folder / _FILE, replace(mark, project=project), over=True)


def _write(path: Path, mark: DirectoryMarker, *, over: bool = False) -> None:
    """Write a marker atomically."""
    scratch = path.with_name(f"{_FILE}-{uuid.uuid4().hex}")
    try:
        scratch.write_text(json.dumps(asdict(mark)) + "\n", encoding="utf-8")
        if over:
            scratch.replace(path)
            return
        try:
            path.hardlink_to(scratch)
        except FileExistsError:
            if _read(path.parent) is None:  # it is invalid; another process's marker stays
                scratch.replace(path)
        except OSError:  # a file system without hard links
            scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
