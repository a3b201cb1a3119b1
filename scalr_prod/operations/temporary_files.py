# SPDX-License-Identifier: Apache-2.0
"""Folders that killed processes left in the folder of temporary files.

Only a folder of this user counts, with a name that this package's processes give, of which nothing has changed for a day, and that no
process uses any more.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["abandoned_folders"]

_MIN_AGE_S: Final = 86_400.0
_SUFFIX: Final = "[a-z0-9_]{8}"
#: Scratch folders, used for minutes: of previews, of `scalr doctor` and of the installation of a serving environment.
_SCRATCH: Final = re.compile(rf"scalr-(doctor-|serving-)?{_SUFFIX}")
#: Folders of sockets, of a local Triton and of Python's multiprocessing. A process that exits in order removes its sockets.
_SOCKETS: Final = re.compile(rf"(scalr-triton|pymp)-{_SUFFIX}")
#: Feast's folders of metrics; each file's name holds the id of its process.
_PROCESSES: Final = re.compile(rf"feast_metrics_{_SUFFIX}")
_PROCESS_FILE: Final = re.compile(r"[a-z_]+_(\d+)\.db")


def abandoned_folders() -> Iterator[Path]:
    """Yield the folders that killed processes left, sorted by name."""
    if os.name != "posix":
        return
    for folder in sorted(Path(tempfile.gettempdir()).iterdir()):
        try:
            if _is_abandoned(folder):
                yield folder
        except OSError:  # it has gone meanwhile, or cannot be read
            continue


def _is_abandoned(folder: Path) -> bool:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        return False
    if _SCRATCH.fullmatch(folder.name):
        return _is_old(status, *(path.lstat() for path in folder.rglob("*")))
    if _SOCKETS.fullmatch(folder.name):
        sockets = list(folder.iterdir())
        return bool(sockets) and _is_old(status) and all(_is_dead_socket(path) for path in sockets)
    if _PROCESSES.fullmatch(folder.name):
        files = [_PROCESS_FILE.fullmatch(path.name) for path in folder.iterdir()]
        return bool(files) and _is_old(status) and all(file is not None and not _runs(int(file[1])) for file in files)
    return False


def _is_old(*statuses: os.stat_result) -> bool:
    return time.time() - max(status.st_mtime for status in statuses) > _MIN_AGE_S


def _is_dead_socket(path: Path) -> bool:
    """Return whether a path is a socket that nobody listens on.

    A datagram socket cannot connect to a stream socket, so a server that is alive does not notice.
    """
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return bool(probe.connect_ex(str(path)) == errno.ECONNREFUSED)


def _runs(pid: int) -> bool:
    import psutil

    return bool(psutil.pid_exists(pid))
