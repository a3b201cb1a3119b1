# SPDX-License-Identifier: Apache-2.0
"""A DuckDB connection for one retrieval: bounded memory, its own spill folder, nothing left behind."""

from __future__ import annotations

import getpass
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalr_prod.duck import no_loop_joins, temporary_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["beside", "session"]


@contextmanager
def session(*, memory_mb: int, threads: int | None, spill: str | None, ordered: bool = False) -> Iterator[Any]:
    """An in-memory DuckDB connection in UTC.

    Args:
        memory_mb: What DuckDB may hold before it spills.
        threads: Default: all cores, at most eight.
        spill: Folder under which a temporary one is made; default: the system's.
        ordered: Keep the order of the table in plain reads, at some cost in memory.
    """
    import duckdb

    root = Path(spill) if spill is not None else Path(tempfile.gettempdir()) / f"scalr-feast-{getpass.getuser()}"
    with temporary_folder(root, "feast-") as folder:
        connection = duckdb.connect(
            config={
                "threads": threads or min(os.cpu_count() or 1, 8),
                "memory_limit": f"{memory_mb}MB",
                "temp_directory": str(folder),
                "preserve_insertion_order": ordered,
                # No extension is ever downloaded: what is needed is built in.
                "autoinstall_known_extensions": False,
            }
        )
        try:
            _set(connection)
            yield connection
        finally:
            connection.close()


@contextmanager
def beside(opened: Any) -> Iterator[Any]:
    """A connection to the database of one that is open: what is made or registered in it is gone when it is closed.

    What DuckDB loads and parses once, its time zones and the footers of files, is there already.

    Args:
        opened: The open connection, whose memory, threads and spill folder it shares.
    """
    connection = opened.cursor()
    try:
        _set(connection)
        yield connection
    finally:
        connection.close()


def _set(connection: Any) -> None:
    connection.execute("SET TimeZone = 'UTC'")
    # DuckDB draws its own bar on stdout, where --json has its one object.
    connection.execute("SET enable_progress_bar = false")
    no_loop_joins(connection)
    # A file's footer is parsed once, however often queries come back to it.
    connection.execute("SET parquet_metadata_cache = true")
