# SPDX-License-Identifier: Apache-2.0
"""Files, row counts, and bounds of times and keys of a Delta table, from its log alone."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote, urlparse

from feast_delta.errors import DataFileDamaged, DataFileMissing

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    import pyarrow.dataset as ds
    from deltalake import DeltaTable


#: Time bounds that are not known, µs since the epoch.
UNBOUNDED: Final = (-(2**62), 2**62)
#: The log rounds times down to milliseconds; before 1970 rounding in both directions is allowed for.
_ROUNDED_US: Final = 1_000

_RESTORE: Final = "restore the file from a copy, or the table to a version that has all of its files"

#: Glob characters, which a path that DuckDB reads must not hold.
GLOB_CHARACTERS: Final = frozenset("*?[]{}")


class FilePart(NamedTuple):
    """Some files of a table, or some row groups of one: the rows that one of several readers reads.

    Attributes:
        names: Names of the files, as in the log.
        part: Which part of their row groups.
        parts: Number of parts; 1: the whole files.
    """

    names: tuple[str, ...]
    part: int = 0
    parts: int = 1


def file_time_bounds(table: DeltaTable, column: str) -> dict[str, tuple[int, int]]:
    """Return each file's minimum and maximum of a time column (both inclusive, µs since the epoch), from the log's statistics.

    `UNBOUNDED` where the log has no statistics, or a value is null.
    """
    import pyarrow as pa

    actions = _actions(table)
    names = actions.column("path").to_pylist()
    kinds = [f"{which}.{column}" for which in ("min", "max")]
    needed = [f"null_count.{column}", *kinds]
    if not set(needed) <= set(actions.schema.names) or not all(
        pa.types.is_timestamp(actions.schema.field(kind).type) and actions.schema.field(kind).type.tz for kind in kinds
    ):
        return dict.fromkeys(names, UNBOUNDED)
    nulls = actions.column(needed[0]).to_pylist()
    lows, highs = (actions.column(kind).cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_pylist() for kind in kinds)
    return {
        name: UNBOUNDED if none != 0 or low is None or high is None else (low - _ROUNDED_US * (low < 0), high + _ROUNDED_US)
        for name, none, low, high in zip(names, nulls, lows, highs, strict=True)
    }


def files_in_time_range(table: DeltaTable, column: str, low: int, high: int) -> frozenset[str]:
    """Return the names of the files that may hold a time in ``[low, high]`` (µs), by the log's statistics."""
    bounds = file_time_bounds(table, column)
    return frozenset(name for name, (first, last) in bounds.items() if first <= high and last >= low)


def files_in_key_range(table: DeltaTable, column: str, low: int | str, high: int | str) -> frozenset[str]:
    """Return the names of the files that may hold a key in ``[low, high]``, by the log's statistics."""
    actions = _actions(table)
    names = actions.column("path").to_pylist()
    kinds = [f"{which}.{column}" for which in ("min", "max")]
    if not set(kinds) <= set(actions.schema.names):
        return frozenset(names)
    bounds = zip(*(actions.column(kind).to_pylist() for kind in kinds), strict=True)
    return frozenset(name for name, (first, last) in zip(names, bounds, strict=True) if _overlaps(first, last, low, high))


def _overlaps(first: Any, last: Any, low: int | str, high: int | str) -> bool:
    """Return whether a file's keys may lie in a range; True for statistics that are missing or of another type."""
    if isinstance(low, str):
        # The statistics of long texts may be cut off, so the greatest key may continue after `last`.
        return not (isinstance(first, str) and isinstance(last, str)) or (first <= str(high) and last >= low[: len(last)])
    return not (isinstance(first, int) and isinstance(last, int)) or (first <= int(high) and last >= low)


def files_dataset(table: DeltaTable, names: frozenset[str] | None = None) -> ds.Dataset:
    """Return a table's rows, or those of some of its files, as a pyarrow dataset.

    Raises:
        DataFileMissing: A file is missing.
        DataFileDamaged: A file was cut off.
    """
    import pyarrow.dataset as ds

    ensure_files_intact(table)
    if names is None:
        return table.to_pyarrow_dataset()
    if not _is_plain(table):
        full = table.to_pyarrow_dataset()
        chosen = [fragment for fragment in full.get_fragments() if fragment.path in names]
        return ds.FileSystemDataset(chosen, full.schema, full.format, full.filesystem)
    # Delta's own method describes every file of the table, even if few are needed.
    from deltalake.fs import DeltaStorageHandler
    from pyarrow.fs import PyFileSystem

    handler = DeltaStorageHandler.from_table(table._table, table._storage_options)  # noqa: SLF001 - as Delta's own method does
    files, form = PyFileSystem(handler), ds.ParquetFileFormat()
    return ds.FileSystemDataset([form.make_fragment(name, files) for name in sorted(names)], arrow_schema(table), form, files)


def file_part_dataset(table: DeltaTable, files: FilePart) -> ds.Dataset:
    """Return the rows of a part of a table's files, as a pyarrow dataset.

    Raises:
        DataFileMissing: A file is missing.
        DataFileDamaged: A file was cut off.
    """
    import pyarrow.dataset as ds

    rows = files_dataset(table, frozenset(files.names))
    if files.parts == 1:
        return rows
    fragments = [
        fragment.subset(row_group_ids=groups) for fragment in rows.get_fragments() if (groups := _row_groups(fragment, files))
    ]
    return ds.FileSystemDataset(fragments, rows.schema, ds.ParquetFileFormat(), rows.filesystem)


def _row_groups(fragment: Any, files: FilePart) -> list[int]:
    groups = fragment.num_row_groups
    return [group for group in range(groups) if group * files.parts // groups == files.part]


def local_paths(table: DeltaTable) -> list[str] | None:
    """Return the paths of a table's files on this machine; None: the table is in an object store."""
    if not table.table_uri.startswith("file:"):
        return None
    # Delta percent-encodes paths (`my%20project`), with or without a `file:` prefix.
    return [unquote(urlparse(uri).path if uri.startswith("file:") else uri) for uri in table.file_uris()]


def first_missing_file(paths: Sequence[str] | None) -> str | None:
    """Return the first path that does not exist; None: all exist. Files in object stores (None) are not checked."""
    return next((path for path in paths or () if not os.path.exists(path)), None)  # noqa: PTH110 - of each file


def ensure_files_intact(table: DeltaTable) -> list[str] | None:
    """Check that every local file of a table exists, which a reader may wait for, and is as long as the log says.

    Returns:
        Their paths, as `local_paths`.

    Raises:
        DataFileMissing: A file is missing.
        DataFileDamaged: A file was cut off.
    """
    paths = local_paths(table)
    if (missing := first_missing_file(paths)) is not None:
        raise DataFileMissing(
            f"{missing} is missing, though the table's log names it", where=table.table_uri, next_step=_RESTORE
        )
    if paths is not None:
        _ensure_not_cut_off(table)
    return paths


def _ensure_not_cut_off(table: DeltaTable) -> None:
    root, actions = unquote(urlparse(table.table_uri).path), _actions(table)
    for name, size in zip(actions.column("path").to_pylist(), actions.column("size_bytes").to_pylist(), strict=True):
        path = os.path.join(root, name)  # noqa: PTH118 - of each file
        try:
            found = os.stat(path).st_size  # noqa: PTH116 - of each file
        except OSError:  # a name that the log encodes in another way
            continue
        if found < size:
            raise DataFileDamaged(
                f"{path} has {found} bytes of the {size} that the table's log names", where=table.table_uri, next_step=_RESTORE
            )


def duckdb_readable_files(table: DeltaTable) -> list[str] | None:
    """Return the paths of a table's files if DuckDB can read them directly, else None.

    Raises:
        DataFileMissing: A file is missing.
    """
    files = ensure_files_intact(table) if _is_plain(table) else None
    if files is None or any(GLOB_CHARACTERS & set(path) or not os.path.isabs(path) for path in files):  # noqa: PTH117 - of each file
        return None
    return files


def files_have_all_columns(table: DeltaTable) -> bool:
    """Return whether every file is known to hold all columns: a table may have gained some. Lists and structs are not looked at."""
    import pyarrow as pa

    actions = _actions(table)
    counted = [f"null_count.{field.name}" for field in arrow_schema(table) if not pa.types.is_nested(field.type)]
    return len(actions) < 2 or all(name in actions.schema.names and not actions.column(name).null_count for name in counted)  # noqa: PLR2004 - files


def _is_plain(table: DeltaTable) -> bool:
    """Return whether the files alone hold the rows: no deletion vectors, no column mapping, no partition columns."""
    features = set(table.protocol().reader_features or ())
    return not table.metadata().partition_columns and not features & {"deletionVectors", "columnMapping"}


def row_count_by_file(table: DeltaTable) -> dict[str, int]:
    """Count the rows of each file, by name, from the log."""
    actions = _actions(table)
    counted = zip(actions.column("path").to_pylist(), actions.column("num_records").to_pylist(), strict=True)
    return {name: rows or 0 for name, rows in counted}


def arrow_schema(table: DeltaTable) -> pa.Schema:
    """Return a table's Arrow schema, from its log."""
    import pyarrow as pa

    return pa.schema(table.schema().to_arrow())


def file_names(table: DeltaTable) -> frozenset[str]:
    """Return the names of a table's files, relative to the table."""
    return frozenset(_actions(table).column("path").to_pylist())


def _actions(table: DeltaTable) -> pa.Table:
    """Return the log's entry of each file."""
    import pyarrow as pa

    return pa.table(table.get_add_actions(flatten=True))
