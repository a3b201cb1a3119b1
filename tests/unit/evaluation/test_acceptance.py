"""What an acceptance decides, and that its description states the verdict first, then the gain, then the rule."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scalr_prod.evaluation.acceptance import MAX_HARM_PROBABILITY, Acceptance, GainEstimate, describe_acceptance
from scalr_prod.evaluation.arms import Arm
from scalr_prod.evaluation.signal import Signal, classify_signal
from scalr_prod.evaluation.statistics import ArmComparison, MetricContributions, TwoWayClusters
from scalr_prod.evaluation.translation import DrawOptions


def arm(weights=(0.1, 0.1, 0.1)) -> Arm:
    return Arm("als", "real+scalr", {}, DrawOptions(5, 1.0), weights, 1.0)


def comparison(lift: float, p_value: float = 0.5, margin: float = 5.0) -> ArmComparison:
    low, high = lift - margin, lift + margin
    return ArmComparison(lift, margin / 1.96, (low, high), lift / 1000, (low / 1000, high / 1000), p_value)


# Reported 1.5 times as wide as measured, in log(arm / baseline).
SMALL_GAIN = "+1.0 % over real events only (95 %: -16.5 … +19.5)"
GAIN = "+12.3 % over real events only (95 %: +4.9 … +19.9)"


@pytest.mark.parametrize(
    ("acceptance", "described"),
    [
        (
            Acceptance(arm(), comparison(12.3), Signal.PRESENT),
            f"accepted: λ = 0.1: {GAIN}; expected gain +12.3 %, chance of a loss over 2 % 0.00 ≤ 0.2",
        ),
        (
            Acceptance(arm(), comparison(12.3), Signal.ABSENT),
            f"refused: λ = 0: {GAIN}; the users' own source histories predict no better than other users'",
        ),
        (
            Acceptance(arm(), comparison(12.3), Signal.UNCLEAR, comparison(3, 0.2)),
            f"refused: λ = 0: {GAIN}; not better than the same events given to other users",
        ),
        (
            Acceptance(arm(), comparison(-2, margin=1), Signal.PRESENT),
            "refused: λ = 0: -2.0 % over real events only (95 %: -3.5 … -0.5); expected gain -2.0 %",
        ),
        (
            Acceptance(arm(), comparison(1, margin=12), Signal.PRESENT),
            f"refused: λ = 0: {SMALL_GAIN}; expected gain +1.0 %, chance of a loss over 2 % 0.31 > 0.2",
        ),
    ],
)
def test_the_verdict_comes_first_then_the_gain_then_the_rule(acceptance, described):
    assert acceptance.passed is described.startswith("accepted")
    assert acceptance.describe() == described
    weights = (0.1,) * 3 if acceptance.passed else (0.0,) * 3
    assert describe_acceptance(weights, json.loads(json.dumps(acceptance.to_json()))) == described


def test_weights_that_differ_are_named_by_segment():
    acceptance = Acceptance(arm((0.3, 0.1, 0.0)), comparison(12))
    assert acceptance.describe().startswith("accepted: λ = 0.3 (cold), 0.1 (sparse), 0 (dense): +12.0 %")


def test_an_unclear_signal_is_accepted_where_the_own_events_are_ahead_of_others():
    assert Acceptance(arm(), comparison(12), Signal.UNCLEAR, comparison(8, 0.001)).passed
    assert not Acceptance(arm(), comparison(12), Signal.UNCLEAR, comparison(-8, 0.001)).passed


def test_a_decision_by_measured_comparisons_is_plain_json():
    """NumPy's booleans are not: a report of events that are behind those of other users was not written."""
    rng, users = np.random.default_rng(0), np.arange(60)
    better, worse = (MetricContributions(users, users % 7, gain + 0.2 * rng.random(60)) for gain in (0.3, 0.2))
    clusters = TwoWayClusters(users, 7)
    ahead, behind = clusters.compare(better, worse), clusters.compare(worse, better)
    for acceptance in (Acceptance(arm(), ahead, Signal.UNCLEAR, behind), Acceptance(arm(), behind, Signal.PRESENT)):
        assert json.loads(json.dumps(acceptance.to_json()))["passed"] is False


def test_a_large_gain_of_few_users_is_shrunk_and_not_thrown_away():
    """What the former rule refused: +105 %, p 0.07."""
    gain = GainEstimate.from_comparison(comparison(105, margin=110))
    assert 60 < gain.expected_pct < 100
    assert 0 < gain.harm_probability <= MAX_HARM_PROBABILITY


def test_a_gain_over_next_to_nothing_counts_by_its_difference():
    """kitchen ← food: +153 % over a baseline that finds nearly nothing, whose ratio may be anything; the difference is two errors wide."""
    found = ArmComparison(153.0, 113.0, (-55.0, 1300.0), 0.0061, (0.0001, 0.0121), 0.046)
    gain = GainEstimate.from_comparison(found)
    assert 90 < gain.expected_pct < 153
    assert gain.harm_probability < 0.1
    lost = GainEstimate.from_comparison(ArmComparison(-60.0, 40.0, (-90.0, 60.0), -0.0061, (-0.0121, -0.0001), 0.046))
    assert lost.harm_probability > 0.9


def test_no_lift_can_be_told_where_the_baseline_finds_nothing():
    nothing = ArmComparison(float("nan"), float("nan"), (float("nan"), float("nan")), 0.01, (0.0, 0.02), 0.01)
    assert GainEstimate.from_comparison(nothing) == GainEstimate(0.0, 1.0)
    assert not Acceptance(arm(), nothing, Signal.PRESENT).passed


def test_a_gain_over_nothing_counts_as_large():
    found = ArmComparison(float("nan"), float("nan"), (float("nan"), float("nan")), 0.01, (0.005, 0.015), 0.0001)
    assert GainEstimate.from_comparison(found) == GainEstimate(50.0, 0.0)


def test_without_an_effect_few_are_accepted_and_their_loss_is_small():
    """True gains of 0, measured with a standard error of 5 %: about one in three is kept."""
    measured = np.random.default_rng(0).normal(0, 5, 2000)
    kept = [Acceptance(arm(), comparison(lift, margin=1.96 * 5), Signal.PRESENT).passed for lift in measured]
    assert np.mean(kept) < 0.4


@pytest.mark.parametrize(
    ("signal", "expected"),
    [
        (None, Signal.UNCLEAR),
        ({"users": 19, "own_over_others": {"ci99": [0.2, 0.6]}}, Signal.UNCLEAR),
        ({"users": 100, "own_over_others": {"ci99": [0.2, 0.6]}}, Signal.PRESENT),
        ({"users": 100, "own_over_others": {"ci99": [-0.01, 0.6]}}, Signal.UNCLEAR),
        ({"users": 100, "own_over_others": {"ci99": [-0.01, 0.01]}}, Signal.ABSENT),
    ],
)
def test_absent_is_told_from_not_measurable(signal, expected):
    assert classify_signal(signal) is expected
