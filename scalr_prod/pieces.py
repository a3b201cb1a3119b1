# SPDX-License-Identifier: Apache-2.0
"""Regions of the feature view: a time window, of all or some users, at a version of the table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from scalr_prod.contracts import EVENT_TIMESTAMP, USER_ID, Table
from scalr_prod.growth import fragments_of
from scalr_prod.holdout import Canary
from scalr_prod.lake import files_within

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    import pyarrow as pa
    from deltalake import DeltaTable

    from scalr_prod.lake import Lake
    from scalr_prod.ledger import Publication

__all__ = ["ONWARD", "Part", "Piece", "piece_of", "rows_by_run", "stream"]

_VIEW: Final = Table.SYNTHETIC_TARGET_EVENTS
#: Scan options for rows that are rewritten: read no faster than they are written. About ten batches queue in Delta's writer.
ONWARD: Final[dict[str, int | bool]] = {
    "batch_size": 16_384,
    "batch_readahead": 1,
    "fragment_readahead": 1,
    "use_threads": False,
}


@dataclass(frozen=True)
class Piece:
    """Time window ``[start, end)`` of all or some users.

    Attributes:
        start: The first instant (UTC).
        end: The instant after the last.
        within: Users must be in each of these canaries; empty: all users.
        beyond: Users must be in none of these canaries.
    """

    start: datetime
    end: datetime
    within: frozenset[Canary] = frozenset()
    beyond: frozenset[Canary] = frozenset()

    def common(self, other: Piece) -> Piece | None:
        """Return the intersection of two regions; None if it is empty."""
        start, end = max(self.start, other.start), min(self.end, other.end)
        within, beyond = self.within | other.within, self.beyond | other.beyond
        empty = start >= end or any(included <= excluded for included in within for excluded in beyond)
        return None if empty else Piece(start, end, within, beyond)

    def without(self, taken: Piece) -> list[Piece]:
        """Return the rest of the region without another one, as disjoint regions."""
        sides = [(self.start, min(self.end, taken.start)), (max(self.start, taken.end), self.end)]
        rest = [replace(self, start=start, end=end) for start, end in sides if start < end]
        left = self.common(Piece(taken.start, taken.end))
        for canary in sorted(taken.within | taken.beyond, key=str):
            users = frozenset({canary})
            inner, outer = Piece(taken.start, taken.end, within=users), Piece(taken.start, taken.end, beyond=users)
            kept, gone = (outer, inner) if canary in taken.within else (inner, outer)
            if left is not None:
                rest += [overlap] if (overlap := left.common(kept)) else []
                left = left.common(gone)
        return rest


@dataclass(frozen=True)
class Part:
    """Rows of the view: a region at a version, of all or some runs.

    Attributes:
        version: Version of the table.
        piece: The rows' region.
        runs: The rows' runs; None: all runs.
    """

    version: int
    piece: Piece
    runs: Sequence[str] | None = None


def piece_of(publication: Publication) -> Piece:
    """Return the region that a publication replaced."""
    canary = Canary.of_publication(publication.canary)
    return Piece(publication.start, publication.end, frozenset() if canary is None else frozenset({canary}))


def stream(lake: Lake, parts: Sequence[Part], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the rows of regions, one after the other, with the columns that the table has now.

    This call opens the tables, not the first batch: Delta's writer cannot open a table while it consumes the stream.
    """
    import pyarrow as pa

    opened = [(lake.dataset(_VIEW, version=part.version), part) for part in parts]

    def batches() -> Iterator[pa.RecordBatch]:
        for dataset, part in opened:
            for batch in dataset.to_batches(filter=_inside(part), **ONWARD):
                rows = _of_users(batch, part.piece)
                columns = [  # an older version's table may lack a column
                    rows.column(field.name).cast(field.type)
                    if field.name in rows.schema.names
                    else pa.nulls(len(rows), field.type)
                    for field in schema
                ]
                yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return batches()


def rows_by_run(lake: Lake, piece: Piece, *, version: int | None = None, opened: DeltaTable | None = None) -> dict[str, int]:
    """Count the rows of each run in a region of the view. Memory does not grow with the region.

    Args:
        lake: The lake with the view.
        piece: The region to count in.
        version: The view's version; default: the current one.
        opened: The opened view, to count at its version.

    Raises:
        LakeError: The view, or a file of it, cannot be read.
    """
    counts: Counter[str] = Counter()
    columns = ["run_id", USER_ID] if piece.within or piece.beyond else ["run_id"]
    if opened is None:
        opened = lake.open_table(_VIEW, version=version)
    else:
        lake.refuse_gone(_VIEW, opened)
    dataset = fragments_of(opened, files_within(opened, piece.start, piece.end))
    for batch in dataset.to_batches(columns=columns, filter=_inside(Part(0, piece)), batch_readahead=2, fragment_readahead=1):
        for entry in _of_users(batch, piece).column(0).value_counts().to_pylist():
            counts[entry["values"]] += entry["counts"]
    return dict(counts)


def _inside(part: Part) -> pa.compute.Expression:
    import pyarrow.compute as pc

    moment = pc.field(EVENT_TIMESTAMP)
    inside = (moment >= part.piece.start) & (moment < part.piece.end)
    return inside if part.runs is None else inside & pc.field("run_id").isin(list(part.runs))


def _of_users(batch: pa.RecordBatch, piece: Piece) -> pa.RecordBatch:
    import pyarrow.compute as pc

    for canary in piece.within if len(batch) else ():
        batch = batch.filter(canary.among(batch.column(USER_ID)))
    for canary in piece.beyond if len(batch) else ():
        batch = batch.filter(pc.invert(canary.among(batch.column(USER_ID))))
    return batch
