"""A history index equals the array that it represents, however it is indexed."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from scalr_prod.translator.data import event_log
from scalr_prod.translator.data.event_log import HistoryIndex, position_dtype

LENGTH = 5


def listed(runs: HistoryIndex) -> np.ndarray:
    """Return the full array, built row by row."""
    found = np.full((len(runs.stop), LENGTH), -1, np.int32)
    for row, (stop, count) in enumerate(zip(runs.stop.tolist(), runs.count.tolist(), strict=True)):
        if count:
            found[row, -count:] = range(stop - count, stop)
    for row, positions in zip(runs.explicit_rows.tolist(), runs.explicit_positions, strict=True):
        found[row] = positions
    return found


def test_positions_past_two_billion_events_do_not_wrap():
    assert [position_dtype(count) for count in (1, 2**31 - 1, 2**31, 2**40)] == [np.int32, np.int32, np.int64, np.int64]
    stop = np.array([2**31 + 2, 5], position_dtype(2**31 + 2))
    far = HistoryIndex(stop, np.array([3, 1], np.int32), LENGTH, np.array([], np.int64), np.empty((0, LENGTH), np.int64))
    assert far[0].tolist() == [-1, -1, 2**31 - 1, 2**31, 2**31 + 1]
    assert far[:, -1].tolist() == [2**31 + 1, 4]


def made(*, late: bool) -> HistoryIndex:
    apart = np.array([1, 4] if late else [], dtype=np.int64)
    positions = np.array([[-1, -1, -1, 2, 7], [3, 5, 6, 8, 9]], dtype=np.int32)[: len(apart)]
    stop, count = np.array([0, 9, 4, 20, 11, 12, 3]), np.array([0, 2, 3, 5, 4, 5, 1])
    return HistoryIndex(stop.astype(np.int32), count.astype(np.int32), LENGTH, apart, positions)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "rows", [np.array([4, 0, 1, 1, 6]), np.array([], np.int64), slice(1, 5), slice(None), 4, 2, np.arange(7) > 2]
)
@pytest.mark.parametrize("columns", [None, -1, 0, slice(-3, None), slice(None)])
def test_a_history_index_is_indexed_as_its_array(rows, columns, late):
    runs = made(late=late)
    key = rows if columns is None else (rows, columns)
    expected = listed(runs)[key]
    found = runs[key]
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)
    assert runs.shape == listed(runs).shape
    np.testing.assert_array_equal(np.stack(list(runs)), listed(runs))


@pytest.mark.parametrize("widest", [10, 2**40, 2**61])
@pytest.mark.parametrize("at_a_time", [1, 7, 1000])
def test_event_positions_are_found_by_user_and_time(widest, at_a_time, monkeypatch):
    """Of users without events too, and at times before all events and after them; whatever time the log spans."""
    monkeypatch.setattr(event_log, "_LOOKUP_BATCH", at_a_time)
    random = np.random.default_rng(0)
    user, time = random.choice([0, 1, 3, 4, 7, 9], 200).astype(np.int32), random.integers(-widest, widest, 200)
    order = np.lexsort((time, user))
    source = event_log.DomainEvents(user[order], np.zeros(200, np.int32), time[order], pa.array([0]))
    asked = np.sort(random.integers(0, 11, 300)).astype(np.int32)
    moment = np.where(random.random(300) < 0.5, random.choice(time, 300), random.integers(-2 * widest, 2 * widest, 300))
    for and_at in (False, True):
        earlier = source.time[None] <= moment[:, None] if and_at else source.time[None] < moment[:, None]
        expected = (source.user[None] < asked[:, None]).sum(1) + ((source.user[None] == asked[:, None]) & earlier).sum(1)
        np.testing.assert_array_equal(event_log._EventFinder(source).end_before(asked, moment, inclusive=and_at), expected)
