# SPDX-License-Identifier: Apache-2.0
"""Feature join of the spine through the Feast service, and the writing of partitions, in tasks of `scalr_prod.compute`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from scalr_prod.compute import open_executor, read_segments, shuffle_folder, write_tables
from scalr_prod.features import StoreSnapshot, open_feature_store
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table
from scalr_prod.training_set.feature_join import join_features
from scalr_prod.training_set.grouped_join import ROW, FeatureJob, GroupFeatures, SpineGroup, join_by_key
from scalr_prod.training_set.manifest import IDS_FOLDER, ROWS_FOLDER
from scalr_prod.training_set.vocabulary import write_ids
from scalr_prod.workspace import open_duckdb

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    from duckdb import DuckDBPyConnection

    from scalr_prod.compute import ShuffleFolder
    from scalr_prod.config import Settings
    from scalr_prod.features import ExternalJoin
    from scalr_prod.training_set.periods import Period
    from scalr_prod.training_set.spine import Spine


#: Maximum number of history elements per file; bounds the memory of a join for any history length.
_ELEMENTS: Final = 5_000_000
#: Rows that a torch stream reads, shuffles and assigns at once.
_ROW_GROUP: Final = 8_192
#: Processor time of joining and writing a row, with histories of 50 events.
_SECONDS_PER_ROW: Final = 15e-6


def max_partition_rows(history_length: int) -> int:
    """Return the maximum rows per file: 100 000 for histories of 50 events, more for shorter ones, fewer for longer ones."""
    return min(200_000, max(10_000, _ELEMENTS // history_length))


def write_partitions(
    settings: Settings, spine: Spine, periods: Mapping[Period, int], periods_to_write: Collection[Period],
    folder: Path, *, external: ExternalJoin | None = None, advance: Callable[[int], None],
) -> dict[Period, tuple[str, ...]]:  # fmt: skip
    """Join the service's features and external ones as of the last microsecond before each label, and write the rows.

    Short periods are joined together, long ones are split. A spine that exceeds one join is joined by user and by item, and written in time
    order. Joins and files are tasks; each file is moved to its place here.

    Args:
        settings: The project's settings.
        spine: The labelled rows.
        periods: Period → rows, in order.
        periods_to_write: The periods to write.
        folder: Folder of the version, for ``rows/part-2026-01-31-00000.parquet`` and the same name below ``ids``.
        external: Joins external features.
        advance: Called with the number of finished rows.

    Returns:
        Period → names of its files, relative to the folder.

    Raises:
        TrainingSetError: The join returned other rows than requested.
        ComputeError: A task failed.
    """
    limit, staging = max_partition_rows(settings.histories.length), spine.path.parent
    planned = _plan_files(periods, periods_to_write, limit, spine.split_rows)
    wanted = [file for file in planned if file.group >= 0]
    rows, tasks = sum(file.rows for file in wanted), len({file.group for file in wanted})
    advance(spine.row_count - rows)
    with (
        open_duckdb(settings, staging) as connection,
        open_executor(settings, connection, tasks=tasks, work_s=rows * _SECONDS_PER_ROW, stage="dataset build") as executor,
    ):
        # Workers elsewhere share no folder with this machine, but they reach the lake.
        lake = Lake.open(settings)
        root = (str(staging), {}) if executor.is_local else (lake.uri(Table.TARGET_EVENTS), lake.storage_options)
        with shuffle_folder(*root) as shuffled:
            store = StoreSnapshot.from_store(open_feature_store(settings))
            job = FeatureJob(store, settings.training_set.feature_service, external, limit, shuffled)
            groups = _write_groups(spine, planned, shuffled)
            features: Mapping[int, GroupFeatures] = {}
            if len(groups) > 1:
                features = join_by_key(executor, job, groups, connection, spine, _written_spans(planned), advance=advance)
            calls = ((job, group, features.get(number)) for number, group in enumerate(groups))
            for written in executor.map(_write_files, calls):
                for file in written:
                    shuffled.take(file.rows, folder / ROWS_FOLDER / file.name)
                    shuffled.take(file.ids, folder / IDS_FOLDER / file.name)
            if not features:
                advance(rows)
    files: dict[Period, tuple[str, ...]] = {}
    for file in wanted:
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


def _written_spans(planned: Sequence[_PlannedFile]) -> list[tuple[int, int]]:
    """Return the half-open spans of the spine's rows that are written."""
    spans: list[tuple[int, int]] = []
    since = 0
    for is_written, files in groupby(planned, lambda file: file.group >= 0):
        end = since + sum(file.rows for file in files)
        spans += [(since, end)] if is_written else []
        since = end
    return spans


def _write_groups(spine: Spine, planned: Sequence[_PlannedFile], folder: ShuffleFolder) -> list[SpineGroup]:
    """Write the spine's rows where tasks read them, and number them."""
    import pyarrow as pa

    files: list[tuple[tuple[str, int], ...]] = []

    def tables() -> Iterator[tuple[int, pa.Table]]:
        done = 0
        read = zip(planned, spine.iter_tables(file.rows for file in planned), strict=True)
        for group, members in groupby((pair for pair in read if pair[0].group >= 0), lambda pair: pair[0].group):
            names, chunks = zip(*((file.name, chunk) for file, chunk in members), strict=True)
            rows = pa.concat_tables(chunks)
            files.append(tuple(zip(names, map(len, chunks), strict=True)))
            yield group, rows.append_column(ROW, pa.array(np.arange(done, done + len(rows))))
            done += len(rows)

    segments = write_tables(tables(), folder=folder)
    return [SpineGroup(names, segment) for names, segment in zip(files, segments.values(), strict=True)]


class _WrittenFile(NamedTuple):
    """A file of rows and one of their ids, in the folder that tasks write to."""

    name: str
    rows: str
    ids: str


def _write_files(
    connection: DuckDBPyConnection, job: FeatureJob, group: SpineGroup, features: GroupFeatures | None
) -> list[_WrittenFile]:
    """Task: write the files of a group, and join the features first unless they are joined already."""
    import pyarrow.parquet as pq

    rows = read_segments([group.spine], folder=job.folder).drop_columns(ROW)
    found = (
        join_features(job.store.open(), rows, job.service, external=job.external, connection=connection)
        if features is None
        else features.read(job.folder)
    )
    for field, column in zip(found.schema, found.columns, strict=True):
        rows = rows.append_column(field, column)
    rows, files, written, since = rows.replace_schema_metadata(None), job.folder.open(), [], 0
    for name, size in group.files:
        file = _WrittenFile(name, job.folder.new_path(".parquet"), job.folder.new_path(".parquet"))
        some = rows.slice(since, size).combine_chunks()
        options = {"compression": "zstd", "row_group_size": _ROW_GROUP, "coerce_timestamps": "us"}
        pq.write_table(some, file.rows, filesystem=files, **options)
        write_ids(some, file.ids, files)
        written.append(file)
        since += size
    return written
