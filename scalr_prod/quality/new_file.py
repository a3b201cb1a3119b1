# SPDX-License-Identifier: Apache-2.0
"""Files that a command writes for the user to edit, and never over an existing one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.errors import QualityError

if TYPE_CHECKING:
    from pathlib import Path


def write_new_file(path: Path, text: str, *, if_exists: str = "remove it, or name another file") -> None:
    """Write a text file that does not exist yet; its folder is created if missing.

    Args:
        path: The file.
        text: Its content.
        if_exists: Next step of the error for an existing file.

    Raises:
        QualityError: The file exists, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            try:
                file.write(text)
                file.flush()
            except OSError:
                path.unlink()
                raise
    except FileExistsError as error:
        raise QualityError("already exists", where=str(path), next_step=if_exists) from error
    except OSError as error:
        raise QualityError(
            f"cannot be written: {error.strerror}", where=str(path), next_step="name a file in a folder that you may write to"
        ) from error
