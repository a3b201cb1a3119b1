# SPDX-License-Identifier: Apache-2.0
"""DuckDB connections for retrievals: bounded memory and a temporary spill folder."""

from __future__ import annotations

import getpass
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from scalr_prod.core.file_modes import make_private_folder
from scalr_prod.errors import LakeError
from scalr_prod.workspace import configure_connection, duckdb_session, is_home, temporary_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duckdb import DuckDBPyConnection

__all__ = ["open_cursor", "open_session"]


@contextmanager
def open_session(
    *, memory_mb: int, threads: int | None, spill: str | None, ordered: bool = False
) -> Iterator[DuckDBPyConnection]:
    """Open an in-memory DuckDB connection in UTC.

    Args:
        memory_mb: Memory limit, see `duckdb_session`.
        threads: Default: all cores, up to eight.
        spill: Parent of the temporary spill folder; default: the system's temporary folder.
        ordered: Keep table order in plain reads, at some cost in memory.

    Raises:
        LakeError: Another user has taken the name of this user's folder there, or it cannot be created.
    """
    root = Path(spill or tempfile.gettempdir())
    if not is_home(root.parent):  # a shared folder: use a subfolder that no other user can enter
        root /= f"scalr-feast-{getpass.getuser()}"
        try:
            make_private_folder(root)
        except OSError as error:
            raise LakeError(
                f"rows cannot be spilled there: {error}",
                where=str(root),
                next_step="name a folder of your own: spill in offline_store of feature_store.yaml, or TMPDIR",
            ) from error
    with (
        temporary_folder(root, "feast-") as folder,
        duckdb_session(memory_mb=memory_mb, spill_folder=folder, threads=threads, preserve_order=ordered) as connection,
    ):
        yield connection


@contextmanager
def open_cursor(parent: DuckDBPyConnection) -> Iterator[DuckDBPyConnection]:
    """Open a second connection to an open database; its temporary objects are dropped when it is closed.

    It reuses what DuckDB has already loaded, such as time zones and Parquet footers.

    Args:
        parent: The open connection; memory, threads and spill folder are shared.
    """
    with closing(parent.cursor()) as connection:
        configure_connection(connection)
        yield connection
