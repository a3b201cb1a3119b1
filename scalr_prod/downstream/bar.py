# SPDX-License-Identifier: Apache-2.0
"""How clearly an arm has to be ahead on validation for its λ to stay above 0.

The bar is lower for ours where its translator was measured to know something of users (docs/adr/0075): that was asked of other events than
those which validation ranks, so both say the same independently of each other. A control's events carry nothing of what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.downstream.report import OURS
from scalr_prod.downstream.signal import knows_users, signal_of

if TYPE_CHECKING:
    from scalr_prod.downstream.statistics import Comparison
    from scalr_prod.downstream.trials import Stage

__all__ = ["KNOWN", "STRICT", "Bar", "bar_of"]

#: Two-sided p-value below which a difference is beyond chance: 1 % on the side that matters.
_BEYOND_CHANCE: Final = 0.02


@dataclass(frozen=True)
class Bar:
    """What is asked of an arm.

    Attributes:
        p_below: Two-sided p-value below which a gain over real events alone counts.
        why: In a phrase.
    """

    p_below: float
    why: str

    def passed(self, over_real: Comparison, over_strongest: Comparison) -> bool:
        """Whether an arm is ahead of real events alone by this bar, and not behind the strongest baseline beyond chance."""
        ahead = over_real.difference > 0 and over_real.p_value < self.p_below
        return ahead and not (over_strongest.difference < 0 and over_strongest.p_value < _BEYOND_CHANCE)

    def to_json(self, over_real: Comparison) -> dict[str, Any]:
        """Plain JSON values: ``p_below``, ``why``, and the arm's ``p_value``, ``lift_pct`` and ``ci95`` over real events alone."""
        return vars(self) | {"p_value": over_real.p_value, "lift_pct": over_real.lift_pct, "ci95": list(over_real.ci95)}


STRICT: Final = Bar(_BEYOND_CHANCE, "the best of some thirty choices is judged on the users that chose it")
#: Odds of three to one that ours is ahead.
KNOWN: Final = Bar(0.5, "on other events, own source histories were measured to say more than others' do")


def bar_of(arm: str, stage: Stage) -> Bar:
    """The bar for an arm, by what the translator of the latest validation window was measured to know."""
    return KNOWN if arm == OURS and knows_users(signal_of(stage)) else STRICT
