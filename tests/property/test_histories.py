"""Histories and statistics against an oracle that reads the rules row by row and shares no code with the package."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.lakes import mark_home

from scalr_prod.compute import file_parts
from scalr_prod.config.settings import Settings
from scalr_prod.histories import build_histories, full_build, incremental, row_stream
from scalr_prod.histories.wavelet_matrix import WaveletMatrix
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table, table_schema
from scalr_prod.workspace import duckdb

TABLES = (
    Table.SOURCE_EVENTS,
    Table.TARGET_EVENTS,
    Table.SOURCE_USER_HISTORY,
    Table.TARGET_USER_HISTORY,
    Table.TARGET_ITEM_STATS,
)
DAWN = datetime(1970, 1, 1, tzinfo=UTC)
EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
STEP = timedelta(hours=7)
DOMAINS = {"source": {"name": "a", "events": "a"}, "target": {"name": "b", "events": "b"}}

#: user, item, time, delay: few of each, so that ties, repeats and late events abound.
EVENTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 12), st.one_of(st.just(0), st.integers(0, 15))), max_size=40
)


def low_md5(value) -> int:
    return int.from_bytes(hashlib.md5(str(value).encode(), usedforsecurity=False).digest()[8:], "little")


def named(events, ids: str):
    """Numbers → ids of a type, instants and knowledge times."""
    user, item = (int, int) if ids == "int64" else ("u{}".format, "i{}".format)
    return [(user(u), item(i), EPOCH + t * STEP, EPOCH + (t + d) * STEP) for u, i, t, d in events]


def states(events, key: int, step: timedelta = timedelta(), marks=()):
    """All (key, t, c) that there must be, with the events of the key visible in each."""
    marks = sorted(marks or [max(event[3] for event in events)]) if events else []
    for name in {event[key] for event in events}:
        own = [event for event in events if event[key] == name]
        for time in {event[2] for event in own}:
            first = min(event[3] for event in own if event[2] == time)
            later = {event[3] for event in own if event[2] <= time and event[3] > first}
            if step:
                # Rounded up to whole steps since 1970, but never past the end of the file that brought the event.
                steps = {known: -((DAWN - known) // step) for known in later}
                ends = {known: min(mark for mark in marks if mark >= known) for known in later}
                later = {min(DAWN + steps[known] * step, ends[known]) for known in later}
            for known in {first, *later}:
                yield name, time, known, [event for event in own if event[2] <= time and event[3] <= known]


def expected_histories(events, length: int, step: timedelta, marks=()):
    rows = []
    for user, time, known, seen in states(events, 0, step, marks):
        last = sorted(seen, key=lambda event: (event[2], low_md5(event[1])))[-length:]
        rows.append((user, time, known, [event[1] for event in last], [event[2] for event in last], len(seen)))
    return sorted(rows, key=repr)


def expected_statistics(events, days: int, marks=()):
    rows = []
    for item, time, known, seen in states(events, 1, timedelta(days=1), marks):
        trailing = sum(event[2] > time - timedelta(days=days) for event in seen)
        rows.append((item, time, known, min(event[2] for event in seen), len(seen), trailing))
    return sorted(rows, key=repr)


def project(folder, events, ids: str, **chosen: int) -> Settings:
    made = Settings(domains=DOMAINS, histories=chosen, base=folder)
    mark_home(made)
    lake = Lake.open(made)
    for table in TABLES:
        lake.create(table, table_schema(table, user=ids, item=ids))
    add(made, events, "made")
    return made


def add(made: Settings, events, key: str) -> None:
    lake = Lake.open(made)
    schema = lake.schema(Table.TARGET_EVENTS)
    columns = list(zip(*events, strict=True)) or [(), (), (), ()]
    arrays = [pa.array(column, field.type) for column, field in zip((*columns, [1.0] * len(events)), schema, strict=True)]
    for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS):
        lake.append(table, pa.Table.from_arrays(arrays, schema=schema), key=key)


def found_all(made: Settings):
    lake = Lake.open(made)
    tables = (Table.SOURCE_USER_HISTORY, Table.TARGET_USER_HISTORY)
    return [*(found_histories(lake, table) for table in tables), found_statistics(lake)]


def found_histories(lake: Lake, table: Table):
    columns = ("user_id", "event_timestamp", "created_timestamp", "item_ids", "event_timestamps", "event_count")
    return sorted((tuple(row[name] for name in columns) for row in lake.read(table).to_pylist()), key=repr)


def found_statistics(lake: Lake):
    columns = ("item_id", "event_timestamp", "created_timestamp", "first_seen", "event_count", "trailing_event_count")
    rows = lake.read(Table.TARGET_ITEM_STATS).to_pylist()
    return sorted((tuple(row[name] for name in columns) for row in rows), key=repr)


@settings(deadline=None, max_examples=examples(4), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    raw=EVENTS,
    ids=st.sampled_from(["int64", "string"]),
    length=st.integers(1, 4),
    days=st.integers(1, 3),
    hours=st.sampled_from([0, 10, 24]),
    at_once=st.sampled_from([1, 2, 5, 1000]),
)
def test_every_row_is_what_the_rules_say(tmp_path_factory, raw, ids, length, days, hours, at_once):
    events = named(raw, ids)
    folder = tmp_path_factory.mktemp("project")
    made = project(folder, events, ids, length=length, trailing_days=days, late_step_s=hours * 3600)
    with pytest.MonkeyPatch.context() as patch:
        # Small pieces everywhere, so that their seams are tested as well.
        patch.setattr(row_stream, "_CHUNK", at_once)
        patch.setattr(row_stream, "_BATCH", at_once)
        patch.setattr(incremental, "_BATCH", at_once)
        patch.setattr(full_build, "_BATCH", at_once)
        patch.setattr("scalr_prod.core.partitioned.PARTITION_ROWS", at_once * 5)
        patch.setattr(row_stream, "_ELEMENTS", at_once * 3)
        patch.setattr("scalr_prod.histories.knowledge_time._AT_ONCE", at_once)
        build_histories(made)
    lake = Lake.open(made)
    expected = expected_histories(events, length, timedelta(hours=hours))
    assert found_histories(lake, Table.SOURCE_USER_HISTORY) == expected
    assert found_histories(lake, Table.TARGET_USER_HISTORY) == expected
    assert found_statistics(lake) == expected_statistics(events, days)


@settings(deadline=None, max_examples=examples(2), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    raw=EVENTS,
    cuts=st.sets(st.integers(0, 28), max_size=3),
    ids=st.sampled_from(["int64", "string"]),
    length=st.integers(1, 4),
    days=st.integers(1, 3),
    hours=st.sampled_from([0, 10]),
    at_once=st.sampled_from([1, 5, 1000]),
)
def test_day_by_day_gives_the_rows_of_a_build_from_all_days(tmp_path_factory, raw, cuts, ids, length, days, hours, at_once):
    events, chosen = named(raw, ids), {"length": length, "trailing_days": days, "late_step_s": hours * 3600}
    edges = [EPOCH - STEP, *(EPOCH + cut * STEP for cut in sorted(cuts)), EPOCH + 30 * STEP]
    # What became known between two edges reaches the log on one day.
    batches = [[event for event in events if low <= event[3] < high] for low, high in pairwise(edges)]
    batches = [batch for batch in batches if batch] or [[]]
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_stream, "_CHUNK", at_once)
        patch.setattr(incremental, "_BATCH", at_once)
        patch.setattr(full_build, "_BATCH", at_once)
        patch.setattr("scalr_prod.core.partitioned.PARTITION_ROWS", at_once * 5)
        patch.setattr(row_stream, "_ELEMENTS", at_once * 3)
        patch.setattr("scalr_prod.histories.knowledge_time._AT_ONCE", at_once)
        made = project(folder / "days", batches[0], ids, **chosen)
        build_histories(made)
        for number, batch in enumerate(batches[1:]):
            add(made, batch, f"day {number}")
            assert all(report.appended for report in build_histories(made).tables.values())
        whole = project(folder / "whole", batches[0], ids, **chosen)
        for number, batch in enumerate(batches[1:]):
            add(whole, batch, f"day {number}")
        assert not any(report.appended for report in build_histories(whole).tables.values())
    found, marks = found_all(made), [max(event[3] for event in batch) for batch in batches if batch]
    assert found == found_all(whole)
    assert found[0] == found[1] == expected_histories(events, length, timedelta(hours=hours), marks)
    assert found[2] == expected_statistics(events, days, marks)


@pytest.mark.parametrize("read", ["held", "file by file", "a store's files"])
def test_a_long_log_day_by_day_gives_the_rows_that_the_rules_say(tmp_path, monkeypatch, read):
    if read == "file by file":
        monkeypatch.setattr(incremental, "_HELD", 0)
    if read == "a store's files":  # those that DuckDB cannot read where they are come through Arrow
        for module in (incremental, file_parts, duckdb):
            monkeypatch.setattr(module, "duckdb_readable_files", lambda _: None)
    draw = np.random.default_rng(0)
    columns = [draw.integers(0, high, 360) for high in (3, 4, 40)]
    late = draw.integers(1, 25, 360) * (draw.random(360) < 0.4)
    events = named(list(zip(*(column.tolist() for column in (*columns, late)), strict=True)), "int64")
    events.sort(key=lambda event: event[3])
    batches = [[event for event in events if (event[3] - EPOCH) // (13 * STEP) == day] for day in range(5)]
    made = project(tmp_path, batches[0], "int64", length=2, trailing_days=2)
    build_histories(made)
    for number, batch in enumerate(batches[1:]):
        add(made, batch, f"day {number}")
        assert all(report.appended for report in build_histories(made).tables.values())
    marks = [max(event[3] for event in batch) for batch in batches]
    found = found_all(made)
    assert found[0] == found[1] == expected_histories(events, 2, timedelta())
    assert found[2] == expected_statistics(events, 2, marks)


@settings(deadline=None, max_examples=examples(2), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EVENTS, min_size=2, max_size=3))
def test_what_does_not_come_in_the_order_of_knowledge_gives_the_same_rows(tmp_path_factory, raw):
    batches = [named(batch, "int64") for batch in raw]
    made = project(tmp_path_factory.mktemp("project"), batches[0], "int64", length=3, trailing_days=2)
    build_histories(made)
    for number, batch in enumerate(batches[1:]):
        add(made, batch, f"day {number}")
        build_histories(made)
    events = [event for batch in batches for event in batch]
    marks = [max(event[3] for event in batch) for batch in batches if batch]
    found = found_all(made)
    assert found[0] == found[1] == expected_histories(events, 3, timedelta())
    assert found[2] == expected_statistics(events, 2, marks)


@settings(deadline=None, max_examples=examples(4), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(EVENTS, st.integers(1, 3), st.lists(st.tuples(st.integers(-1, 14), st.integers(-1, 30)), min_size=1, max_size=8))
def test_reading_as_of_a_time_and_a_knowledge_gives_what_was_visible(tmp_path_factory, raw, length, asked):
    events = named(raw, "int64")
    made = project(tmp_path_factory.mktemp("project"), events, "int64", length=length)
    build_histories(made)
    rows = Lake.open(made).read(Table.SOURCE_USER_HISTORY).to_pylist()
    for at, knowledge in asked:
        time, known = EPOCH + at * STEP, EPOCH + knowledge * STEP
        for user in {event[0] for event in events}:
            seen = [event for event in events if event[0] == user and event[2] <= time and event[3] <= known]
            seen.sort(key=lambda event: (event[2], low_md5(event[1])))
            readable = [
                row
                for row in rows
                if row["user_id"] == user and row["event_timestamp"] <= time and row["created_timestamp"] <= known
            ]
            if not seen:
                assert not readable
                continue
            row = max(readable, key=lambda row: (row["event_timestamp"], row["created_timestamp"]))
            assert row["item_ids"] == [event[1] for event in seen[-length:]]
            assert row["event_count"] == len(seen)


@settings(deadline=None, max_examples=examples(2), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(EVENTS, st.lists(st.tuples(st.integers(-1, 14), st.integers(-1, 30)), min_size=1, max_size=8))
def test_steps_never_show_what_was_not_known_and_hide_nothing_from_who_knows_all(tmp_path_factory, raw, asked):
    events = named(raw, "int64")
    made = project(tmp_path_factory.mktemp("project"), events, "int64", length=1000, late_step_s=50 * 3600)
    build_histories(made)
    rows = Lake.open(made).read(Table.SOURCE_USER_HISTORY).to_pylist()
    for at, knowledge in [*asked, (14, 30)]:
        time, known = EPOCH + at * STEP, EPOCH + knowledge * STEP
        for user in {event[0] for event in events}:
            seen = sum(event[0] == user and event[2] <= time and event[3] <= known for event in events)
            readable = [
                row
                for row in rows
                if row["user_id"] == user and row["event_timestamp"] <= time and row["created_timestamp"] <= known
            ]
            row = max(readable, key=lambda row: (row["event_timestamp"], row["created_timestamp"]), default={"event_count": 0})
            assert row["event_count"] <= seen
            if knowledge == 30:
                assert row["event_count"] == seen


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_dominance_counts_what_a_loop_counts(data):
    size = data.draw(st.integers(1, 200))
    values = np.array(data.draw(st.lists(st.integers(0, size), min_size=size, max_size=size)), np.int64)
    asked = data.draw(st.lists(st.tuples(st.integers(0, size), st.integers(0, size), st.integers(0, size + 70)), min_size=1))
    start, end, bound = (np.array(column, np.int64) for column in zip(*asked, strict=True))
    start, end = np.minimum(start, end), np.maximum(start, end)
    expected = [int((values[s:e] <= b).sum()) for s, e, b in zip(start, end, bound, strict=True)]
    assert WaveletMatrix(values).count_at_most(start, end, bound).tolist() == expected
