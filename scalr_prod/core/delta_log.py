# SPDX-License-Identifier: Apache-2.0
"""Files, row counts and bounds of a Delta table, from its log alone, and the difference between two versions.

What the Delta offline store needs as well is in `feast_delta.delta_log`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from feast_delta import delta_log
from feast_delta.delta_log import (
    UNBOUNDED,
    FilePart,
    arrow_schema,
    file_names,
    file_time_bounds,
    files_in_key_range,
    files_in_time_range,
    first_missing_file,
    local_paths,
    row_count_by_file,
)
from scalr_prod.core.store_errors import translate_store_errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import pyarrow as pa
    import pyarrow.dataset as ds
    from deltalake import DeltaTable

__all__ = [
    "UNBOUNDED",
    "FileDiff",
    "FilePart",
    "arrow_schema",
    "cast_batch",
    "diff_files",
    "duckdb_readable_files",
    "ensure_files_intact",
    "file_names",
    "file_part_dataset",
    "file_time_bounds",
    "files_dataset",
    "files_in_key_range",
    "files_in_time_range",
    "first_missing_file",
    "latest_time",
    "local_paths",
    "reopen_version",
    "row_count",
    "row_count_by_file",
    "version_fingerprint",
]

#: The log's statistics hold times in milliseconds, so `file_time_bounds` are wider than a file's times by at most this (µs).
_MILLISECOND: Final = 1_000


@dataclass(frozen=True)
class FileDiff:
    """Files that differ between two versions of a table, by name relative to the table.

    Attributes:
        added: Files of the later version alone.
        removed: Files of the earlier version alone.
    """

    added: frozenset[str]
    removed: frozenset[str]


def diff_files(earlier: DeltaTable, later: DeltaTable) -> FileDiff:
    """Compare the files of two versions of a table, from their logs alone."""
    former, latter = file_names(earlier), file_names(later)
    return FileDiff(added=latter - former, removed=former - latter)


def version_fingerprint(table: DeltaTable) -> dict[str, Any]:
    """Return what identifies a version of a table, as JSON values: table id, version number, digest of the file names.

    The number alone is not enough: a table restored from a backup may reach it again with other files.
    """
    names = "\n".join(sorted(file_names(table)))
    return {
        "id": str(table.metadata().id),
        "version": table.version(),
        "files": hashlib.sha256(names.encode()).hexdigest(),
    }


def reopen_version(
    current: DeltaTable, fingerprint: Mapping[str, Any], storage_options: dict[str, str] | None
) -> DeltaTable | None:
    """Open a table at a recorded state, or None if its log is gone or the table is another one.

    Only the log is safe to read: the files may have been removed since.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    if fingerprint["id"] != str(current.metadata().id) or fingerprint["version"] > current.version():
        return None
    try:
        before = DeltaTable(current.table_uri, version=fingerprint["version"], storage_options=storage_options or None)
        return before if version_fingerprint(before) == fingerprint else None
    except (DeltaError, OSError):
        return None


def files_dataset(table: DeltaTable, names: frozenset[str] | None = None) -> ds.Dataset:
    """Return a table's rows, or those of some of its files, as a pyarrow dataset.

    Raises:
        LakeError: A file is missing or damaged.
    """
    with translate_store_errors():
        return delta_log.files_dataset(table, names)


def file_part_dataset(table: DeltaTable, files: FilePart) -> ds.Dataset:
    """Return the rows of a part of a table's files, as a pyarrow dataset.

    Raises:
        LakeError: A file is missing or damaged.
    """
    with translate_store_errors():
        return delta_log.file_part_dataset(table, files)


def ensure_files_intact(table: DeltaTable) -> list[str] | None:
    """Check that every local file of a table exists, and is as long as the log says.

    Returns:
        Their paths, as `local_paths`.

    Raises:
        LakeError: A file is missing or damaged.
    """
    with translate_store_errors():
        return delta_log.ensure_files_intact(table)


def duckdb_readable_files(table: DeltaTable) -> list[str] | None:
    """Return the paths of a table's files if DuckDB can read them directly, else None.

    Raises:
        LakeError: A file is missing or damaged.
    """
    with translate_store_errors():
        return delta_log.duckdb_readable_files(table)


def row_count(table: DeltaTable, names: frozenset[str] | None = None) -> int:
    """Count the rows of a table, or of some of its files, from the log."""
    if names is not None:
        return sum(rows for name, rows in row_count_by_file(table).items() if name in names)
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.sum(pa.table(table.get_add_actions()).column("num_records")).as_py() or 0


def latest_time(table: DeltaTable, columns: Sequence[str]) -> datetime | None:
    """Return the latest time in some columns of a table, or None if it has no rows.

    The log tells which files may hold it; of those, only the footers are read.

    Args:
        table: The table.
        columns: Columns of times, without nulls.

    Raises:
        LakeError: A file is missing or damaged.
    """
    names: set[str] = set()
    for column in columns:
        bounds = file_time_bounds(table, column)
        greatest = max((high for _, high in bounds.values() if high < UNBOUNDED[1]), default=0)
        names |= {name for name, (_, high) in bounds.items() if high > greatest - _MILLISECOND}
    groups = (group for file in files_dataset(table, frozenset(names)).get_fragments() for group in file.row_groups)
    return max((group.statistics[column]["max"] for group in groups for column in columns), default=None)


def cast_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Cast a batch to a table's schema; columns that it lacks, as an older version of the table may, are null."""
    import pyarrow as pa

    columns = [
        batch.column(field.name).cast(field.type) if field.name in batch.schema.names else pa.nulls(len(batch), field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
