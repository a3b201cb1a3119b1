# SPDX-License-Identifier: Apache-2.0
"""Heartbeats from within a batch: each model process counts the groups of contexts it has processed, in a file.

A large batch on a slow machine takes longer than a server may be silent. Who watches the server reads the count: while it grows, the
model is at work. Both ends import this file, so it needs the standard library alone.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

__all__ = ["FOLDER_VARIABLE", "Heartbeat", "read_beats"]

logger = logging.getLogger(__name__)

#: Environment variable that names the folder of the files; a server that nobody watches over has none.
FOLDER_VARIABLE: Final = "SCALR_HEARTBEATS"
_BYTES: Final = 8


class Heartbeat:
    """Count the progress of one process of a version.

    Args:
        model: The model's name in the server.
        version: Its version.
        instance: What tells the process from others of the version.
        folder: Where the file is; default: as the environment says. None, and no such variable: nothing is written.
    """

    def __init__(self, model: str, version: int, instance: str, folder: str | Path | None = None) -> None:
        folder = folder if folder is not None else os.environ.get(FOLDER_VARIABLE)
        self._count = 0
        self._file: int | None = None
        if folder is None:
            return
        try:
            self._file = os.open(
                Path(folder) / (_begin(model, version) + instance), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            logger.warning("no sign of life can be given: %s", error)

    def beat(self) -> None:
        """Count one more group."""
        if self._file is None:
            return
        self._count += 1
        try:
            os.pwrite(self._file, self._count.to_bytes(_BYTES, "little"), 0)
        except OSError as error:  # a full disk must not end the answer that is being worked on
            logger.warning("no sign of life can be given: %s", error)
            os.close(self._file)
            self._file = None


def read_beats(folder: Path, model: str, version: int) -> int:
    """Return the sum of a version's counts, or -1 if there are none; a count restarts with its process."""
    try:
        files = [path for path in folder.iterdir() if path.name.startswith(_begin(model, version))]
        counts = [int.from_bytes(path.read_bytes(), "little") for path in files]
    except OSError:
        return -1
    return sum(counts) if counts else -1


def _begin(model: str, version: int) -> str:
    """Return the common prefix of a version's file names."""
    return f"{model}-{version}-"
