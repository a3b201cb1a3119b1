# SPDX-License-Identifier: Apache-2.0
"""On-disk cache of compiled code, so that each machine compiles a package version once.

The folder's name is a digest of the translator's sources and the compilers' versions. So no process runs code of another package version.
numba's own index distinguishes processors. Cache files are pickles, which can run any code when they are loaded: the folder must be
writable by this user only.
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

logger = logging.getLogger(__name__)
_TRANSLATOR: Final = Path(__file__).resolve().parents[1]
#: Packages that determine the compiled code, besides the interpreter.
_COMPILERS: Final = ("numba", "llvmlite", "numpy")
_UNUSED_S: Final = 30 * 86_400


@cache
def folder() -> Path | None:
    """Return the cache folder, created if needed, in ``NUMBA_CACHE_DIR``, ``XDG_CACHE_HOME`` or ``~/.cache``; None: no cache.

    The folder is not used if it is not writable, belongs to another user, or is writable by other users.
    """
    path = _cache_path()
    if path is None:
        return None
    try:
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        for directory in (path.parent, path):
            directory.mkdir(mode=0o700, exist_ok=True)
        reason = _unsafe_reason(path)
    except OSError as error:
        reason = str(error)
    if reason:
        logger.info("compiled code is not cached, so that each process compiles for several seconds: %s", reason)
        return None
    _drop_unused(path)
    return path


def clear() -> None:
    """Delete all cached code."""
    path = folder()
    for file in path.rglob("*.nb[ci]") if path is not None else ():
        file.unlink(missing_ok=True)


def _cache_path() -> Path | None:
    """Return the path of the cache folder; None if the user has no home folder."""
    configured = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    try:
        base = Path(configured) if configured else Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        return None
    return base.absolute() / "scalr_prod" / _key()


def _key() -> str:
    """Return the digest of sources and versions that names the folder."""
    digest = hashlib.sha256()
    for file in sorted(_TRANSLATOR.rglob("*.py")):
        digest.update(file.read_bytes())
    digest.update(repr([sys.implementation.cache_tag, *map(metadata.version, _COMPILERS)]).encode())
    return digest.hexdigest()[:16]


def _drop_unused(path: Path) -> None:
    """Delete the folders of other package versions that no process has used for 30 days."""
    now = time.time()
    os.utime(path)
    for other in path.parent.iterdir():
        if not re.fullmatch(r"[0-9a-f]{16}", other.name):  # not a cache folder
            continue
        try:
            if now - other.stat().st_mtime > _UNUSED_S:
                shutil.rmtree(other)
        except OSError as error:  # another process deletes it
            logger.debug("could not delete %s: %s", other, error)


def _unsafe_reason(path: Path) -> str | None:
    """Return why a folder or its parent must not be used; None if both are safe."""
    for directory in (path.parent, path):
        status = directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            return f"{directory} is not a folder that only this user can write to"
    return None if os.access(path, os.W_OK | os.X_OK) else f"{path} is not writable"
