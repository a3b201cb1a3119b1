# SPDX-License-Identifier: Apache-2.0
"""External sort: spill rows to range partitions on disk, then sort one partition at a time."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt
    import pyarrow as pa

__all__ = ["PARTITION_ROWS", "SpilledPartitions", "iter_partition_tables", "iter_sorted", "quantile_bounds", "rebatch"]

#: Target number of rows of a partition.
PARTITION_ROWS: Final = 500_000
#: Rows that are partitioned at a time.
_RUN: Final = 1 << 18
#: Sampled rows per partition: partition sizes then vary by about a tenth.
_SAMPLED: Final = 128
#: Most partitions, so that a uint16 can number them.
_MOST_PARTITIONS: Final = 50_000
_BATCH: Final = 65_536


class SpilledPartitions:
    """Rows in one spill file, split into range partitions of a key; only one partition has to fit in memory.

    Args:
        path: A new file.
        key: The partition column: integers, times or texts, without nulls.
        bounds: The first key of each partition but the first, ascending; times in µs.
        batches: The rows, in any order; all of them are read.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path, key: str, bounds: Sequence[int] | Sequence[str], batches: Iterable[pa.RecordBatch]) -> None:
        self._path, self._key, self._edges = path, key, bounds
        self._batches: list[list[int]] = [[] for _ in range(len(bounds) + 1)]
        self._spill(batches)

    def __len__(self) -> int:
        return len(self._batches)

    def iter_batches(self, partition: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a partition, in their original order."""
        import pyarrow as pa

        with pa.OSFile(str(self._path)) as source, pa.ipc.open_file(source) as file:
            for number in self._batches[partition]:
                yield file.get_batch(number)

    def iter_tables(self, db: Any, schema: pa.Schema, name: str = "partition_rows") -> Iterator[str]:
        """Load one partition after the other as a DuckDB table, and yield its name; the spill file is removed after the last one.

        Args:
            db: DuckDB connection.
            schema: Schema of the rows.
            name: Name of the table.
        """
        import pyarrow as pa

        for partition in range(len(self)):
            db.register("spilled", pa.RecordBatchReader.from_batches(schema, self.iter_batches(partition)))
            db.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS FROM spilled")
            db.unregister("spilled")
            yield name
            db.execute(f"DROP TABLE {name}")
        self._path.unlink(missing_ok=True)

    def _spill(self, batches: Iterable[pa.RecordBatch]) -> None:
        import pyarrow as pa

        number = 0
        writer: Any = None
        try:
            for batch in rebatch(batches, _RUN):
                if writer is None:
                    writer = pa.ipc.new_file(str(self._path), batch.schema, options=pa.ipc.IpcWriteOptions(compression="lz4"))
                numbers = _partition_numbers(batch.column(self._key), self._edges)
                grouped = batch.take(pa.array(np.argsort(numbers, kind="stable")))
                start = 0
                for partition, size in enumerate(np.bincount(numbers).tolist()):
                    if size:
                        writer.write_batch(grouped.slice(start, size))
                        self._batches[partition].append(number)
                        start, number = start + size, number + 1
        finally:
            if writer is not None:
                writer.close()


def quantile_bounds(db: Any, relation: str, key: str, rows: int) -> list[Any]:
    """Estimate the keys that split rows into partitions of about `PARTITION_ROWS` rows, ascending (times in µs); empty for few rows.

    Args:
        db: DuckDB connection.
        relation: SQL relation to sample the keys from.
        key: The column: integers, times or texts, without nulls.
        rows: Approximate row count.
    """
    partitions = min(-(-rows // PARTITION_ROWS), _MOST_PARTITIONS)
    if partitions < 2:  # noqa: PLR2004 - one partition needs no bounds
        return []
    percent = min(100 * partitions * _SAMPLED / rows, 100)
    sample = db.sql(f"SELECT {key} FROM {relation} USING SAMPLE {percent} PERCENT (bernoulli, 7)").to_arrow_table()
    keys = sorted(_sortable(sample.column(0).combine_chunks()).to_pylist())
    return sorted({keys[len(keys) * number // partitions] for number in range(1, partitions)}) if keys else []


def iter_partition_tables(
    db: Any, query: str, *, key: str, bounds: Sequence[Any], path: Path, name: str = "partition_rows"
) -> Iterator[str]:
    """Split a query's rows into range partitions, and yield them one by one, in the order of their keys, as a DuckDB table.

    Args:
        db: DuckDB connection.
        query: Selects the rows; this call runs it once.
        key: The partition column; equal keys share a partition.
        bounds: From `quantile_bounds`.
        path: A new file to spill to; removed after the last partition.
        name: Name of the table.

    Returns:
        The table's name once per partition; at least one, and some may be empty.

    Raises:
        OSError: The file cannot be written.
    """
    if not bounds:
        db.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {query}")
        return _single_table(db, name)
    reader = db.sql(query).to_arrow_reader(_BATCH)
    return SpilledPartitions(path, key, bounds, reader).iter_tables(db, reader.schema, name)


def iter_sorted(
    db: Any, query: str, sort_sql: str, *, key: str, bounds: Sequence[Any], path: Path
) -> Iterator[pa.RecordBatchReader]:
    """Sort a query's rows externally: one reader per partition of `iter_partition_tables`.

    Args:
        db: DuckDB connection; the table ``partition_rows`` is created in it.
        query: Selects the rows; this call runs it once.
        sort_sql: SQL that sorts one partition: selects from the table ``partition_rows``, in an order that begins with the key.
        key: The partition column.
        bounds: From `quantile_bounds`.
        path: A new file to spill to.

    Returns:
        At least one reader, some perhaps empty; read each to its end before the next.

    Raises:
        OSError: The file cannot be written.
    """
    return (
        db.sql(sort_sql).to_arrow_reader(_BATCH) for _ in iter_partition_tables(db, query, key=key, bounds=bounds, path=path)
    )


def _single_table(db: Any, name: str) -> Iterator[str]:
    yield name
    db.execute(f"DROP TABLE {name}")


def rebatch(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the same rows in batches of ``rows`` rows; the last one may be shorter."""
    import pyarrow as pa

    pending: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        start = 0
        while size + len(batch) - start >= rows:
            end = start + rows - size
            yield pa.concat_batches([*pending, batch.slice(start, end - start)])
            pending, size, start = [], 0, end
        if start < len(batch):
            pending.append(batch.slice(start))
            size += len(batch) - start
    if size:
        yield pa.concat_batches(pending)


def _partition_numbers(keys: pa.Array, edges: Sequence[int] | Sequence[str]) -> npt.NDArray[np.uint16]:
    """Return the partition of each key: uint16 [N], which numpy radix-sorts."""
    import pyarrow as pa

    values = _sortable(keys)
    if pa.types.is_integer(values.type):
        positions: npt.NDArray[np.int64] = np.searchsorted(np.asarray(edges), values.to_numpy(), side="right")
        return positions.astype(np.uint16)
    # Python compares texts by code point, which is the order of their UTF-8 bytes and thus DuckDB's.
    encoded = values.dictionary_encode()
    distinct = np.array([bisect_right(edges, text) for text in encoded.dictionary.to_pylist()], np.uint16)
    numbers: npt.NDArray[np.uint16] = distinct[encoded.indices.to_numpy()]
    return numbers


def _sortable(keys: pa.Array) -> pa.Array:
    """Convert times to µs; leave other keys as they are."""
    import pyarrow as pa

    return keys.cast(pa.int64()) if pa.types.is_timestamp(keys.type) else keys
