# SPDX-License-Identifier: Apache-2.0
"""Vocabulary of a training set: embedding table rows of users and items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from scalr_prod.contracts import ITEM_ID, USER_ID
from scalr_prod.duck import exact

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["SOURCE_HISTORY", "TARGET_HISTORY", "VOCABULARY", "Kind", "Vocabulary", "write_ids", "write_vocabulary"]

#: Folder of a version with one Parquet file of sorted ids per kind.
VOCABULARY: Final = "vocabulary"
SOURCE_HISTORY: Final = "source_user_history__item_ids"
TARGET_HISTORY: Final = "target_user_history__item_ids"

Kind = Literal["users", "target_items", "source_items"]


@dataclass(frozen=True)
class Vocabulary:
    """Sorted ids; an id's number is its position plus 1, and 0 is padding, null or unknown.

    Use the training set's vocabulary for validation and serving, too, so that numbers agree.
    """

    users: pa.Array
    target_items: pa.Array
    source_items: pa.Array

    @classmethod
    def read(cls, version: Path) -> Vocabulary:
        """Read the vocabulary of a training set's version."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        def ids(kind: Kind) -> pa.Array:
            column = pq.read_table(version / VOCABULARY / f"{kind}.parquet").column("id").combine_chunks()
            return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column

        return cls(ids("users"), ids("target_items"), ids("source_items"))

    def size(self, kind: Kind) -> int:
        """Return the number of embedding rows: one per id, and one for 0."""
        return len(getattr(self, kind)) + 1

    def encode(self, kind: Kind, ids: Any) -> NDArray[np.int64]:
        """Encode ids as numbers, int64 [N] in ``0 … size - 1``.

        Args:
            kind: Kind of the ids.
            ids: [N] ids, an Arrow array or a sequence.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        known = getattr(self, kind)
        array = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids)
        # An erased user leaves a null, so that the other ids keep their numbers.
        found = pc.index_in(array.cast(known.type), value_set=known, skip_nulls=True)
        return pc.fill_null(found.cast(pa.int64()), -1).to_numpy() + 1  # type: ignore[no-any-return]  # pyarrow is untyped


def write_ids(rows: pa.Table, path: Path) -> None:
    """Write the distinct ids in some rows of a training set: one row with one list per kind."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    def flattened(name: str) -> list[pa.Array]:
        return [chunk.flatten() for chunk in rows.column(name).chunks]

    items = rows.schema.field(ITEM_ID).type
    found: dict[Kind, tuple[pa.DataType, list[pa.Array]]] = {
        "users": (rows.schema.field(USER_ID).type, rows.column(USER_ID).chunks),
        "target_items": (items, [*rows.column(ITEM_ID).chunks, *(ids.cast(items) for ids in flattened(TARGET_HISTORY))]),
        "source_items": (rows.schema.field(SOURCE_HISTORY).type.value_type, flattened(SOURCE_HISTORY)),
    }
    columns = {}
    for kind, (type_, chunks) in found.items():
        ids = pc.unique(pa.chunked_array(chunks, type_)).drop_null()
        columns[kind] = pa.ListArray.from_arrays(pa.array([0, len(ids)], pa.int32()), ids.take(pc.sort_indices(ids)))
    pq.write_table(pa.table(columns), path, compression="zstd")


def write_vocabulary(connection: Any, ids: Sequence[Path], folder: Path) -> None:
    """Write all ids of a version, sorted, one Parquet file per kind.

    Args:
        connection: A DuckDB connection.
        ids: Files that `write_ids` wrote, one per file of rows.
        folder: The version's folder.
    """
    import pyarrow.parquet as pq

    listed = ", ".join("'" + exact(path).replace("'", "''") + "'" for path in ids)
    (folder / VOCABULARY).mkdir()
    for kind in get_args(Kind):
        query = f"SELECT DISTINCT id FROM (SELECT unnest({kind}) AS id FROM read_parquet([{listed}])) ORDER BY id"
        found = connection.sql(query).to_arrow_table()
        pq.write_table(found, folder / VOCABULARY / f"{kind}.parquet", compression="zstd")
