# SPDX-License-Identifier: Apache-2.0
"""Vocabulary of a training set: embedding table rows of users and items."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

from scalr_prod.compute import load_segments, read_segments, write_segments, write_tables
from scalr_prod.core.id_index import IdIndex
from scalr_prod.errors import TrainingSetError
from scalr_prod.schemas import ITEM_ID, USER_ID
from scalr_prod.training_set.manifest import write_parquet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
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

#: Files of ids that a task of the first round merges.
_MERGED_FILES: Final = 16
#: Maximum number of ranges of a kind's ids.
_RANGES: Final = 16
#: Files whose ids bound the ranges.
_SAMPLED_FILES: Final = 8

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

    Tasks of a first round write the distinct ids of some files each, by ranges. Those of a second round merge a range, and those of the
    last one write the ranges of a kind one after the other.

    Args:
        executor: Runs the tasks.
        ids: Files that `write_ids` wrote, one per file of rows; at least one.
        output: Where tasks write.
        folder: The version's folder.
    """
    files = [ids._replace(paths=ids.paths[since : since + _MERGED_FILES]) for since in range(0, len(ids.paths), _MERGED_FILES)]
    sample = _read_sample(ids)
    bounds = {kind: _quantiles(sample, kind, min(len(files), _RANGES)) for kind in get_args(IdKind)}
    ranges: dict[tuple[IdKind, int], list[Segment]] = defaultdict(list)
    for written in executor.map(_write_distinct, ((some, bounds, output) for some in files)):
        for key, segment in written.items():
            ranges[key].append(segment)
    merged = dict(executor.map(_merge_range, ((key, segments, output) for key, segments in ranges.items())))
    entries = {}
    calls = (
        (kind, sample.schema.field(kind).type.value_type, [merged[key] for key in sorted(merged) if key[0] == kind], output)
        for kind in get_args(IdKind)
    )
    for kind, path, entry in executor.map(_write_kind, calls):
        name = f"{VOCABULARY_FOLDER}/{kind}.parquet"
        output.take(path, folder / name)
        entries[name] = entry
    return entries


def _read_sample(ids: SharedFiles) -> pa.Table:
    """Read the ids of a few files, which tell where those of all lie."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = ids.paths[:: -(-len(ids.paths) // _SAMPLED_FILES)]
    with ids.folder.open_local_files(paths) as files:
        return pa.concat_tables([pq.read_table(file, partitioning=None) for file in files])


def _quantiles(sample: pa.Table, kind: IdKind, ranges: int) -> list[Any]:
    """Return the first id of each range but the first, ascending; fewer if few ids were sampled."""
    import pyarrow.compute as pc

    found = pc.list_flatten(sample.column(kind))
    ordered = found.take(pc.sort_indices(found))
    places = {len(ordered) * number // ranges for number in range(1, ranges)} if len(ordered) else set()
    return sorted({ordered[place].as_py() for place in places})


def _write_distinct(
    connection: DuckDBPyConnection, ids: SharedFiles, bounds: Mapping[IdKind, Sequence[Any]], output: ShuffleFolder
) -> dict[tuple[IdKind, int], Segment]:
    """Task of the first round: write the distinct ids of some files, by kind and range."""
    from scalr_prod.workspace import parquet_sql

    found: dict[tuple[IdKind, int], Segment] = {}
    with ids.folder.open_local_files(ids.paths) as files:
        for kind in get_args(IdKind):
            query = f"SELECT DISTINCT id FROM (SELECT unnest({kind}) AS id FROM {parquet_sql(*files)})"
            segments = write_segments(connection, query, key="id", bounds=bounds[kind], folder=output)
            found |= {(kind, number): segment for number, segment in segments.items()}
    return found


def _merge_range(
    connection: DuckDBPyConnection, key: tuple[IdKind, int], segments: Sequence[Segment], output: ShuffleFolder
) -> tuple[tuple[IdKind, int], Segment]:
    """Task of the second round: write the distinct ids of a range, sorted."""
    load_segments(connection, segments, folder=output, name="ids")
    ids = connection.sql("SELECT DISTINCT id FROM ids ORDER BY id").to_arrow_table()
    connection.execute("DROP TABLE ids")
    return key, write_tables([(0, ids)], folder=output)[0]


def _write_kind(
    _: DuckDBPyConnection, kind: IdKind, type_: pa.DataType, segments: Sequence[Segment], output: ShuffleFolder
) -> tuple[IdKind, str, FileEntry]:
    """Task of the last round: write all ids of a kind, and return the kind, the file's path and its entry in the manifest."""
    import pyarrow as pa

    path, empty = output.new_path(".parquet"), pa.schema([("id", type_)]).empty_table()
    ids = read_segments(segments, folder=output) if segments else empty
    return kind, path, write_parquet(ids.combine_chunks(), path, output.open(), compression="zstd")
