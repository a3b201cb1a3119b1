"""Whether intervals that are read every day hold what they promise, and what the promise costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats
from support.examples import sweep

from scalr_prod.operations import always_valid
from scalr_prod.operations.holdout_experiment import estimate_effect


@dataclass(frozen=True)
class Shop:
    """Users who buy now and then, for amounts that are skewed: one outcome per user and day.

    Attributes:
        users: In all.
        share: Held out.
        buys: Mean probability that a user buys on a day.
        tastes: Whether users differ in it, which correlates a user's days.
        effect: What treatment adds to each amount, as a share of it.
        before: Days before the experiment, whose outcomes are known.
    """

    users: int = 1000
    share: float = 0.1
    buys: float = 0.1
    tastes: bool = True
    effect: float = 0.2
    before: int = 0

    def readings(self, seed: int, days: int):
        """Of every day: the outcomes so far, who is held out, the true effect so far, and the outcomes of before (None: unknown)."""
        rng = np.random.default_rng(seed)
        held_out = rng.random(self.users) < self.share
        taste = np.minimum(self.buys * (rng.gamma(1.0, 1.0, self.users) if self.tastes else np.ones(self.users)), 1)

        def bought(n: int) -> np.ndarray:
            return (rng.random((n, self.users)) < taste) * rng.lognormal(0, 1, (n, self.users))

        before = bought(self.before).sum(0) if self.before else None
        outcomes = (bought(days) * np.where(held_out, 1, 1 + self.effect)).cumsum(0)
        daily = self.effect * taste.mean() * np.exp(0.5)
        return [(outcome, held_out, daily * day, before) for day, outcome in enumerate(outcomes, 1)]


def covered(shop: Shop, experiments: int, days: int, *, fixed: bool = False) -> int:
    """Number of experiments in which the interval of every day has the truth inside."""
    holding = 0
    for seed in range(experiments):
        inside = []
        for day, (outcome, held_out, truth, before) in enumerate(shop.readings(seed, days), 1):
            found = estimate_effect(outcome, held_out, shop.share, days=day, pre_value=before)
            low, high = (found.fixed_low, found.fixed_high) if fixed else (found.low, found.high)
            inside.append(low <= truth <= high)
        holding += all(inside)
    return holding


def test_intervals_that_are_read_every_day_cover_the_truth_in_95_of_100_experiments():
    assert covered(Shop(), 100, days=14) >= 95


def test_intervals_for_one_reading_do_not():
    assert covered(Shop(), 50, days=14, fixed=True) < 45


@pytest.mark.long  # thousands of readings each
@pytest.mark.parametrize(
    "shop",
    [
        Shop(tastes=False),
        Shop(before=28),
        Shop(effect=0.0, share=0.05, users=2000),
        Shop(users=300, share=0.2, buys=0.3),
        Shop(effect=-0.5, share=0.5),
    ],
    ids=["no tastes", "cuped", "few held out", "few users", "half held out"],
)
def test_they_cover_it_in_six_weeks_too(shop):
    assert covered(shop, 100, days=42) >= 95


@pytest.mark.parametrize("seed", sweep([0, 1, 2], keep=1))
def test_a_random_walk_leaves_the_boundary_in_fewer_than_5_of_100_years(seed):
    walks = np.random.default_rng(seed).standard_normal((4000, 365)).cumsum(1) / np.sqrt(np.arange(1, 366))
    boundary = np.array([always_valid.boundary(day) for day in range(1, 366)])
    left = (abs(walks) > boundary).any(1).mean()
    assert 0.01 < left < 0.05, "valid, and no wider than it has to be"
    assert (abs(walks) > stats.norm.isf(0.025)).any(1).mean() > 0.4


def test_the_price_is_about_half_as_much_again():
    assert always_valid.boundary(24) == pytest.approx(3.03, abs=0.01)
    assert always_valid.boundary(1) > always_valid.boundary(7) > always_valid.boundary(24) < always_valid.boundary(365) < 3.6


def test_the_larger_standard_error_counts():
    rng = np.random.default_rng(0)
    few, many = rng.normal(0, 1, 30), rng.normal(0, 5, 1000)
    pooled = np.sqrt(np.concatenate([few - few.mean(), many - many.mean()]).var() * (1 / 30 + 1 / 1000))
    assert always_valid.half_width(many, few, 24) == pytest.approx(3.03 * pooled, rel=0.01)
    assert always_valid.half_width(few, many, 24) == pytest.approx(3.03 * pooled, rel=0.01)
    noisy = rng.normal(0, 5, 30)
    own = np.sqrt(noisy.var(ddof=1) / 30)
    assert always_valid.half_width(rng.normal(0, 0.1, 1000), noisy, 24) == pytest.approx(3.03 * own, rel=0.01)
