"""Ranges of users and items that a spine is joined by: they hold every wanted row once, and no more than a join takes."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from scalr_prod.compute import read_segments, shuffle_folder, write_tables
from scalr_prod.training_set import grouped_join
from scalr_prod.training_set.grouped_join import (
    ROW,
    BatchFeatures,
    FeatureJob,
    SpineGroup,
    _count_rows,
    _range_bounds,
    _split_rows,
    _write_ranges,
    divide_into_batches,
)
from scalr_prod.training_set.spine import SpineRows

STAMP = pa.timestamp("us", "UTC")


def ranges(tmp_path, spine: pa.Table, spans, limit: int) -> dict[str, list[pa.Table]]:
    """The rows of each range of users and of each range of items."""
    folder = tmp_path / "it's a [folder]"
    folder.mkdir()
    wanted = pa.concat_tables(spine.slice(start, end - start) for start, end in spans)
    wanted = wanted.append_column("more", pa.nulls(len(wanted), "string"))
    with shuffle_folder(str(folder), {}) as shuffled, duckdb.connect(config={"preserve_insertion_order": False}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        parts = [wanted.slice(start, 900) for start in range(0, len(wanted), 900)]
        segments = write_tables(enumerate(parts), folder=shuffled)
        groups = [
            SpineGroup((("file", len(part)),), (SpineRows((segments[number],), 0, len(part)),), 900 * number)
            for number, part in enumerate(parts)
        ]
        job, keys = FeatureJob(None, "", None, limit, shuffled), ("user_id", "item_id")
        halves = groups[::2], groups[1::2]
        counts = [_count_rows(connection, job, keys, half) for half in halves]
        bounds = dict(_range_bounds(connection, job, key, [count[key] for count in counts]) for key in keys)
        written = [_write_ranges(connection, job, bounds, half) for half in halves]
        return {
            key: [
                read_segments([files[key][number] for files in written if number in files[key]], folder=shuffled)
                for number in sorted({number for files in written for number in files[key]})
            ]
            for key in bounds
        }


@pytest.mark.parametrize("ids", ["int64", "string"])
def test_ranges_are_of_users_that_follow_each_other_and_hold_every_wanted_row_once(tmp_path, ids):
    drawn, limit = np.random.default_rng(5), 400
    user = np.where(drawn.random(3_000) < 0.4, 50, drawn.integers(0, 90, 3_000))  # one has twice what a join takes
    spine = pa.table(
        {
            "user_id": pa.array(user).cast(ids),
            "item_id": pa.array(drawn.integers(0, 9, 3_000)).cast(ids),
            "event_timestamp": pa.array(np.arange(3_000)).cast(STAMP),
        }
    )
    for key, found in ranges(tmp_path, spine, [(0, 500), (1_200, 3_000)], limit).items():
        rows = pa.concat_tables(found)
        order = np.argsort(rows[ROW].to_numpy())
        assert rows[ROW].to_numpy()[order].tolist() == list(range(2_300))
        wanted = spine.take(pa.array(np.r_[0:500, 1_200:3_000]))
        assert rows.take(pa.array(order)).drop_columns(ROW).equals(wanted)
        keys = [sorted(set(part[key].to_pylist())) for part in found]
        assert [key for some in keys for key in some] == sorted(set(wanted[key].to_pylist())), "no user is cut in two"
    assert not list(tmp_path.rglob("shuffle-*"))


def test_no_range_is_more_than_a_join_takes_where_no_key_is(tmp_path):
    """Else it would be joined in two halves, each of which reads as much as the whole."""
    item = np.repeat(np.arange(60), 35)
    times = pa.array(np.arange(len(item))).cast(STAMP)
    found = ranges(tmp_path, pa.table({"user_id": item, "item_id": item, "event_timestamp": times}), [(0, len(item))], 100)
    sizes = [len(part) for part in found["item_id"]]
    assert sum(sizes) == len(item)
    assert max(sizes) <= 100
    assert len(sizes) < 60 * 35 / 100 * 2, "fewer than the halves would be"


def test_rows_are_split_by_the_group_that_they_belong_to():
    rows = pa.table({ROW: [0, 3, 4, 9, 11, 12]})
    found = {group: part[ROW].to_pylist() for group, part in _split_rows(rows, np.array([4, 8, 8, 12, 20]))}
    assert found == {0: [0, 3], 1: [4], 3: [9, 11], 4: [12]}


def test_ranges_are_even_where_each_event_is_followed_by_its_negatives(tmp_path, monkeypatch):
    monkeypatch.setattr(grouped_join, "_COUNTED_ROWS", 80)
    drawn, limit = np.random.default_rng(7), 800  # one row of ten is counted
    items = np.sort(drawn.integers(0, 1_000, (4_000, 5)), axis=1).ravel()
    spine = pa.table(
        {
            "user_id": pa.array(np.repeat(drawn.integers(0, 500, 4_000), 5)),
            "item_id": pa.array(items),
            "event_timestamp": pa.array(np.repeat(np.arange(4_000), 5)).cast(STAMP),
        }
    )
    sizes = [len(part) for part in ranges(tmp_path, spine, [(0, len(spine))], limit)["item_id"]]
    assert max(sizes) < 2 * limit
    assert sum(sizes) == len(spine)


def group_of(first: int, rows: int) -> SpineGroup:
    return SpineGroup((("file", rows),), (), first)


def test_batches_have_whole_groups_and_are_as_many_as_a_round_has_tasks_of_even_size():
    groups = [group_of(90 * number, 90) for number in range(1_000)]
    batches = divide_into_batches(groups, 100)
    assert [group for batch in batches for group in batch] == groups
    assert len(batches) == 64
    assert {len(batch) for batch in batches} == {15, 16}, "1 406 rows a task"
    assert [len(batch) for batch in divide_into_batches(groups[:20], 100)] == [1] * 20, "no join is larger than the limit"


def test_a_batch_of_several_groups_yields_the_rows_of_each_in_order_whatever_the_joins_that_wrote_them(tmp_path):
    drawn = np.random.default_rng(3)
    groups = [group_of(first, rows) for first, rows in ((100, 40), (140, 3), (143, 57))]
    rows, columns = np.arange(100, 200), ["of_items", "of_users", "more"]
    values = {"of_users": rows * 2, "more": rows.astype(str), "of_items": rows * 3}
    with shuffle_folder(str(tmp_path), {}) as folder:
        segments = []
        for names in (("of_items",), ("of_users", "more")):
            pieces = np.array_split(drawn.permutation(100), 7)  # as joins of other users or items wrote them
            tables = [pa.table({ROW: rows[piece], **{name: values[name][piece] for name in names}}) for piece in pieces]
            segments.append(list(write_tables(enumerate(map(grouped_join._sort_by_row, tables)), folder=folder).values()))
        job = FeatureJob(None, "", None, 40, folder)
        found = list(BatchFeatures(columns, segments).iter_tables(groups, job))
        assert not [path for path in tmp_path.iterdir() if path.is_dir()], "what it divided is removed"
    assert [len(table) for table in found] == [40, 3, 57]
    whole = pa.concat_tables(found)
    assert whole.column_names == columns
    assert all(whole[name].to_pylist() == values[name].tolist() for name in columns)
