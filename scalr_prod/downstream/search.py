# SPDX-License-Identifier: Apache-2.0
"""Search one setting after the other, and never stop at the edge of what was named.

Where the best value is the first or the last of a grid, the grid is widened in that direction until the best lies inside, a natural
limit is reached, or `_MOST` more values were tried; then the setting is reported as being on the edge.
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
    """A setting that is tried.

    Attributes:
        name: Of the setting.
        values: Tried first.
        step: Factor between the values that a grid is widened by.
        low: Natural limit: a best value there is no edge.
        high: Likewise.
        whole: Values are whole numbers.
    """

    name: str
    values: tuple[float, ...]
    step: float = 3.0
    low: float = 0.0
    high: float = float("inf")
    whole: bool = False

    def beyond(self, value: float, *, up: bool) -> float | None:
        """The next value outwards; None at a natural limit.

        Args:
            value: One of the knob's.
            up: Whether to go upwards.

        Returns:
            `step` times as much, or as little, within ``low`` and ``high``; None where it would be the same value.
        """
        if value >= self.high if up else value <= self.low:
            return None
        moved = min(value * self.step, self.high) if up else max(value / self.step, self.low)
        moved = round(moved) if self.whole else moved
        return None if moved == value else moved


#: Tried for every model: observed events may lose weight with age (days; inf: they do not).
HALF_LIFE: Final = Knob("half_life", (math.inf, 365.0, 90.0), low=1.0)


def search(knob: Knob, value: Callable[[float], float]) -> tuple[float, bool]:
    """The value with the highest figure, and whether it is still the outermost of those tried.

    Args:
        knob: What is tried.
        value: Figure of one value, the higher the better; ties go to the first tried.
    """
    found = {one: value(one) for one in knob.values}
    for _ in range(_MOST):
        best = max(found, key=found.__getitem__)
        outward = _outward(knob, best, found)
        if outward is None:
            return best, False
        found[outward] = value(outward)
    best = max(found, key=found.__getitem__)
    return best, _outward(knob, best, found) is not None


def _outward(knob: Knob, best: float, found: dict[float, float]) -> float | None:
    """The value to try next: the neighbour of an outermost best value; None where it is inside or at a limit."""
    for edge, up in ((max(found), True), (min(found), False)):
        moved = knob.beyond(edge, up=up) if best == edge else None
        if moved is not None:
            return moved
    return None
