# SPDX-License-Identifier: Apache-2.0
"""Success of an attack that guesses membership from one score per user: AUC, and true positives at 1 % false positives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from scalr_prod.core.jsonable import Jsonable

if TYPE_CHECKING:
    from numpy.typing import NDArray


RESAMPLES: Final = 1000
#: False positive rate at which the true positive rate is given: an attack that is right about few users can have an AUC near 0.5.
FALSE_POSITIVE_RATE: Final = 0.01


@dataclass(frozen=True)
class Estimate(Jsonable):
    """An estimate with its 95 % interval, by resampling users."""

    value: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class AttackSuccess(Jsonable):
    """Success of an attack.

    Attributes:
        users: Number of attacked users. Each is attacked twice: trained on ("in") and not trained on ("out").
        auc: Probability that the score of a user who was trained on is higher than that of one who was not; 0.5 is chance level.
        true_positives: Share of the users who were trained on that are found while 1 % of the others are accused; 0.01 is chance level.
    """

    users: int
    auc: Estimate
    true_positives: Estimate


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


def bootstrap_mean(values: NDArray[np.float64]) -> Estimate:
    """Return the mean of one value per user with its interval: float64 [U], at least one."""
    rng = np.random.default_rng(0)
    means = [float(values[rng.integers(0, len(values), len(values))].mean()) for _ in range(RESAMPLES)]
    return _estimate(float(values.mean()), means)


def _estimate(value: float, resampled: list[float]) -> Estimate:
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Estimate(value, (float(low), float(high)))
