"""The experiment on a bridge: nothing of a hidden half is visible, and few common users tell a world from an independent one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import bench_bridge as bench
from benchmarks.bench_bridge import Bridge, Cuts, Fits, Half, Rows
from benchmarks.bench_cold_items import Logs
from benchmarks.worlds import World
from scalr_prod.translator.trainer import time_quantile


@pytest.fixture(scope="module")
def logs() -> Logs:
    return Logs.from_world(World(users=700, topics=6, own_topics=2, source_items=60, target_items=60))


def half_of(logs: Logs) -> Half:
    a, b, few = np.split(np.random.default_rng(0).permutation(len(logs.users)), [275, 550])
    return Half.split(logs, a, b, few)


def cuts_of(logs: Logs) -> Cuts:
    return Cuts(*(time_quantile(logs.target[2], share) for share in (bench.FEW_AT, bench.FIT_AT, bench.TEST_AT)))


def test_the_halves_share_no_user_and_common_users_are_those_named(logs):
    half = half_of(logs)
    assert not np.intersect1d(half.source.user, half.target.user).size
    for common in (half.few, half.a):
        visible = half.visible(common)
        assert set(np.intersect1d(visible.source[0], visible.target[0])) <= set(common)
        assert not np.isin(visible.target[0], half.b).any()


def test_renaming_the_target_users_changes_nothing_that_is_visible_without_common_users(logs):
    renamed = bench.with_users_renamed(logs)
    name = np.random.default_rng(bench.SEED).permutation(len(logs.users))
    half = half_of(logs)
    other = Half.split(renamed, name[half.a], half.b, half.few)
    for mine, theirs in ((half.source, other.source), (half.target, other.target)):
        assert sorted(zip(mine.item, mine.time, strict=True)) == sorted(zip(theirs.item, theirs.time, strict=True))
    assert len(np.unique(half.target.user)) == len(np.unique(other.target.user))


def test_what_a_user_chooses_after_the_cutoff_is_asked_and_nothing_else_of_it_is_known(logs):
    half, cutoff = half_of(logs), cuts_of(logs).test
    bridge = Bridge.fit(half, cutoff, "ngrams")
    rows = Rows.of_test(half, bridge, cutoff, 0)
    assert np.isin(rows.users, half.b).all()
    assert not rows.seen.any()
    user, item, time = logs.target
    for row in (0, len(rows.users) // 2):
        of_user = user == rows.users[row]
        new = set(item[of_user & (time >= cutoff)]) - set(item[of_user & (time < cutoff)])
        assert set(bridge.items[rows.relevant[row]]) == new & set(bridge.items)
        source_user, source_item, source_time = logs.source
        before = source_item[(source_user == rows.users[row]) & (source_time < cutoff)]
        assert rows.history[row][rows.history[row] >= 0].tolist() == before[-bench.HISTORY :].tolist()


def test_another_history_is_another_users_of_the_same_group(logs):
    half, cuts = half_of(logs), cuts_of(logs)
    bridge = Bridge.fit(half, cuts.fit, "ngrams")
    rows = Rows.of_users(half, bridge, half.a, "target", (cuts.fit, cuts.test))
    rows = rows.without_own_cluster(bench.clusters_of(bridge.titles["target"]))
    assert (rows.users[rows.other] != rows.users).all()
    assert (rows.group[rows.other] == rows.group).all()


def test_tastes_are_level_over_users_so_that_no_item_is_favoured_for_all(logs):
    half, cutoff = half_of(logs), cuts_of(logs).test
    bridge = Bridge.fit(half, cutoff, "ngrams")
    history = bench.last_items(half.source.before(cutoff), np.sort(half.b))
    rows = Rows.of_test(half, bridge, cutoff, 0)
    every = replace(rows, users=np.sort(half.b), history=history)
    x = bridge.features(every)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose((x**2).mean((0, 1)), 1, atol=1e-3)


@pytest.mark.parametrize("independent", [False, True])
def test_few_common_users_tell_a_world_from_an_independent_one(logs, independent):
    logs = bench.with_users_renamed(logs) if independent else logs
    fits = Fits.fit(half_of(logs), cuts_of(logs), "ngrams")
    nats, users = fits.tests["few"]
    assert users > 100
    assert (nats.low > 0.1) != independent
    # Without common users the weights are those of a taste, whether there is a translation or not.
    assert fits.weights["next item"].max() > 0.3
