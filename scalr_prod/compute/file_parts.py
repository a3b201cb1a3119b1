# SPDX-License-Identifier: Apache-2.0
"""Parts of a Delta table's files, so that each task reads about as many rows."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from scalr_prod.core.delta_log import FilePart, duckdb_readable_files
from scalr_prod.core.delta_log import file_part_dataset as open_file_part
from scalr_prod.workspace import read_parquet_sql

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deltalake import DeltaTable
    from duckdb import DuckDBPyConnection


__all__ = ["FilePart", "create_file_part_view", "open_file_part", "plan_file_parts"]


def plan_file_parts(rows_by_file: Mapping[str, int], task_rows: int) -> list[FilePart]:
    """Divide files among tasks: small files together, row groups of large files apart.

    Args:
        rows_by_file: Name of a file → its rows.
        task_rows: Rows that a task reads, about.
    """
    planned: list[FilePart] = []
    names: list[str] = []
    pending = 0
    for name, rows in sorted(rows_by_file.items()):
        parts = -(-rows // task_rows)
        if parts > 1:
            planned += [FilePart((name,), part, parts) for part in range(parts)]
            continue
        if names and pending + rows > task_rows:
            planned.append(FilePart(tuple(names)))
            names, pending = [], 0
        names.append(name)
        pending += rows
    return [*planned, FilePart(tuple(names))] if names else planned


def create_file_part_view(connection: DuckDBPyConnection, name: str, table: DeltaTable, files: FilePart) -> None:
    """Create a view of a part of a table's files. Whole files on this machine are read in place, for a third of the cost.

    Raises:
        LakeError: A file is missing.
    """
    local = duckdb_readable_files(table) if files.parts == 1 and files.names else None
    if local is None:
        connection.register(name, open_file_part(table, files))
        return
    paths = [path for path in local if PurePath(path).name in files.names]
    connection.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS FROM {read_parquet_sql(paths)}")
