# SPDX-License-Identifier: Apache-2.0
"""Locks between processes that raise an error of this package."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scalr_prod.errors import ScalrError


@contextmanager
def file_lock(path: Path, busy: ScalrError, *, timeout_s: float = 0) -> Iterator[None]:
    """Hold a lock file within the block.

    Args:
        path: The lock file; its folder exists.
        busy: Raised if another process holds the lock for too long.
        timeout_s: Seconds to wait for it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=timeout_s)
    try:
        lock.acquire()
    except Timeout as error:
        raise busy from error
    try:
        yield
    finally:
        lock.release()
