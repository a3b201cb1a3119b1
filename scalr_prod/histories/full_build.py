# SPDX-License-Identifier: Apache-2.0
"""Full build of tables in two rounds of tasks: regroup all events by key, then compute each partition's rows.

Tasks write the table's files, and the driver commits them. Which task gets which events follows from the events alone, so the table is
the same wherever and by however many workers it is built.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from scalr_prod.compute import (
    TaskRound,
    load_segments,
    open_executor,
    open_file_part,
    plan_file_parts,
    rows_per_task,
    run_rounds,
    shuffle_folder,
    write_segments,
)
from scalr_prod.core.delta_log import arrow_schema, row_count, row_count_by_file
from scalr_prod.core.partitioned import quantile_bounds
from scalr_prod.histories.incremental import create_events_view, latest_created, sort_partition_sql
from scalr_prod.histories.row_stream import RowStream, row_limit, too_many_rows
from scalr_prod.schemas import ITEM_ID, USER_ID, Table
from scalr_prod.workspace import create_delta_view

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence
    from pathlib import Path

    import numpy.typing as npt
    import pyarrow as pa
    from deltalake import DeltaTable

    from scalr_prod.compute import FilePart, Segment, ShuffleFolder
    from scalr_prod.config import HistorySettings, Settings
    from scalr_prod.histories.incremental import EventsTable
    from scalr_prod.lake import Lake, TableFile


#: Events that a task of the first round reads at most, about.
_TASK_EVENTS: Final = 2_000_000
_BATCH: Final = 65_536
#: Processor time of an event in both rounds.
_SECONDS_PER_EVENT: Final = 4.4e-6


@dataclass(frozen=True)
class TableBuild:
    """A table to build.

    Attributes:
        settings: The project's settings.
        lake: The lake.
        table: The table.
        current: Its latest version.
        source: The events that it is built from.
    """

    settings: Settings
    lake: Lake
    table: Table
    current: DeltaTable
    source: EventsTable


class WrittenRows(NamedTuple):
    """The files of a table, not committed yet.

    Attributes:
        files: In the order of their keys.
        known_until: Latest created time of the events, µs; None: no events.
    """

    files: list[TableFile]
    known_until: int | None


@dataclass(frozen=True)
class _Job:
    """What every task needs to know."""

    lake: Lake
    table: Table
    schema: pa.Schema
    histories: HistorySettings
    events: Table
    events_version: int
    bounds: Sequence[Any]
    limit: int
    folder: ShuffleFolder


class _Regrouped(NamedTuple):
    segments: dict[int, Segment]
    latest_created: dict[str, int]


class _WrittenPartition(NamedTuple):
    number: int
    events: int
    file: TableFile | None


def write_all_rows(
    builds: Sequence[TableBuild], connection: Any, folder: Path, *, tell: Callable[[int], None]
) -> list[WrittenRows]:
    """Write the rows of tables that are built from all events, to files that are not committed. All are built at the same time.

    Args:
        builds: The tables, of one project; at least one.
        connection: DuckDB connection.
        folder: Folder on this machine for rows on their way between two tasks.
        tell: Called with the number of events processed.

    Returns:
        The rows of each table.

    Raises:
        LakeError: There would be too many rows. No file is left.
        ComputeError: A task failed.
    """
    rows = [row_count(build.source.current) for build in builds]
    plans = [_plan(build, connection) for build in builds]
    tasks = max(sum(len(plan.inputs) for plan in plans), sum(len(plan.bounds) + 1 for plan in plans))
    work_s, settings = sum(rows) * _SECONDS_PER_EVENT, builds[0].settings
    with (
        open_executor(settings, connection, tasks=tasks, work_s=work_s, stage="histories") as executor,
        ExitStack() as stack,
    ):
        works = []
        for build, plan in zip(builds, plans, strict=True):
            # Workers elsewhere share no folder with this machine, but they reach the lake.
            root, options = (
                (str(folder), {}) if executor.is_local else (build.lake.uri(build.table), build.lake.storage_options)
            )
            job = _job(build, plan, stack.enter_context(shuffle_folder(root, options)))
            works.append(_write_table(job, plan.inputs, tell))
        return run_rounds(executor, works)


class _Plan(NamedTuple):
    """What each task of the first round reads, and the first key of each partition but the first."""

    inputs: list[FilePart]
    bounds: list[Any]


def _plan(build: TableBuild, connection: Any) -> _Plan:
    events = build.source.current
    inputs = plan_file_parts(row_count_by_file(events), rows_per_task(row_count(events), _TASK_EVENTS))
    return _Plan(inputs, _partition_bounds(connection, build.table, events))


def _job(build: TableBuild, plan: _Plan, folder: ShuffleFolder) -> _Job:
    return _Job(
        lake=build.lake,
        table=build.table,
        schema=arrow_schema(build.current),
        histories=build.settings.histories,
        events=build.source.table,
        events_version=build.source.current.version(),
        bounds=plan.bounds,
        limit=row_limit(row_count(build.source.current)),
        folder=folder,
    )


def _write_table(
    job: _Job, inputs: Sequence[FilePart], tell: Callable[[int], None]
) -> Generator[TaskRound, list[Any], WrittenRows]:
    """Yield the two rounds of a table: write its events by partition, then the rows of each partition."""
    regrouped: list[_Regrouped] = yield TaskRound(_write_events, [(job, each) for each in inputs])
    latest = _latest_created(regrouped)
    segments = defaultdict(list)
    for each in regrouped:
        for number, segment in each.segments.items():
            segments[number].append(segment)
    written: list[_WrittenPartition] = []
    rows = 0

    def add(partition: _WrittenPartition) -> None:
        nonlocal rows
        written.append(partition)
        tell(partition.events)
        rows += partition.file.rows if partition.file else 0
        if rows > job.limit:
            raise too_many_rows(job.table, job.limit)

    try:
        yield TaskRound(_write_partition, [(job, latest, *each) for each in sorted(segments.items())], add)
    except BaseException:
        job.lake.remove_files(job.table, _files(written))
        raise
    return WrittenRows(_files(written), int(latest[-1]) if len(latest) else None)


def _latest_created(regrouped: Iterable[_Regrouped]) -> npt.NDArray[np.int64]:
    """Return the latest created time of each commit, ascending: int64 [M]."""
    latest: dict[str, int] = {}
    for each in regrouped:
        for commit, time in each.latest_created.items():
            latest[commit] = max(time, latest.get(commit, time))
    return np.unique(np.array([*latest.values()], np.int64))


def _files(written: list[_WrittenPartition]) -> list[TableFile]:
    return [partition.file for partition in sorted(written) if partition.file is not None]


def _partition_bounds(connection: Any, table: Table, events: DeltaTable) -> list[Any]:
    key, rows = ITEM_ID if table is Table.TARGET_ITEM_STATS else USER_ID, row_count(events)
    create_delta_view(connection, "keys", events)
    return quantile_bounds(connection, "keys", key, rows)


def _write_events(connection: Any, job: _Job, files: FilePart) -> _Regrouped:
    """Task of the first round: write some events by partition."""
    events = open_file_part(job.lake.open_table(job.events, version=job.events_version), files)
    create_events_view(connection, job.table, "events", events)
    rows = "SELECT *, 0::BIGINT AS before FROM events"
    return _Regrouped(write_segments(connection, rows, key="key", bounds=job.bounds, folder=job.folder), latest_created(events))


def _write_partition(
    connection: Any, job: _Job, latest: npt.NDArray[np.int64], number: int, segments: Sequence[Segment]
) -> _WrittenPartition:
    """Task of the second round: write the rows of one partition's keys."""
    events = load_segments(connection, segments, folder=job.folder, name="partition_rows")
    ordered = connection.sql(sort_partition_sql(job.table)).to_arrow_reader(_BATCH)
    stream = RowStream(job.table, job.schema, job.histories, latest, None, job.limit)
    file = job.lake.write_file(job.table, stream.rows(ordered), job.schema, number=number)
    connection.execute("DROP TABLE partition_rows")
    return _WrittenPartition(number, events, file)
