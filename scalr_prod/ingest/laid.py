# SPDX-License-Identifier: Apache-2.0
"""A log's rows laid by time in files of bounded size, each in order: what is equal lies side by side, and nothing is held whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod import row_groups
from scalr_prod.contracts import CREATED_TIMESTAMP, EVENT_EXTRAS, EVENT_TIMESTAMP, ITEM_ID, USER_ID
from scalr_prod.heaps import edges_of, ordered
from scalr_prod.ingest.rows import ROWS
from scalr_prod.instants import datetime_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    import numpy.typing as npt
    import pyarrow as pa

__all__ = ["ORDER", "Laid", "Piece", "Repeated", "batches_of", "lay", "write_piece"]

#: By what rows of events are put in order. Rows that are alike in all of this may differ in what else is mapped.
ORDER: Final = (EVENT_TIMESTAMP, USER_ID, ITEM_ID, CREATED_TIMESTAMP, "weight")


@dataclass(frozen=True)
class Piece:
    """Rows between two instants, in order.

    Attributes:
        path: The Parquet file that holds them.
        first: Time of the first one (UTC).
        last: Time of the last one (UTC).
    """

    path: Path
    first: datetime
    last: datetime


@dataclass(frozen=True)
class Repeated:
    """Rows that are there more than once.

    Attributes:
        rows: How many are a repetition of another one.
        different: How many are not.
        whole: Whether each row is repeated.
    """

    rows: int
    different: int
    whole: bool


@dataclass(frozen=True)
class Laid:
    """A log that was laid by time.

    Attributes:
        pieces: One after the other; no two share an instant.
        rows: Rows that they hold.
        repeated: Of the rows that were laid, before repetitions were dropped.
    """

    pieces: tuple[Piece, ...]
    rows: int
    repeated: Repeated


def lay(db: Any, view: str, rows: int, mapped: Collection[str], folder: Path, *, drop: bool) -> Laid:
    """Lay a log by time.

    Args:
        db: DuckDB connection that holds the log's view.
        view: The view.
        rows: Its rows.
        mapped: Which of `EVENT_EXTRAS` the log has; the others are null in the pieces.
        folder: Where the pieces go.
        drop: Whether each row is to be there once.

    Raises:
        OSError: The folder cannot be written to.
    """
    columns = [*ORDER, *(name for name in EVENT_EXTRAS if name in mapped)]
    names = ", ".join(columns)
    heaps = ordered(
        db,
        f"SELECT {names} FROM {view}",
        f"FROM heap ORDER BY {names}",
        key=EVENT_TIMESTAMP,
        edges=edges_of(db, view, EVENT_TIMESTAMP, rows),
        path=folder / f"{view}.arrow",
    )
    pieces: list[Piece] = []
    different, every, whole = 0, 0, True
    for heap in heaps:
        counted = _Repetitions()
        piece = write_piece(folder / f"{view}-{len(pieces)}.parquet", counted.passed(heap, drop=drop))
        if piece is not None:
            pieces.append(piece)
        different, every, whole = different + counted.different, every + counted.rows, whole and counted.whole
    return Laid(tuple(pieces), different if drop else every, Repeated(every - different, different, whole and every > 0))


def write_piece(path: Path, batches: Iterable[pa.RecordBatch]) -> Piece | None:
    """A file of rows that come in order, with a null column for each of `EVENT_EXTRAS` that they lack; None, and no file: there are none.

    Raises:
        OSError: It cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer: Any = None
    first = last = 0
    try:
        for batch in batches:
            if not len(batch):
                continue
            rows, times = _completed(batch), batch.column(EVENT_TIMESTAMP).cast(pa.int64())
            if writer is None:
                writer, first = pq.ParquetWriter(path, rows.schema, compression="lz4", use_dictionary=False), times[0].as_py()
            last = times[-1].as_py()
            writer.write_batch(rows)
    finally:
        if writer is not None:
            writer.close()
    return None if writer is None else Piece(path, datetime_of(first), datetime_of(last))


def _completed(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch with each of `EVENT_EXTRAS`."""
    import pyarrow as pa

    lacking = [name for name in EVENT_EXTRAS if name not in batch.schema.names]
    nulls = [pa.nulls(len(batch), pa.float64() if name == "value" else pa.string()) for name in lacking]
    return pa.RecordBatch.from_arrays([*batch.columns, *nulls], [*batch.schema.names, *lacking])


def batches_of(pieces: Sequence[Piece]) -> Iterator[pa.RecordBatch]:
    """The rows of pieces, one after the other."""
    import pyarrow.parquet as pq

    for piece in pieces:
        with pq.ParquetFile(piece.path) as file:
            yield from row_groups.batches_of(file, ROWS)


class _Repetitions:
    """Rows that are the same as the row before them, counted as they pass in order.

    Attributes:
        rows: How many passed.
        different: How many of them are the first of their kind.
    """

    def __init__(self) -> None:
        self.rows = self.different = 0
        self._before: pa.RecordBatch | None = None
        self._firsts: list[npt.NDArray[np.int64]] = []

    def passed(self, batches: Iterable[pa.RecordBatch], *, drop: bool) -> Iterator[pa.RecordBatch]:
        """The same batches, where they are to be dropped without the repetitions."""
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
    def whole(self) -> bool:
        """Whether each row is there more than once."""
        if not self.rows:
            return True
        firsts = np.append(np.concatenate(self._firsts), self.rows)
        return bool((np.diff(firsts) > 1).all())


def _differ(batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    """Whether each row but the first differs from the one before it; nulls are alike: bool [N - 1]."""
    import pyarrow.compute as pc

    found = np.zeros(len(batch) - 1, bool)
    for column in batch.columns:
        now, before = column.slice(1), column.slice(0, len(batch) - 1)
        differ = pc.fill_null(pc.not_equal(now, before), fill_value=False)
        if column.null_count:
            differ = pc.or_(differ, pc.xor(pc.is_null(now), pc.is_null(before)))
        found |= differ.to_numpy(zero_copy_only=False)
    return found
