"""The files of a Delta table: which it has gained and lost between two of its versions, without reading what lay before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlparse

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as ds
    from deltalake import DeltaTable

__all__ = ["GLOB", "Growth", "fragments_of", "growth", "local_files", "records_of", "schema_of_table"]

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
    former, latter = _names(before), _names(now)
    return Growth(added=latter - former, removed=former - latter)


def fragments_of(table: DeltaTable, names: frozenset[str] | None = None) -> ds.Dataset:
    """A table's rows, or those of some of its files only, as a pyarrow dataset."""
    import pyarrow.dataset as ds

    whole = table.to_pyarrow_dataset()
    if names is None:
        return whole
    chosen = [fragment for fragment in whole.get_fragments() if fragment.path in names]
    return ds.FileSystemDataset(chosen, whole.schema, whole.format, whole.filesystem)


def local_files(table: DeltaTable) -> list[str] | None:
    """The table's files where DuckDB can read them as they are, else None.

    Deletion vectors, column mapping and partition columns are not in the files themselves.
    """
    metadata, protocol = table.metadata(), table.protocol()
    features = set(protocol.reader_features or ())
    if metadata.partition_columns or features & {"deletionVectors", "columnMapping"}:
        return None
    files = []
    for uri in table.file_uris():
        parsed = urlparse(uri)
        if parsed.scheme not in {"", "file"}:
            return None
        path = unquote(parsed.path) if parsed.scheme == "file" else uri
        if GLOB & set(path) or not Path(path).is_absolute():
            return None
        files.append(path)
    return files


def records_of(table: DeltaTable) -> int:
    """A table's rows, as its log counts them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    counted = pa.table(table.get_add_actions(flatten=True)).column("num_records")
    return int(pc.sum(counted).as_py() or 0)


def schema_of_table(table: DeltaTable) -> pa.Schema:
    """A table's Arrow schema, from its log."""
    import pyarrow as pa

    return pa.schema(table.schema().to_arrow())


def _names(table: DeltaTable) -> frozenset[str]:
    import pyarrow as pa

    return frozenset(pa.table(table.get_add_actions(flatten=True)).column("path").to_pylist())
