"""Rows that are put in one order and taken in another, and which rows of a spine go where."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from scalr_prod.training_set import regroup
from scalr_prod.training_set.features import _plan_files, _written_spans
from scalr_prod.training_set.periods import utc_day
from scalr_prod.training_set.regroup import GroupedArrowFile

DAY = 86_400_000_000


def rows(numbers: np.ndarray) -> pa.Table:
    """Rows whose every value follows from their number; some lists are null, some empty."""
    lists = [None if n % 5 == 4 else [f"{n}-{k}" for k in range(n % 5)] for n in numbers.tolist()]
    return pa.table({"row": numbers, "items": pa.array(lists, pa.list_(pa.string())), "text": [f"r{n}" for n in numbers]})


@pytest.mark.parametrize("fan_out", [100, 7, 3])
def test_each_group_gives_its_rows_in_the_order_of_arrival(tmp_path, monkeypatch, fan_out):
    monkeypatch.setattr(regroup, "_FAN_OUT", fan_out)
    monkeypatch.setattr(regroup, "_ROWS_AT_ONCE", 50)
    drawn = np.random.default_rng(3)
    numbers = drawn.permutation(1_000)
    groups = np.sort(drawn.integers(0, 40, 1_000))[drawn.permutation(1_000)]
    groups[groups == 7] = 8
    with GroupedArrowFile(tmp_path / "kept.arrow", groups=40) as kept:
        for place in range(0, 1_000, 130):  # the last is shorter
            some = numbers[place : place + 130]
            kept.append(rows(some), groups[some])
        kept.append(rows(numbers[:0]), groups[:0])
        assert kept.groups == sorted(set(groups.tolist()))
        assert kept._count <= 8 * fan_out, "batches of the eight tables"
        for group in reversed(kept.groups):
            assert kept.read_group(group).equals(rows(numbers[groups[numbers] == group]))
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
        with GroupedArrowFile(tmp_path / "kept.arrow") as kept:
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
    assert _written_spans(files) == [(0, 4), (7, 47)]
    assert [file.group for file in _plan_files(periods, days[:2], 10)] == [0, 0, *[-1] * 6]
