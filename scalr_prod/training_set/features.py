# SPDX-License-Identifier: Apache-2.0
"""Feature join of the spine through the Feast service, and the writing of partitions, in tasks of `scalr_prod.compute`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from scalr_prod.training_set.feature_join import join_features
from scalr_prod.training_set.grouped_join import BatchFeatures, FeatureJob, SpineGroup, divide_into_batches, join_by_key
from scalr_prod.training_set.manifest import IDS_FOLDER, ROWS_FOLDER, write_parquet
from scalr_prod.training_set.vocabulary import write_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from duckdb import DuckDBPyConnection

    from scalr_prod.training_set.build_tasks import BuildTasks
    from scalr_prod.training_set.manifest import FileEntry
    from scalr_prod.training_set.periods import Period
    from scalr_prod.training_set.spine import Spine, SpineRows


#: Maximum number of history elements per file; bounds the memory of a join for any history length.
_ELEMENTS: Final = 5_000_000
#: Rows that a torch stream reads, shuffles and assigns at once.
_ROW_GROUP: Final = 8_192


def max_partition_rows(history_length: int) -> int:
    """Return the maximum rows per file: 100 000 for histories of 50 events, more for shorter ones, fewer for longer ones."""
    return min(200_000, max(10_000, _ELEMENTS // history_length))


def write_partitions(
    tasks: BuildTasks, job: FeatureJob, spine: Spine, periods: Mapping[Period, int], periods_to_write: Collection[Period],
    folder: Path, *, advance: Callable[[int], None],
) -> tuple[dict[Period, tuple[str, ...]], dict[str, FileEntry]]:  # fmt: skip
    """Join the service's features and external ones as of the last microsecond before each label, and write the rows.

    Short periods are joined together, long ones are split. A spine that exceeds one join is joined by user and by item, and written in time
    order. Joins and files are tasks; each file is moved to its place here.

    Args:
        tasks: Runs the tasks.
        job: What to join.
        spine: The labelled rows.
        periods: Period → rows, in order.
        periods_to_write: The periods to write.
        folder: Folder of the version, for ``rows/part-2026-01-31-00000.parquet`` and the same name below ``ids``.
        advance: Called with the number of finished rows.

    Returns:
        Period → names of its files, relative to the folder; and name → entry in the manifest.

    Raises:
        TrainingSetError: The join returned other rows than requested.
        ComputeError: A task failed.
    """
    planned = _plan_files(periods, set(periods_to_write), job.limit, spine.split_rows)
    wanted = [file for file in planned if file.group >= 0]
    rows = sum(file.rows for file in wanted)
    advance(spine.row_count - rows)
    groups = _plan_groups(spine, planned)
    calls: Iterable[tuple[Any, ...]] = ((job, [group], None) for group in groups)
    if len(groups) > 1:
        batches = divide_into_batches(groups, job.limit)
        features = join_by_key(tasks, job, batches, spine.schema, advance=advance)
        calls = ((job, *each) for each in zip(batches, features, strict=True))
    entries: dict[str, FileEntry] = {}
    for written in tasks.executor.map(_write_files, calls):
        tasks.take([(file.path, folder / file.name) for file in written])
        entries |= {file.name: file.entry for file in written}
    if len(groups) == 1:
        advance(rows)
    files: dict[Period, tuple[str, ...]] = {}
    for file in wanted:
        files[file.period] = (*files.get(file.period, ()), f"{ROWS_FOLDER}/{file.name}", f"{IDS_FOLDER}/{file.name}")
    return files, entries


@dataclass(frozen=True)
class _PlannedFile:
    """The rows of one file.

    Attributes:
        period: Their period.
        name: The file's name.
        rows: Number of rows.
        group: Files of one group are in memory together; -1: not written.
    """

    period: Period
    name: str
    rows: int
    group: int


def _plan_files(
    periods: Mapping[Period, int], wanted: Collection[Period], limit: int, split_rows: Sequence[int] = ()
) -> list[_PlannedFile]:
    """Split periods into files of at most ``limit`` rows, and group files up to the same limit.

    Args:
        periods: Period → rows, in order.
        wanted: The periods to write.
        limit: Maximum rows of a file.
        split_rows: Numbers of rows after which a split of the set begins; no file has rows of two splits.
    """
    found: list[_PlannedFile] = []
    first = group = rows_in_group = 0
    for period, rows in periods.items():
        begins = {row - first for row in split_rows if first < row < first + rows}
        edges = [*sorted({*range(0, rows, limit), *begins}), rows]
        first += rows
        for number, (since, until) in enumerate(pairwise(edges)):
            size = until - since
            if period in wanted:
                if rows_in_group and rows_in_group + size > limit:
                    group, rows_in_group = group + 1, 0
                rows_in_group += size
            name = f"part-{period.name}-{number:05d}.parquet"
            found.append(_PlannedFile(period, name, size, group if period in wanted else -1))
    return found


def _plan_groups(spine: Spine, planned: Sequence[_PlannedFile]) -> list[SpineGroup]:
    """Return where the rows of each group are, and number the rows that are written."""
    files: dict[int, list[tuple[str, int]]] = {}
    rows: dict[int, list[SpineRows]] = {}
    since = 0
    for file in planned:
        if file.group >= 0:
            files.setdefault(file.group, []).append((file.name, file.rows))
            rows.setdefault(file.group, []).append(spine.select(since, file.rows))
        since += file.rows
    found: list[SpineGroup] = []
    first = 0
    for group, named in files.items():
        found.append(SpineGroup(tuple(named), tuple(rows[group]), first))
        first += found[-1].rows
    return found


class _WrittenFile(NamedTuple):
    """A file of rows or of their ids.

    Attributes:
        name: Its name, relative to the version's folder.
        path: Where it is in the folder that tasks write to.
        entry: Its entry in the manifest.
    """

    name: str
    path: str
    entry: FileEntry


def _write_files(
    connection: DuckDBPyConnection, job: FeatureJob, batch: Sequence[SpineGroup], features: BatchFeatures | None
) -> list[_WrittenFile]:
    """Task: write the files of a batch. If the features of its only group are not joined yet, join them first."""
    files, written = job.folder.open(), []
    if features is None:
        store, labels = job.store.open(), batch[0].read(job.folder)
        joined = iter([join_features(store, labels, job.service, external=job.external, connection=connection)])
    else:
        joined = features.iter_tables(batch, job)
    for group, found in zip(batch, joined, strict=True):
        rows, since = group.read(job.folder), 0
        for field, column in zip(found.schema, found.columns, strict=True):
            rows = rows.append_column(field, column)
        rows = rows.replace_schema_metadata(None)
        for name, size in group.files:
            paths = job.folder.new_path(".parquet"), job.folder.new_path(".parquet")
            some = rows.slice(since, size).combine_chunks()
            options = {"compression": "zstd", "row_group_size": _ROW_GROUP, "coerce_timestamps": "us"}
            entries = write_parquet(some, paths[0], files, **options), write_ids(some, paths[1], files)
            written += [
                _WrittenFile(f"{below}/{name}", path, entry)
                for below, path, entry in zip((ROWS_FOLDER, IDS_FOLDER), paths, entries, strict=True)
            ]
            since += size
    return written
