# SPDX-License-Identifier: Apache-2.0
"""Plan of the tasks that write the spine, and the rounds in which they run; the tasks are in `spine_tasks`.

This process reads the event tables' logs, samples their times, and numbers the items of negatives. Rows go from task to task.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from scalr_prod.compute import load_segments, plan_file_parts, rows_per_task, task_size
from scalr_prod.core import partitioned
from scalr_prod.core.delta_log import UNBOUNDED, arrow_schema, file_time_bounds, row_count_by_file
from scalr_prod.core.partitioned import hash_bounds
from scalr_prod.core.timestamps import to_micros
from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID, SPLIT, USER_ID, Table
from scalr_prod.training_set.label_window import BEGINNING
from scalr_prod.training_set.negatives import NegativeDraws, merge_item_times
from scalr_prod.training_set.spine import KEYS, Spine, spine_schema
from scalr_prod.training_set.spine_tasks import (
    ItemSegments,
    SpineJob,
    SyntheticRule,
    ViewPart,
    within_sql,
    write_events,
    write_range,
    write_user_rows,
)
from scalr_prod.training_set.splits import split_sql
from scalr_prod.workspace import CANARY_COLUMN, HELD_OUT_COLUMN, Canary, Holdout, create_delta_view

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pyarrow as pa
    from deltalake import DeltaTable

    from scalr_prod.compute import Segment, ShuffleFolder
    from scalr_prod.config import SegmentWeights, Settings
    from scalr_prod.training_set.build_tasks import BuildTasks
    from scalr_prod.training_set.label_window import LabelWindow
    from scalr_prod.training_set.periods import Period
    from scalr_prod.training_set.previous_version import PartitionStatistics
    from scalr_prod.training_set.spine_tasks import Span, WrittenRange


#: Columns of the event tables beside the keys.
_COLUMNS: Final = {Table.TARGET_EVENTS: ("weight",), Table.SYNTHETIC_TARGET_EVENTS: ("weight", "run_id", "source_domain")}
#: Events that a task of the first round reads at most, about.
_TASK_EVENTS: Final = 1_000_000
#: Maximum number of window reads per file: each costs as much as about ten thousand rows.
_READS: Final = 4
#: Negatives that take as much memory to draw as a row takes to sort.
_DRAWS_PER_ROW: Final = 4
#: Rows of a partition of users at least, of which a draw is a quarter: half a second of work.
_LEAST_USER_ROWS: Final = 125_000


@dataclass(frozen=True)
class SpinePlan:
    """What the tasks read, planned from the tables' logs.

    Attributes:
        window: The labels.
        spans: Half-open time spans (µs, ascending) of the labels to stage. Their rows are the same as if all labels were staged.
        events: The event tables, at the versions that are read.
        parts: What each task of the first round reads.
        events_read: Number of events that are read, about.
        rows: Number of rows of the spine, about.
        rows_by_user: Number of rows that are regrouped by user, about; four draws count as a row.
    """

    window: LabelWindow
    spans: Sequence[Span]
    events: Mapping[Table, DeltaTable]
    parts: Sequence[ViewPart]
    events_read: int
    rows: int
    rows_by_user: int

    @property
    def user_bounds(self) -> list[int]:
        """The first hash of each partition of users but the first."""
        most = partitioned.PARTITION_ROWS
        return hash_bounds(self.rows_by_user, round(task_size(self.rows_by_user, least=_LEAST_USER_ROWS, most=most)))

    @property
    def tasks(self) -> int:
        """Number of tasks of the largest round, about; small files count as one."""
        return max(
            -(-self.events_read // rows_per_task(self.events_read, _TASK_EVENTS)),
            len(self.user_bounds) + 1,
            -(-self.rows // partitioned.PARTITION_ROWS),
            1,
        )


def plan_spine(settings: Settings, window: LabelWindow, events: Mapping[Table, DeltaTable], spans: Sequence[Span]) -> SpinePlan:
    """Plan which files each task of the first round reads.

    Args:
        settings: ``[training_set]``: negatives, and λ by segment.
        window: The labels.
        events: The tables of real and synthetic events, at the versions to read.
        spans: See `SpinePlan`.
    """
    options, end = settings.training_set, window.train.span[1]
    trained = [(low, min(high, end)) for low, high in spans if low < end]
    is_by_user = options.negatives_per_event > 0 or options.is_weighted_by_segment
    # Consumed items and event counts depend on events outside of the spans, too.
    read = {
        Table.TARGET_EVENTS: [(to_micros(BEGINNING), to_micros(window.cutoff))] if is_by_user else spans,
        Table.SYNTHETIC_TARGET_EVENTS: trained,
    }
    all_real, synthetic = (_count_events(events[table], times) for table, times in read.items())
    rows_by_user = all_real * options.negatives_per_event // _DRAWS_PER_ROW
    if options.is_weighted_by_segment:
        rows_by_user += all_real + synthetic
    real = _count_events(events[Table.TARGET_EVENTS], spans)
    return SpinePlan(
        window=window,
        spans=spans,
        events=events,
        parts=[
            part
            for table, times in read.items()
            for part in _plan_parts(table, events[table], times, rows_per_task(all_real + synthetic, _TASK_EVENTS))
        ],
        events_read=all_real + synthetic,
        rows=real * (1 + options.negatives_per_event) + synthetic,
        rows_by_user=rows_by_user,
    )


def stage_spine(settings: Settings, plan: SpinePlan, multipliers: SegmentWeights, tasks: BuildTasks) -> Spine:
    """Read the events through Feast, draw the negatives, and write all rows in their canonical order.

    Args:
        settings: ``[training_set]``: negatives and seed.
        plan: What to read.
        multipliers: Factors for the confidence of synthetic rows: one each for cold, sparse and dense users.
        tasks: Runs the tasks. The spine is in its folder.

    Raises:
        FeatureStoreError: A view cannot be read.
        ComputeError: A task failed.
    """
    with tasks.open_inner_folder() as folder:
        job = _job(settings, plan, multipliers, tasks, folder)
        by_user, by_time, items = _regroup(tasks, job, plan)
        calls = ((job, events, items) for _, events in sorted(by_user.items()))
        for segments in tasks.executor.map(write_user_rows, calls):
            for number, segment in segments.items():
                by_time[number].append(segment)
        ranges: list[WrittenRange] = sorted(
            tasks.executor.map(write_range, ((job, number, segments) for number, segments in sorted(by_time.items()))),
            key=lambda written: written.number,
        )
    chunks = [chunk for written in ranges for chunk in written.chunks]
    splits = [sum(counts) for counts in zip(*(written.rows_before for written in ranges), strict=True)]
    return Spine(job.schema, chunks, _sum_days(ranges), splits)


def _regroup(
    tasks: BuildTasks, job: SpineJob, plan: SpinePlan
) -> tuple[dict[int, dict[Table, list[Segment]]], dict[int, list[Segment]], ItemSegments | None]:
    """Run the first round; return rows by partition of users, rows by range of time, and the items that negatives are drawn from."""
    by_user: dict[int, dict[Table, list[Segment]]] = {}
    by_time: dict[int, list[Segment]] = defaultdict(list)
    item_times: list[Segment] = []
    for written in tasks.executor.map(write_events, ((job, part) for part in plan.parts)):
        item_times += [written.item_times] if written.item_times else []
        for number, segment in written.segments.items():
            if job.is_by_user(written.table):
                found = by_user.setdefault(number, {table: [] for table in plan.events if job.is_by_user(table)})
                found[written.table].append(segment)
            else:
                by_time[number].append(segment)
    if job.negatives is None or not item_times:
        return by_user, by_time, None
    load_segments(tasks.connection, item_times, folder=job.folder, name="item_times")
    items = merge_item_times(tasks.connection, "item_times", job.negatives.sampling)
    tasks.connection.execute("DROP TABLE item_times")
    return by_user, by_time, ItemSegments.write(items, job.folder)


def _job(
    settings: Settings, plan: SpinePlan, multipliers: SegmentWeights, tasks: BuildTasks, folder: ShuffleFolder
) -> SpineJob:
    options, window = settings.training_set, plan.window
    holdout = Holdout.from_settings(settings)
    experiments = (HELD_OUT_COLUMN, holdout), (CANARY_COLUMN, Canary.from_settings(settings))
    marks = {name: experiment.membership_sql(USER_ID) for name, experiment in experiments if experiment is not None}
    discounted = (Table.SYNTHETIC_TARGET_EVENTS,) if options.popularity_discount else ()
    columns = {
        table: _columns(delta, (*KEYS, *_COLUMNS[table], *(("probability",) if table in discounted else ())))
        for table, delta in plan.events.items()
    }
    types = (columns[Table.TARGET_EVENTS].field(name).type for name in (USER_ID, ITEM_ID))
    schema = spine_schema(*types, flags=tuple(marks), parts=bool(window.splits))
    negatives = NegativeDraws(options.negatives_per_event, options.negative_sampling, options.seed, plan.spans)
    return SpineJob(
        store=tasks.store,
        windows={Table.TARGET_EVENTS: window, Table.SYNTHETIC_TARGET_EVENTS: window.train},
        versions={table: delta.version() for table, delta in plan.events.items()},
        columns=columns,
        spans=plan.spans,
        synthetic=SyntheticRule(
            multipliers,
            settings.downstream.sparse_below if options.is_weighted_by_segment else None,
            # Exclude synthetic events that a user got before being held out.
            "true" if holdout is None else f"NOT {holdout.membership_sql(USER_ID)}",
            options.popularity_discount,
        ),
        negatives=negatives if options.negatives_per_event else None,
        schema=schema,
        marks=marks | ({SPLIT: split_sql(window)} if window.splits else {}),
        user_bounds=plan.user_bounds,
        time_bounds=_time_bounds(tasks, plan, options.negatives_per_event),
        folder=folder,
        output=tasks.folder,
    )


def _columns(table: DeltaTable, names: Iterable[str]) -> pa.Schema:
    import pyarrow as pa

    schema = arrow_schema(table)
    return pa.schema([schema.field(name) for name in names])


def _time_bounds(tasks: BuildTasks, plan: SpinePlan, negatives: int) -> list[int]:
    """Return times (µs) that divide the spine into ranges that are sorted at once; fewer if many rows share a time.

    Rows are sorted range by range, because DuckDB fails to sort rows with text that exceed its memory limit.
    """
    if plan.rows <= partitioned.PARTITION_ROWS:
        return []
    times: list[int] = []
    for table, delta in plan.events.items():
        create_delta_view(tasks.connection, f"sampled_{table.value}", delta)
        rows = 1 + negatives if table is Table.TARGET_EVENTS else 1
        percent = min(100 * rows / partitioned.sample_stride(), 100)
        sample = tasks.connection.execute(
            f"SELECT epoch_us({EVENT_TIMESTAMP}) FROM sampled_{table.value} WHERE {within_sql(plan.spans)} "
            f"USING SAMPLE {percent} PERCENT (bernoulli, 7)"
        ).fetchnumpy()
        times += next(iter(sample.values())).tolist()
    return partitioned.sample_bounds(times, plan.rows)


def _plan_parts(table: Table, delta: DeltaTable, times: Sequence[Span], task_rows: int) -> Iterator[ViewPart]:
    bounds, counted = file_time_bounds(delta, EVENT_TIMESTAMP), row_count_by_file(delta)
    for low, high in _merge_spans(_READS, times):
        rows = {name: counted[name] for name, (first, last) in bounds.items() if first < high and last >= low}
        for files in plan_file_parts(rows, task_rows):
            yield ViewPart(table, (low, high), files)


def _count_events(table: DeltaTable, spans: Sequence[Span]) -> int:
    """Estimate the number of events in some spans from the log, as if the times of each file were uniformly distributed."""
    counted, events = row_count_by_file(table), 0.0
    for name, (first, last) in file_time_bounds(table, EVENT_TIMESTAMP).items():
        inside = sum(max(0, min(last + 1, high) - max(first, low)) for low, high in spans)
        events += counted[name] * (inside / (last + 1 - first) if (first, last) != UNBOUNDED else bool(spans))
    return round(events)


def _merge_spans(number: int, spans: Sequence[Span]) -> list[Span]:
    """Merge spans across the smallest gaps until there are at most ``number``."""
    spans = list(spans)
    while len(spans) > number:
        between = [after[0] - before[1] for before, after in pairwise(spans)]
        place = between.index(min(between))
        spans[place : place + 2] = [(spans[place][0], spans[place + 1][1])]
    return spans


def _sum_days(ranges: Sequence[WrittenRange]) -> dict[Period, PartitionStatistics]:
    """Add up the statistics of each day, in order."""
    days: dict[Period, PartitionStatistics] = {}
    for written in ranges:
        for day, found in written.days.items():
            days[day] = days[day] + found if day in days else found
    return days
