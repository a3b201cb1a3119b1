# SPDX-License-Identifier: Apache-2.0
"""Rows that are too many to be put in order at once: dealt out on disk to heaps, each of a range of a key, and ordered heap by heap."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt
    import pyarrow as pa

__all__ = ["HEAP", "Heaps", "edges_of", "ordered", "rebatched", "tables_of"]

#: Rows of a heap, about.
HEAP: Final = 500_000
#: Rows that are dealt out together.
_RUN: Final = 1 << 18
#: Rows of a sample for each heap: heaps differ by a tenth.
_SAMPLED: Final = 128
#: Heaps at most, which a uint16 numbers.
_HEAPS: Final = 50_000
_BATCH: Final = 65_536


class Heaps:
    """Rows in a file, each in the heap of its key; only what one heap holds has to fit anywhere.

    Args:
        path: A new file.
        key: The column that decides: whole numbers, times or texts, none of them null.
        edges: The first key of each heap but the first, ascending; of times, µs.
        batches: The rows, in any order; they are read to the end.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path, key: str, edges: Sequence[int] | Sequence[str], batches: Iterable[pa.RecordBatch]) -> None:
        self._path, self._key, self._edges = path, key, edges
        self._slices: list[list[int]] = [[] for _ in range(len(edges) + 1)]
        self._deal(batches)

    def __len__(self) -> int:
        return len(self._slices)

    def rows(self, heap: int) -> Iterator[pa.RecordBatch]:
        """The rows of a heap, in the order in which they came."""
        import pyarrow as pa

        with pa.OSFile(str(self._path)) as source, pa.ipc.open_file(source) as file:
            for number in self._slices[heap]:
                yield file.get_batch(number)

    def tables(self, db: Any, schema: pa.Schema, name: str = "heap") -> Iterator[str]:
        """One heap after the other as a table of DuckDB, whose name is given; then the disk is given back.

        Args:
            db: DuckDB connection.
            schema: Of the rows.
            name: Of the table.
        """
        import pyarrow as pa

        for heap in range(len(self)):
            db.register("dealt", pa.RecordBatchReader.from_batches(schema, self.rows(heap)))
            db.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS FROM dealt")
            db.unregister("dealt")
            yield name
            db.execute(f"DROP TABLE {name}")
        self._path.unlink(missing_ok=True)

    def _deal(self, batches: Iterable[pa.RecordBatch]) -> None:
        import pyarrow as pa

        number = 0
        writer: Any = None
        try:
            for run in rebatched(batches, _RUN):
                if writer is None:
                    writer = pa.ipc.new_file(str(self._path), run.schema, options=pa.ipc.IpcWriteOptions(compression="lz4"))
                heap = _heaps_of(run.column(self._key), self._edges)
                dealt = run.take(pa.array(np.argsort(heap, kind="stable")))
                start = 0
                for which, size in enumerate(np.bincount(heap).tolist()):
                    if size:
                        writer.write_batch(dealt.slice(start, size))
                        self._slices[which].append(number)
                        start, number = start + size, number + 1
        finally:
            if writer is not None:
                writer.close()


def edges_of(db: Any, relation: str, key: str, rows: int) -> list[Any]:
    """Keys that cut rows into heaps of about half a million, ascending; of times, µs. None where they are few.

    Args:
        db: DuckDB connection.
        relation: What the keys are read from, in SQL.
        key: The column: whole numbers, times or texts, none of them null.
        rows: How many there are, about.
    """
    heaps = min(-(-rows // HEAP), _HEAPS)
    if heaps < 2:  # noqa: PLR2004 - then there is nothing to cut
        return []
    percent = min(100 * heaps * _SAMPLED / rows, 100)
    sample = db.sql(f"SELECT {key} FROM {relation} USING SAMPLE {percent} PERCENT (bernoulli, 7)").to_arrow_table()
    found = sorted(_plain(sample.column(0).combine_chunks()).to_pylist())
    return sorted({found[len(found) * heap // heaps] for heap in range(1, heaps)}) if found else []


def tables_of(db: Any, query: str, *, key: str, edges: Sequence[Any], path: Path, name: str = "heap") -> Iterator[str]:
    """A query's rows as a table of DuckDB, heap by heap: all of a key in one heap, and no heap's keys before those of the heap before it.

    Args:
        db: DuckDB connection.
        query: Gives the rows; it is done once, by this call.
        key: The column that decides the heap.
        edges: From `edges_of`.
        path: A new file, for what is dealt out to heaps; removed after the last one.
        name: Of the table.

    Gives: The table's name once for each heap, of which there is at least one; some may be empty.

    Raises:
        OSError: The file cannot be written.
    """
    if not edges:
        db.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {query}")
        return _whole(db, name)
    reader = db.sql(query).to_arrow_reader(_BATCH)
    return Heaps(path, key, edges, reader).tables(db, reader.schema, name)


def ordered(
    db: Any, query: str, arranged: str, *, key: str, edges: Sequence[Any], path: Path
) -> Iterator[pa.RecordBatchReader]:
    """The rows of `tables_of` in order.

    Args:
        db: DuckDB connection, which gets the table ``heap``.
        query: As there, as are the arguments below ``arranged``.
        arranged: What is made of the rows of a heap, in SQL: of the table ``heap``, in an order that begins with the key.
        key: The column that decides the heap.
        edges: From `edges_of`.
        path: A new file.

    Gives: At least one reader, each to be read to its end before the next; some may be empty.

    Raises:
        OSError: The file cannot be written.
    """
    return (db.sql(arranged).to_arrow_reader(_BATCH) for _ in tables_of(db, query, key=key, edges=edges, path=path))


def _whole(db: Any, name: str) -> Iterator[str]:
    yield name
    db.execute(f"DROP TABLE {name}")


def rebatched(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of so many, the last one of what is left."""
    import pyarrow as pa

    waiting: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        start = 0
        while size + len(batch) - start >= rows:
            end = start + rows - size
            yield pa.concat_batches([*waiting, batch.slice(start, end - start)])
            waiting, size, start = [], 0, end
        if start < len(batch):
            waiting.append(batch.slice(start))
            size += len(batch) - start
    if size:
        yield pa.concat_batches(waiting)


def _heaps_of(keys: pa.Array, edges: Sequence[int] | Sequence[str]) -> npt.NDArray[np.uint16]:
    """The heap of each key: uint16 [N], which numpy sorts in one pass."""
    import pyarrow as pa

    plain = _plain(keys)
    if pa.types.is_integer(plain.type):
        found: npt.NDArray[np.uint16] = np.searchsorted(np.asarray(edges), plain.to_numpy(), side="right").astype(np.uint16)
        return found
    # Texts: in the order of their code points, which is that of their bytes, by which DuckDB goes.
    numbers = plain.dictionary_encode()
    of_text = np.array([bisect_right(edges, text) for text in numbers.dictionary.to_pylist()], np.uint16)
    heaps: npt.NDArray[np.uint16] = of_text[numbers.indices.to_numpy()]
    return heaps


def _plain(keys: pa.Array) -> pa.Array:
    """Times as µs; others as they are."""
    import pyarrow as pa

    return keys.cast(pa.int64()) if pa.types.is_timestamp(keys.type) else keys
