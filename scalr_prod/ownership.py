# SPDX-License-Identifier: Apache-2.0
"""Folders that the settings name, and whether what lies in them is ours to write over.

A folder that this package writes into bears a marker file. One without a marker is taken if nothing lies where the package would
write, or if an earlier version, which left no marker, evidently made it; else it is somebody else's and stays as it is.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

from scalr_prod.contracts import Table
from scalr_prod.errors import ForeignFiles, SettingsError
from scalr_prod.identity import claim_for_project

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from scalr_prod.settings import Settings

__all__ = ["NAMES", "claim", "claim_home", "is_empty", "is_home", "refuse_path"]

#: What the library of Delta tables takes no path with, and, with URLs of databases, takes for something else: ``%20`` for a blank.
_NO_PATH: Final = re.compile(r"[\x00-\x1f\[\]^|\\?]|%[0-9A-Fa-f]{2}")
_TEXT: Final = "Made by scalr_prod, which may write over the files that it made here. Remove nothing by hand.\n"
#: Everything that is ever written below a project's home. What else lies there is not ours.
NAMES: Final = (
    *(
        "data_docs",
        "datasets",
        "evaluations",
        "feast_online.db",
        "feast_registry.db",
        "feature_repo",
        "forgotten",
        "gx",
        "lake",
    ),
    *("ledger.db", "models", "reports", "runs", "stages.json", "staging", "triton", "triton-server"),
)


def claim(folder: Path, kind: str, *, setting: str | None, names: Iterable[str] | None, former: Callable[[Path], bool]) -> None:
    """Make sure that the package may write into a folder, and mark it; a folder that is not there is made.

    Args:
        folder: The folder.
        kind: What it is to be, in the marker's name; a folder may be of several kinds.
        setting: The key of the settings that names it, for the error; None: the command line did.
        names: Files and folders that will be written below it; None: all of it will be the package's own.
        former: Whether a version that left no marker made what lies there.

    Raises:
        ForeignFiles: Something lies there that this package did not make. Nothing was written.
        OSError: The folder cannot be made or written to.
    """
    marker = folder / f".scalr-{kind}"
    if marker.is_file():
        return
    there = [name for name in (names if names is not None else _listed(folder)) if not is_empty(folder / name)]
    # Whoever claims the same folder at this moment writes the marker before all else: looked at again, now.
    if there and not former(folder) and not marker.is_file():
        raise ForeignFiles(
            f"holds {', '.join(sorted(there)[:3])}, which this package did not make and would write over",
            where=str(folder),
            next_step=f"name another folder{f' as {setting} in scalr.toml' if setting else ''}, or move these files away",
        )
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(_TEXT, encoding="utf-8")  # that it is there is all that counts


def refuse_path(path: str, setting: str) -> None:
    """Refuse a folder whose path the libraries of tables and databases do not take as it is written.

    Raises:
        SettingsError: It is one.
    """
    if found := _NO_PATH.search(path):
        raise SettingsError(
            f"tables and databases cannot be kept in a folder whose path holds {found[0]!r}",
            where=path,
            next_step=f"name another folder as {setting} in scalr.toml",
        )


def claim_home(settings: Settings) -> None:
    """Make sure that the home may be written into and is this project's, and mark it.

    Raises:
        SettingsError: Its path holds what no database can be kept below. Nothing was written.
        ProjectsMixed: It is another project's. Nothing was written.
        ForeignFiles: It holds something else under the names that the package uses. Nothing was written.
        OSError: It cannot be made or written to.
    """
    refuse_path(str(settings.home), "[project] home")
    claim(settings.home, "home", setting="[project] home", names=NAMES, former=_former_home)
    claim_for_project(settings, settings.home, "[project] home")


def is_home(folder: Path) -> bool:
    """Whether a folder bears the mark of a project's home."""
    return (folder / ".scalr-home").is_file()


def is_empty(path: Path) -> bool:
    """Whether there is nothing at a path, or a folder without files."""
    if path.is_symlink() or path.is_file():
        return False
    return not path.exists() or all(is_empty(below) for below in path.iterdir())


def _listed(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _former_home(folder: Path) -> bool:
    """By what only this package makes: its tables, its ledger, its models, its server's state, its feature repository."""
    lake = any((folder / "lake" / table.value / "_delta_log").is_dir() for table in Table)
    return (
        # Another project may have no more than its lake here.
        (lake and all(is_empty(folder / name) for name in NAMES if name != "lake"))
        or _is_ledger(folder / "ledger.db")
        or any((folder / "models" / "translator").glob("*/manifest.json"))
        or any((folder / "triton-server" / name).is_file() for name in ("server.json", "server.lock"))
        or (folder / "feature_repo" / "lake.json").is_file()
    )


def _is_ledger(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error:  # no SQLite database, or one that cannot be read
        return False
    return {"runs", "partitions", "publications"} <= tables
