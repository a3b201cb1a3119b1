"""A DuckDB session that stays within its memory and spills below the project's home."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalr_prod.errors import LakeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scalr_prod.settings import Settings

__all__ = ["open_duckdb", "staging_folder"]

_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


@contextmanager
def staging_folder(settings: Settings, stage: str) -> Iterator[Path]:
    """A new folder under ``<home>/staging``, removed afterwards, whatever happens.

    Raises:
        LakeError: The folder cannot be made or written to: no permission, or no space.
    """
    root = settings.home / "staging"
    folder = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{stage}-", dir=root))
        yield folder
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise LakeError(
            f"cannot be written to: {error.strerror or error}",
            where=str(folder or root),
            next_step="free some space, or set [project] home to a folder that can be written to; then repeat the command",
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def open_duckdb(settings: Settings, spill: Path) -> Iterator[Any]:
    """An in-memory DuckDB connection in UTC with explicit threads, memory limit and spill folder.

    Args:
        settings: ``[compute] memory_mb`` bounds what DuckDB holds; beyond it, it spills.
        spill: Folder for what does not fit.

    Raises:
        LakeError: What was asked does not fit in memory, or the spill folder's disk is full.
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
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        raise LakeError(
            f"DuckDB gave up: {(str(error) or type(error).__name__).splitlines()[0]}",
            where=str(spill),
            next_step="free some space, or raise [compute] memory_mb; then repeat the command",
        ) from error
    finally:
        connection.close()
