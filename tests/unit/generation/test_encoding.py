"""Histories and exclusions as arrays, beside a row-by-row oracle."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalr_prod.core.timestamps import column_to_micros
from scalr_prod.generation.encoding import (
    HISTORY_ITEMS,
    HISTORY_TIMES,
    ConsumptionIndex,
    encode_histories,
    iter_context_batches,
)
from scalr_prod.translator.data.contexts import NO_ITEM, Contexts
from scalr_prod.translator.registry import ItemVocabulary

DAY = 86_400_000_000
US = pa.timestamp("us", tz="UTC")
SOURCE = ["a", "b", "c", "d"]
TARGET = ["p", "q", "r"]


def vocabulary() -> ItemVocabulary:
    nothing = np.zeros(len(TARGET), dtype=np.int64)
    return ItemVocabulary(pa.array(SOURCE), pa.array(TARGET), nothing, nothing, nothing.astype(float))


def joined(rows: list[tuple[str, int, list[tuple[str, int]] | None]]) -> pa.Table:
    histories = [history for _, _, history in rows]
    return pa.table(
        {
            "item_id": pa.array([item for item, _, _ in rows], pa.string()),
            "event_timestamp": pa.array([time * DAY for _, time, _ in rows], US),
            HISTORY_ITEMS: pa.array([None if h is None else [i for i, _ in h] for h in histories], pa.list_(pa.string())),
            HISTORY_TIMES: pa.array([None if h is None else [t * DAY for _, t in h] for h in histories], pa.list_(US)),
        }
    )


def expected(rows, length: int):
    """Row by row: take one occurrence of the event out of its history, put it last, keep the last L."""
    index = {item: number + 1 for number, item in enumerate(SOURCE)}
    items, ages = [], []
    for item, time, history in rows:
        events = list(history or [])
        places = [place for place, event in enumerate(events) if event == (item, time)]
        if places:
            del events[places[-1]]
        events = [*events, (item, time)][-length:]
        gap = length - len(events)
        items.append([0] * gap + [index.get(i, 0) for i, _ in events])
        ages.append([0.0] * gap + [float(time - t) for _, t in events])
    return np.array(items, dtype=np.int32), np.array(ages, dtype=np.float32)


ids = st.sampled_from([*SOURCE, "unknown"])


@st.composite
def context_rows(draw):
    rows = []
    for _ in range(draw(st.integers(1, 8))):
        item, time = draw(ids), draw(st.integers(3, 6))
        past = sorted(draw(st.lists(st.tuples(st.integers(0, time), ids), max_size=6)))
        history = [(i, t) for t, i in past]
        rows.append((item, time, draw(st.sampled_from([history, history, None]))))
    return rows


@settings(max_examples=200)
@given(context_rows(), st.integers(1, 7))
def test_histories_equal_the_oracle(rows, length):
    rows = [(item, time, history[-length:] if history else history) for item, time, history in rows]
    items, ages = encode_histories(joined(rows), vocabulary(), length)
    want_items, want_ages = expected(rows, length)
    assert items.dtype == np.int32
    assert ages.dtype == np.float32
    np.testing.assert_array_equal(items, want_items)
    np.testing.assert_array_equal(ages, want_ages)


def test_an_event_cut_from_a_full_history_by_its_ties_is_put_last():
    items, ages = encode_histories(joined([("a", 5, [("b", 5), ("c", 5)])]), vocabulary(), 2)
    assert items.tolist() == [[3, 1]]
    assert ages.tolist() == [[0, 0]]


def test_histories_in_a_slice_of_a_larger_table():
    rows = [("a", 5, [("b", 1), ("a", 5)]), ("b", 5, [("c", 2), ("b", 5)]), ("c", 4, [("c", 4)])]
    whole = encode_histories(joined(rows), vocabulary(), 3)[0]
    np.testing.assert_array_equal(encode_histories(joined(rows).slice(1, 2), vocabulary(), 3)[0], whole[1:])


def consumed_rows(events: list[tuple[str, str, int]]) -> pa.Table:
    first: dict[tuple[str, str], int] = {}
    for user, item, time in events:
        first[user, item] = min(time, first.get((user, item), time))
    rows = sorted((user, time, item) for (user, item), time in first.items())
    return pa.table(
        {
            "user_id": pa.array([user for user, _, _ in rows], pa.string()),
            "item_id": pa.array([item for _, _, item in rows], pa.string()),
            "event_timestamp": pa.array([time for _, time, _ in rows], US),
        }
    )


users = st.sampled_from(["u", "v", "w"])


@settings(max_examples=200)
@given(
    st.lists(st.tuples(users, st.sampled_from([*TARGET, "unknown"]), st.integers(0, 5)), max_size=12),
    st.lists(st.tuples(users, st.integers(0, 6)), min_size=1, max_size=6),
)
def test_exclusions_are_what_was_consumed_strictly_before(events, asked):
    consumed = ConsumptionIndex.from_rows(consumed_rows(events), vocabulary())
    had = consumed.items_before(pa.array([user for user, _ in asked]), np.array([time for _, time in asked]))
    matrix = had.to_matrix()
    for (user, time), row in zip(asked, matrix, strict=True):
        want = {TARGET.index(item) for who, item, when in events if who == user and when < time and item in TARGET}
        assert set(row[row != NO_ITEM].tolist()) == want
    assert matrix.shape[1] == had.count.max()


@pytest.mark.parametrize("size", [1, 3, 100])
def test_batches_keep_order_and_stay_below_the_limit(size):
    rows, length = 7, 4
    indices = np.arange(rows * length, dtype=np.int32).reshape(rows, length)
    ages = indices.astype(np.float32)
    heavy = [("heavy", item, 0) for item in TARGET]
    consumed = ConsumptionIndex.from_rows(consumed_rows(heavy), vocabulary())
    names = pa.array(["light"] * 5 + ["heavy"] * 2)
    times = np.arange(rows, dtype=np.int64) + 1
    limit = 2 * (8 * length + 28 + 4 * 3)
    made = list(
        iter_context_batches(
            Contexts(
                history_items=indices,
                history_ages=ages,
                history_end=np.arange(rows, dtype=np.int64),
                event_time=times,
                fold=np.zeros(rows, dtype=np.int32),
                noise_key=np.arange(rows, dtype=np.int64),
                exclude=consumed.items_before(names, times),
            ),
            always_excluded=np.empty(0, np.int32),
            batch_size=size,
            max_bytes=limit,
        )
    )
    together = Contexts.concat(made)
    np.testing.assert_array_equal(together.history_items, indices)
    assert (together.exclude[:5] == NO_ITEM).all()
    assert (np.sort(together.exclude[5:], axis=1) == [0, 1, 2]).all()
    for batch in made:
        weight = sum(getattr(batch, name).nbytes for name in vars(batch))
        assert len(batch) == 1 or (len(batch) <= size and weight <= limit)


def test_microseconds_are_exact():
    column = pa.chunked_array([pa.array([1, 2**52 + 1], US)])
    assert column_to_micros(column).tolist() == [1, 2**52 + 1]
