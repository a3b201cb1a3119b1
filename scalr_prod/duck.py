"""A DuckDB session that stays within its memory and spills below the project's home."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scalr_prod.settings import Settings

__all__ = ["open_duckdb", "staging_folder"]


@contextmanager
def staging_folder(settings: Settings, stage: str) -> Iterator[Path]:
    """A new folder under ``<home>/staging``, removed afterwards, whatever happens."""
    root = settings.home / "staging"
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{stage}-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def open_duckdb(settings: Settings, spill: Path) -> Iterator[Any]:
    """An in-memory DuckDB connection in UTC with explicit threads, memory limit and spill folder.

    Args:
        settings: ``[compute] memory_mb`` bounds what DuckDB holds; beyond it, it spills.
        spill: Folder for what does not fit.
    """
    import duckdb

    connection = duckdb.connect(
        config={
            "threads": min(os.cpu_count() or 1, 8),
            "memory_limit": f"{settings.compute.memory_mb}MB",
            "temp_directory": str(spill / "spill"),
            "preserve_insertion_order": False,
            # No extension is ever downloaded: what is needed is built in.
            "autoinstall_known_extensions": False,
        }
    )
    try:
        # Not in the config above: the zones come with the ICU extension, which is loaded only after the connection is made.
        connection.execute("SET TimeZone = 'UTC'")
        # DuckDB draws its own bar on stdout, where --json has its one object.
        connection.execute("SET enable_progress_bar = false")
        yield connection
    finally:
        connection.close()
