"""Success and risk of an attack: known answers, oracles of all pairs and of SciPy, and intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from scalr_prod.privacy.attack_statistics import bootstrap_mean, measure_attack, measure_risk


def auc_of_all_pairs(inside, outside):
    return np.mean([(one > other) + (one == other) / 2 for one in inside for other in outside])


def best_threshold(inside, outside):
    """The highest true positive rate of any threshold with at most one false positive in a hundred."""
    thresholds = [-np.inf, *inside, *outside]
    return max(np.mean(inside > limit) for limit in thresholds if np.mean(outside > limit) <= 0.01)


def test_known_answers():
    apart = measure_attack(np.arange(10.0) + 10, np.arange(10.0))
    assert (apart.auc.value, apart.auc.ci95, apart.true_positives.value, apart.users) == (1.0, (1.0, 1.0), 1.0, 10)
    reverse = measure_attack(np.arange(10.0), np.arange(10.0) + 10)
    assert (reverse.auc.value, reverse.true_positives.value) == (0.0, 0.0)
    tied = measure_attack(np.zeros(10), np.zeros(10))
    assert (tied.auc.value, tied.auc.ci95, tied.true_positives.value) == (0.5, (0.5, 0.5), 0.0)
    # (1, 3) against (2, 2): one member above both, one below both.
    assert measure_attack(np.array([1.0, 3.0]), np.array([2.0, 2.0])).auc.value == 0.5


@pytest.mark.parametrize("seed", range(3))
def test_like_the_comparison_of_all_pairs(seed):
    rng = np.random.default_rng(seed)
    inside, outside = rng.integers(0, 40, 300) + 3.0, rng.integers(0, 40, 300).astype(float)  # with many ties
    found = measure_attack(inside, outside)
    assert found.auc.value == pytest.approx(auc_of_all_pairs(inside, outside), abs=1e-12)
    assert found.true_positives.value == pytest.approx(best_threshold(inside, outside), abs=1e-12)


def test_normal_scores_have_the_auc_of_their_distance():
    rng = np.random.default_rng(1)
    found = measure_attack(rng.normal(1, 1, 4000), rng.normal(0, 1, 4000))
    assert found.auc.value == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=0.01)
    assert found.true_positives.value == pytest.approx(norm.sf(norm.isf(0.01) - 1), abs=0.02)


@pytest.mark.long
def test_intervals_cover_a_coin():
    """Of 100 attacks that know nothing, about 95 have an interval with 0.5; a user's two scores may depend on each other."""
    rng, covered = np.random.default_rng(2), 0
    for seed in range(100):
        user = rng.normal(0, 3, 200)
        low, high = measure_attack(user + rng.normal(size=200), user + rng.normal(size=200), seed=seed).auc.ci95
        covered += low <= 0.5 <= high
    assert covered >= 88


def test_the_mean_of_one_value_a_user():
    found = bootstrap_mean(np.array([0.0, 1.0] * 200))
    assert found.value == 0.5
    assert found.ci95 == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.01)


def test_users_without_scores_are_no_attack():
    with pytest.raises(ValueError, match="0 and 0 users"):
        measure_attack(np.empty(0), np.empty(0))
    with pytest.raises(ValueError, match="2 and 1 users"):
        measure_attack(np.ones(2), np.ones(1))


def right(count: int, guesses: int) -> np.ndarray:
    return np.arange(guesses) < count


def test_the_risk_is_what_the_control_leaves():
    """Wilson's intervals as SciPy has them; the error of a / (1 - c) - c / (1 - c) by numeric derivatives."""
    found = measure_risk(right(60, 200), right(30, 150), right(2, 200))
    intervals = [binomtest(*counts).proportion_ci(method="wilson") for counts in ((60, 200), (30, 150))]
    (attack, attack_error), (control, control_error) = [((i.low + i.high) / 2, (i.high - i.low) / 2) for i in intervals]
    assert (found.attack_rate, found.control_rate) == pytest.approx((attack, control))

    def risk(a: float, c: float) -> float:
        return (a - c) / (1 - c)

    assert found.risk.value == pytest.approx(risk(attack, control))
    step = 1e-6
    error = np.hypot(
        attack_error * (risk(attack + step, control) - risk(attack, control)) / step,
        control_error * (risk(attack, control + step) - risk(attack, control)) / step,
    )
    assert found.risk.ci95 == pytest.approx((found.risk.value - error, found.risk.value + error), abs=1e-5)
    assert (found.guesses, found.has_failed) == (200, False)


def test_an_attack_like_chance_has_failed():
    same = right(20, 100)
    found = measure_risk(same, same, same)
    assert (found.risk.value, found.has_failed) == (0, True)
    never = measure_risk(right(0, 100), right(0, 3000), right(0, 5000))
    assert never.has_failed, "the centre of Wilson's interval is higher for fewer guesses"
    always = measure_risk(np.ones(100, bool), np.ones(100, bool), same)
    assert np.isfinite(always.risk.ci95).all(), (
        "a control that is always right leaves nothing to measure, and divides by no zero"
    )
    assert always.risk.ci95[0] < 0 < always.risk.ci95[1]
