# SPDX-License-Identifier: Apache-2.0
"""Acceptance: whether an arm's gain on validation is significant enough to keep λ > 0.

The required significance is lower for real+scalr if the translator was measured to carry a user signal (docs/adr/0019). That measurement
uses other events than validation ranks, so it is additional evidence. It says nothing about a control.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.evaluation.arms import REAL_ONLY, describe_baseline
from scalr_prod.evaluation.signal import has_user_signal, measure_signal
from scalr_prod.generation import SEGMENTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scalr_prod.evaluation.arms import Arm
    from scalr_prod.evaluation.statistics import ArmComparison
    from scalr_prod.evaluation.trial_cache import ValidationWindow

__all__ = ["LENIENT", "STRICT", "Acceptance", "AcceptanceThreshold", "describe_acceptance", "threshold_for"]

#: Two-sided p-value below which a difference is significant: 1 % on the side that matters.
_SIGNIFICANT: Final = 0.02


@dataclass(frozen=True)
class AcceptanceThreshold:
    """A significance threshold and its reason.

    Attributes:
        p_below: A gain over real events only counts if its two-sided p-value is below this.
        why: Reason, as a clause.
    """

    p_below: float
    why: str


STRICT: Final = AcceptanceThreshold(
    _SIGNIFICANT, "the best of about thirty settings is measured on the users that it was chosen on"
)
#: p < 0.5 two-sided: odds of three to one that real+scalr is ahead.
LENIENT: Final = AcceptanceThreshold(0.5, "on other events, users' own source histories were more informative than others'")


@dataclass(frozen=True)
class Acceptance:
    """Decision whether an arm keeps its λ.

    Attributes:
        candidate: The arm with the best values found on validation.
        threshold: Required significance.
        over_real: Comparison of the candidate with real events only.
        over_strongest: Comparison with the strongest baseline; the candidate must not be significantly worse.
    """

    candidate: Arm
    threshold: AcceptanceThreshold
    over_real: ArmComparison
    over_strongest: ArmComparison

    @property
    def behind_strongest(self) -> bool:
        """Whether the candidate is significantly worse than the strongest baseline."""
        return self.over_strongest.difference < 0 and self.over_strongest.p_value < _SIGNIFICANT

    @property
    def passed(self) -> bool:
        """Whether the candidate is accepted with its λ; otherwise λ is 0."""
        is_gain = self.over_real.difference > 0 and self.over_real.p_value < self.threshold.p_below
        return is_gain and not self.behind_strongest

    def describe(self) -> str:
        """Describe the decision in a sentence; see `describe_acceptance`."""
        return describe_acceptance(self.candidate.weights if self.passed else (0.0,) * 3, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; gain, interval and p-value are those over real events only."""
        gain = {"p_value": self.over_real.p_value} | self.over_real.lift_to_json()
        return {"passed": self.passed} | vars(self.threshold) | gain | {"behind_strongest": self.behind_strongest}


def threshold_for(window: ValidationWindow) -> AcceptanceThreshold:
    """Return the threshold for a window's translator, depending on its measured user signal."""
    return LENIENT if has_user_signal(measure_signal(window)) else STRICT


def describe_acceptance(weights: Sequence[float], decision: Mapping[str, Any] | None) -> str:
    """Describe a decision: the verdict with λ, the gain with its interval, and the rule that decided.

    Args:
        weights: λ of cold, sparse and dense users.
        decision: JSON of an `Acceptance`; None if no λ > 0 was better than λ = 0 on validation.
    """
    verdict = f"accepted: λ = {_describe_weights(weights)}" if any(weights) else "refused: λ = 0"
    if decision is None:
        return verdict if any(weights) else f"{verdict}: no λ > 0 was better on validation"
    low, high = decision["ci95"]
    gain = f"{decision['lift_pct']:+.1f} % over {describe_baseline(REAL_ONLY)} (95 %: {low:+.1f} … {high:+.1f})"
    return f"{verdict}: {gain}; {_describe_rule(decision)}"


def _describe_rule(decision: Mapping[str, Any]) -> str:
    if decision["behind_strongest"]:
        return "significantly worse than the strongest baseline"
    if decision["lift_pct"] <= 0:
        return "no gain"
    relation = "<" if decision["p_value"] < decision["p_below"] else "≥"
    return f"p {decision['p_value']:.2g} {relation} {decision['p_below']:g}, the limit because {decision['why']}"


def _describe_weights(weights: Sequence[float]) -> str:
    if len(set(weights)) == 1:
        return f"{weights[0]:g}"
    return ", ".join(f"{weight:g} ({segment})" for segment, weight in zip(SEGMENTS, weights, strict=True))
