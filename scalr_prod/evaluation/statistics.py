# SPDX-License-Identifier: Apache-2.0
"""Comparison of arms with errors clustered by user and item, paired bootstrap over users, and Holm's correction over arms.

Hits are not independent: many users hit the same few items, so intervals from users only are too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core.jsonable import Jsonable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


RESAMPLES: Final = 2000
_MAX_CELLS: Final = 4_000_000
#: Largest half width of an interval of log(arm / baseline), so that its ends stay finite.
_MAX_LOG_RATIO: Final = 50.0


@dataclass(frozen=True)
class ArmComparison(Jsonable):
    """Comparison of two arms on the same users.

    Attributes:
        lift_pct: 100 × (mean of the arm / mean of the baseline - 1).
        lift_error: Its standard error.
        ci95: 95 % interval of the lift.
        difference: Mean of the arm - mean of the baseline.
        difference_ci95: 95 % interval of the difference.
        p_value: Two-sided p-value of no difference.
    """

    lift_pct: float
    lift_error: float
    ci95: tuple[float, float]
    difference: float
    difference_ci95: tuple[float, float]
    p_value: float

    def lift_to_json(self) -> dict[str, Any]:
        """Return the lift and its interval as plain JSON values."""
        return {"lift_pct": self.lift_pct, "ci95": list(self.ci95)}

    def widened(self, factor: float) -> ArmComparison:
        """Return the comparison with its error and intervals this many times as wide; the lift's interval in log(arm / baseline)."""
        ratio = 1 + self.lift_pct / 100
        if ratio > 0:
            low, high = (100 * (ratio * ((1 + bound / 100) / ratio) ** factor - 1) for bound in self.ci95)
        else:
            low, high = self.ci95
        lower, upper = (self.difference + factor * (bound - self.difference) for bound in self.difference_ci95)
        score = NormalDist().inv_cdf(self.p_value / 2) / factor if self.p_value > 0 else float("-inf")
        return replace(
            self,
            lift_error=factor * self.lift_error,
            ci95=(low, high),
            difference_ci95=(lower, upper),
            p_value=2 * NormalDist().cdf(score),
        )


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


class TwoWayClusters:
    """Comparison of two arms whose errors are clustered by user and by item (Cameron, Gelbach, Miller 2011).

    The variance is that of sums over users, plus that of sums over items, minus that of single pairs. Intervals are those of Student's t,
    for the lift of log(arm / baseline); their degrees of freedom follow from the effective numbers of users and items. A user or an item
    that occurs at several cutoffs is one cluster.

    Args:
        user: int64 [R]. User number of each test case.
        n_items: Number of items.
    """

    def __init__(self, user: NDArray[np.int64], n_items: int) -> None:
        unique_users, self._case_user = np.unique(user, return_inverse=True)
        self._shape = (len(unique_users), n_items)

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
        cases_per_user = np.bincount(self._case_user, weights=case_mask, minlength=self._shape[0])
        n_cases = max(float(cases_per_user.sum()), 1.0)
        arm_gains, baseline_gains = (self._gains(contributions.select_cases(case_mask)) for contributions in (arm, baseline))
        arm_sum, baseline_sum = float(arm_gains.sum()), float(baseline_gains.sum())
        difference = (arm_sum - baseline_sum) / n_cases
        residuals = arm_gains - baseline_gains
        by_user, by_item = _sums(residuals)
        error = _clustered_error(by_user - difference * cases_per_user, by_item - by_item.mean(), residuals.data)
        margin = error.margin / n_cases
        lift_pct, lift_error, ci95 = float("nan"), float("nan"), (float("nan"), float("nan"))
        if baseline_sum > 0:
            ratio = arm_sum / baseline_sum
            of_ratio = _error_of_ratio(arm_gains - ratio * baseline_gains, baseline_gains)
            lift_pct, lift_error = 100 * (ratio - 1), 100 * of_ratio.standard_error / baseline_sum
            ci95 = (lift_pct, lift_pct)
            if ratio > 0:
                factor = float(np.exp(min(of_ratio.margin / arm_sum, _MAX_LOG_RATIO)))
                ci95 = (100 * (ratio / factor - 1), 100 * (ratio * factor - 1))
        return ArmComparison(
            lift_pct=lift_pct,
            lift_error=lift_error,
            ci95=ci95,
            difference=difference,
            difference_ci95=(difference - margin, difference + margin),
            p_value=error.p_value(difference * n_cases),
        )

    def _gains(self, contributions: MetricContributions) -> Any:
        """Return the summed gain of each user and item: scipy CSR [users, items]."""
        from scipy import sparse

        pairs = (self._case_user[contributions.case], contributions.item)
        return sparse.csr_matrix((contributions.gain, pairs), shape=self._shape)


@dataclass(frozen=True)
class _ClusteredError:
    """Standard error of a sum, and the degrees of freedom of its t distribution."""

    standard_error: float
    degrees_of_freedom: float

    @property
    def margin(self) -> float:
        """Half the width of the 95 % interval."""
        from scipy.stats import t

        return float(t.ppf(0.975, self.degrees_of_freedom)) * self.standard_error

    def p_value(self, total: float) -> float:
        """Return the two-sided p-value of a sum of 0."""
        from scipy.stats import t

        if self.standard_error == 0:
            return float(total == 0)
        return float(2 * t.sf(abs(total) / self.standard_error, self.degrees_of_freedom))


def _error_of_ratio(residuals: Any, baseline: Any) -> _ClusteredError:
    """Return the error of the sum of residuals arm - ratio × baseline, scipy CSR [users, items].

    A cluster with a large share of the baseline moves the ratio towards itself, which makes its residual too small. The jackknife's
    correction (CV3; MacKinnon, Nielsen, Webb 2023) divides each residual by 1 - share.
    """
    total = float(baseline.sum())
    by_user, by_item = (
        residual / np.maximum(1 - share / total, 1e-12)
        for residual, share in zip(_sums(residuals), _sums(baseline), strict=True)
    )
    return _clustered_error(by_user, by_item, residuals.data)


def _sums(gains: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sums by user and by item of a scipy CSR [users, items]."""
    return np.asarray(gains.sum(1)).ravel(), np.asarray(gains.sum(0)).ravel()


def _clustered_error(
    by_user: NDArray[np.float64], by_item: NDArray[np.float64], by_pair: NDArray[np.float64]
) -> _ClusteredError:
    """Return the two-way clustered error of a sum, given the residuals of each user, item and pair."""
    of_users, of_items, of_pairs = (float((values**2).sum()) for values in (by_user, by_item, by_pair))
    # The difference can be negative by chance.
    variance = max(of_users + of_items - of_pairs, of_users, of_items)
    return _ClusteredError(variance**0.5, _degrees_of_freedom(by_user, by_item))


def _degrees_of_freedom(*sums: NDArray[np.float64]) -> float:
    """Return the degrees of freedom of the sum of several variances (Satterthwaite 1946), each of the squares of one array.

    An array whose sums of squares and of fourth powers are those of n independent normal variates of equal variance has n - 1.
    """
    squares = [values**2 for values in sums]
    variances = np.array([float(values.sum()) for values in squares])
    clusters = 3 * variances**2 / np.array([max(float((values**2).sum()), 1e-300) for values in squares])
    weighted = float((variances**2 / (clusters - 1).clip(1)).sum())
    return float(variances.sum()) ** 2 / weighted if weighted else 1.0


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
        lift_error=float(np.std(ratio)),
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
