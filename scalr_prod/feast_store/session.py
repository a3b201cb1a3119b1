# SPDX-License-Identifier: Apache-2.0
"""A DuckDB connection for one retrieval: bounded memory, its own spill folder, nothing left behind."""

from __future__ import annotations

import getpass
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalr_prod import duck
from scalr_prod.ownership import is_home

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["beside", "session"]


@contextmanager
def session(*, memory_mb: int, threads: int | None, spill: str | None, ordered: bool = False) -> Iterator[Any]:
    """An in-memory DuckDB connection in UTC.

    Args:
        memory_mb: See `duck.session`, as for the next one.
        threads: Default: all cores, at most eight.
        spill: Folder under which a temporary one is made; default: the system's.
        ordered: Keep the order of the table in plain reads, at some cost in memory.
    """
    root = Path(spill or tempfile.gettempdir())
    if not is_home(root.parent):  # others may keep something there: a folder of our own
        root /= f"scalr-feast-{getpass.getuser()}"
    with (
        duck.temporary_folder(root, "feast-") as folder,
        duck.session(memory_mb=memory_mb, spill=folder, threads=threads, ordered=ordered) as connection,
    ):
        yield connection


@contextmanager
def beside(opened: Any) -> Iterator[Any]:
    """A connection to the database of one that is open: what is made or registered in it is gone when it is closed.

    What DuckDB loads and parses once, its time zones and the footers of files, is there already.

    Args:
        opened: The open connection, whose memory, threads and spill folder it shares.
    """
    with closing(opened.cursor()) as connection:
        duck.prepare(connection)
        yield connection
