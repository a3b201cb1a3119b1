"""Small honest runs are not refused by chance: the bounds against simulated draws, and a year of small days."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from support.examples import sweep

from scalr_prod.quality.sample_size import (
    CHANCE,
    MIN_USERS_FOR_ITEMS,
    ROWS_PER_USER,
    max_bad_rows_by_chance,
    min_contexts_for_coverage,
    min_events_for_drift,
    min_users_for_distance,
    min_users_for_excess,
)


@pytest.mark.parametrize("buckets", sweep([10, 1, 2, 50], keep=1))
@pytest.mark.parametrize("limit", [0.3, 0.8])
def test_chance_adds_half_the_limit_to_a_distance_for_one_run_in_a_thousand_at_most(buckets, limit):
    rng = np.random.default_rng(buckets)
    n = min_users_for_distance(buckets, limit)
    for shares in (np.full(buckets, 1 / buckets), rng.dirichlet(np.full(buckets, 0.3))):
        distance = np.abs(rng.multinomial(n, shares, 20_000) / n - shares).sum(1) / 2
        assert (distance > limit / 2).mean() <= CHANCE


def test_users_of_unequal_size_count_as_fewer():
    """Each user's events are all in one bucket: the worst dependence. (Σ n)²/Σ n² of them carry the evidence of as many equal ones."""
    rng = np.random.default_rng(1)
    sizes = np.concatenate([rng.integers(1, 30, 100), [200, 300]])
    sizes = np.tile(sizes, 9)
    assert sizes.sum() ** 2 / (sizes**2).sum() >= min_users_for_distance(10, 0.8)
    buckets = rng.integers(0, 10, (5_000, len(sizes)))
    mass = np.stack([(sizes * (buckets == bucket)).sum(1) for bucket in range(10)], 1) / sizes.sum()
    assert (np.abs(mass - 0.1).sum(1) / 2 > 0.4).mean() <= CHANCE


@pytest.mark.parametrize("limit", sweep([0.01, 0.3, 0.0, 0.9], keep=2))
def test_an_honest_coverage_is_refused_once_in_a_thousand_runs_at_most(limit):
    n, honest = min_contexts_for_coverage(limit), max(math.sqrt(limit), 0.1)
    for contexts in (n, n + 1, 2 * n):
        below = math.ceil(limit * contexts) - 1 if limit else 0
        assert stats.binom.cdf(below, contexts, honest) <= CHANCE
    assert limit == 0.0 or stats.binom.cdf(math.ceil(limit * n / 4) - 1, n // 4, honest) > CHANCE / 10, "the bound is not idle"


@pytest.mark.parametrize("limit", [0.004, 0.05, 0.2])
def test_half_the_allowed_share_of_bad_rows_is_refused_once_in_a_thousand_runs_at_most(limit):
    for rows in (0, 1, 40, 200, 692, 2_000, 20_000):
        most = max_bad_rows_by_chance(rows, limit)
        assert stats.binom.sf(most, rows, limit / 2) <= CHANCE
        assert most == 0 or stats.binom.sf(most - 1, rows, limit / 2) > CHANCE, "one bad row fewer may be chance"


def test_a_small_run_of_bad_rows_is_beyond_chance():
    """36 rows were once asked whatever the run's size, so that 35 bad ones of 40 passed."""
    assert max_bad_rows_by_chance(40, 0.01) < 5
    assert max_bad_rows_by_chance(5, 0.01) < 5


def test_chance_gives_half_the_allowed_drift_once_in_a_thousand_runs_at_most():
    assert stats.chi2.sf(min_events_for_drift(10, 0.1) * 0.05, 9) <= CHANCE


@pytest.mark.parametrize("limit", [0.05, 0.15, 0.3])
def test_chance_adds_two_thirds_of_the_limit_to_an_items_share_once_in_a_thousand_runs_at_most(limit):
    """The sum over all items is bounded by the largest exp(−n KL)/p, whatever the shares p."""
    n, t = min_users_for_excess(limit), 2 * limit / 3
    p = np.linspace(1e-6, 1 - t - 1e-6, 100_000)
    q = p + t
    divergence = q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
    assert (np.exp(-n * divergence) / p).max() <= CHANCE


@pytest.mark.parametrize("items", sweep([1_000, 30, 50_000], keep=1))
@pytest.mark.parametrize("tail", [0.0, 0.5, 1.0, 1.2])
def test_runs_in_which_each_user_has_one_item_reach_enough_effective_items(items, tail):
    """The worst case of an honest run: all rows of a user are of one item, drawn from the real distribution."""
    rng = np.random.default_rng(items)
    shares = np.arange(1, items + 1) ** -tail
    shares /= shares.sum()
    real = np.exp(-(shares * np.log(shares)).sum())
    for n in (MIN_USERS_FOR_ITEMS, 5 * MIN_USERS_FOR_ITEMS):
        ratios = []
        for drawn in rng.choice(items, (2_000, n), p=shares):
            made = np.unique(drawn, return_counts=True)[1] / n
            ratios.append(np.exp(-(made * np.log(made)).sum()) / min(real, ROWS_PER_USER * n))
        assert np.quantile(ratios, CHANCE) > 0.1
