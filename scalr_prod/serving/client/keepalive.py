# SPDX-License-Identifier: Apache-2.0
"""Heartbeats from within a batch: each model process counts the groups of contexts it has processed, in a file.

A large batch on a slow machine takes longer than a server may be silent. The watchdog reads the count: while it grows, the model is
working. Client and server import this file, so it uses only the standard library.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

#: Environment variable with the folder of the files; not set for a server without a watchdog.
HEARTBEAT_FOLDER_VARIABLE: Final = "SCALR_HEARTBEATS"
_BYTES: Final = 8


class Heartbeat:
    """Count the progress of one process of a version.

    Args:
        model: The model's name in the server.
        version: Its version.
        instance: Distinguishes the processes of a version.
        folder: Folder of the file; default: the environment variable's. If neither is set, nothing is written.
    """

    def __init__(self, model: str, version: int, instance: str, folder: str | Path | None = None) -> None:
        folder = folder if folder is not None else os.environ.get(HEARTBEAT_FOLDER_VARIABLE)
        self._count = 0
        self._file: int | None = None
        if folder is None:
            return
        try:
            self._file = os.open(
                Path(folder) / (_file_prefix(model, version) + instance), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            logger.warning("cannot write the heartbeat: %s", error)

    def beat(self) -> None:
        """Count one more group."""
        if self._file is None:
            return
        self._count += 1
        try:
            os.pwrite(self._file, self._count.to_bytes(_BYTES, "little"), 0)
        except OSError as error:  # a full disk must not fail the current answer
            logger.warning("cannot write the heartbeat: %s", error)
            os.close(self._file)
            self._file = None


def read_heartbeat_count(folder: Path, model: str, version: int) -> int:
    """Return the sum of a version's counts, or -1 if there are none; a count restarts with its process."""
    try:
        files = [path for path in folder.iterdir() if path.name.startswith(_file_prefix(model, version))]
        counts = [int.from_bytes(path.read_bytes(), "little") for path in files]
    except OSError:
        return -1
    return sum(counts) if counts else -1


def _file_prefix(model: str, version: int) -> str:
    """Return the common prefix of a version's file names."""
    return f"{model}-{version}-"
