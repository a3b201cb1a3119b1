# SPDX-License-Identifier: Apache-2.0
"""The files of a Delta table: which it has gained and lost between two of its versions, without reading what lay before."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlparse

from scalr_prod.errors import LakeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa
    import pyarrow.dataset as ds
    from deltalake import DeltaTable

__all__ = [
    "ALWAYS",
    "GLOB",
    "Growth",
    "bounds_of",
    "files_between",
    "former_version",
    "fragments_of",
    "growth",
    "local_files",
    "missing_file",
    "names_of",
    "paths_of",
    "records_by_file",
    "records_of",
    "refuse_lost",
    "schema_of_table",
    "state_of",
]

#: Bounds of a time that is not known, µs since 1970.
ALWAYS: Final = (-(2**62), 2**62)
#: The log rounds times to whole milliseconds: down, and before 1970 either way is allowed for.
_ROUNDED_US: Final = 1_000

#: What a path may not hold where DuckDB is to read it.
GLOB: Final = frozenset("*?[]{}")


@dataclass(frozen=True)
class Growth:
    """From one version of a table to a later one.

    Attributes:
        added: Names of the files that the later version has and the former one has not, relative to the table.
        removed: Names of those that it has no longer.
    """

    added: frozenset[str]
    removed: frozenset[str]


def growth(before: DeltaTable, now: DeltaTable) -> Growth:
    """Compare two versions of one table by their logs alone."""
    former, latter = names_of(before), names_of(now)
    return Growth(added=latter - former, removed=former - latter)


def state_of(table: DeltaTable) -> dict[str, Any]:
    """What a version of a table is told from any other by, as JSON values: its id, its number and a digest of its files' names.

    A table that was restored from a backup may come to the same number again with other files.
    """
    names = "\n".join(sorted(names_of(table)))
    return {
        "id": str(table.metadata().id),
        "version": table.version(),
        "files": hashlib.sha256(names.encode()).hexdigest(),
    }


def former_version(now: DeltaTable, state: Mapping[str, Any], storage_options: dict[str, str] | None) -> DeltaTable | None:
    """The log of a table as it was in a state; None where that can no longer be read, or the table is another one.

    Its files may have been removed since: what is in them cannot be relied on.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    if state["id"] != str(now.metadata().id) or state["version"] > now.version():
        return None
    try:
        before = DeltaTable(now.table_uri, version=state["version"], storage_options=storage_options or None)
        return before if state_of(before) == state else None
    except (DeltaError, OSError):
        return None


def bounds_of(table: DeltaTable, column: str) -> dict[str, tuple[int, int]]:
    """By name of each file, between which times a column's values lie, both included, µs since 1970, as the log tells.

    `ALWAYS` where it does not tell, or where a value is null.
    """
    import pyarrow as pa

    actions = _actions(table)
    names = actions.column("path").to_pylist()
    kinds = [f"{which}.{column}" for which in ("min", "max")]
    told = [f"null_count.{column}", *kinds]
    if not set(told) <= set(actions.schema.names) or not all(
        pa.types.is_timestamp(actions.schema.field(kind).type) and actions.schema.field(kind).type.tz for kind in kinds
    ):
        return dict.fromkeys(names, ALWAYS)
    nulls = actions.column(told[0]).to_pylist()
    lows, highs = (actions.column(kind).cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_pylist() for kind in kinds)
    return {
        name: ALWAYS if none != 0 or low is None or high is None else (low - _ROUNDED_US * (low < 0), high + _ROUNDED_US)
        for name, none, low, high in zip(names, nulls, lows, highs, strict=True)
    }


def files_between(table: DeltaTable, column: str, low: int, high: int) -> frozenset[str]:
    """Names of the files that may hold a time of ``[low, high]`` (µs) in a column, as the log tells."""
    bounds = bounds_of(table, column)
    return frozenset(name for name, (first, last) in bounds.items() if first <= high and last >= low)


def fragments_of(table: DeltaTable, names: frozenset[str] | None = None) -> ds.Dataset:
    """A table's rows, or those of some of its files only, as a pyarrow dataset.

    Raises:
        LakeError: A file is lost.
    """
    import pyarrow.dataset as ds

    refuse_lost(table)
    if names is None:
        return table.to_pyarrow_dataset()
    if not _is_plain(table):
        whole = table.to_pyarrow_dataset()
        chosen = [fragment for fragment in whole.get_fragments() if fragment.path in names]
        return ds.FileSystemDataset(chosen, whole.schema, whole.format, whole.filesystem)
    # Delta's own way describes each file of the table, whatever is asked for.
    from deltalake.fs import DeltaStorageHandler
    from pyarrow.fs import PyFileSystem

    handler = DeltaStorageHandler.from_table(table._table, table._storage_options)  # noqa: SLF001 - as Delta's own way does
    files, form = PyFileSystem(handler), ds.ParquetFileFormat()
    return ds.FileSystemDataset(
        [form.make_fragment(name, files) for name in sorted(names)], schema_of_table(table), form, files
    )


def paths_of(table: DeltaTable) -> list[str] | None:
    """Where a table's files are on this machine; None: the table is in an object store."""
    if not table.table_uri.startswith("file:"):
        return None
    # Delta spells a path as in a URL, `my%20project`, with or without `file:` before it.
    return [unquote(urlparse(uri).path if uri.startswith("file:") else uri) for uri in table.file_uris()]


def missing_file(paths: Sequence[str] | None) -> str | None:
    """The first file of those of `paths_of` that is not there any more. Object stores are not asked, file by file, beforehand."""
    return next((path for path in paths or () if not os.path.exists(path)), None)  # noqa: PTH110 - of each file


def refuse_lost(table: DeltaTable) -> list[str] | None:
    """Make sure that, on disk, each file of a table is there: a reader that meets a lost one may wait for ever.

    Returns:
        Where they are, as `paths_of`.

    Raises:
        LakeError: One is not.
    """
    paths = paths_of(table)
    if (missing := missing_file(paths)) is not None:
        raise LakeError(
            f"{missing} is not there, though the table's log names it",
            where=table.table_uri,
            next_step="bring it back from a copy; without one, move the table's folder away, and make it anew: scalr run",
        )
    return paths


def local_files(table: DeltaTable) -> list[str] | None:
    """The table's files where DuckDB can read them as they are, else None.

    Raises:
        LakeError: One is lost.
    """
    files = refuse_lost(table) if _is_plain(table) else None
    if files is None or any(GLOB & set(path) or not os.path.isabs(path) for path in files):  # noqa: PTH117 - of each file
        return None
    return files


def _is_plain(table: DeltaTable) -> bool:
    """Whether a row is what its file says: deletion vectors, column mapping and partition columns are not in the files themselves."""
    features = set(table.protocol().reader_features or ())
    return not table.metadata().partition_columns and not features & {"deletionVectors", "columnMapping"}


def records_of(table: DeltaTable, names: frozenset[str] | None = None) -> int:
    """A table's rows, or those of some of its files, as its log counts them."""
    if names is not None:
        return sum(rows for name, rows in records_by_file(table).items() if name in names)
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.sum(pa.table(table.get_add_actions()).column("num_records")).as_py() or 0


def records_by_file(table: DeltaTable) -> dict[str, int]:
    """Rows of each of a table's files, by its name, as the log counts them."""
    actions = _actions(table)
    counted = zip(actions.column("path").to_pylist(), actions.column("num_records").to_pylist(), strict=True)
    return {name: rows or 0 for name, rows in counted}


def schema_of_table(table: DeltaTable) -> pa.Schema:
    """A table's Arrow schema, from its log."""
    import pyarrow as pa

    return pa.schema(table.schema().to_arrow())


def names_of(table: DeltaTable) -> frozenset[str]:
    """Names of a table's files, relative to the table."""
    return frozenset(_actions(table).column("path").to_pylist())


def _actions(table: DeltaTable) -> pa.Table:
    """What the log says of each file of a table."""
    import pyarrow as pa

    return pa.table(table.get_add_actions(flatten=True))
