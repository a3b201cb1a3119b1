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


_MAX_EXTENSIONS: Final = 3
#: Added to values before their logarithm, since 0 may be one of them.
_SMALL: Final = 1e-3


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
        default: What a run uses without an evaluation, or None if there is no such value.
        with_synthetic: First value for a model that trains on synthetic events, too, which a quick verdict uses; None: the first of
            ``values``.
        multiplies_cost: Whether larger values make a fit several times as slow. It is searched once, after the settings that do not.
    """

    name: str
    values: tuple[float, ...]
    step: float = 3.0
    low: float = 0.0
    high: float = float("inf")
    is_integer: bool = False
    default: float | None = None
    with_synthetic: float | None = None
    multiplies_cost: bool = False

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
    hyperparameter: Hyperparameter,
    objective: Callable[[float], float],
    *,
    is_as_good: Callable[[float, float], bool] | None = None,
) -> tuple[float, bool]:
    """Return the chosen value, and whether the best one is still the outermost of those tried.

    Without a default, the best value is chosen. With one, it is the value nearest to the default among those that are as good as the best:
    a default that served many logs is left only for a reason.

    Args:
        hyperparameter: The hyperparameter.
        objective: Score of one value, higher is better; ties go to the value tried first.
        is_as_good: Returns whether a value is as good as the best one, given the uncertainty of their scores.
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
    default = hyperparameter.default
    if default is None or is_as_good is None:
        return best, on_edge
    candidates = [value for value in scores if value == best or is_as_good(value, best)]
    return min(candidates, key=lambda value: log_distance(value, default)), on_edge


def log_distance(value: float, other: float) -> float:
    """Return how far apart two values are: the absolute logarithm of their ratio."""
    return abs(math.log((value + _SMALL) / (other + _SMALL)))


def _next_outward(hyperparameter: Hyperparameter, best: float, scores: dict[float, float]) -> float | None:
    """Return the next value beyond the best one if that is outermost; None if it lies inside or at a limit."""
    for edge, upwards in ((max(scores), True), (min(scores), False)):
        following = hyperparameter.next_value(edge, upwards=upwards) if best == edge else None
        if following is not None:
            return following
    return None
