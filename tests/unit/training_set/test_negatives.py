"""Negatives are eligible, never consumed, distinct, and a pure function of seed and event."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalr_prod.training_set.negatives import (
    NegativeDraws,
    NegativePool,
    UserEvents,
    draw_negatives,
    draw_user_negatives,
    item_times_sql,
    merge_item_times,
)


def made(seed: int, *, events: int = 400, users: int = 25, items: int = 40, span: int = 60) -> tuple[UserEvents, np.ndarray]:
    """Random events with many ties in time, items numbered by their first event."""
    rng = np.random.default_rng(seed)
    user, time, item = rng.integers(1, users + 1, events), rng.integers(0, span, events), rng.integers(0, items, events)
    first = {i: time[item == i].min() for i in np.unique(item)}
    code = {i: n for n, i in enumerate(sorted(first, key=lambda i: (first[i], i)))}
    item = np.array([code[i] for i in item])
    order = np.lexsort((item, time, user))
    keys = rng.integers(0, 2**63, events).astype(np.uint64)
    labelled = time[order] >= span // 4
    return UserEvents(user[order], item[order].astype(np.int32), time[order], keys, labelled), np.sort(list(first.values()))


def pool_of(events: UserEvents, first_seen: np.ndarray, kind: str) -> NegativePool:
    if kind == "uniform":
        return NegativePool(np.arange(len(first_seen), dtype=np.int32), first_seen)
    order = np.lexsort((events.items, events.times))
    return NegativePool(events.items[order], events.times[order])


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
@given(seed=st.integers(0, 10_000), count=st.integers(1, 12))
@settings(max_examples=15, deadline=None)
def test_every_negative_could_have_been_chosen_and_was_not(kind, seed, count):
    events, first_seen = made(seed)
    rows, items = draw_negatives(events, pool_of(events, first_seen, kind), count, seed=seed)
    assert events.labelled[rows].all()
    assert (first_seen[items] < events.times[rows]).all(), "not yet seen"
    for row, item in zip(rows, items, strict=True):
        mine = (events.users == events.users[row]) & (events.times <= events.times[row])
        assert item not in events.items[mine], "consumed by the label's time"
    drawn = list(zip(events.users[rows], events.times[rows], items, strict=True))
    assert len(set(drawn)) == len(drawn), "twice for one user at one time"


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_negatives_fall_short_only_where_nothing_eligible_is_left(kind):
    events, first_seen = made(3, items=12, events=200)
    rows, items = draw_negatives(events, pool_of(events, first_seen, kind), 9, seed=1)
    for user, time in set(zip(events.users[events.labelled], events.times[events.labelled], strict=True)):
        here = (events.users == user) & (events.times == time)
        past = (events.users == user) & (events.times <= time)
        eligible = set(np.flatnonzero(first_seen < time)) - set(events.items[past])
        mine = {int(i) for r, i in zip(rows, items, strict=True) if events.users[r] == user and events.times[r] == time}
        assert len(mine) == min(len(eligible), 9 * int((here & events.labelled).sum()))
        assert mine <= eligible


def test_the_same_events_give_the_same_negatives_whoever_else_is_drawn_for():
    events, first_seen = made(5)
    pool = pool_of(events, first_seen, "uniform")
    rows, items = draw_negatives(events, pool, 4, seed=9)
    some = np.flatnonzero(events.users % 2 == 0)
    alone = UserEvents(*(getattr(events, name)[some] for name in ("users", "items", "times", "keys", "labelled")))
    rows_alone, items_alone = draw_negatives(alone, pool, 4, seed=9)
    together = {(r, i) for r, i in zip(rows, items, strict=True) if events.users[r] % 2 == 0}
    assert together == {(some[r], i) for r, i in zip(rows_alone, items_alone, strict=True)}


def test_another_seed_gives_other_negatives():
    events, first_seen = made(5)
    pool = pool_of(events, first_seen, "uniform")
    first, second = (draw_negatives(events, pool, 3, seed=seed)[1] for seed in (0, 1))
    assert (first[: len(second)] == second[: len(first)]).mean() < 0.2


def test_popular_items_are_drawn_in_proportion_to_their_events_before():
    """One user who has consumed nothing of the pool, at a time after all events: 10, 30 and 60 events of three items."""
    pool = NegativePool(np.repeat(np.arange(3, dtype=np.int32), [10, 30, 60]), np.arange(100))
    draws = 6000
    events = UserEvents(
        users=np.arange(1, draws + 1),
        items=np.full(draws, 3, np.int32),
        times=np.full(draws, 1000),
        keys=np.random.default_rng(0).integers(0, 2**63, draws).astype(np.uint64),
        labelled=np.ones(draws, bool),
    )
    _, items = draw_negatives(events, pool, 1, seed=0)
    assert np.bincount(items) / draws == pytest.approx([0.1, 0.3, 0.6], abs=0.02)
    _, items = draw_negatives(events, NegativePool(np.arange(3, dtype=np.int32), np.arange(3)), 1, seed=0)
    assert np.bincount(items) / draws == pytest.approx([1 / 3] * 3, abs=0.02)


def test_nothing_is_drawn_before_the_first_item_was_seen():
    events = UserEvents(np.array([1]), np.array([0], np.int32), np.array([5]), np.array([7], np.uint64), np.array([True]))
    rows, items = draw_negatives(events, NegativePool(np.array([0], np.int32), np.array([5])), 3, seed=0)
    assert len(rows) == len(items) == 0


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_negatives_do_not_depend_on_how_events_are_divided(kind):
    """Neither on the tasks that count items, nor on the partitions of users that negatives are drawn in."""
    rng = np.random.default_rng(0)
    times = pa.array(rng.integers(0, 300, 2_000)).cast(pa.timestamp("us", tz="UTC"))
    users = pa.array(rng.integers(0, 70, 2_000).astype(str))
    events = {"user_id": users, "item_id": pa.array(rng.integers(0, 90, 2_000).astype(str)), "event_timestamp": times}
    draws = NegativeDraws(3, kind, 5, [(100, 300)])
    found = []
    for partitions in (1, 3, 34):
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.register("real_events", pa.table(events))
            slices = [
                f"(FROM real_events OFFSET {start} LIMIT 500)" for start in range(0, 2_000, 2_000 if partitions == 1 else 500)
            ]
            counted = " UNION ALL ".join(item_times_sql(some if len(slices) > 1 else "real_events", kind) for some in slices)
            connection.execute(f"CREATE TABLE item_times AS {counted}")
            items = merge_item_times(connection, "item_times", kind)
            drawn = []
            for number in range(partitions):
                connection.execute(
                    f"CREATE OR REPLACE TABLE mine AS FROM real_events WHERE hash(user_id) % {partitions} = {number}"
                )
                drawn.append(draw_user_negatives(connection, "mine", items, draws))
            found.append(pa.concat_tables(drawn).sort_by([(name, "ascending") for name in ("user_id", "item_id", "time")]))
    assert len(items.pool) == (2_000 if kind == "popularity" else 90)
    assert len(found[0]) > 3_000
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])


def test_users_without_events_and_items_get_no_negatives():
    none = pa.schema({"user_id": pa.string(), "item_id": pa.string(), "event_timestamp": pa.timestamp("us", tz="UTC")})
    with duckdb.connect() as connection:
        connection.register("real_events", none.empty_table())
        connection.execute(f"CREATE TABLE item_times AS {item_times_sql('real_events', 'uniform')}")
        items = merge_item_times(connection, "item_times", "uniform")
        drawn = draw_user_negatives(connection, "real_events", items, NegativeDraws(3, "uniform", 5, [(0, 9)]))
    assert (len(drawn), drawn.column_names) == (0, ["user_id", "item_id", "time"])
