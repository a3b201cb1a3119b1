# SPDX-License-Identifier: Apache-2.0
"""The spine: the labelled rows of a training set, before features are joined.

It is the union of real and synthetic target events (label 1) and optional negatives (label 0), all before the cutoff and known by it.
`spine_build` plans the tasks that write it, and `spine_tasks` has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from scalr_prod.compute import read_segments
from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID, SPLIT, USER_ID

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from scalr_prod.compute import Segment, ShuffleFolder
    from scalr_prod.training_set.periods import Period
    from scalr_prod.training_set.previous_version import PartitionStatistics


KEYS: Final = (USER_ID, ITEM_ID, EVENT_TIMESTAMP)
LABEL_COLUMNS: Final = ("label", "weight", "is_synthetic", "run_id", "source_domain")


class SpineChunk(NamedTuple):
    """Consecutive rows of the spine that are read at once."""

    segment: Segment
    rows: int


@dataclass(frozen=True)
class Spine:
    """The staged spine. Its rows are where tasks read them, and not in this process.

    Attributes:
        schema: Its columns.
        chunks: The rows, ordered by label time, then by every other column.
        day_statistics: UTC day → statistics of its rows, for days with rows; in order.
        split_rows: For each part after ``train``, the number of rows before it.
    """

    schema: pa.Schema
    chunks: Sequence[SpineChunk]
    day_statistics: Mapping[Period, PartitionStatistics]
    split_rows: Sequence[int] = ()

    @property
    def row_count(self) -> int:
        """Number of rows."""
        return sum(day.rows for day in self.day_statistics.values())

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """int64 [C]. For each chunk, the number of rows up to its end."""
        return np.cumsum([chunk.rows for chunk in self.chunks], dtype=np.int64)

    def select(self, start: int, rows: int) -> SpineRows:
        """Return where some consecutive rows are.

        Args:
            start: Number of rows before them.
            rows: Number of rows, at least one.
        """
        first, last = np.searchsorted(self._ends, [start, start + rows - 1], side="right").tolist()
        skipped = start - (int(self._ends[first - 1]) if first else 0)
        return SpineRows(tuple(chunk.segment for chunk in self.chunks[first : last + 1]), skipped, rows)


class SpineRows(NamedTuple):
    """Where consecutive rows of the spine are.

    Attributes:
        segments: The chunks that hold them.
        skipped: Number of rows of the first chunk before them.
        rows: Number of rows.
    """

    segments: tuple[Segment, ...]
    skipped: int
    rows: int

    def read(self, folder: ShuffleFolder) -> pa.Table:
        """Read the rows."""
        return read_segments(self.segments, folder=folder).slice(self.skipped, self.rows)

    def read_keys(self, folder: ShuffleFolder) -> pa.Table:
        """Read the columns `KEYS` of the rows."""
        return read_segments(self.segments, folder=folder, columns=len(KEYS)).slice(self.skipped, self.rows)


def spine_schema(user: pa.DataType, item: pa.DataType, *, flags: Sequence[str] = (), parts: bool = False) -> pa.Schema:
    """Return the spine's columns, the first columns of a training set.

    Args:
        user: Type of user ids.
        item: Type of item ids.
        flags: Columns that mark users in an experiment.
        parts: Whether a column names each row's part.
    """
    import pyarrow as pa

    schema = pa.schema(
        [
            pa.field(USER_ID, user, nullable=False),
            pa.field(ITEM_ID, item, nullable=False),
            pa.field(EVENT_TIMESTAMP, pa.timestamp("us", tz="UTC"), nullable=False),
            pa.field("label", pa.int8(), nullable=False),
            pa.field("weight", pa.float32(), nullable=False),
            pa.field("is_synthetic", pa.bool_(), nullable=False),
            pa.field("run_id", pa.string()),
            pa.field("source_domain", pa.string()),
        ]
    )
    for mark in flags:
        schema = schema.append(pa.field(mark, pa.bool_(), nullable=False))
    return schema.append(pa.field(SPLIT, pa.string(), nullable=False)) if parts else schema
