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
    from collections.abc import Callable, Mapping

__all__ = ["HALF_LIFE", "Hyperparameter", "is_as_good", "middle_of_plateau", "search_values"]

_MAX_EXTENSIONS: Final = 3


@dataclass(frozen=True)
class Hyperparameter:
    """A hyperparameter and the values to try.

    Attributes:
        name: Name of the setting.
        values: Values to try first.
        step: Factor between values when the grid is extended.
        low: Natural lower limit; a best value there does not count as on the edge.
        high: Natural upper limit.
        is_integer: Whether values are integers.
    """

    name: str
    values: tuple[float, ...]
    step: float = 3.0
    low: float = 0.0
    high: float = float("inf")
    is_integer: bool = False

    def next_value(self, value: float, *, upwards: bool) -> float | None:
        """Return the next value outside the grid; None at a natural limit.

        Args:
            value: The outermost value so far.
            upwards: Whether to go upwards.

        Returns:
            The value times or divided by `step`, within ``low`` and ``high``; None if that is the same value.
        """
        if value >= self.high if upwards else value <= self.low:
            return None
        following = min(value * self.step, self.high) if upwards else max(value / self.step, self.low)
        following = round(following) if self.is_integer else following
        return None if following == value else following


#: Tuned for every model: half-life in days of the weights of observed events; inf: no decay.
HALF_LIFE: Final = Hyperparameter("half_life", (math.inf, 365.0, 90.0), low=1.0)


def search_values(
    hyperparameter: Hyperparameter, objective: Callable[[float], float], *, tolerance: float = 0.0
) -> tuple[float, bool]:
    """Return the chosen value, and whether the best one is still the outermost of those tried.

    Args:
        hyperparameter: The hyperparameter.
        objective: Score of one value, higher is better; ties go to the value tried first.
        tolerance: Neighbours of the best value that are relatively worse by less than this form a plateau with it, and the middle of the
            plateau is chosen; 0: the best value is chosen.
    """
    scores = {candidate: objective(candidate) for candidate in hyperparameter.values}
    on_edge = True
    for _ in range(_MAX_EXTENSIONS):
        outward = _next_outward(hyperparameter, max(scores, key=scores.__getitem__), scores)
        if outward is None:
            on_edge = False
            break
        scores[outward] = objective(outward)
    best = max(scores, key=scores.__getitem__)
    on_edge = on_edge and _next_outward(hyperparameter, best, scores) is not None
    return (middle_of_plateau(scores, tolerance) if tolerance else best), on_edge


def is_as_good(value: float, best: float, tolerance: float) -> bool:
    """Return whether a score is relatively worse than the best by at most the tolerance."""
    return value >= best - tolerance * abs(best)


def middle_of_plateau(scores: Mapping[float, float], tolerance: float) -> float:
    """Return the middle of the values next to the best one that are relatively worse than it by at most the tolerance."""
    values = sorted(scores)
    best = max(scores.values())
    low = high = max(range(len(values)), key=lambda number: scores[values[number]])
    while low > 0 and is_as_good(scores[values[low - 1]], best, tolerance):
        low -= 1
    while high < len(values) - 1 and is_as_good(scores[values[high + 1]], best, tolerance):
        high += 1
    return values[(low + high + 1) // 2]


def _next_outward(hyperparameter: Hyperparameter, best: float, scores: dict[float, float]) -> float | None:
    """Return the next value beyond the best one if that is outermost; None if it lies inside or at a limit."""
    for edge, upwards in ((max(scores), True), (min(scores), False)):
        following = hyperparameter.next_value(edge, upwards=upwards) if best == edge else None
        if following is not None:
            return following
    return None
