# SPDX-License-Identifier: Apache-2.0
"""Translation of disk errors into `LakeError`."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

from scalr_prod.errors import LakeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["translate_disk_errors"]

_UNWRITABLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EIO,
}


@contextmanager
def translate_disk_errors(where: str | Path) -> Iterator[None]:
    """Within the block, raise `LakeError` where the disk is full or cannot be written to.

    Args:
        where: The folder that is written to; reported where the system's error names no file.

    Raises:
        LakeError: Instead of the operating system's own error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise LakeError(
            f"cannot be written to: {error.strerror or error}",
            where=str(error.filename or where),
            next_step="free some space, or set [project] home to a writable folder; then run the command again",
        ) from error
