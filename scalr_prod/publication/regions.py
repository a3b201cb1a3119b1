# SPDX-License-Identifier: Apache-2.0
"""Regions of the feature view: a time window, of all or some users, at a version of the table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from scalr_prod.core.delta_log import cast_batch, files_dataset
from scalr_prod.lake import files_in_window
from scalr_prod.schemas import EVENT_TIMESTAMP, USER_ID, Table
from scalr_prod.workspace import Canary

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    import pyarrow as pa
    from deltalake import DeltaTable

    from scalr_prod.lake import Lake
    from scalr_prod.ledger import Publication


_VIEW: Final = Table.SYNTHETIC_TARGET_EVENTS
#: Scan options for rows that are rewritten: read no faster than they are written. About ten batches queue in Delta's writer.
REWRITE_SCAN_OPTIONS: Final[dict[str, int | bool]] = {
    "batch_size": 16_384,
    "batch_readahead": 1,
    "fragment_readahead": 1,
    "use_threads": False,
}


@dataclass(frozen=True)
class ViewRegion:
    """Time window ``[start, end)`` of all or some users.

    Attributes:
        start: The first instant (UTC).
        end: The instant after the last.
        included_canaries: Users must be in each of these canaries; empty: all users.
        excluded_canaries: Users must be in none of these canaries.
    """

    start: datetime
    end: datetime
    included_canaries: frozenset[Canary] = frozenset()
    excluded_canaries: frozenset[Canary] = frozenset()

    def intersection(self, other: ViewRegion) -> ViewRegion | None:
        """Return the intersection of two regions; None if it is empty."""
        start, end = max(self.start, other.start), min(self.end, other.end)
        within, beyond = self.included_canaries | other.included_canaries, self.excluded_canaries | other.excluded_canaries
        empty = start >= end or any(included.is_subset_of(excluded) for included in within for excluded in beyond)
        return None if empty else ViewRegion(start, end, within, beyond)

    def difference(self, other: ViewRegion) -> list[ViewRegion]:
        """Return the rest of the region without another one, as disjoint regions."""
        sides = [(self.start, min(self.end, other.start)), (max(self.start, other.end), self.end)]
        rest = [replace(self, start=start, end=end) for start, end in sides if start < end]
        left = self.intersection(ViewRegion(other.start, other.end))
        for canary in sorted(other.included_canaries | other.excluded_canaries, key=str):
            users = frozenset({canary})
            inner, outer = (
                ViewRegion(other.start, other.end, included_canaries=users),
                ViewRegion(other.start, other.end, excluded_canaries=users),
            )
            kept, gone = (outer, inner) if canary in other.included_canaries else (inner, outer)
            if left is not None:
                rest += [overlap] if (overlap := left.intersection(kept)) else []
                left = left.intersection(gone)
        return rest


@dataclass(frozen=True)
class RegionRows:
    """Rows of the view: a region at a version, of all or some runs.

    Attributes:
        version: Version of the table.
        region: The rows' region.
        run_ids: The rows' runs; None: all runs.
    """

    version: int
    region: ViewRegion
    run_ids: Sequence[str] | None = None


def published_region(publication: Publication) -> ViewRegion:
    """Return the region that a publication replaced."""
    canary = Canary.from_publication(publication.canary)
    return ViewRegion(publication.start, publication.end, frozenset() if canary is None else frozenset({canary}))


def subtract(regions: Sequence[ViewRegion], other: ViewRegion) -> list[ViewRegion]:
    """Return the rest of each region without another one."""
    return [rest for region in regions for rest in region.difference(other)]


def stream_rows(lake: Lake, selections: Sequence[RegionRows], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the rows of regions, one after the other, with the columns that the table has now.

    The tables are opened by this call, not when the first batch is read, because Delta's writer cannot open a table while it consumes the
    stream.
    """
    opened = [(lake.dataset(_VIEW, version=selection.version), selection) for selection in selections]

    def batches() -> Iterator[pa.RecordBatch]:
        for dataset, selection in opened:
            for batch in dataset.to_batches(filter=_region_filter(selection), **REWRITE_SCAN_OPTIONS):
                yield cast_batch(_filter_users(batch, selection.region), schema)

    return batches()


def count_rows_by_run(
    lake: Lake, region: ViewRegion, *, version: int | None = None, opened: DeltaTable | None = None
) -> dict[str, int]:
    """Count the rows of each run in a region of the view. Memory does not grow with the region.

    Args:
        lake: The lake with the view.
        region: The region to count in.
        version: The view's version; default: the current one.
        opened: The opened view, to count at its version.

    Raises:
        LakeError: The view, or a file of it, cannot be read.
    """
    counts: Counter[str] = Counter()
    columns = ["run_id", USER_ID] if region.included_canaries or region.excluded_canaries else ["run_id"]
    if opened is None:
        opened = lake.open_table(_VIEW, version=version)
    else:
        lake.ensure_files_exist(_VIEW, opened)
    dataset = files_dataset(opened, files_in_window(opened, region.start, region.end))
    for batch in dataset.to_batches(
        columns=columns, filter=_region_filter(RegionRows(0, region)), batch_readahead=2, fragment_readahead=1
    ):
        for entry in _filter_users(batch, region).column(0).value_counts().to_pylist():
            counts[entry["values"]] += entry["counts"]
    return dict(counts)


def _region_filter(selection: RegionRows) -> pa.compute.Expression:
    import pyarrow.compute as pc

    moment = pc.field(EVENT_TIMESTAMP)
    inside = (moment >= selection.region.start) & (moment < selection.region.end)
    return inside if selection.run_ids is None else inside & pc.field("run_id").isin(list(selection.run_ids))


def _filter_users(batch: pa.RecordBatch, region: ViewRegion) -> pa.RecordBatch:
    import pyarrow.compute as pc

    for canary in region.included_canaries if len(batch) else ():
        batch = batch.filter(canary.membership_mask(batch.column(USER_ID)))
    for canary in region.excluded_canaries if len(batch) else ():
        batch = batch.filter(pc.invert(canary.membership_mask(batch.column(USER_ID))))
    return batch
