# SPDX-License-Identifier: Apache-2.0
"""Sort a log by time into files of bounded size: an external sort that puts equal rows side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core import row_groups
from scalr_prod.core.partitioned import iter_partition_tables, quantile_bounds
from scalr_prod.core.timestamps import micros_to_datetime
from scalr_prod.ingest.rows import BATCH_ROWS
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, OPTIONAL_EVENT_COLUMNS, USER_ID

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    import numpy.typing as npt
    import pyarrow as pa


#: Sort order of events. Rows that are equal in these columns may differ in other mapped ones.
SORT_COLUMNS: Final = (EVENT_TIMESTAMP, USER_ID, ITEM_ID, CREATED_TIMESTAMP, "weight")
_BATCH: Final = 65_536


@dataclass(frozen=True)
class SortedFile:
    """A file of sorted rows between two instants.

    Attributes:
        path: The Parquet file.
        first: Time of the first row (UTC).
        last: Time of the last row (UTC).
    """

    path: Path
    first: datetime
    last: datetime


@dataclass(frozen=True)
class DuplicateCounts:
    """Counts of a log's repeated rows.

    Attributes:
        rows: Rows that repeat another one.
        distinct: Distinct rows.
        all_repeated: Whether every row is repeated.
    """

    rows: int
    distinct: int
    all_repeated: bool


@dataclass(frozen=True)
class SortedLog:
    """A log that was sorted by time.

    Attributes:
        files: The files in time order; no two share an instant.
        rows: Rows of the files.
        duplicates: Counts of repeated rows, before they were dropped.
    """

    files: tuple[SortedFile, ...]
    rows: int
    duplicates: DuplicateCounts


def sort_log(db: Any, view: str, rows: int, mapped: Collection[str], folder: Path, *, drop_duplicates: bool) -> SortedLog:
    """Sort a log by time into Parquet files.

    Args:
        db: DuckDB connection that holds the log's view.
        view: Name of the view.
        rows: Number of its rows.
        mapped: The columns of `OPTIONAL_EVENT_COLUMNS` that the log has; the others are null in the files.
        folder: Folder of the files.
        drop_duplicates: Keep each distinct row once.

    Raises:
        OSError: The folder is not writable.
    """
    columns = [*SORT_COLUMNS, *(name for name in OPTIONAL_EVENT_COLUMNS if name in mapped)]
    names = ", ".join(columns)
    partitions = iter_partition_tables(
        db,
        f"SELECT {names} FROM {view}",
        key=EVENT_TIMESTAMP,
        bounds=quantile_bounds(db, view, EVENT_TIMESTAMP, rows),
        folder=folder / f"{view}-partitions",
    )
    files: list[SortedFile] = []
    different, every, all_repeated = 0, 0, True
    for partition in partitions:
        counter = _DuplicateCounter()
        batches = db.sql(f"FROM {partition} ORDER BY {names}").to_arrow_reader(_BATCH)
        file = write_sorted_file(folder / f"{view}-{len(files)}.parquet", counter.count(batches, drop=drop_duplicates))
        if file is not None:
            files.append(file)
        different, every, all_repeated = (
            different + counter.different,
            every + counter.rows,
            all_repeated and counter.all_repeated,
        )
    return SortedLog(
        tuple(files),
        different if drop_duplicates else every,
        DuplicateCounts(every - different, different, all_repeated and every > 0),
    )


def write_sorted_file(path: Path, batches: Iterable[pa.RecordBatch]) -> SortedFile | None:
    """Write sorted rows to a file, with null columns for missing `OPTIONAL_EVENT_COLUMNS`; None, and no file, if there are no rows.

    Raises:
        OSError: The file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer: Any = None
    first = last = 0
    try:
        for batch in batches:
            if not len(batch):
                continue
            rows, times = _with_extras(batch), batch.column(EVENT_TIMESTAMP).cast(pa.int64())
            if writer is None:
                writer, first = pq.ParquetWriter(path, rows.schema, compression="lz4", use_dictionary=False), times[0].as_py()
            last = times[-1].as_py()
            writer.write_batch(rows)
    finally:
        if writer is not None:
            writer.close()
    return None if writer is None else SortedFile(path, micros_to_datetime(first), micros_to_datetime(last))


def _with_extras(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Add the missing columns of `OPTIONAL_EVENT_COLUMNS` to a batch, as nulls."""
    import pyarrow as pa

    missing = [name for name in OPTIONAL_EVENT_COLUMNS if name not in batch.schema.names]
    nulls = [pa.nulls(len(batch), pa.float64() if name == "value" else pa.string()) for name in missing]
    return pa.RecordBatch.from_arrays([*batch.columns, *nulls], [*batch.schema.names, *missing])


def iter_sorted_batches(files: Sequence[SortedFile]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of sorted files in time order."""
    import pyarrow.parquet as pq

    for sorted_file in files:
        with pq.ParquetFile(sorted_file.path) as file:
            yield from row_groups.iter_batches(file, BATCH_ROWS)


class _DuplicateCounter:
    """Count the rows of a sorted stream that equal the row before them.

    Attributes:
        rows: Rows seen.
        different: Distinct rows seen.
    """

    def __init__(self) -> None:
        self.rows = self.different = 0
        self._before: pa.RecordBatch | None = None
        self._firsts: list[npt.NDArray[np.int64]] = []

    def count(self, batches: Iterable[pa.RecordBatch], *, drop: bool) -> Iterator[pa.RecordBatch]:
        """Pass batches through while counting; with ``drop``, without repeated rows."""
        import pyarrow as pa

        for batch in batches:
            if not len(batch):
                continue
            new = np.ones(len(batch), bool)
            joined = batch if self._before is None else pa.concat_batches([self._before, batch])
            new[len(batch) - len(joined) + 1 :] = _differ(joined)
            self._before = batch.slice(len(batch) - 1)
            self._firsts.append(np.flatnonzero(new) + self.rows)
            self.rows += len(batch)
            self.different += len(self._firsts[-1])
            yield batch.filter(pa.array(new)) if drop else batch

    @property
    def all_repeated(self) -> bool:
        """Whether every row occurs more than once."""
        if not self.rows:
            return True
        firsts = np.append(np.concatenate(self._firsts), self.rows)
        return bool((np.diff(firsts) > 1).all())


def _differ(batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    """Return whether each row but the first differs from the one before it; nulls are equal: bool [N - 1]."""
    import pyarrow.compute as pc

    different = np.zeros(len(batch) - 1, bool)
    for column in batch.columns:
        now, before = column.slice(1), column.slice(0, len(batch) - 1)
        differ = pc.fill_null(pc.not_equal(now, before), fill_value=False)
        if column.null_count:
            differ = pc.or_(differ, pc.xor(pc.is_null(now), pc.is_null(before)))
        different |= differ.to_numpy(zero_copy_only=False)
    return different
