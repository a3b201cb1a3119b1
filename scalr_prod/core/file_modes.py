# SPDX-License-Identifier: Apache-2.0
"""Access of other users to files: a umask that follows a folder's mode, and folders that only this user can enter."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


#: Mode of a folder that only its user can enter.
PRIVATE_FOLDER: Final = 0o700


@contextmanager
def umask_of(folder: Path) -> Iterator[None]:
    """Within the block, create files that are no more accessible than a folder: with mode 0600 where it has 0700 or does not exist yet.

    Bits that the process's own umask removes stay removed. The umask is the process's: not for use in a library.
    """
    try:
        mode = stat.S_IMODE(folder.stat().st_mode)
    except OSError:
        mode = PRIVATE_FOLDER
    before = os.umask(0o077)
    os.umask(before | (0o777 & ~mode))
    try:
        yield
    finally:
        os.umask(before)


def make_private_folder(folder: Path) -> None:
    """Create a folder in a place where other users can write, if it is missing; only this user can enter it.

    Raises:
        PermissionError: Something else has the name, or another user owns the folder.
        OSError: It cannot be created.
    """
    try:
        folder.mkdir(mode=PRIVATE_FOLDER, parents=True)
    except FileExistsError:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise PermissionError(f"{folder} is not a folder of this user") from None
        if stat.S_IMODE(status.st_mode) & ~PRIVATE_FOLDER:
            folder.chmod(PRIVATE_FOLDER)
