"""Logs of domains are read once, and any two of them are what training would read of both."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from support.domain_logs import domain_log

from benchmarks.worlds import Events, World
from scalr_prod.config import settings_from_dict
from scalr_prod.errors import BadValue
from scalr_prod.translator import DomainLog, pair_log, with_first_items

LENGTH = 5


@pytest.fixture(scope="module")
def logs():
    return World(users=60, overlap=0.5, topics=4, source_items=20, target_items=20, source_events=9, target_events=4).make()


def events_of(log: DomainLog) -> set[tuple[str, str, int]]:
    users, items = log.users.to_pylist(), log.events.ids.to_pylist()
    rows = zip(log.events.user.tolist(), log.events.item.tolist(), log.events.time.tolist(), strict=True)
    return {(users[user], items[item], time) for user, item, time in rows}


def paired(logs, max_events: int = 10**9):
    return pair_log(domain_log(logs.source), domain_log(logs.target), length=LENGTH, folds=3, max_events=max_events)


def test_every_history_holds_the_last_source_events_before_the_target_event(logs):
    log = paired(logs)
    assert len(log.source) == len(logs.source.user)
    assert len(log.target) == len(logs.target.user)
    for row in range(len(log.target)):
        of_user = log.source.user == log.target.user[row]
        before = np.flatnonzero(of_user & (log.source.time < log.target.time[row]))[-LENGTH:]
        assert log.history[row][log.history[row] >= 0].tolist() == before.tolist()


def test_users_and_folds_are_those_of_the_ids_and_do_not_depend_on_the_other_domain(logs):
    log, other = paired(logs), paired(logs, max_events=150)
    fold = dict(zip(log.users.to_pylist(), log.fold.tolist(), strict=True))
    assert {user: fold[user] for user in other.users.to_pylist()} == dict(
        zip(other.users.to_pylist(), other.fold.tolist(), strict=True)
    )


def test_a_sample_takes_users_of_both_domains_first_and_each_with_all_events(logs):
    log, full = paired(logs, max_events=100), paired(logs)
    assert 90 < len(log.source) <= 100
    assert len(log.target) <= 100
    source, target = (
        np.bincount(log.source.user, minlength=len(log.users)),
        np.bincount(log.target.user, minlength=len(log.users)),
    )
    assert set(source[source > 0]) == {9}
    assert set(target[target > 0]) == {4}
    common = np.intersect1d(logs.source.user, logs.target.user)
    assert len(common) > 11  # more than fit
    assert ((source > 0) & (target > 0)).sum() == 11
    assert len(full.users) == 60


def test_a_merged_log_keeps_every_event_and_the_first_domain_can_be_told_apart(logs):
    parts = {name: domain_log(events) for name, events in logs.split().items()}
    merged = DomainLog.merged(parts)
    expected = {(user, f"{name}:{item}", time) for name, log in parts.items() for user, item, time in events_of(log)}
    assert events_of(merged) == expected
    target = domain_log(logs.target)
    both = pair_log(merged, target, length=LENGTH, folds=3, max_events=10**9)
    first = with_first_items(both, len(parts["even"].events.ids))
    alone = pair_log(parts["even"], target, length=LENGTH, folds=3, max_events=10**9)
    assert first.users == both.users
    assert len(first.source) == len(alone.source)
    row = {(user, time): number for number, (user, time) in enumerate(zip(alone.target.user, alone.target.time, strict=True))}
    ids = both.users.to_pylist(), alone.users.to_pylist()
    for number in range(0, len(first.target), 7):
        user = ids[1].index(ids[0][first.target.user[number]])
        same = row[user, first.target.time[number]]
        known, expected_history = first.history[number], alone.history[same]
        assert (known >= 0).sum() == (expected_history >= 0).sum()
        np.testing.assert_array_equal(
            first.source.time[known[known >= 0]], alone.source.time[expected_history[expected_history >= 0]]
        )


def test_a_domain_without_an_event_of_a_sampled_user_leaves_histories_empty(logs):
    nothing = Events(*(np.empty(0, dtype=np.int64) for _ in range(3)))
    both = paired(logs)
    log = with_first_items(both, 0)
    assert len(log.source) == len(nothing.user)
    assert (log.history[:] == -1).all()


def read(tmp_path, first: pd.DataFrame, second: pd.DataFrame) -> list[DomainLog]:
    first.to_csv(tmp_path / "a.csv", index=False)
    second.to_parquet(tmp_path / "b.parquet")
    domains = {
        "source": {"name": "a", "events": "a.csv", "timezone": "UTC"},
        "target": {"name": "b", "events": "b.parquet", "timezone": "UTC"},
    }
    settings = settings_from_dict({"domains": domains}, base=tmp_path)
    return [DomainLog.from_settings(settings, place) for place in ("source", "target")]


def frame(users: list[object]) -> pd.DataFrame:
    times = pd.date_range("2024-01-01", periods=len(users), tz="UTC")
    return pd.DataFrame({"user_id": users, "item_id": range(len(users)), "timestamp": times})


def test_ids_of_a_text_file_are_those_of_a_typed_one_also_where_a_tool_printed_floats(tmp_path):
    first, second = read(tmp_path, frame([10.0, 9.0, 9.0, 100.0]), frame([9, 100, 7]))
    first.ensure_same_ids(second)
    assert first.users.to_pylist() == ["10", "100", "9"]
    assert first.common_users(second) == 2
    assert [first.users[user].as_py() for user in first.events.user] == ["10", "100", "9", "9"]
    assert (np.diff(first.events.time[2:]) > 0).all()


def test_ids_that_the_ingest_would_not_take_together_are_refused(tmp_path):
    first, second = read(tmp_path, frame(["x", "y"]), frame([1, 2]))
    with pytest.raises(BadValue, match="not an int64"):
        first.ensure_same_ids(second)


def test_events_are_in_the_order_of_users_and_times(logs):
    for events in (logs.source, logs.target):
        log = domain_log(events)
        order = np.lexsort((log.events.time, log.events.user))
        assert (order == np.arange(len(log))).all()
        expected = {
            (str(u), str(i), t)
            for u, i, t in zip(events.user.tolist(), events.item.tolist(), events.time.tolist(), strict=True)
        }
        assert events_of(log) == expected
        assert pa.types.is_string(log.users.type)
