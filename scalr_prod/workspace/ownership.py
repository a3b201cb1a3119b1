# SPDX-License-Identifier: Apache-2.0
"""Ownership of the folders that the settings name: only files that this package made are ever overwritten.

A folder that this package writes into holds a marker file. A folder without one is claimed if nothing lies where the package would write;
otherwise it is foreign and left alone.
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, Final

from scalr_prod.core.disk_errors import translate_disk_errors
from scalr_prod.core.file_modes import PRIVATE_FOLDER
from scalr_prod.errors import ForeignFiles, SettingsError
from scalr_prod.workspace.identity import bind_to_project

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from scalr_prod.config import Settings


#: Characters that the Delta library rejects in paths, and escapes that database URLs decode (``%20`` to a blank).
_NO_PATH: Final = re.compile(r"[\x00-\x1f\[\]^|\\?]|%[0-9A-Fa-f]{2}")
_TEXT: Final = "Made by scalr_prod, which may write over the files that it made here. Remove nothing by hand.\n"
#: Everything that the package writes below a project's home; any other entry is not ours.
HOME_ENTRIES: Final = (
    *(
        "consent",
        "data_docs",
        "datasets",
        "evaluations",
        "feast_online.db",
        "feast_registry.db",
        "feature_repo",
        "forgotten",
        "gx",
        "ingested.json",
        "lake",
    ),
    *("ledger.db", "models", "reports", "runs", "stages.json", "staging", "triton", "triton-server", "user_days.parquet"),
)


def claim_directory(
    folder: Path,
    kind: str,
    *,
    setting: str | None,
    names: Iterable[str] | None,
    mode: int = 0o777,
) -> None:
    """Claim a folder for the package: check that its content is ours, create it if missing, and mark it.

    Args:
        folder: The folder.
        kind: Its purpose, part of the marker's name; a folder may have several.
        setting: The settings key that names it, for the error; None: the command line named it.
        names: Files and folders that will be written below it; None: the whole folder.
        mode: Mode of the folder if it is created, less the umask. An existing folder keeps its mode.

    Raises:
        ForeignFiles: It holds files that this package did not make. Nothing was written.
        OSError: The folder cannot be created or written to.
    """
    marker = folder / f".scalr-{kind}"
    if marker.is_file():
        return
    existing = [name for name in (names if names is not None else _listed(folder)) if not is_empty(folder / name)]
    # Check the marker again: another process may have claimed the folder meanwhile, and it writes the marker first.
    if existing and not marker.is_file():
        raise ForeignFiles(
            f"contains {', '.join(sorted(existing)[:3])}, which this package did not make and would overwrite",
            where=str(folder),
            next_step=f"name another folder{f' as {setting} in scalr.toml' if setting else ''}, or move these files away; "
            f"if they are a copy of such a folder, restore {marker.name} with them",
        )
    try:
        folder.mkdir(mode, parents=True, exist_ok=True)
    except FileNotFoundError as error:  # below /proc, for example
        raise OSError(errno.EPERM, "no folder can be created here", str(folder)) from error
    marker.write_text(_TEXT, encoding="utf-8")  # only its existence counts


def ensure_supported_path(path: str, setting: str) -> None:
    """Reject a path that the libraries for tables and databases cannot handle.

    Raises:
        SettingsError: The path holds such a character.
    """
    if unsupported := _NO_PATH.search(path):
        raise SettingsError(
            f"tables and databases cannot be kept in a folder whose path contains {unsupported[0]!r}",
            where=path,
            next_step=f"name another folder as {setting} in scalr.toml",
        )


def claim_home(settings: Settings) -> None:
    """Claim the home for the package and bind it to the project; a new one can be entered by this user alone.

    Raises:
        SettingsError: Its path holds characters that databases cannot handle. Nothing was written.
        ProjectsMixed: It belongs to another project. Nothing was written.
        ForeignFiles: It holds foreign files under names that the package uses. Nothing was written.
        LakeError: It cannot be created or written to.
    """
    setting = "[project] home"
    ensure_supported_path(str(settings.home), setting)
    with translate_disk_errors(settings.home):
        claim_directory(settings.home, "home", setting=setting, names=HOME_ENTRIES, mode=PRIVATE_FOLDER)
    bind_to_project(settings, settings.home, setting)


def is_home(folder: Path) -> bool:
    """Return whether a folder is marked as a project's home."""
    return (folder / ".scalr-home").is_file()


def is_empty(path: Path) -> bool:
    """Return whether a path does not exist or is a folder without files."""
    if path.is_symlink() or path.is_file():
        return False
    return not path.exists() or all(is_empty(below) for below in path.iterdir())


def _listed(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []
