# SPDX-License-Identifier: Apache-2.0
"""Vocabulary of a training set: embedding table rows of users and items."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

from scalr_prod.compute import read_segments, write_tables
from scalr_prod.core.id_index import IdIndex
from scalr_prod.errors import TrainingSetError
from scalr_prod.schemas import ITEM_ID, USER_ID
from scalr_prod.training_set.manifest import write_parquet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from numpy.typing import NDArray
    from pyarrow.fs import FileSystem

    from scalr_prod.compute import Executor, Segment, SharedFiles, ShuffleFolder
    from scalr_prod.training_set.manifest import FileEntry


#: Folder of a version with one Parquet file of sorted ids per kind.
VOCABULARY_FOLDER: Final = "vocabulary"
SOURCE_HISTORY_COLUMN: Final = "source_user_history__item_ids"
TARGET_HISTORY_COLUMN: Final = "target_user_history__item_ids"

#: Files of ids that a task merges, so that the last task of a kind reads few ids twice.
_MERGED_FILES: Final = 16

IdKind = Literal["users", "target_items", "source_items"]


@dataclass(frozen=True)
class IdVocabulary:
    """The ids of a training set's users and items, sorted.

    An id's number is its position from 1 on; 0 means padding, null or unknown. Embedding tables take numbers (`encode`), matrices
    take positions (`index`). Use the vocabulary of the training set for validation and serving as well, so that numbers agree.

    Attributes:
        users: Ids of the users of all rows.
        target_items: Ids of the target items of all rows and of all target histories.
        source_items: Ids of the source items of all source histories; none without ``[training_set] source_history``.
    """

    users: pa.Array
    target_items: pa.Array
    source_items: pa.Array
    _indexes: dict[IdKind, IdIndex] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def read(cls, version: Path) -> IdVocabulary:
        """Read the vocabulary of a training set's version; `TrainingSet.vocabulary` does it.

        Args:
            version: Folder of the version.

        Returns:
            The vocabulary. The id of an erased user is null.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        def ids(kind: IdKind) -> pa.Array:
            column = pq.read_table(version / VOCABULARY_FOLDER / f"{kind}.parquet").column("id").combine_chunks()
            return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column

        return cls(ids("users"), ids("target_items"), ids("source_items"))

    def size(self, kind: IdKind) -> int:
        """Rows that an embedding table needs: one for each id, and one for 0.

        Args:
            kind: ``users``, ``target_items`` or ``source_items``.

        Returns:
            The number of ids, plus 1.
        """
        return len(getattr(self, kind)) + 1

    def encode(self, kind: IdKind, ids: Any) -> NDArray[np.int64]:
        """Numbers of ids, for embedding tables.

        Args:
            kind: ``users``, ``target_items`` or ``source_items``.
            ids: [N] ids, an Arrow array or a sequence.

        Returns:
            int64 [N] in ``0 … size - 1``; 0 for an unknown id.
        """
        import pyarrow as pa

        if kind not in self._indexes:
            self._indexes[kind] = IdIndex(getattr(self, kind))
        array = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids)
        return self._indexes[kind].positions(array).astype(np.int64) + 1

    def index(self, kind: IdKind, ids: Any) -> NDArray[np.int64]:
        """Positions of ids: rows (``users``) and columns (``target_items``) of `TrainingSet.matrix` and `TrainingSet.seen`.

        The way back is ``vocabulary.users.take(positions)``.

        Args:
            kind: ``users``, ``target_items`` or ``source_items``.
            ids: [N] ids, an Arrow array or a sequence.

        Returns:
            int64 [N] in ``0 … number of ids - 1``, one less than `encode` gives.

        Raises:
            TrainingSetError: An id is not in the vocabulary, or is of another type; names it.

        Example:
            >>> row = vocabulary.index("users", ["user-17"])  # doctest: +SKIP
            >>> vocabulary.target_items.take(seen[row].indices)  # doctest: +SKIP
        """
        import pyarrow as pa

        try:
            array = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids)
            found = self.encode(kind, array) - 1
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise TrainingSetError(
                f"ids of {kind} are of type {getattr(self, kind).type}: {error}",
                where=f"Vocabulary.index({kind!r})",
                next_step="give a flat sequence of ids as the log has them",
            ) from error
        unknown = np.flatnonzero(found < 0)
        if len(unknown):
            raise TrainingSetError(
                f"the id {array[int(unknown[0])].as_py()!r} is not in the training set ({len(unknown)} of {len(found)} ids are not)",
                where=f"Vocabulary.index({kind!r})",
                next_step="leave unknown ids out: encode() gives 0 for them",
            )
        return found


def write_ids(rows: pa.Table, path: str, files: FileSystem) -> FileEntry:
    """Write the distinct ids in some rows of a training set to a file: one row with one list per kind."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def flattened(name: str) -> list[pa.Array]:
        return [chunk.flatten() for chunk in rows.column(name).chunks]

    items = rows.schema.field(ITEM_ID).type
    has_sources = SOURCE_HISTORY_COLUMN in rows.schema.names
    sources = rows.schema.field(SOURCE_HISTORY_COLUMN).type.value_type if has_sources else pa.string()
    found: dict[IdKind, tuple[pa.DataType, list[pa.Array]]] = {
        "users": (rows.schema.field(USER_ID).type, rows.column(USER_ID).chunks),
        "target_items": (items, [*rows.column(ITEM_ID).chunks, *(ids.cast(items) for ids in flattened(TARGET_HISTORY_COLUMN))]),
        "source_items": (sources, flattened(SOURCE_HISTORY_COLUMN) if has_sources else []),
    }
    columns = {}
    for kind, (type_, chunks) in found.items():
        ids = pc.unique(pa.chunked_array(chunks, type_)).drop_null()
        columns[kind] = pa.ListArray.from_arrays(pa.array([0, len(ids)], pa.int32()), ids.take(pc.sort_indices(ids)))
    return write_parquet(pa.table(columns), path, files, compression="zstd")


def write_vocabulary(executor: Executor, ids: SharedFiles, output: ShuffleFolder, folder: Path) -> dict[str, FileEntry]:
    """Write all ids of a version, sorted, one Parquet file per kind; return the entries in the manifest.

    Tasks of a first round merge the ids of some files each, those of a second one all ids of a kind.

    Args:
        executor: Runs the tasks.
        ids: Files that `write_ids` wrote, one per file of rows; at least one.
        output: Where tasks write.
        folder: The version's folder.
    """
    some = (ids._replace(paths=ids.paths[since : since + _MERGED_FILES]) for since in range(0, len(ids.paths), _MERGED_FILES))
    merged = list(executor.map(_merge_files, ((each, output) for each in some)))
    calls = ((kind, [segments[kind] for segments in merged], output) for kind in get_args(IdKind))
    entries = {}
    for kind, path, entry in executor.map(_write_kind, calls):
        name = f"{VOCABULARY_FOLDER}/{kind}.parquet"
        output.take(path, folder / name)
        entries[name] = entry
    return entries


def _merge_files(connection: DuckDBPyConnection, ids: SharedFiles, output: ShuffleFolder) -> dict[IdKind, Segment]:
    """Task of the first round: write the distinct ids of some files, by kind."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = ids.folder.open()
    rows = pa.concat_tables(pq.read_table(path, filesystem=files, partitioning=None) for path in ids.paths)
    connection.register("ids", rows)
    kinds: tuple[IdKind, ...] = get_args(IdKind)
    found = [
        connection.sql(f"SELECT DISTINCT id FROM (SELECT unnest({kind}) AS id FROM ids)").to_arrow_table() for kind in kinds
    ]
    connection.unregister("ids")
    segments = write_tables(enumerate(found), folder=output)
    return {kind: segments[number] for number, kind in enumerate(kinds)}


def _write_kind(
    connection: DuckDBPyConnection, kind: IdKind, segments: Sequence[Segment], output: ShuffleFolder
) -> tuple[IdKind, str, FileEntry]:
    """Task of the second round: write all ids of a kind, and return the kind, the file's path and its entry in the manifest."""
    path = output.new_path(".parquet")
    connection.register("ids", read_segments(segments, folder=output))
    found = connection.sql("SELECT DISTINCT id FROM ids ORDER BY id").to_arrow_table()
    connection.unregister("ids")
    return kind, path, write_parquet(found.combine_chunks(), path, output.open(), compression="zstd")
