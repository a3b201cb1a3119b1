"""A DuckDB connection for one retrieval: bounded memory, its own spill folder, nothing left behind."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["session"]


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

    if spill is not None:
        os.makedirs(spill, exist_ok=True)  # noqa: PTH103 - a plain string from feature_store.yaml
    folder = tempfile.mkdtemp(prefix="scalr-feast-", dir=spill)
    try:
        connection = duckdb.connect(
            config={
                "threads": threads or min(os.cpu_count() or 1, 8),
                "memory_limit": f"{memory_mb}MB",
                "temp_directory": folder,
                "preserve_insertion_order": ordered,
                # No extension is ever downloaded: what is needed is built in.
                "autoinstall_known_extensions": False,
            }
        )
        try:
            connection.execute("SET TimeZone = 'UTC'")
            yield connection
        finally:
            connection.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
