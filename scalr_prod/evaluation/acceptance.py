# SPDX-License-Identifier: Apache-2.0
"""Acceptance threshold: the significance an arm needs on validation to keep λ > 0.

The threshold is lower for real+scalr if the translator was measured to carry a user signal (docs/adr/0019). That measurement uses other
events than validation ranks, so it is additional evidence. It says nothing about a control.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.evaluation.signal import has_user_signal, measure_signal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scalr_prod.evaluation.statistics import ArmComparison
    from scalr_prod.evaluation.trial_cache import ValidationWindow

__all__ = ["LENIENT", "STRICT", "AcceptanceThreshold", "describe_acceptance", "threshold_for"]

#: Two-sided p-value below which a difference is beyond chance: 1 % on the side that matters.
_BEYOND_CHANCE: Final = 0.02


@dataclass(frozen=True)
class AcceptanceThreshold:
    """A significance threshold and its reason.

    Attributes:
        p_below: A gain over real events alone counts if its two-sided p-value is below this.
        why: Reason, as a phrase.
    """

    p_below: float
    why: str

    def assess(self, over_real: ArmComparison, over_strongest: ArmComparison) -> dict[str, Any]:
        """Assess whether an arm is accepted.

        Args:
            over_real: Comparison of the arm with real events alone.
            over_strongest: Comparison with the strongest baseline; the arm must not be significantly worse.

        Returns:
            Plain JSON values: ``passed``, ``p_below``, ``why``, the arm's ``p_value``, ``lift_pct`` and ``ci95`` over real events alone,
            and ``behind_strongest``.
        """
        behind = over_strongest.difference < 0 and over_strongest.p_value < _BEYOND_CHANCE
        ahead = over_real.difference > 0 and over_real.p_value < self.p_below
        gain = {"p_value": over_real.p_value} | over_real.lift_to_json()
        return {"passed": ahead and not behind} | vars(self) | gain | {"behind_strongest": behind}


STRICT: Final = AcceptanceThreshold(
    _BEYOND_CHANCE, "the best of some thirty choices is measured on the users that it was chosen on"
)
#: p < 0.5 two-sided: odds of three to one that real+scalr is ahead.
LENIENT: Final = AcceptanceThreshold(0.5, "on other events, own source histories were more informative than others'")


def threshold_for(window: ValidationWindow) -> AcceptanceThreshold:
    """Return the threshold for a window's translator, depending on its measured user signal."""
    return LENIENT if has_user_signal(measure_signal(window)) else STRICT


def describe_acceptance(assessment: Mapping[str, Any]) -> str:
    """Describe the result of an assessment in a phrase."""
    behind = ", but it is behind the strongest baseline" if assessment["behind_strongest"] else ""
    return f"p {assessment['p_value']:.2g}, below {assessment['p_below']:g} is required: {assessment['why']}{behind}"
