# SPDX-License-Identifier: Apache-2.0
"""External sort: DuckDB writes rows to range partitions on disk, then sorts one partition at a time.

A pass over the rows splits them into at most `_FAN_OUT` folders; more partitions take more passes. In a single pass, the time to find the
partition of a row and the number of row groups would grow with the number of partitions: quadratic in the number of rows.
"""

from __future__ import annotations

import glob
import shutil
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa


#: Target number of rows of a partition.
PARTITION_ROWS: Final = 500_000
#: Name of the column with a row's partition number.
PARTITION_NUMBER: Final = "partition_number"
#: Sampled rows per partition: partition sizes then vary by about a tenth.
_SAMPLED: Final = 128
#: Most folders that a pass splits rows into: DuckDB keeps up to 100 files open, and with more folders it closes files and starts new ones.
_FAN_OUT: Final = 100


def quantile_bounds(db: Any, relation: str, key: str, rows: int) -> list[Any]:
    """Estimate the keys that split rows into partitions of about `PARTITION_ROWS` rows, ascending (times in µs); empty for few rows.

    Args:
        db: DuckDB connection.
        relation: SQL relation to sample the keys from.
        key: The column: integers, times or texts, without nulls.
        rows: Approximate row count.
    """
    import pyarrow as pa

    partitions = -(-rows // PARTITION_ROWS)
    if partitions < 2:  # noqa: PLR2004 - one partition needs no bounds
        return []
    percent = min(100 * partitions * _SAMPLED / rows, 100)
    keys = db.sql(f"SELECT {key} FROM {relation} USING SAMPLE {percent} PERCENT (bernoulli, 7)").to_arrow_table().column(0)
    return sample_bounds((keys.cast(pa.int64()) if pa.types.is_timestamp(keys.type) else keys).to_pylist(), rows)


def sample_stride() -> int:
    """Return of how many rows one is in a sample for `sample_bounds`."""
    return max(PARTITION_ROWS // _SAMPLED, 1)


def sample_bounds(sample: Iterable[Any], rows: int) -> list[Any]:
    """Return the same bounds, from the keys of an even sample of so many rows."""
    found, partitions = sorted(sample), -(-rows // PARTITION_ROWS)
    return sorted({found[len(found) * number // partitions] for number in range(1, partitions)}) if found else []


def hash_bounds(rows: int, partition_rows: int | None = None) -> list[int]:
    """Return the bounds that split the hashes of so many rows, from 0 to 2⁶³ − 1, into partitions of so many; default: `PARTITION_ROWS`."""
    partitions = -(-rows // (partition_rows or PARTITION_ROWS))
    return [(number << 63) // partitions for number in range(1, partitions)]


def iter_partition_tables(
    db: Any,
    query: str,
    *,
    key: str,
    bounds: Sequence[Any],
    folder: Path,
    name: str = "partition_rows",
    parameters: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """Split a query's rows into range partitions, and yield them one by one, in the order of their keys, as a DuckDB table.

    Args:
        db: DuckDB connection.
        query: Selects the rows; this call runs it once.
        key: The partition column, without nulls; equal keys share a partition.
        bounds: The first key of each partition but the first, ascending, as `quantile_bounds` returns them.
        folder: A new folder to spill to; removed after the last partition.
        name: Name of the table.
        parameters: Values of the query's parameters.

    Returns:
        The table's name once per partition; at least one, and some may be empty.
    """
    if not bounds:
        db.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {query}", parameters)
        return _single_table(db, name)
    columns = {row[0]: row[1] for row in db.execute(f"DESCRIBE SELECT * FROM ({query})", parameters).fetchall()}
    value = f"epoch_us({key})" if columns[key].startswith("TIMESTAMP") else key
    spill = _Spill(db, columns, value, name)
    spill.write(query, bounds, folder, parameters)
    return spill.iter_tables(bounds, folder)


def partition_number_sql(value: str, bounds: Sequence[Any], first: int = 0) -> str:
    """Return SQL for the number of a value's partition: a binary search over the bounds.

    Args:
        value: SQL of the value.
        bounds: The first key of each partition but the first, ascending, as `quantile_bounds` returns them.
        first: Number of the first partition.
    """
    if not bounds:
        return str(first)
    middle = len(bounds) // 2
    bound = bounds[middle]
    literal = str(bound) if isinstance(bound, int) else "'" + bound.replace("'", "''") + "'"
    below = partition_number_sql(value, bounds[:middle], first)
    above = partition_number_sql(value, bounds[middle + 1 :], first + middle + 1)
    return f"CASE WHEN {value} < {literal} THEN {below} ELSE {above} END"


def iter_numbered(batches: Iterable[pa.RecordBatch], column: str) -> Iterator[tuple[int, pa.Table]]:
    """Yield the rows of each run of equal numbers as a table without the column; only one such table is in memory.

    Args:
        batches: The rows, sorted by the column.
        column: An integer column without nulls.
    """
    import pyarrow as pa

    pending: list[pa.RecordBatch] = []
    current = -1
    for batch in batches:
        numbers = batch.column(column).to_numpy()
        for start, stop in pairwise([0, *(np.flatnonzero(np.diff(numbers)) + 1), len(numbers)] if len(numbers) else ()):
            if numbers[start] != current and pending:
                yield current, pa.Table.from_batches(pending)
                pending = []
            current = int(numbers[start])
            pending.append(batch.slice(start, stop - start).drop_columns(column))
    if pending:
        yield current, pa.Table.from_batches(pending)


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


def _single_table(db: Any, name: str) -> Iterator[str]:
    yield name
    db.execute(f"DROP TABLE {name}")


@dataclass(frozen=True)
class _Spill:
    """Rows in range partitions on disk. A folder has at most `_FAN_OUT` subfolders, each of one or more consecutive partitions.

    Attributes:
        db: DuckDB connection.
        columns: Name → DuckDB type of each column.
        value: SQL expression that is compared with the bounds.
        name: Name of the table that partitions are loaded into.
    """

    db: Any
    columns: Mapping[str, str]
    value: str
    name: str

    def write(self, query: str, bounds: Sequence[Any], folder: Path, parameters: Mapping[str, Any] | None = None) -> None:
        """Write a query's rows to the subfolders of a new folder."""
        size = _partitions_per_subfolder(bounds)
        path, number = str(folder).replace("'", "''"), partition_number_sql(self.value, bounds[size - 1 :: size])
        self.db.execute(
            f"COPY (SELECT *, {number} AS {PARTITION_NUMBER} FROM ({query})) TO '{path}' "
            f"(FORMAT parquet, COMPRESSION lz4, PARTITION_BY ({PARTITION_NUMBER}))",
            parameters,
        )

    def iter_tables(self, bounds: Sequence[Any], folder: Path) -> Iterator[str]:
        """Load one partition after the other as a table; files are removed once they are loaded or split."""
        for _ in self._iter_loaded(bounds, folder):
            yield self.name
        self.db.execute(f"DROP TABLE {self.name}")

    def _iter_loaded(self, bounds: Sequence[Any], folder: Path) -> Iterator[None]:
        size = _partitions_per_subfolder(bounds)
        for number, first in enumerate(range(0, len(bounds) + 1, size)):
            subfolder, inner_bounds = folder / f"{PARTITION_NUMBER}={number}", bounds[first : first + size - 1]
            files = f"{glob.escape(str(subfolder))}/*.parquet".replace("'", "''")
            rows = f"FROM read_parquet('{files}', hive_partitioning = false)" if subfolder.exists() else None
            if inner_bounds:
                inner = folder / str(number)
                if rows:
                    self.write(rows, inner_bounds, inner)
                    shutil.rmtree(subfolder)
                yield from self._iter_loaded(inner_bounds, inner)
                continue
            schema = ", ".join(f'"{column}" {kind}' for column, kind in self.columns.items())
            self.db.execute(f"CREATE OR REPLACE TEMP TABLE {self.name} ({schema})")
            if rows:
                self.db.execute(f"INSERT INTO {self.name} {rows}")
                shutil.rmtree(subfolder)
            yield
        shutil.rmtree(folder, ignore_errors=True)  # missing if all of its partitions are empty


def _partitions_per_subfolder(bounds: Sequence[Any]) -> int:
    return -(-(len(bounds) + 1) // _FAN_OUT)
