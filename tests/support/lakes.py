"""Lakes that are filled once a process: each project gets a copy, since to write one takes longer than most of what is asked of it."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from scalr_prod.lake import Lake

if TYPE_CHECKING:
    from collections.abc import Callable

    from scalr_prod.config.settings import Settings

__all__ = ["fill_lake_once", "mark_home"]

_filled: dict[str, Path] = {}


def fill_lake_once(settings: Settings, key: str, fill: Callable[[Lake], None]) -> None:
    """Give a project the lake that `fill` makes.

    Args:
        settings: The project's.
        key: Lakes of the same key are the same.
        fill: Fills an empty lake, and adds nothing to one that it has filled. It is called for a lake that is there, or in a store.
    """
    mark_home(settings)
    if "://" in settings.lake_url or Path(settings.lake_url).exists():
        fill(Lake.open(settings))
        return
    if key not in _filled:
        folder = Path(tempfile.mkdtemp(prefix="scalr-lake-"))
        atexit.register(_remove, folder, os.getpid())
        fill(Lake(str(folder), {}))
        _filled[key] = folder
    shutil.copytree(_filled[key], settings.lake_url)


def mark_home(settings: Settings) -> None:
    """Mark a home that a test fills by hand, as the first command of a project does before it writes anything."""
    settings.home.mkdir(parents=True, exist_ok=True)
    (settings.home / ".scalr-home").touch()


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a fork
        shutil.rmtree(folder, ignore_errors=True)
