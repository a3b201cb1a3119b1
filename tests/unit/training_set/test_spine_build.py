"""Which events each task of the spine reads, by the tables' logs: every one once, few that are not needed, about as many a task."""

from __future__ import annotations

import numpy as np
import pytest
from support.built_tables import fill_lake

from scalr_prod.core.timestamps import micros_to_datetime, to_micros
from scalr_prod.lake import Lake
from scalr_prod.schemas import EVENT_TIMESTAMP, Table, table_schema
from scalr_prod.training_set import spine_build
from scalr_prod.training_set.label_window import LabelWindow
from scalr_prod.training_set.spine_build import _count_events, _merge_spans, plan_spine

HOUR = 3_600_000_000


@pytest.fixture
def made(tmp_path):
    """Settings, the event tables, and the times of the real events, µs."""
    settings = fill_lake(tmp_path, 400)
    lake = Lake.open(settings)
    lake.create(Table.SYNTHETIC_TARGET_EVENTS, table_schema(Table.SYNTHETIC_TARGET_EVENTS, user="string", item="int64"))
    tables = {table: lake.open_table(table) for table in (Table.TARGET_EVENTS, Table.SYNTHETIC_TARGET_EVENTS)}
    times = lake.read(Table.TARGET_EVENTS)[EVENT_TIMESTAMP].cast("int64").to_numpy()
    return settings, tables, np.sort(times)


def with_negatives(settings, count: int):
    options = settings.training_set.model_copy(update={"negatives_per_event": count})
    return settings.model_copy(update={"training_set": options})


def window_of(times: np.ndarray) -> LabelWindow:
    return LabelWindow(None, micros_to_datetime(int(times[-1]) + 1))


@pytest.mark.parametrize(("negatives", "reads_all"), [(0, False), (4, True)])
def test_a_plan_reads_each_file_once_and_all_of_them_only_for_negatives(made, monkeypatch, negatives, reads_all):
    settings, tables, times = made
    settings = with_negatives(settings, negatives)
    monkeypatch.setattr(spine_build, "_TASK_EVENTS", 250)
    first, last = int(times[0]), int(times[-1]) + 1
    plan = plan_spine(settings, window_of(times), tables, [(first, last)])
    names = [name for part in plan.parts for name in part.files.names]
    assert len(names) == len(set(names)) == 4
    assert len(plan.parts) == 2
    assert plan.rows == pytest.approx(400 * (1 + negatives), rel=0.02)

    after = plan_spine(settings, window_of(times), tables, [(last + HOUR, last + 2 * HOUR)])
    assert (after.rows, len(after.parts) > 0) == (0, reads_all), "no file has events then"
    assert after.events_read == pytest.approx(400 * reads_all, rel=0.02)


def test_events_of_a_span_are_estimated_from_the_log(made):
    _, tables, times = made
    real = tables[Table.TARGET_EVENTS]
    middle = int(times[200])
    for spans in ([(int(times[0]), middle)], [(int(times[0]), middle - 9 * HOUR), (middle + 9 * HOUR, int(times[-1]) + 1)]):
        there = sum(int(((times >= low) & (times < high)).sum()) for low, high in spans)
        assert _count_events(real, spans) == pytest.approx(there, rel=0.2)
    assert _count_events(real, []) == 0
    assert _count_events(tables[Table.SYNTHETIC_TARGET_EVENTS], [(0, to_micros(window_of(times).cutoff))]) == 0


def test_a_set_that_fits_in_one_join_is_one_task(made, monkeypatch):
    settings, tables, times = made
    settings = with_negatives(settings, 4)
    spans = [(int(times[0]), int(times[-1]) + 1)]
    assert plan_spine(settings, window_of(times), tables, spans).tasks == 1
    monkeypatch.setattr(spine_build, "_TASK_EVENTS", 100)
    assert plan_spine(settings, window_of(times), tables, spans).tasks == 4


def test_spans_are_merged_across_the_smallest_gaps():
    spans = [(0, 1), (5, 6), (7, 8), (20, 21), (22, 23)]
    assert _merge_spans(5, spans) == spans
    assert _merge_spans(3, spans) == [(0, 1), (5, 8), (20, 23)]
    assert _merge_spans(1, spans) == [(0, 23)]
    assert _merge_spans(4, []) == []
