# SPDX-License-Identifier: Apache-2.0
"""Where compiled code is kept, so that each machine compiles a package once: in a folder that nobody else may write to.

The folder's name is a digest of the translator's sources and of what compiles them, so that no process runs the code of another
package. numba's own index tells processors apart. Its files are pickles: they are trusted as the package's own bytecode is.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import stat
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Final

__all__ = ["empty", "folder"]

logger = logging.getLogger(__name__)
_TRANSLATOR: Final = Path(__file__).resolve().parents[1]
#: What the code is compiled by and for, beside the interpreter.
_COMPILERS: Final = ("numba", "llvmlite", "numpy")
_UNUSED_S: Final = 30 * 86_400


@cache
def folder() -> Path | None:
    """The folder, made if need be: in that of ``NUMBA_CACHE_DIR`` or ``XDG_CACHE_HOME``, else in ``~/.cache``; None: there is none.

    It is not used where it cannot be written to, where it belongs to another user, and where others may write to it.
    """
    place = _base()
    if place is None:
        return None
    try:
        place.parent.parent.mkdir(parents=True, exist_ok=True)
        for one in (place.parent, place):
            one.mkdir(mode=0o700, exist_ok=True)
        refused = _refused(place)
    except OSError as error:
        refused = str(error)
    if refused:
        logger.info("compiled code is not kept, so that each process compiles for seconds: %s", refused)
        return None
    _drop_unused(place)
    return place


def empty() -> None:
    """Remove what is kept."""
    place = folder()
    for file in place.rglob("*.nb[ci]") if place is not None else ():
        file.unlink(missing_ok=True)


def _base() -> Path | None:
    named = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    try:
        base = Path(named) if named else Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        return None
    return base.absolute() / "scalr_prod" / _key()


def _key() -> str:
    digest = hashlib.sha256()
    for file in sorted(_TRANSLATOR.rglob("*.py")):
        digest.update(file.read_bytes())
    digest.update(repr([sys.implementation.cache_tag, *map(metadata.version, _COMPILERS)]).encode())
    return digest.hexdigest()[:16]


def _drop_unused(place: Path) -> None:
    """Remove other packages' folders that no process has asked for in a month."""
    now = time.time()
    os.utime(place)
    for other in place.parent.iterdir():
        if not re.fullmatch(r"[0-9a-f]{16}", other.name):  # somebody else's
            continue
        try:
            if now - other.stat().st_mtime > _UNUSED_S:
                shutil.rmtree(other)
        except OSError as error:  # another process removes it
            logger.debug("%s stays: %s", other, error)


def _refused(place: Path) -> str | None:
    """Why a folder, or ours above it, is not used."""
    for one in (place.parent, place):
        found = one.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            return f"{one} is no folder of this user alone"
    return None if os.access(place, os.W_OK | os.X_OK) else f"{place} cannot be written to"
