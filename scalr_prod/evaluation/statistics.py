# SPDX-License-Identifier: Apache-2.0
"""Paired bootstrap over users, or over users and items together, and Holm's correction over arms.

Hits are not independent: many users hit the same few items, so intervals from resampled users only are too narrow. The pigeonhole
bootstrap (Owen 2007) resamples users and items, and weights a hit by how often its user and its item were drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core.jsonable import Jsonable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["ArmComparison", "MetricContributions", "TwoWayBootstrap", "holm_adjust", "paired_bootstrap"]

RESAMPLES: Final = 2000
_MAX_CELLS: Final = 4_000_000


@dataclass(frozen=True)
class ArmComparison(Jsonable):
    """Comparison of two arms on the same users.

    Attributes:
        lift_pct: 100 × (mean of the arm / mean of the baseline - 1).
        ci95: Percentile bootstrap interval of the lift.
        difference: Mean of the arm - mean of the baseline.
        difference_ci95: Percentile bootstrap interval of the difference.
        p_value: Two-sided p-value of no difference.
    """

    lift_pct: float
    ci95: tuple[float, float]
    difference: float
    difference_ci95: tuple[float, float]
    p_value: float

    def lift_to_json(self) -> dict[str, Any]:
        """Return the lift and its interval as plain JSON values."""
        return {"lift_pct": self.lift_pct, "ci95": list(self.ci95)}


@dataclass(frozen=True)
class MetricContributions:
    """Contributions of (test case, item) pairs to a metric.

    Attributes:
        case: int64 [H]. Position of the test case (a user at a cutoff).
        item: int64 [H]. Item number.
        gain: float64 [H]. What the pair adds to the case's metric; for means over seeds, each seed's gain divided by their number.
    """

    case: NDArray[np.int64]
    item: NDArray[np.int64]
    gain: NDArray[np.float64]

    def select_cases(self, mask: NDArray[np.bool_]) -> MetricContributions:
        """Select the contributions of some test cases; case positions stay."""
        selected = mask[self.case]
        return MetricContributions(self.case[selected], self.item[selected], self.gain[selected])

    def weighted(self, factor: float) -> MetricContributions:
        """Multiply the gains by a factor."""
        return MetricContributions(self.case, self.item, self.gain * factor)

    def sum_by_case(self, n_cases: int) -> NDArray[np.float64]:
        """Return the metric of each case: float64 [n_cases]."""
        return np.bincount(self.case, weights=self.gain, minlength=n_cases).astype(np.float64)

    @classmethod
    def concat(cls, parts: Sequence[MetricContributions]) -> MetricContributions:
        """Join contributions; those of the same case and item add up."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("case", "item", "gain")))


class TwoWayBootstrap:
    """Bootstrap over users and items whose resamples are drawn once, so that all comparisons share them.

    A user or an item that occurs at several cutoffs is resampled as one.

    Args:
        user: int64 [R]. User number of each test case.
        n_items: Number of items.
        seed: Seed of the resampling.
        resamples: Number of resamples.
    """

    def __init__(self, user: NDArray[np.int64], n_items: int, *, seed: int = 0, resamples: int = RESAMPLES) -> None:
        unique_users, self._case_user = np.unique(user, return_inverse=True)
        rng = np.random.default_rng(seed)
        self._user_counts, self._item_counts = (
            _resample_counts(rng, count, resamples) for count in (len(unique_users), n_items)
        )

    def compare(
        self, arm: MetricContributions, baseline: MetricContributions, case_mask: NDArray[np.bool_] | None = None
    ) -> ArmComparison:
        """Compare two arms' mean metric over the test cases.

        Args:
            arm: Contributions of one arm.
            baseline: Contributions of the other arm on the same cases.
            case_mask: bool [R]. Cases to count; None: all.
        """
        case_mask = np.ones(len(self._case_user), dtype=bool) if case_mask is None else case_mask
        cases_per_user = np.bincount(self._case_user, weights=case_mask, minlength=self._user_counts.shape[1])
        resampled_cases = np.array([counts @ cases_per_user for counts in self._user_counts]).clip(1)
        selected = [contributions.select_cases(case_mask) for contributions in (arm, baseline)]
        means = np.stack([self._resampled_sums(contributions) / resampled_cases for contributions in selected], axis=1)
        n_cases = max(int(case_mask.sum()), 1)
        arm_mean, baseline_mean = (float(contributions.gain.sum() / n_cases) for contributions in selected)
        return _compare_means(means, arm_mean, baseline_mean)

    def _resampled_sums(self, contributions: MetricContributions) -> NDArray[np.float64]:
        """Return the sum of gains in each resample, weighted by the draws of user and item: [B]."""
        from scipy import sparse

        users, items = self._user_counts.shape[1], self._item_counts.shape[1]
        pairs = (self._case_user[contributions.case], contributions.item)
        gains = sparse.csr_matrix((contributions.gain, pairs), shape=(users, items))
        step = max(1, _MAX_CELLS // max(users, items))
        return np.concatenate(
            [
                ((gains @ self._item_counts[batch].T.astype(np.float64)) * self._user_counts[batch].T).sum(0)
                for batch in (np.s_[start : start + step] for start in range(0, len(self._user_counts), step))
            ]
        )


def _resample_counts(rng: np.random.Generator, count: int, resamples: int) -> NDArray[np.uint16]:
    """Return how often each of ``count`` elements was drawn in ``count`` draws: [resamples, count]."""
    counts = np.empty((resamples, count), dtype=np.uint16)
    for row in counts:
        row[:] = np.bincount(rng.integers(0, count, count), minlength=count)
    return counts


def paired_bootstrap(
    arm: NDArray[np.float64], baseline: NDArray[np.float64], *, seed: int = 0, resamples: int = RESAMPLES
) -> ArmComparison:
    """Compare two arms by each user's metric (mean over seeds).

    Args:
        arm: float64 [V].
        baseline: float64 [V], of the same users.
        seed: Seed of the resampling; with the same seed all arms share the resamples.
        resamples: Number of resamples.
    """
    rng = np.random.default_rng(seed)
    users = len(arm)
    means = np.empty((resamples, 2))
    pairs = np.stack([arm, baseline], axis=1)
    step = max(1, _MAX_CELLS // max(users, 1))
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        means[start:stop] = pairs[rng.integers(0, users, (stop - start, users))].mean(1)
    return _compare_means(means, float(arm.mean()), float(baseline.mean()))


def holm_adjust(p_values: Sequence[float]) -> list[float]:
    """Return Holm-adjusted p-values in input order (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(np.arange(len(order), 0, -1) * np.asarray(p_values)[order]).clip(max=1)
    return [float(value) for value in adjusted]


def _compare_means(means: NDArray[np.float64], arm: float, baseline: float) -> ArmComparison:
    """Compare two means given their resampled means [B, 2]."""
    difference = means[:, 0] - means[:, 1]
    ratio = np.where(means[:, 1] > 0, 100 * (means[:, 0] / means[:, 1].clip(1e-300) - 1), np.nan)
    below = min((difference <= 0).mean(), (difference >= 0).mean())
    return ArmComparison(
        lift_pct=100 * (arm / baseline - 1) if baseline > 0 else float("nan"),
        ci95=_interval(ratio),
        difference=arm - baseline,
        difference_ci95=_interval(difference),
        p_value=float(min(1.0, 2 * max(below, 1 / len(means)))),
    )


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)
