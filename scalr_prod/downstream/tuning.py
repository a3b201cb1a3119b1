"""Choices made on validation scenes: the model for real events alone, then how many synthetic events, how sharp, how heavy.

Scenes lie one before the other in time, and what counts is the users of all of them: how sharp a draw should be differs from season
to season by more than one scene's interval tells (docs/adr/0013). The model and the rival's source weight come from the latest alone.

λ is chosen for all users first, then for cold, sparse and dense users apart; it goes to 0 wherever the events do not help, where they
harm the users who get them, and altogether where the lift on validation is not significant.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.downstream.arms import RIVAL, Choice, Maker
from scalr_prod.downstream.models import GRIDS
from scalr_prod.downstream.statistics import paired_bootstrap
from scalr_prod.downstream.translation import Draw

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from scalr_prod.downstream.trial import Judge
    from scalr_prod.settings import Settings

__all__ = ["Stage", "fits_of", "tune"]

logger = logging.getLogger(__name__)

SOURCE_WEIGHTS: Final = (0.1, 0.5)
#: λ of one segment relative to the one chosen for all.
_PARTS: Final = (0.0, 0.3)
#: Choices whose validation metrics differ by less than this share count as equal.
_WORTH: Final = 0.005


@dataclass(frozen=True, eq=False)
class Stage:
    """A validation scene's judge and maker."""

    judge: Judge
    maker: Maker


def tune(
    family: str, stages: Sequence[Stage], settings: Settings, done: Callable[[int], None]
) -> tuple[Choice, dict[str, Any]]:
    """Choose for one family.

    Args:
        family: Its name.
        stages: The validation scenes, the latest first.
        settings: ``[downstream]`` names what is tried; ``[generation]`` filter and alignment.
        done: Called with 1 after every fit.

    Returns:
        The choice, and the validation figures it rests on (the rival's: of the latest scene).
    """
    wanted, generation = settings.downstream, settings.generation
    trials = _Trials(family, stages, done)
    value, best, by_user = trials.value, trials.best, trials.by_user
    draw = Draw(wanted.volumes[0], wanted.temperatures[0], generation.min_lift, generation.align)
    blank = Choice({}, draw, (0.0, 0.0, 0.0), 1.0)
    latest = stages[:1]
    _, alone = best("real", [replace(blank, options=options) for options in GRIDS.get(family, ({},))], latest)
    rival, with_source = best(RIVAL, [replace(alone, source_weight=weight) for weight in SOURCE_WEIGHTS], latest)
    base = value("real", alone)
    # One after the other, from the middle of each list: a full grid would cost minutes a family and choose within the noise.
    volumes, temperatures, weights = wanted.volumes, wanted.temperatures, wanted.weights
    found = replace(with_source, draw=replace(draw, volume=volumes[-1], temperature=temperatures[len(temperatures) // 2]))
    reached, found = best("real+scalr", [replace(found, weights=(weight,) * 3) for weight in weights])
    for name, values in (("temperature", temperatures), ("volume", volumes)):
        others = [value for value in values if value != getattr(found.draw, name)]
        if others:
            other, changed = best("real+scalr", [_redrawn(found, {name: value}) for value in others])
            reached, found = max((other, changed), (reached, found), key=lambda pair: pair[0])
    segments = np.concatenate([stage.judge.segments for stage in stages])
    own = [segments == segment for segment in range(3)]
    without = by_user["real", alone]

    def harmed(choice: Choice, segment: int) -> bool:
        """Those who get the events rank worse with them than with real events alone."""
        return choice.weights[segment] > 0 and by_user["real+scalr", choice][own[segment]].sum() < without[own[segment]].sum()

    # Better on the users at hand is not enough: the interval must leave 0 out.
    gain = paired_bootstrap(by_user["real+scalr", found], without, seed=wanted.seed)
    if gain.difference_ci95[0] > 0:
        for segment in (2, 1, 0):
            # The lightest that is as good: where the events do not help a segment, they shall not be able to harm it.
            parts = [(value("real+scalr", lighter), lighter) for lighter in _lighter(found, segment)]
            kept = [part for part in [*parts, (reached, found)] if not harmed(part[1], segment)]
            level = max(ndcg for ndcg, _ in kept) * (1 - _WORTH)
            reached, found = next(part for part in kept if part[0] >= level)
        # A segment that was content may not be any more, now that others have less.
        while any(harmed(found, segment) for segment in range(3)):
            cold, sparse, dense = (0.0 if harmed(found, segment) else found.weights[segment] for segment in range(3))
            found = replace(found, weights=(cold, sparse, dense))
            reached = value("real+scalr", found)
        gain = paired_bootstrap(by_user["real+scalr", found], without, seed=wanted.seed)
    if gain.difference_ci95[0] <= 0:
        logger.warning("%s: synthetic events do not help on the validation slice; λ is 0", family)
        found = replace(found, weights=(0.0, 0.0, 0.0))
    figures = {
        "real": base,
        "real+scalr": reached,
        "lift_pct": gain.lift_pct,
        "ci95": list(gain.ci95),
        RIVAL: rival,
        "windows": len(stages),
        "users": len(without),
        "tried": trials.tried,
    }
    return found, figures


class _Trials:
    """Fits and their NDCG on the users of some stages; default: of all."""

    def __init__(self, family: str, stages: Sequence[Stage], done: Callable[[int], None]) -> None:
        self.tried: list[dict[str, Any]] = []
        self.by_user: dict[tuple[str, Choice], NDArray[np.float64]] = {}
        self._family, self._stages, self._done = family, stages, done

    def value(self, arm: str, choice: Choice, stages: Sequence[Stage] | None = None) -> float:
        """Mean NDCG over the users, who are kept in ``by_user``."""
        found = []
        for stage in self._stages if stages is None else stages:
            events = stage.maker.events(arm, choice, seed=0)
            found.append(stage.judge.trial(self._family, choice.options, events, seed=0).ranking.ndcg)
            self._done(1)
        self.by_user[arm, choice] = np.concatenate(found)
        ndcg = float(self.by_user[arm, choice].mean())
        self.tried.append(
            {"arm": arm, "options": choice.options, "draw": choice.draw.to_json(), "weights": list(choice.weights),
             "source_weight": choice.source_weight, "windows": len(found), "ndcg": ndcg}
        )  # fmt: skip
        return ndcg

    def best(self, arm: str, choices: list[Choice], stages: Sequence[Stage] | None = None) -> tuple[float, Choice]:
        """The highest value, and the first choice that has it."""
        return max(((self.value(arm, choice, stages), choice) for choice in choices), key=lambda found: found[0])


def fits_of(settings: Settings, family: str) -> int:
    """The most fits that `tune` makes."""
    wanted = settings.downstream
    draws = len(wanted.weights) + len(wanted.temperatures) - 1 + len(wanted.volumes) - 1
    of_all = 1 + draws + 3 * len(_PARTS) + 3
    return len(GRIDS.get(family, ({},))) + len(SOURCE_WEIGHTS) + wanted.windows * of_all


def _redrawn(choice: Choice, change: dict[str, Any]) -> Choice:
    return replace(choice, draw=replace(choice.draw, **change))


def _lighter(choice: Choice, segment: int) -> list[Choice]:
    """The choice with less weight in one segment, 0 first."""
    cold, sparse, dense = (
        [weight * part if number == segment else weight for part in _PARTS] for number, weight in enumerate(choice.weights)
    )
    return [replace(choice, weights=weights) for weights in zip(cold, sparse, dense, strict=True)]
