# SPDX-License-Identifier: Apache-2.0
"""Acceptance threshold: the significance an arm needs on validation to keep λ > 0.

The threshold is lower for real+scalr if the translator was measured to carry a user signal (docs/adr/0075). That measurement uses other
events than validation ranks, so it is additional evidence. It says nothing about a control.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.downstream.signal import knows_users, signal_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scalr_prod.downstream.statistics import Comparison
    from scalr_prod.downstream.trials import Stage

__all__ = ["KNOWN", "STRICT", "Bar", "bar_of", "bar_sentence"]

#: Two-sided p-value below which a difference is beyond chance: 1 % on the side that matters.
_BEYOND_CHANCE: Final = 0.02


@dataclass(frozen=True)
class Bar:
    """A significance threshold and its reason.

    Attributes:
        p_below: A gain over real events alone counts if its two-sided p-value is below this.
        why: Reason, as a phrase.
    """

    p_below: float
    why: str

    def judged(self, over_real: Comparison, over_strongest: Comparison) -> dict[str, Any]:
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
        gain = {"p_value": over_real.p_value} | over_real.gain()
        return {"passed": ahead and not behind} | vars(self) | gain | {"behind_strongest": behind}


STRICT: Final = Bar(_BEYOND_CHANCE, "the best of some thirty choices is measured on the users that it was chosen on")
#: p < 0.5 two-sided: odds of three to one that real+scalr is ahead.
KNOWN: Final = Bar(0.5, "on other events, own source histories were more informative than others'")


def bar_of(stage: Stage) -> Bar:
    """Return the threshold for a window's translator, depending on its measured user signal."""
    return KNOWN if knows_users(signal_of(stage)) else STRICT


def bar_sentence(judged: Mapping[str, Any]) -> str:
    """Describe the result of an assessment in a phrase."""
    behind = ", but it is behind the strongest baseline" if judged["behind_strongest"] else ""
    return f"p {judged['p_value']:.2g}, below {judged['p_below']:g} is required: {judged['why']}{behind}"
