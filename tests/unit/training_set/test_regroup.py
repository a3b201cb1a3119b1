"""Rows that are put in one order and taken in another, and which rows of a spine go where."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalr_prod.training_set import regroup
from scalr_prod.training_set.features import _plan_files
from scalr_prod.training_set.grouped_join import JoinGroups, _bucketed
from scalr_prod.training_set.periods import utc_day
from scalr_prod.training_set.regroup import GroupedArrowFile

DAY = 86_400_000_000


def rows(numbers: np.ndarray) -> pa.Table:
    """Rows whose every value follows from their number; some lists are null, some empty."""
    lists = [None if n % 5 == 4 else [f"{n}-{k}" for k in range(n % 5)] for n in numbers.tolist()]
    return pa.table({"row": numbers, "items": pa.array(lists, pa.list_(pa.string())), "text": [f"r{n}" for n in numbers]})


@pytest.mark.parametrize("fan_out", [100, 7, 3])
def test_each_group_gives_its_rows_by_number_however_they_were_put(tmp_path, monkeypatch, fan_out):
    monkeypatch.setattr(regroup, "_FAN_OUT", fan_out)
    monkeypatch.setattr(regroup, "_ROWS_AT_ONCE", 50)
    drawn = np.random.default_rng(3)
    numbers = drawn.permutation(1_000)
    groups = np.sort(drawn.integers(0, 40, 1_000))[drawn.permutation(1_000)]
    groups[groups == 7] = 8
    with GroupedArrowFile(tmp_path / "kept.arrow", "row", groups=40) as kept:
        for place in range(0, 1_000, 130):  # the last is shorter
            some = numbers[place : place + 130]
            kept.append(rows(some), groups[some])
        kept.append(rows(numbers[:0]), groups[:0])
        assert kept.groups == sorted(set(groups.tolist()))
        assert kept._count <= 8 * fan_out, "batches of the eight tables"
        for group in reversed(kept.groups):
            assert kept.read_group(group).equals(rows(np.flatnonzero(groups == group)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("groups", [2, 300])
def test_rows_without_numbers_come_back_as_they_were_put(tmp_path, groups):
    with GroupedArrowFile(tmp_path / "kept.arrow", groups=groups) as kept:
        kept.append(rows(np.array([9, 2, 7, 1])), np.array([1, 0, 1, 0]))
        kept.append(rows(np.array([0, 8])), np.array([1, 1]))
        assert kept.groups == [0, 1]
        assert kept.read_group(1).equals(rows(np.array([9, 7, 0, 8])))
        assert kept.read_group(0).equals(rows(np.array([2, 1])))


def test_an_error_leaves_no_file(tmp_path):
    def fail() -> None:
        with GroupedArrowFile(tmp_path / "kept.arrow", "row") as kept:
            kept.append(rows(np.arange(3)), np.zeros(3, np.int64))
            assert (tmp_path / "kept.arrow").exists()
            kept.append(rows(np.arange(3)).drop_columns("text"), np.zeros(3, np.int64))

    with pytest.raises(pa.ArrowInvalid):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_files_go_together_up_to_the_limit_past_what_is_not_written():
    days = [utc_day(number * DAY) for number in range(6)]
    periods = dict(zip(days, (4, 3, 25, 4, 2, 9), strict=True))
    files = _plan_files(periods, [day for day in days if day != days[1]], 10)
    assert [(file.rows, file.group) for file in files] == [
        (4, 0), (3, -1), (10, 1), (10, 2), (5, 3), (4, 3), (2, 4), (9, 5)
    ]  # fmt: skip
    assert files[3].name == "part-1970-01-03-00001.parquet"
    assert [file.group for file in _plan_files(periods, days[:2], 10)] == [0, 0, *[-1] * 6]


def test_a_row_belongs_to_the_group_of_its_piece():
    sizes, numbers = np.array([4, 3, 10, 5, 6]), np.array([0, -1, 0, 1, -1])
    groups = JoinGroups(np.cumsum(sizes), numbers)
    every = np.arange(sizes.sum())
    assert groups.group_numbers(every).tolist() == np.repeat(numbers, sizes).tolist()
    assert groups.membership_sql("n") == "(n >= 0 AND n < 4 OR n >= 7 AND n < 22)"


@pytest.mark.parametrize("ids", ["int64", "string"])
def test_shares_are_of_users_that_follow_each_other_and_hold_every_wanted_row_once(tmp_path, ids):
    drawn, limit = np.random.default_rng(5), 400
    user = np.where(drawn.random(3_000) < 0.4, 50, drawn.integers(0, 90, 3_000))  # one has twice what a join takes
    spine = pa.table(
        {
            "user_id": pa.array(user).cast(ids),
            "item_id": pa.array(drawn.integers(0, 9, 3_000)).cast(ids),
            "event_timestamp": pa.array(np.arange(3_000)).cast(pa.timestamp("us", "UTC")),
        }
    )
    path = tmp_path / "it's a [spine].parquet"
    pq.write_table(spine, path, row_group_size=700)
    groups = JoinGroups(np.array([500, 1_200, 3_000]), np.array([0, -1, 1]))
    connection = duckdb.connect(config={"threads": 2, "preserve_insertion_order": False})
    connection.execute("SET TimeZone = 'UTC'")
    count, batches = _bucketed(connection, path, groups, "user_id", limit)
    found = list(batches)
    rows, share = pa.concat_tables(table for table, _ in found), np.concatenate([share for _, share in found])

    wanted = np.r_[0:500, 1_200:3_000]
    order = np.argsort(rows["row"].to_numpy())
    assert rows["row"].to_numpy()[order].tolist() == wanted.tolist()
    assert rows.take(pa.array(order)).drop_columns("row").equals(spine.take(pa.array(wanted)))
    of = {}
    for one, number in zip(rows["user_id"].to_pylist(), share.tolist(), strict=True):
        assert of.setdefault(one, number) == number, "no user is cut in two"
    assert [of[one] for one in sorted(of)] == sorted(of.values())
    sizes = np.bincount(share)
    assert (sizes == 0).any(), "shares that the one with very many rows has left empty"
    assert sorted(sizes)[-2] <= limit < sizes.max()
    assert len(sizes) <= count


def test_no_share_is_more_than_a_join_takes_where_no_key_is(tmp_path):
    """Else it would be joined in two halves, each of which reads as much as the whole."""
    item = np.repeat(np.arange(60), 35)
    times = pa.array(np.arange(len(item))).cast(pa.timestamp("us", "UTC"))
    path = tmp_path / "spine.parquet"
    pq.write_table(pa.table({"user_id": item, "item_id": item, "event_timestamp": times}), path)
    with duckdb.connect() as connection:
        _, found = _bucketed(connection, path, JoinGroups(np.array([len(item)]), np.array([0])), "item_id", 100)
        sizes = np.bincount(np.concatenate([share for _, share in found]))
    assert sizes.sum() == len(item)
    assert sizes.max() <= 100
    assert len(sizes) < 60 * 35 / 100 * 2, "fewer than the halves would be"
