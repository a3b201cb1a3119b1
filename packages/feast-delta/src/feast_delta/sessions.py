# SPDX-License-Identifier: Apache-2.0
"""DuckDB connections with a memory limit and a spill folder, and the quoting of their SQL."""

from __future__ import annotations

import os
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from duckdb import DuckDBPyConnection


def quote_identifier(name: str) -> str:
    """Return a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def quote_literal(value: str | int) -> str:
    """Return a SQL literal of a text or an integer."""
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


def read_parquet_sql(files: Iterable[str], *, union_by_name: bool = False) -> str:
    """Return a DuckDB table function that reads Parquet files.

    Args:
        files: Their paths, without glob characters.
        union_by_name: Whether a column may be missing in some of them; DuckDB then reads every file's footer first.
    """
    options = ", union_by_name = true" if union_by_name else ""
    return f"read_parquet([{', '.join(map(quote_literal, files))}], hive_partitioning = false{options})"


def configure_connection(connection: DuckDBPyConnection) -> None:
    """Apply the settings that all connections share.

    Args:
        connection: A DuckDB connection.
    """
    # Not possible in the config: time zones come with the ICU extension, which is loaded after connecting.
    connection.execute("SET TimeZone = 'UTC'")
    # DuckDB draws its bar on stdout, which belongs to the program.
    connection.execute("SET enable_progress_bar = false")
    # For few expected rows DuckDB runs an ASOF join as a nested loop; it expects few rows of an Arrow data set, whose length it does not
    # know.
    connection.execute("SET asof_loop_join_threshold = 0")
    # Parse each file's footer once for all queries.
    connection.execute("SET parquet_metadata_cache = true")


@contextmanager
def duckdb_session(
    *, memory_mb: int, spill_folder: Path, threads: int | None = None, preserve_order: bool = False
) -> Iterator[DuckDBPyConnection]:
    """Open an in-memory DuckDB connection in UTC with explicit threads, memory limit and spill folder.

    Args:
        memory_mb: Memory limit in MB; DuckDB spills beyond it.
        spill_folder: The spill folder.
        threads: Default: all cores, at most eight.
        preserve_order: Preserve insertion order in plain reads, at some cost in memory.
    """
    import duckdb

    connection = duckdb.connect(
        config={
            "threads": threads or min(os.cpu_count() or 1, 8),
            "memory_limit": f"{memory_mb}MB",
            "temp_directory": str(spill_folder),
            "preserve_insertion_order": preserve_order,
            # Never download an extension: the needed ones are built in.
            "autoinstall_known_extensions": False,
        }
    )
    try:
        configure_connection(connection)
        yield connection
    finally:
        connection.close()


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
