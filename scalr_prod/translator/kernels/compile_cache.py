# SPDX-License-Identifier: Apache-2.0
"""On-disk cache of compiled code, so that each machine compiles a package version once, in a folder only this user can write to.

The folder's name is a digest of the translator's sources and of the compilers' versions, so that no process runs the code of another
package version. numba's own index distinguishes processors. Its files are pickles, trusted like the package's own bytecode.
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

__all__ = ["clear", "folder"]

logger = logging.getLogger(__name__)
_TRANSLATOR: Final = Path(__file__).resolve().parents[1]
#: Packages that determine the compiled code, besides the interpreter.
_COMPILERS: Final = ("numba", "llvmlite", "numpy")
_UNUSED_S: Final = 30 * 86_400


@cache
def folder() -> Path | None:
    """Return the cache folder, created if needed: in ``NUMBA_CACHE_DIR`` or ``XDG_CACHE_HOME``, else in ``~/.cache``; None: no cache.

    The folder is not used if it is not writable, belongs to another user, or is writable by other users.
    """
    place = _cache_path()
    if place is None:
        return None
    try:
        place.parent.parent.mkdir(parents=True, exist_ok=True)
        for directory in (place.parent, place):
            directory.mkdir(mode=0o700, exist_ok=True)
        refused = _unsafe_reason(place)
    except OSError as error:
        refused = str(error)
    if refused:
        logger.info("compiled code is not cached, each process compiles for several seconds: %s", refused)
        return None
    _drop_unused(place)
    return place


def clear() -> None:
    """Delete all cached code."""
    place = folder()
    for file in place.rglob("*.nb[ci]") if place is not None else ():
        file.unlink(missing_ok=True)


def _cache_path() -> Path | None:
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
    """Delete the folders of other package versions that no process has used for 30 days."""
    now = time.time()
    os.utime(place)
    for other in place.parent.iterdir():
        if not re.fullmatch(r"[0-9a-f]{16}", other.name):  # not a cache folder of ours
            continue
        try:
            if now - other.stat().st_mtime > _UNUSED_S:
                shutil.rmtree(other)
        except OSError as error:  # another process deletes it
            logger.debug("could not delete %s: %s", other, error)


def _unsafe_reason(place: Path) -> str | None:
    """Return why a folder or its parent must not be used; None if both are safe."""
    for directory in (place.parent, place):
        status = directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            return f"{directory} is not a folder that only this user can write to"
    return None if os.access(place, os.W_OK | os.X_OK) else f"{place} is not writable"
