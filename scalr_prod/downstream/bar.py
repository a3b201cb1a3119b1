# SPDX-License-Identifier: Apache-2.0
"""How clearly an arm has to be ahead on validation for its λ to stay above 0.

The bar is lower for ours where its translator was measured to know something of users (docs/adr/0075): that was asked of other events than
those which validation ranks, so that the one is evidence beside the other. It is no evidence for a control.
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
    """What is asked of an arm.

    Attributes:
        p_below: Two-sided p-value below which a gain over real events alone counts.
        why: In a phrase.
    """

    p_below: float
    why: str

    def judged(self, over_real: Comparison, over_strongest: Comparison) -> dict[str, Any]:
        """Whether an arm passes, and by what.

        Args:
            over_real: The arm against real events alone.
            over_strongest: The arm against the strongest baseline, which it must not be behind beyond chance.

        Returns:
            Plain JSON values: ``passed``, ``p_below``, ``why``, the arm's ``p_value``, ``lift_pct`` and ``ci95`` over real events alone,
            and ``behind_strongest``.
        """
        behind = over_strongest.difference < 0 and over_strongest.p_value < _BEYOND_CHANCE
        ahead = over_real.difference > 0 and over_real.p_value < self.p_below
        gain = {"p_value": over_real.p_value} | over_real.gain()
        return {"passed": ahead and not behind} | vars(self) | gain | {"behind_strongest": behind}


STRICT: Final = Bar(_BEYOND_CHANCE, "the best of some thirty choices is judged on the users that chose it")
#: Odds of three to one that ours is ahead.
KNOWN: Final = Bar(0.5, "on other events, own source histories were measured to say more than others' do")


def bar_of(stage: Stage) -> Bar:
    """The bar for the events of a stage's translator, by what it was measured to know."""
    return KNOWN if knows_users(signal_of(stage)) else STRICT


def bar_sentence(judged: Mapping[str, Any]) -> str:
    """What `Bar.judged` found, for people."""
    behind = ", but it is behind the strongest baseline" if judged["behind_strongest"] else ""
    return f"p {judged['p_value']:.2g}, below {judged['p_below']:g} is asked: {judged['why']}{behind}"
