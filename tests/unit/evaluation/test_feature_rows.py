"""Features of pairs hold what was known strictly before an instant, and nothing synthetic, against sums made event by event."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from scalr_prod.evaluation.interactions import Interactions
from scalr_prod.evaluation.models.feature_rows import FeatureLog
from scalr_prod.evaluation.models.snapshot import FEATURES, Snapshot

USERS, ITEMS, THINGS = 12, 9, 14
DAY = 86_400_000_000
END = 400 * DAY


def events_of(rng, count, items, source=None):
    columns = rng.integers(0, USERS, count, dtype=np.int32), rng.integers(0, items, count, dtype=np.int32)
    time = rng.integers(0, 400, count) * DAY  # many on the same day: a tie is not before
    return Interactions(*columns, time, np.ones(count, np.float32), USERS, items, END, source=source)


@pytest.fixture
def log():
    """Real events of both domains, and as many synthetic ones among the target's."""
    rng = np.random.default_rng(3)
    real = events_of(rng, 60, ITEMS, events_of(rng, 90, THINGS))
    return real.joined([events_of(rng, 60, ITEMS).synthetic()])


class Slow:
    """The features of one pair, from lists of (user, item, days) and nothing else."""

    def __init__(self, log, at):
        keep = [n for n in range(len(log)) if log.observed[n] and log.time[n] < at]
        self.target = [(int(log.user[n]), int(log.item[n]), (at - int(log.time[n])) / DAY) for n in keep]
        source = log.source
        self.source = [
            (int(user), int(item), (at - int(time)) / DAY)
            for user, item, time in zip(source.user, source.item, source.time, strict=True)
            if time < at
        ]

    def of(self, user, item):
        found = {f"popularity_{half:g}": self.share(half, item) for half in (7, 30, 90, 365, math.inf)}
        ages = [age for _, other, age in self.target if other == item]
        found["item_age"], found["item_recency"] = (math.log1p(pick(ages)) if ages else math.nan for pick in (max, min))
        for name in ("target", "source"):
            ages = [age for other, _, age in getattr(self, name) if other == user]
            found[f"{name}_events"] = math.log1p(len(ages))
            found[f"{name}_recency"] = math.log1p(min(ages)) if ages else math.nan
        for name, events, power in (("source", "source", 1), ("close_source", "source", 2), ("target", "target", 1)):
            share = self.affinity(getattr(self, events), user, item, power)
            found[f"{name}_affinity"] = share
            found[f"{name}_affinity_lift"] = share - found["popularity_inf"]
        return found

    def share(self, half, item):
        counts = [sum(2 ** (-age / half) for _, other, age in self.target if other == one) for one in range(ITEMS)]
        return math.log(counts[item] / (sum(counts) / ITEMS) + 0.01)

    def affinity(self, events, user, item, power):
        sets = {one: {other for owner, other, _ in events if owner == one} for one in range(USERS)}
        holders = {one: sum(one in own for own in sets.values()) for one in set().union(*sets.values())}
        idf = {one: math.log1p(USERS / count) for one, count in holders.items()}

        def near(one):
            if one == user or not sets[one] or not sets[user]:
                return 0.0
            lengths = [math.sqrt(sum(idf[other] ** 2 for other in sets[who])) for who in (one, user)]
            return (sum(idf[other] ** 2 for other in sets[one] & sets[user]) / (lengths[0] * lengths[1])) ** power

        sums = [
            sum(near(who) for who, other in {(who, other) for who, other, _ in self.target} if other == one)
            for one in range(ITEMS)
        ]
        mean = sum(sums) / ITEMS
        return math.log((sums[item] / mean if mean else 1.0) + 0.01)


@pytest.mark.parametrize("day", [60, 200, 400])
def test_features_are_sums_over_what_is_observed_strictly_before(log, day):
    user, item = (grid.ravel() for grid in np.meshgrid(np.arange(USERS), np.arange(ITEMS), indexing="ij"))
    found = Snapshot(log, day * DAY).features(user, item)
    slow = Slow(log, day * DAY)
    wanted = [list(slow.of(*pair).items()) for pair in zip(user.tolist(), item.tolist(), strict=True)]
    named = [[dict(row)[name] for name in FEATURES] for row in wanted]
    assert np.allclose(found, named, atol=1e-4, equal_nan=True)
    assert np.isfinite(found).mean() > 0.9


def test_no_row_has_a_feature_from_its_time_on(log):
    """Every event from some day on is made another: rows of earlier days stay as they are."""
    rng = np.random.default_rng(5)
    day = 250
    later = log.time >= day * DAY
    source = log.source
    other = replace(
        log,
        user=np.where(later, rng.permutation(log.user), log.user).astype(np.int32),
        item=np.where(later, rng.permutation(log.item), log.item).astype(np.int32),
        source=replace(
            source, item=np.where(source.time >= day * DAY, (source.item + 1) % THINGS, source.item).astype(np.int32)
        ),
    )
    rows, again = (FeatureLog.from_events(one).build_rows(one, 3, salt=0) for one in (log, other))
    early, same = (one.label & (log.time[one.event] < day * DAY) for one in (rows, again))
    assert early.sum() > 20
    assert np.array_equal(rows.event[early], again.event[same])
    assert np.array_equal(rows.features[early], again.features[same], equal_nan=True)
    assert not np.array_equal(rows.features[rows.label & ~early], again.features[again.label & ~same], equal_nan=True)


def test_each_row_is_as_of_the_last_instant_up_to_its_time(log):
    made = FeatureLog.from_events(log)
    rows = made.build_rows(log, 3, salt=0)
    assert len(made.instants) == 10
    assert made.instants[-1] == END
    for event in np.unique(rows.event):
        at = max(instant for instant in made.instants if instant <= log.time[event])
        mine = rows.event == event
        first = np.flatnonzero(mine & rows.label)
        assert len(first) == 1
        wanted = Snapshot(log, int(at)).features(log.user[[event]].astype(int), log.item[[event]].astype(int))
        assert np.array_equal(rows.features[first], wanted, equal_nan=True)
    assert log.time[rows.event].min() >= made.instants[0]


def test_synthetic_events_change_no_feature_and_no_negative(log):
    real = log.take(log.in_history())
    assert FeatureLog.from_events(log) is FeatureLog.from_events(real)
    shuffled = np.random.default_rng(0).permutation(len(real))
    assert FeatureLog.from_events(log) is FeatureLog.from_events(real.take(shuffled)), "in any order, the same log"
    assert FeatureLog.from_events(real) is not FeatureLog.from_events(real.take(np.arange(len(real) - 1)))


def test_negatives_are_known_items_that_the_user_never_chose():
    rng = np.random.default_rng(1)
    real = events_of(rng, 40, 30)
    made = FeatureLog(real.take(np.lexsort((real.item, real.user, real.time))))
    chosen = set(zip(real.user.tolist(), real.item.tolist(), strict=True))
    drawn = {}
    snapshot_features = Snapshot.features

    def seen(self, users, items):
        drawn.setdefault(id(self), (self, []))[1].extend(zip(users.tolist(), items.tolist(), strict=True))
        return snapshot_features(self, users, items)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Snapshot, "features", seen)
        rows = made.build_rows(made.events, 5, salt=0)
    assert 0 < rows.label.mean() < 0.4
    for snapshot, pairs in drawn.values():
        assert all(snapshot.known[item] for _, item in pairs)
    pairs = [pair for _, some in drawn.values() for pair in some]
    assert len(pairs) == len(rows.label)
    assert [pair in chosen for pair in pairs] == rows.label.tolist()
