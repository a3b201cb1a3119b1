# SPDX-License-Identifier: Apache-2.0
"""Feature join of the spine through the Feast service, and the writing of partitions."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final

import numpy as np

from scalr_prod.features import open_feature_store
from scalr_prod.training_set.feature_join import join_features
from scalr_prod.training_set.grouped_join import JoinGroups, join_by_key
from scalr_prod.training_set.manifest import IDS_FOLDER, ROWS_FOLDER
from scalr_prod.training_set.vocabulary import write_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    import pyarrow as pa

    from scalr_prod.config import Settings
    from scalr_prod.features import ExternalFeatures
    from scalr_prod.training_set.periods import Period
    from scalr_prod.training_set.spine import Spine

__all__ = ["max_partition_rows", "write_partitions"]

#: Maximum number of history elements per file; bounds the memory of a join for any history length.
_ELEMENTS: Final = 5_000_000
#: Rows that a torch stream reads, shuffles and assigns at once.
_ROW_GROUP: Final = 8_192


def max_partition_rows(history_length: int) -> int:
    """Return the maximum rows per file: 100 000 for histories of 50 events, more for shorter ones, fewer for longer ones."""
    return min(200_000, max(10_000, _ELEMENTS // history_length))


def write_partitions(
    settings: Settings, spine: Spine, periods: Mapping[Period, int], periods_to_write: Collection[Period], folder: Path,
    *, external: ExternalFeatures | None = None, advance: Callable[[int], None],
) -> dict[Period, tuple[str, ...]]:  # fmt: skip
    """Join the service's features and external ones as of the last microsecond before each label, and write the rows.

    Short periods are joined together, long ones are split. A spine that exceeds one join is joined by user and by item, and written in time
    order.

    Args:
        settings: The project's settings.
        spine: The labelled rows.
        periods: Period → rows, in order.
        periods_to_write: The periods to write.
        folder: Folder of the version, for ``rows/part-2026-01-31-00000.parquet`` and the same name below ``ids``.
        external: External features.
        advance: Called with the number of finished rows.

    Returns:
        Period → names of its files, relative to the folder.

    Raises:
        TrainingSetError: The join returned other rows than requested.
    """
    import pyarrow as pa

    limit = max_partition_rows(settings.histories.length)
    planned = _plan_files(periods, periods_to_write, limit)
    sizes, numbers = (np.array([getattr(file, name) for file in planned], np.int64) for name in ("rows", "group"))
    advance(int(sizes[numbers < 0].sum()))
    files: dict[Period, tuple[str, ...]] = {}
    with ExitStack() as stack:
        features_of_group: Callable[[int], pa.Table] | None = None
        if (numbers > 0).any():
            groups = JoinGroups(np.cumsum(sizes), numbers)
            join = join_by_key(settings, spine.path, groups, limit=limit, external=external, advance=advance)
            features_of_group = stack.enter_context(join)
        read = zip(planned, spine.iter_tables(sizes.tolist()), strict=True)
        for group, members in groupby((pair for pair in read if pair[0].group >= 0), lambda pair: pair[0].group):
            names, chunks = zip(*((file.name, chunk) for file, chunk in members), strict=True)
            rows = pa.concat_tables(chunks)
            if features_of_group is None:
                features = join_features(open_feature_store(settings), rows, external=external)
                advance(len(rows))
            else:
                features = features_of_group(group)
            for field, column in zip(features.schema, features.columns, strict=True):
                rows = rows.append_column(field, column)
            rows, since = rows.replace_schema_metadata(None), 0
            for name, chunk in zip(names, chunks, strict=True):
                _write(rows.slice(since, len(chunk)).combine_chunks(), folder, name)
                since += len(chunk)
    for file in planned:
        if file.group >= 0:
            files[file.period] = (*files.get(file.period, ()), f"{ROWS_FOLDER}/{file.name}", f"{IDS_FOLDER}/{file.name}")
    return files


@dataclass(frozen=True)
class _PlannedFile:
    """The rows of one file.

    Attributes:
        period: Their period.
        name: The file's name.
        rows: Number of rows.
        group: Files of one group are joined or fetched, and written, together; -1: not written.
    """

    period: Period
    name: str
    rows: int
    group: int


def _plan_files(periods: Mapping[Period, int], wanted: Collection[Period], limit: int) -> list[_PlannedFile]:
    """Split periods into files of at most ``limit`` rows, and group files up to the same limit."""
    found: list[_PlannedFile] = []
    group = rows_in_group = 0
    for period, rows in periods.items():
        for number, since in enumerate(range(0, rows, limit)):
            size = min(limit, rows - since)
            if period in wanted:
                if rows_in_group and rows_in_group + size > limit:
                    group, rows_in_group = group + 1, 0
                rows_in_group += size
            name = f"part-{period.name}-{number:05d}.parquet"
            found.append(_PlannedFile(period, name, size, group if period in wanted else -1))
    return found


def _write(rows: pa.Table, folder: Path, name: str) -> None:
    import pyarrow.parquet as pq

    for below in (ROWS_FOLDER, IDS_FOLDER):
        (folder / below).mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, folder / ROWS_FOLDER / name, compression="zstd", row_group_size=_ROW_GROUP, coerce_timestamps="us")
    write_ids(rows, folder / IDS_FOLDER / name)
