# SPDX-License-Identifier: Apache-2.0
"""Translation of disk errors into `LakeError`."""

from __future__ import annotations

import errno
import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from scalr_prod.errors import LakeError, ScalrError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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

#: The operating system's error in the message of a library in Rust (safetensors, deltalake), which raises errors of its own.
_NATIVE: Final = re.compile(r"\bos error (\d+)\b")


@contextmanager
def translate_disk_errors(where: str | Path) -> Iterator[None]:
    """Within the block, raise `LakeError` if the disk is full or cannot be written to.

    Args:
        where: The folder that is written to; reported where the system's error names no file.

    Raises:
        LakeError: Instead of the operating system's own error.
    """
    try:
        yield
    except ScalrError:
        raise
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise _unwritable(error.strerror or str(error), error.filename or where) from error
    except Exception as error:
        found = _NATIVE.search(str(error))
        if found is None or int(found[1]) not in _UNWRITABLE:
            raise
        raise _unwritable(os.strerror(int(found[1])), where) from error


def _unwritable(reason: str, where: str | Path) -> LakeError:
    return LakeError(
        f"cannot be written to: {reason}",
        where=str(where),
        next_step="free some space, or set [project] home to a writable folder; then run the command again",
    )
