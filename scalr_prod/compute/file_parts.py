# SPDX-License-Identifier: Apache-2.0
"""Parts of a Delta table's files, so that each task reads about as many rows."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from scalr_prod.core.delta_log import duckdb_readable_files, files_dataset
from scalr_prod.workspace import read_parquet_sql

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow.dataset as ds
    from deltalake import DeltaTable
    from duckdb import DuckDBPyConnection


class FilePart(NamedTuple):
    """Rows that one task reads.

    Attributes:
        names: Files of the table.
        part: Which part of their row groups.
        parts: Number of parts.
    """

    names: tuple[str, ...]
    part: int = 0
    parts: int = 1


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


def open_file_part(table: DeltaTable, files: FilePart) -> ds.Dataset:
    """Return the rows of a part of a table's files.

    Raises:
        LakeError: A file is missing.
    """
    import pyarrow.dataset as ds

    rows = files_dataset(table, frozenset(files.names))
    if files.parts == 1:
        return rows
    fragments = [
        fragment.subset(row_group_ids=groups) for fragment in rows.get_fragments() if (groups := _row_groups(fragment, files))
    ]
    return ds.FileSystemDataset(fragments, rows.schema, ds.ParquetFileFormat(), rows.filesystem)


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


def _row_groups(fragment: Any, files: FilePart) -> list[int]:
    groups = fragment.num_row_groups
    return [group for group in range(groups) if group * files.parts // groups == files.part]
