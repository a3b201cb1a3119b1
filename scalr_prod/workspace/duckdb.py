# SPDX-License-Identifier: Apache-2.0
"""DuckDB sessions with a memory limit and a spill folder, and the staging folders to which they write."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from feast_delta.sessions import duckdb_session, quote_identifier, quote_literal, read_parquet_sql
from scalr_prod.core.delta_log import duckdb_readable_files
from scalr_prod.core.disk_errors import translate_disk_errors
from scalr_prod.errors import LakeError
from scalr_prod.workspace.ownership import claim_home

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deltalake import DeltaTable
    from duckdb import DuckDBPyConnection

    from scalr_prod.config import Settings


__all__ = [
    "create_delta_view",
    "duckdb_session",
    "escape_glob",
    "move_into_place",
    "oldest_staging_time",
    "open_duckdb",
    "parquet_sql",
    "quote_identifier",
    "quote_literal",
    "read_parquet_sql",
    "staging_folder",
    "temporary_folder",
    "timestamp_literal",
]

#: Names of the folders that `temporary_folder` creates.
_MADE: Final = re.compile(r".+-[a-z0-9_]{8}")
#: Those of `staging_folder` hold the stage and the milliseconds since the epoch; a folder's own time changes with its content.
_STAGED: Final = re.compile(r"(.+)-(\d{13})-[a-z0-9_]{8}")
#: Characters that DuckDB reads as a glob pattern in a file name.
_PATTERN: Final = re.compile(r"[*?\[]")


@contextmanager
def staging_folder(settings: Settings, stage: str) -> Iterator[Path]:
    """Create a folder under ``<home>/staging`` for the block, and remove it afterwards; folders of killed processes are removed too.

    Raises:
        LakeError: The folder cannot be created or written to: no permission, or no space.
        ForeignFiles: The home holds files that this package did not make.
    """
    root = settings.home / "staging"
    with translate_disk_errors(root):
        # First: a staging folder without an owner is deleted below, so it has to be ours.
        claim_home(settings)
        with temporary_folder(root, f"{stage}-{time.time_ns() // 1_000_000}-") as folder:
            yield folder


def oldest_staging_time(settings: Settings, *, ignore: str) -> datetime | None:
    """Return when the oldest staging folder in use was created: work on the project has gone on since then. None if there is none.

    Args:
        settings: The project's settings.
        ignore: Leave out the folders of this stage.
    """
    root, times = settings.home / "staging", []
    if root.is_dir():
        with _locked(root):
            for folder in root.iterdir():
                name = _STAGED.fullmatch(folder.name)
                if name and name[1] != ignore and _is_locked(folder):
                    times.append(datetime.fromtimestamp(int(name[2]) / 1000, UTC))
    return min(times, default=None)


def _is_locked(folder: Path) -> bool:
    try:
        with _locked(folder, wait=False):
            return False
    except BlockingIOError:
        return True
    except OSError:  # the file system has no such locks, or the folder was removed meanwhile
        return False


@contextmanager
def temporary_folder(root: Path, prefix: str) -> Iterator[Path]:
    """Create a folder under a root for the block; folders there whose process has exited are removed.

    The owner holds a lock on its folder; the kernel releases it when the process exits, even if it is killed. The root must hold nothing
    else.
    """
    root.mkdir(parents=True, exist_ok=True)
    with ExitStack() as owned:
        with _locked(root):  # so that cleanup cannot race with creation
            _sweep(root)
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
            owned.enter_context(_locked(folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def move_into_place(folder: Path, final: Path) -> None:
    """Rename a staged folder to its final path atomically; across file systems, by way of a copy beside that path.

    Raises:
        OSError: From the operating system; the final path does not exist then.
    """
    try:
        folder.rename(final)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    else:
        return
    with temporary_folder(final.parent / ".partial", f"{final.name}-") as beside:
        copy = beside / "copy"
        copy.mkdir()
        for path in sorted(folder.rglob("*")):
            if path.is_dir():
                (copy / path.relative_to(folder)).mkdir()
            else:
                shutil.copyfile(path, copy / path.relative_to(folder))
        copy.rename(final)


@contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock on a folder within the block.

    Raises:
        OSError: Without ``wait``: another process holds it, or the file system has no such locks.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(*([OSError] if wait else [])):  # a network file system may refuse; then no process can clean up either
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _sweep(root: Path) -> None:
    """Remove the folders whose owner has exited."""
    for folder in root.iterdir():
        if folder.is_dir() and _MADE.fullmatch(folder.name):
            try:
                with _locked(folder, wait=False):
                    shutil.rmtree(folder, ignore_errors=True)
            except OSError:  # locked by a running process, or not ours
                continue


def escape_glob(path: str | Path) -> str:
    """Return a path with its glob characters escaped: to DuckDB, ``part[1].parquet`` is a pattern that matches ``part1.parquet``.

    A POSIX name with a backslash beside one of ``* ? [`` cannot be expressed: DuckDB reads the backslash as a path separator.
    """
    return _PATTERN.sub(r"[\g<0>]", str(path))


def parquet_sql(*paths: str | Path) -> str:
    """Return a DuckDB table function that reads exactly these Parquet files."""
    return read_parquet_sql(map(escape_glob, paths))


def timestamp_literal(moment: datetime) -> str:
    """Return a datetime as a DuckDB literal."""
    return f"TIMESTAMPTZ '{moment.isoformat()}'"


def create_delta_view(connection: DuckDBPyConnection, name: str, table: DeltaTable) -> None:
    """Create a view of a Delta table at its opened version.

    Local files are read in place: a third of the cost of a stream through pyarrow, and DuckDB knows the row count.
    """
    if files := duckdb_readable_files(table):
        connection.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS FROM {read_parquet_sql(files)}")
    else:
        connection.register(name, table.to_pyarrow_dataset())


@contextmanager
def open_duckdb(settings: Settings, spill_folder: Path) -> Iterator[DuckDBPyConnection]:
    """Open a `duckdb_session` limited to ``[compute] memory_mb``.

    Args:
        settings: The project's settings.
        spill_folder: Parent of the spill folder.

    Raises:
        LakeError: A query does not fit in memory, or the spill folder's disk is full.
    """
    import duckdb

    try:
        with duckdb_session(memory_mb=settings.compute.memory_mb, spill_folder=spill_folder / "spill") as connection:
            yield connection
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        raise LakeError(
            f"DuckDB failed: {(str(error) or type(error).__name__).splitlines()[0]}",
            where=str(spill_folder),
            next_step="free some space, or raise [compute] memory_mb; then run the command again",
        ) from error
