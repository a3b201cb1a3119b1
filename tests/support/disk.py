"""SQLite, which does not wait for the disk.

A registry of Feast's commits a hundred times while a repository is applied, and each commit waits for the disk twice: half of the time,
in hundreds of tests. What this guards from is a machine that goes down; of a process that is killed nothing is lost.
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
from typing import Any

__all__ = ["wait_for_no_disk"]


def wait_for_no_disk() -> None:
    """From now on, in this process; nothing where this is done. A ledger, which waits for little, sets this for itself."""
    connect = sqlite3.connect
    if hasattr(connect, "__wrapped__"):
        return

    @functools.wraps(connect)
    def unsynced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        with contextlib.suppress(sqlite3.Error):  # a damaged file: whoever reads it is told
            connection.execute("PRAGMA synchronous = OFF")
        return connection

    # SQLAlchemy takes the one of the module that all of the other's names come from.
    sqlite3.connect = sqlite3.dbapi2.connect = unsynced  # type: ignore[assignment]
