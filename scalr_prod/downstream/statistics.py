"""Paired bootstrap over users, and Holm's correction over arms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Comparison", "holm", "paired_bootstrap"]

RESAMPLES: Final = 2000
_AT_ONCE: Final = 4_000_000


@dataclass(frozen=True)
class Comparison:
    """One arm against another on the same users.

    Attributes:
        lift_pct: 100 × (mean of the arm / mean of the baseline - 1).
        ci95: Percentile interval of that, from resampled users.
        difference: Mean of the arm - mean of the baseline.
        difference_ci95: Likewise.
        p_value: Two-sided, of no difference.
    """

    lift_pct: float
    ci95: tuple[float, float]
    difference: float
    difference_ci95: tuple[float, float]
    p_value: float


def paired_bootstrap(
    arm: NDArray[np.float64], baseline: NDArray[np.float64], *, seed: int = 0, resamples: int = RESAMPLES
) -> Comparison:
    """Compare two arms by each user's metric (mean over seeds).

    Args:
        arm: float64 [V].
        baseline: float64 [V], of the same users.
        seed: Of the resampling; the same for all arms, so that they meet the same resamples.
        resamples: Number of them.
    """
    rng = np.random.default_rng(seed)
    users = len(arm)
    means = np.empty((resamples, 2))
    both = np.stack([arm, baseline], axis=1)
    step = max(1, _AT_ONCE // max(users, 1))
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        means[start:stop] = both[rng.integers(0, users, (stop - start, users))].mean(1)
    difference = means[:, 0] - means[:, 1]
    ratio = np.where(means[:, 1] > 0, 100 * (means[:, 0] / means[:, 1].clip(1e-300) - 1), np.nan)
    below = min((difference <= 0).mean(), (difference >= 0).mean())
    base = baseline.mean()
    return Comparison(
        lift_pct=float(100 * (arm.mean() / base - 1)) if base > 0 else float("nan"),
        ci95=_interval(ratio),
        difference=float(arm.mean() - base),
        difference_ci95=_interval(difference),
        p_value=float(min(1.0, 2 * max(below, 1 / resamples))),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    count = len(order)
    adjusted = np.empty(count)
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (count - rank) * p_values[place]))
        adjusted[place] = highest
    return [float(value) for value in adjusted]


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)
