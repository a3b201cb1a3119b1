# SPDX-License-Identifier: Apache-2.0
"""Grid search of one hyperparameter that extends the grid when the best value is on its edge.

The grid is extended in that direction until the best value lies inside, a natural limit is reached, or three more values were tried. In
the last case the hyperparameter is reported as being on the edge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HALF_LIFE", "Knob", "search"]

_MOST: Final = 3


@dataclass(frozen=True)
class Knob:
    """A hyperparameter and the values to try.

    Attributes:
        name: Name of the setting.
        values: Values to try first.
        step: Factor between values when the grid is extended.
        low: Natural lower limit; a best value there does not count as on the edge.
        high: Natural upper limit.
        whole: Whether values are integers.
    """

    name: str
    values: tuple[float, ...]
    step: float = 3.0
    low: float = 0.0
    high: float = float("inf")
    whole: bool = False

    def beyond(self, value: float, *, up: bool) -> float | None:
        """Return the next value outside the grid; None at a natural limit.

        Args:
            value: The outermost value so far.
            up: Whether to go upwards.

        Returns:
            The value times or divided by `step`, within ``low`` and ``high``; None if that is the same value.
        """
        if value >= self.high if up else value <= self.low:
            return None
        moved = min(value * self.step, self.high) if up else max(value / self.step, self.low)
        moved = round(moved) if self.whole else moved
        return None if moved == value else moved


#: Tried for every model: half-life in days of the weights of observed events; inf: no decay.
HALF_LIFE: Final = Knob("half_life", (math.inf, 365.0, 90.0), low=1.0)


def search(knob: Knob, value: Callable[[float], float]) -> tuple[float, bool]:
    """Return the best value, and whether it is still the outermost of those tried.

    Args:
        knob: The hyperparameter.
        value: Score of one value, higher is better; ties go to the value tried first.
    """
    scores = {candidate: value(candidate) for candidate in knob.values}
    for _ in range(_MOST):
        best = max(scores, key=scores.__getitem__)
        outward = _outward(knob, best, scores)
        if outward is None:
            return best, False
        scores[outward] = value(outward)
    best = max(scores, key=scores.__getitem__)
    return best, _outward(knob, best, scores) is not None


def _outward(knob: Knob, best: float, scores: dict[float, float]) -> float | None:
    """Return the next value beyond the best one if that is outermost; None if it lies inside or at a limit."""
    for edge, up in ((max(scores), True), (min(scores), False)):
        moved = knob.beyond(edge, up=up) if best == edge else None
        if moved is not None:
            return moved
    return None
