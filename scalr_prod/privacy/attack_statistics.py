# SPDX-License-Identifier: Apache-2.0
"""How well attacks succeed: AUC and true positives of scores, and the risk of guesses beyond those about users who were not trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from scalr_prod.core.jsonable import Jsonable

if TYPE_CHECKING:
    from numpy.typing import NDArray


RESAMPLES: Final = 1000
#: False positive rate at which the true positive rate is given: an attack that is right about few users can have an AUC near 0.5.
FALSE_POSITIVE_RATE: Final = 0.01
#: 97.5 % quantile of the normal distribution: half the width of a 95 % interval in standard errors.
_Z: Final = 1.959963984540054


@dataclass(frozen=True)
class Estimate(Jsonable):
    """An estimate with its 95 % interval."""

    value: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class AttackSuccess(Jsonable):
    """Success of an attack; intervals resample users.

    Attributes:
        users: Number of attacked users. Each is attacked twice: trained on ("in") and not trained on ("out").
        auc: Probability that the score of a user who was trained on is higher than that of one who was not; 0.5 is chance level.
        true_positives: Share of the users who were trained on that are found while 1 % of the others are accused; 0.01 is chance level.
    """

    users: int
    auc: Estimate
    true_positives: Estimate


@dataclass(frozen=True)
class AttackRisk(Jsonable):
    """How much more often an attack is right about users who were trained on than about others, after Giomi et al. (2023).

    Attributes:
        guesses: Number of guesses about users who were trained on.
        attack_rate: Share of these that are right. This and the other rates are centres of Wilson's 95 % interval.
        control_rate: Share of right guesses by the same attack about users who were not trained on.
        baseline_rate: Share of right guesses by chance, without the attack.
        risk: (attack rate - control rate) / (1 - control rate). Below 0 if the control is right more often.
        has_failed: Whether the attack is no better than chance. Then a low risk says nothing of stronger attacks.
    """

    guesses: int
    attack_rate: float
    control_rate: float
    baseline_rate: float
    risk: Estimate
    has_failed: bool


class _PairedScores:
    """Scores of the same U users when trained on and when not; ranked once, then resampled by the users' multiplicities."""

    def __init__(self, inside: NDArray[np.float64], outside: NDArray[np.float64]) -> None:
        self._order = np.argsort(outside, kind="stable")
        self._ascending = outside[self._order]
        self._below = np.searchsorted(self._ascending, inside, side="left")
        self._not_above = np.searchsorted(self._ascending, inside, side="right")

    def auc(self, weight: NDArray[np.float64]) -> float:
        """Return the area under the ROC curve; ties count half. ``weight`` is float64 [U]: how often each user counts."""
        cumulative = np.append(0.0, np.cumsum(weight[self._order]))
        below = (cumulative[self._below] + cumulative[self._not_above]) / 2
        return float((weight * below).sum() / weight.sum() ** 2)

    def true_positive_rate(self, weight: NDArray[np.float64]) -> float:
        """Return the largest true positive rate of a threshold whose false positive rate is at most `FALSE_POSITIVE_RATE`."""
        cumulative = np.append(0.0, np.cumsum(weight[self._order]))
        total = cumulative[-1]
        # The lowest score that may be a threshold: no more than the allowed share of the others lies above it.
        first = int(np.searchsorted(cumulative[1:], (1 - FALSE_POSITIVE_RATE) * total * (1 - 1e-12)))
        return (
            float(weight[self._below > np.searchsorted(self._ascending, self._ascending[first])].sum() / total)
            if total
            else 0.0
        )


def measure_attack(inside: NDArray[np.float64], outside: NDArray[np.float64], *, seed: int = 0) -> AttackSuccess:
    """Measure an attack on the same users in both states. A user is resampled with both scores.

    Args:
        inside: float64 [U]. The attack's score of each user, from what was drawn or scored by parameters that were trained on the user.
        outside: float64 [U]. The same from parameters that were not.
        seed: Seed of the resampling.

    Raises:
        ValueError: There are no users, or the arrays differ in length.
    """
    if not len(inside) or len(inside) != len(outside):
        raise ValueError(f"scores of {len(inside)} and {len(outside)} users")
    scores, rng, users = _PairedScores(inside, outside), np.random.default_rng(seed), len(inside)
    everybody = np.ones(users)
    resampled = [np.bincount(rng.integers(0, users, users), minlength=users).astype(np.float64) for _ in range(RESAMPLES)]
    return AttackSuccess(
        users,
        _estimate(scores.auc(everybody), [scores.auc(weight) for weight in resampled]),
        _estimate(scores.true_positive_rate(everybody), [scores.true_positive_rate(weight) for weight in resampled]),
    )


def measure_risk(attack: NDArray[np.bool_], control: NDArray[np.bool_], baseline: NDArray[np.bool_]) -> AttackRisk:
    """Return the risk of an attack; the errors of its two rates are propagated as if independent.

    Args:
        attack: bool, at least one. Which guesses about users who were trained on are right.
        control: bool, at least one. The same about users who were not.
        baseline: bool, at least one. Which guesses by chance are right.
    """
    (attack_rate, attack_error), (control_rate, control_error), (baseline_rate, _) = map(_wilson, (attack, control, baseline))
    room = 1 - control_rate
    risk = (attack_rate - control_rate) / room
    error = math.hypot(attack_error / room, control_error * (1 - attack_rate) / room**2)
    return AttackRisk(
        len(attack),
        attack_rate,
        control_rate,
        baseline_rate,
        Estimate(risk, (risk - error, risk + error)),
        has_failed=bool(attack.mean() <= baseline.mean()),  # the centres of small samples move towards 1/2
    )


def _wilson(is_right: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the centre of Wilson's 95 % interval of a rate, and half its width."""
    count, right = len(is_right), int(is_right.sum())
    total = count + _Z**2
    return (right + _Z**2 / 2) / total, _Z / total * math.sqrt(right * (count - right) / count + _Z**2 / 4)


def bootstrap_mean(values: NDArray[np.float64]) -> Estimate:
    """Return the mean of one value per user with its interval: float64 [U], at least one."""
    rng = np.random.default_rng(0)
    means = [float(values[rng.integers(0, len(values), len(values))].mean()) for _ in range(RESAMPLES)]
    return _estimate(float(values.mean()), means)


def _estimate(value: float, resampled: list[float]) -> Estimate:
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Estimate(value, (float(low), float(high)))
