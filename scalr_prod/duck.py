# SPDX-License-Identifier: Apache-2.0
"""A DuckDB session that stays within its memory and spills below the project's home."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.disk import disk_errors
from scalr_prod.errors import LakeError
from scalr_prod.growth import local_files
from scalr_prod.ownership import claim_home

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from deltalake import DeltaTable

    from scalr_prod.settings import Settings

__all__ = [
    "appear",
    "exact",
    "literal",
    "open_duckdb",
    "parquet_sql",
    "prepare",
    "quote",
    "session",
    "staging_folder",
    "temporary_folder",
    "view_of",
]

#: Names of folders that `temporary_folder` makes.
_MADE: Final = re.compile(r".+-[a-z0-9_]{8}")
#: What DuckDB takes for a pattern in the name of a file.
_PATTERN: Final = re.compile(r"[*?\[]")


@contextmanager
def staging_folder(settings: Settings, stage: str) -> Iterator[Path]:
    """A new folder under ``<home>/staging``, removed afterwards, whatever happens; those of killed processes go too.

    Raises:
        LakeError: The folder cannot be made or written to: no permission, or no space.
        ForeignFiles: Home holds what this package did not make.
    """
    root = settings.home / "staging"
    with disk_errors(root):
        # Before all else: whatever lies in a staging folder without an owner is removed.
        claim_home(settings)
        with temporary_folder(root, f"{stage}-") as folder:
            yield folder


@contextmanager
def temporary_folder(root: Path, prefix: str) -> Iterator[Path]:
    """A new folder under a root that holds nothing else; folders there whose process is no more are removed.

    The folder's owner holds a lock on it, which the kernel lets go of when the process ends, however it ends.
    """
    root.mkdir(parents=True, exist_ok=True)
    with ExitStack() as owned:
        with _locked(root):  # nobody sweeps between the making of a folder and the locking of it
            _sweep(root)
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
            owned.enter_context(_locked(folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def appear(folder: Path, final: Path) -> None:
    """Make a staged folder appear, whole, under its final name; on another file system by way of a copy beside it.

    Raises:
        OSError: As the operating system says; the final name is not there then.
    """
    try:
        folder.rename(final)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    else:
        return
    with temporary_folder(final.parent / ".partial", f"{final.name}-") as beside:
        copy = beside / "whole"
        copy.mkdir()
        for path in sorted(folder.rglob("*")):
            if path.is_dir():
                (copy / path.relative_to(folder)).mkdir()
            else:
                shutil.copyfile(path, copy / path.relative_to(folder))
        copy.rename(final)


@contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock on a folder itself.

    Raises:
        OSError: Another process holds it, and it was not to be waited for; or this file system knows no such locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows: nothing is locked, and nothing is swept
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(*([OSError] if wait else [])):  # a network file system may refuse: then nobody can sweep either
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _sweep(root: Path) -> None:
    """Remove the folders whose owner is no more."""
    if os.name != "posix":
        return
    for folder in root.iterdir():
        if folder.is_dir() and _MADE.fullmatch(folder.name):
            try:
                with _locked(folder, wait=False):
                    shutil.rmtree(folder, ignore_errors=True)
            except OSError:  # held by a living process, or not ours
                continue


def exact(path: str | Path) -> str:
    """A path as DuckDB is to be given it: DuckDB takes each for a pattern, and ``part[1].parquet`` names the file ``part1.parquet``.

    A POSIX name that holds a backslash beside one of ``* ? [`` cannot be said: DuckDB takes the backslash for a folder's end.
    """
    return _PATTERN.sub(r"[\g<0>]", str(path))


def quote(name: str) -> str:
    """A SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: str | int) -> str:
    """A SQL literal of a text or a whole number."""
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


def parquet_sql(files: Iterable[str]) -> str:
    """What DuckDB selects the rows of Parquet files from; no name may hold a pattern, see `growth.local_files`."""
    return f"read_parquet([{', '.join(map(literal, files))}])"


def view_of(connection: Any, name: str, table: DeltaTable) -> None:
    """Make a Delta table, as it was opened, selectable under a name.

    Its files are read in place where they are local, which costs a third of a stream through pyarrow, and tells DuckDB its length.
    """
    if files := local_files(table):
        connection.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS FROM {parquet_sql(files)}")
    else:
        connection.register(name, table.to_pyarrow_dataset())


def prepare(connection: Any) -> None:
    """Set what every connection of ours has beside its limits.

    Args:
        connection: Of DuckDB.
    """
    # Not in a connection's config: the zones come with the ICU extension, which is loaded only after the connection is made.
    connection.execute("SET TimeZone = 'UTC'")
    # DuckDB draws its own bar on stdout, where --json has its one object.
    connection.execute("SET enable_progress_bar = false")
    # An ASOF join would compare every row with every other one where DuckDB expects hardly any rows, and it expects hardly any of an
    # Arrow data set, whose length it does not know.
    connection.execute("SET asof_loop_join_threshold = 0")
    # A file's footer is parsed once, however often queries come back to it.
    connection.execute("SET parquet_metadata_cache = true")


@contextmanager
def session(*, memory_mb: int, spill: Path, threads: int | None = None, ordered: bool = False) -> Iterator[Any]:
    """An in-memory DuckDB connection in UTC with explicit threads, memory limit and spill folder.

    Args:
        memory_mb: What DuckDB may hold before it spills.
        spill: Folder for what does not fit.
        threads: Default: all cores, at most eight.
        ordered: Keep the order of the table in plain reads, at some cost in memory.
    """
    import duckdb

    connection = duckdb.connect(
        config={
            "threads": threads or min(os.cpu_count() or 1, 8),
            "memory_limit": f"{memory_mb}MB",
            "temp_directory": str(spill),
            "preserve_insertion_order": ordered,
            # No extension is ever downloaded: what is needed is built in.
            "autoinstall_known_extensions": False,
        }
    )
    try:
        prepare(connection)
        yield connection
    finally:
        connection.close()


@contextmanager
def open_duckdb(settings: Settings, spill: Path) -> Iterator[Any]:
    """A `session` within ``[compute] memory_mb``.

    Args:
        settings: The project's settings.
        spill: Folder below which is what does not fit.

    Raises:
        LakeError: What was asked does not fit in memory, or the spill folder's disk is full.
    """
    import duckdb

    try:
        with session(memory_mb=settings.compute.memory_mb, spill=spill / "spill") as connection:
            yield connection
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        raise LakeError(
            f"DuckDB gave up: {(str(error) or type(error).__name__).splitlines()[0]}",
            where=str(spill),
            next_step="free some space, or raise [compute] memory_mb; then repeat the command",
        ) from error
