# SPDX-License-Identifier: Apache-2.0
"""Downsampling of synthetic events so that the popularity of their items is distributed as that of the real events' items.

An item's popularity is the number of real target events on it known by the run's ``as_of``. Items are sorted into popularity buckets of
equal mass of real events. Each bucket keeps as many synthetic events as brings the shares closest to the real ones, while at least
half of all events stay. A hash, the event's own id, selects which ones, so the selection does not depend on the number of parts.
After the bucket-wise downsampling of SCALR (arXiv 2606.00282).

Two passes over the staged parts, each in batches: memory does not grow with the run.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core.atomic_io import atomic_path
from scalr_prod.generation.part_files import open_part_writer, part_identity, part_path, remove_stale_parts, write_manifest
from scalr_prod.schemas import CREATED_TIMESTAMP, ITEM_ID, Table
from scalr_prod.workspace import escape_glob, open_duckdb, staging_folder

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from numpy.typing import NDArray

    from scalr_prod.config import Settings
    from scalr_prod.lake import Lake
    from scalr_prod.ledger import RunSpec


#: At least this share of events stays, even if the distributions then match less closely.
MIN_KEPT_SHARE: Final = 0.5

#: Rows written at a time.
_BATCH_ROWS: Final = 100_000

#: Rows are selected by the first 12 bits of the event's id, so that a bucket's share is met to 1/4096.
_HASH_CELLS: Final = 4096
_HASH_CELL_SQL: Final = "CAST('0x' || substr(event_id, 1, 3) AS INTEGER)"


@dataclass(frozen=True)
class AlignmentResult:
    """Result of popularity matching.

    Attributes:
        events: Rows kept.
        dropped: Rows not kept.
        users: Distinct users among the rows kept.
        items: Distinct items among them.
        sources: Rows kept, by source domain.
        bucket_distance: Total variation from the real events' buckets, ``before`` and ``after``.
    """

    events: int
    dropped: int
    users: int
    items: int
    sources: dict[str, int]
    bucket_distance: dict[str, float]


def popularity_buckets(counts: NDArray[np.int64], buckets: int) -> NDArray[np.int64]:
    """Return each item's popularity bucket, with about the same number of real events in every bucket.

    Items of equal popularity share a bucket, so a very popular item makes its bucket wide, and other buckets may stay empty.

    Args:
        counts: int64 [N], real events of each item.
        buckets: Maximum number of buckets.

    Returns:
        int64 [N] in ``0 … buckets - 1``, rising with popularity.
    """
    values, which = np.unique(counts, return_inverse=True)
    mass = np.bincount(which, weights=counts, minlength=len(values))
    middle = np.cumsum(mass) - mass / 2
    total = mass.sum()
    cut = np.minimum(buckets - 1, (buckets * middle / total).astype(np.int64)) if total else np.zeros(len(values), np.int64)
    return cut[which]


def bucket_shares(counts: NDArray[np.int64], bucket: NDArray[np.int64], buckets: int) -> NDArray[np.float64]:
    """Return the share of real events in each bucket: float64 [buckets], summing to 1 unless there are none."""
    mass = np.bincount(bucket, weights=counts, minlength=buckets)
    return mass / max(mass.sum(), 1)  # type: ignore[no-any-return]


def keep_counts(counts: NDArray[np.int64], shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return how many events to keep in each bucket.

    ``min(count, c * share)`` for the largest c that meets all shares exactly; if that keeps less than `MIN_KEPT_SHARE` of
    all events, the smallest c that keeps that much. No other selection of the same size is closer in total variation: missing
    events of a bucket cannot be added, and the surplus is spread in proportion to the shares.

    Args:
        counts: int64 [B], events to select from.
        shares: float64 [B], of the real events; sums to 1.

    Returns:
        int64 [B], each at most its count.
    """
    total = int(counts.sum())
    floor = int(np.ceil(MIN_KEPT_SHARE * total))
    if not total or not shares.sum():
        return counts.copy()
    has_share = shares > 0
    scale = float((counts[has_share] / shares[has_share]).min())
    if np.minimum(counts, scale * shares).sum() < floor:
        scale = _scale_for_floor(counts, shares, floor)
    selected = np.minimum(counts, np.ceil(scale * shares - 1e-9).astype(np.int64))
    # Buckets without a real event fill the remainder, in order of their number.
    for bucket in np.flatnonzero(~has_share):
        selected[bucket] = min(int(counts[bucket]), max(0, floor - int(selected.sum())))
    return selected


def _scale_for_floor(counts: NDArray[np.int64], shares: NDArray[np.float64], floor: int) -> float:
    """Return the smallest c with ``sum(min(count, c * share)) >= floor``, or the c at which every bucket is full."""
    full = np.sort(counts[shares > 0] / shares[shares > 0])  # the c at which each bucket is used up
    kept_at = np.minimum(counts[None, :], full[:, None] * shares[None, :]).sum(1)
    step = int(np.searchsorted(kept_at, floor))
    if step == len(full):
        return float(full[-1])
    below, kept = (full[step - 1], kept_at[step - 1]) if step else (0.0, 0.0)
    slope = (kept_at[step] - kept) / (full[step] - below) if full[step] > below else 0.0
    return float(below + (floor - kept) / slope) if slope else float(full[step])


def align_parts(
    settings: Settings, spec: RunSpec, *, parts: Path, candidates: Path, partitions: int, schema: pa.Schema
) -> AlignmentResult:
    """Count the staged rows by bucket, then write the rows to keep.

    Args:
        settings: The project's settings.
        spec: The run; its setting ``align`` enables the downsampling.
        parts: Folder of the staged parts.
        candidates: Folder to write to.
        partitions: Number of parts.
        schema: Of ``synthetic_target_events``.
    """
    from scalr_prod.lake import Lake

    options = spec.settings["generation"]
    buckets = int(options["align_buckets"])
    staged = [part_path(parts, number) for number in range(partitions)]
    with staging_folder(settings, "align") as folder, open_duckdb(settings, folder) as connection:
        shares = _register_buckets(connection, Lake.open(settings), spec, buckets)
        cell_counts = _count_by_bucket(connection, staged, buckets)
        counts = cell_counts.sum(1)
        keep = keep_counts(counts, shares) if options["align"] else counts
        # A bucket keeps ids up to the first hash cell at which enough are selected.
        limits = [
            int(np.searchsorted(np.cumsum(cell_counts[bucket]), keep[bucket])) + 1 if keep[bucket] else 0
            for bucket in range(buckets)
        ]
        _register_limits(connection, limits)
        write = _copy_part if (keep == counts).all() else partial(_write_kept_rows, connection, schema)
        for number, path in enumerate(staged):
            write(path, part_path(candidates, number), part_identity(spec, number, partitions))
        remove_stale_parts(candidates, partitions)
        kept_counts = np.array([cell_counts[bucket, : limits[bucket]].sum() for bucket in range(buckets)], dtype=np.int64)
        rows = {"files": [escape_glob(part_path(candidates, number)) for number in range(partitions)]}
        users, items = connection.execute(
            "SELECT count(DISTINCT user_id), count(DISTINCT item_id) FROM read_parquet($files, hive_partitioning = false)", rows
        ).fetchall()[0]
        sources = connection.execute(
            """SELECT source_domain, count(*) FROM read_parquet($files, hive_partitioning = false)
            GROUP BY source_domain ORDER BY source_domain""",
            rows,
        ).fetchall()
    events = int(kept_counts.sum())
    return AlignmentResult(
        events=events,
        dropped=int(counts.sum()) - events,
        users=int(users),
        items=int(items),
        sources={str(name): int(count) for name, count in sources},
        bucket_distance={"before": _total_variation(counts, shares), "after": _total_variation(kept_counts, shares)},
    )


def _register_buckets(connection: DuckDBPyConnection, lake: Lake, spec: RunSpec, buckets: int) -> NDArray[np.float64]:
    """Create the view ``popularity_buckets`` (item_id, bucket) and return the real events' shares."""
    import pyarrow as pa

    version = spec.table_versions[Table.TARGET_EVENTS]
    connection.register("real_events", lake.dataset(Table.TARGET_EVENTS, version=version))
    items = connection.sql(
        f"""SELECT {ITEM_ID}, count(*) AS events FROM real_events WHERE {CREATED_TIMESTAMP} <= $as_of
            GROUP BY {ITEM_ID}""",
        params={"as_of": spec.as_of},
    ).to_arrow_table()
    counts = items["events"].to_numpy()
    bucket = popularity_buckets(counts, buckets)
    connection.register("popularity_buckets", pa.table({ITEM_ID: items[ITEM_ID], "bucket": bucket}))
    return bucket_shares(counts, bucket, buckets)


def _count_by_bucket(connection: DuckDBPyConnection, staged: list[Path], buckets: int) -> NDArray[np.int64]:
    """Return int64 [buckets, cells]: staged rows by bucket and by hash cell of their id."""
    found = np.zeros((buckets, _HASH_CELLS), dtype=np.int64)
    for path in staged:
        table = connection.sql(
            f"""SELECT coalesce(bucket, 0) AS bucket, {_HASH_CELL_SQL} AS cell, count(*) AS events
                FROM read_parquet($path, hive_partitioning = false) LEFT JOIN popularity_buckets USING ({ITEM_ID}) GROUP BY ALL""",
            params={"path": escape_glob(path)},
        ).to_arrow_table()
        np.add.at(found, (table["bucket"].to_numpy(), table["cell"].to_numpy()), table["events"].to_numpy())
    return found


def _register_limits(connection: DuckDBPyConnection, limits: list[int]) -> None:
    import pyarrow as pa

    connection.register("limits", pa.table({"bucket": np.arange(len(limits)), "cells": np.array(limits, dtype=np.int64)}))


def _copy_part(source: Path, path: Path, facts: dict[str, Any]) -> None:
    """Copy a part that keeps all of its rows; they are already in their final order."""
    import pyarrow.parquet as pq

    with atomic_path(path) as unfinished:
        shutil.copyfile(source, unfinished)
    write_manifest(path, facts | {"rows": pq.read_metadata(path).num_rows})


def _write_kept_rows(
    connection: DuckDBPyConnection, schema: pa.Schema, source: Path, path: Path, facts: dict[str, Any]
) -> None:
    import pyarrow as pa

    columns = ", ".join(f"staged.{name}" for name in schema.names)
    found = connection.sql(
        f"""SELECT {columns} FROM read_parquet($path, hive_partitioning = false) AS staged LEFT JOIN popularity_buckets USING ({ITEM_ID})
            JOIN limits ON limits.bucket = coalesce(popularity_buckets.bucket, 0)
            WHERE {_HASH_CELL_SQL} < limits.cells
            ORDER BY staged.user_id, staged.event_timestamp, staged.{ITEM_ID}""",
        params={"path": escape_glob(source)},
    )
    rows = 0
    with open_part_writer(path, schema) as write:
        for batch in found.to_arrow_reader(_BATCH_ROWS):
            write(pa.Table.from_batches([batch]).cast(schema))
            rows += len(batch)
    write_manifest(path, facts | {"rows": rows})


def _total_variation(counts: NDArray[np.int64], shares: NDArray[np.float64]) -> float:
    """Return the total variation distance between two distributions over buckets: 0 to 1."""
    total = counts.sum()
    return round(float(np.abs(counts / total - shares).sum() / 2), 6) if total else 0.0
