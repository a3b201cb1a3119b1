# SPDX-License-Identifier: Apache-2.0
"""Hyperparameter tuning of each arm on validation windows, with the same budget for all arms.

Tuned are the half-life of recent popularity, the model settings for real events alone, the source weight of joint training, and for every
arm with synthetic events (real+scalr and controls alike) λ, model settings, temperature, volume, boost and λ by segment. Hyperparameters
are searched one after the other, and a grid whose best value is on its edge is extended.

Windows follow one another in time, and the users of all windows count: the best temperature varies between seasons by more than one
window's confidence interval shows (docs/adr/0013).

λ is set to 0 for a segment that ranks worse with synthetic events than with real events alone. It is 0 for all segments if the arm is not
ahead of real events alone on validation, or is behind the strongest baseline.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.downstream.arms import BASE, OURS, RIVAL, Choice
from scalr_prod.downstream.bar import STRICT, bar_of, bar_sentence
from scalr_prod.downstream.models import knobs_of
from scalr_prod.downstream.models.lately import HALF_LIVES
from scalr_prod.downstream.panel import Panel
from scalr_prod.downstream.search import Knob, search
from scalr_prod.downstream.statistics import TwoWayBootstrap, paired_bootstrap
from scalr_prod.downstream.translation import Draw
from scalr_prod.downstream.trials import Trials
from scalr_prod.policy import SEGMENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from scalr_prod.downstream.statistics import Comparison
    from scalr_prod.downstream.trials import Stage
    from scalr_prod.settings import Settings

__all__ = ["Tuner", "tune_lately"]

logger = logging.getLogger(__name__)

SOURCE_WEIGHT: Final = Knob("source_weight", (0.1, 0.3, 1.0))
#: The confidence filter is off, or drops events less likely than popularity alone makes them.
FILTER: Final = Knob("min_lift", (0.0, 1.0), high=1.0)
BOOST: Final = Knob("boost", (0.0, 0.1, 0.3, 1.0, 3.0), high=300.0)
#: λ of one segment relative to the λ chosen for all, in ascending order.
_PARTS: Final = (0.0, 1 / 3, 1.0, 3.0)
#: Choices whose validation metrics differ relatively by less than this count as equal.
_WORTH: Final = 0.005


def tune_lately(stages: Sequence[Stage]) -> dict[str, Any]:
    """Tune the ``half_life`` (days) of `popular_lately`, and return it with the validation results."""
    found: dict[float, NDArray[np.float64]] = {}

    def value(half_life: float) -> float:
        found[half_life] = np.concatenate(
            [window.judge.judge(window.judge.lately(half_life)).ranking.ndcg for window in stages]
        )
        return float(found[half_life].mean())

    knob = Knob("half_life", HALF_LIVES)
    best, on_edge = search(knob, value)
    return {
        "half_life": best,
        "on_edge": on_edge,
        "ndcg": float(found[best].mean()),
        "tried": {f"{half_life:g}": float(by_user.mean()) for half_life, by_user in sorted(found.items())},
        "by_user": found[best],
    }


class Tuner:
    """Tunes the arms of one model family.

    Args:
        family: Name of the family.
        stages: Validation windows, latest first.
        settings: ``[downstream]`` gives the values to try; ``[generation]`` gives filter and alignment.
        lately: Result of `tune_lately`.
        done: Called with a description and 1 after every fit.
        few: For arms with synthetic events, search only λ, the model settings and the boost, as in a quick verdict.
    """

    def __init__(
        self,
        family: str,
        stages: Sequence[Stage],
        settings: Settings,
        lately: dict[str, Any],
        done: Callable[[str, int], None],
        *,
        few: bool = False,
    ) -> None:
        self.few = few
        self.family, self.stages, self.settings, self.lately = family, stages, settings, lately
        self.trials = Trials(family, stages, lately["half_life"], done)
        self.segments = np.concatenate([window.judge.segments for window in stages])
        self.edges: dict[str, list[str]] = {}
        #: Best choices of arms whose λ was set to 0 for lack of evidence, and their gain over real events alone.
        self.refused: dict[str, tuple[Choice, Comparison]] = {}
        #: Acceptance result of each arm with λ > 0.
        self.bars: dict[str, dict[str, Any]] = {}
        self._real: Choice | None = None

    def of(self, arm: str) -> tuple[Choice, dict[str, Any]]:
        """Tune an arm, and return its choice with the validation results."""
        if arm == BASE:
            choice = self.real()
        elif arm == RIVAL:
            choice = self._rival()
        else:
            choice = self._synthetic(arm)
        figures: dict[str, Any] = {
            "ndcg": float(self.trials.ndcg(arm, choice).mean()),
            "chosen_by": self.trials.measure,
            self.trials.measure: self.trials.value(arm, choice),
            "users": len(self.segments),
            "windows": len(self.stages),
            "fits": self.trials.fits[arm],
            "rankings": self.trials.rankings[arm],
            "on_edge": self.edges.get(arm, []),
            "tried": [trial for trial in self.trials.tried if trial["arm"] == arm],
        }
        if arm not in {BASE, RIVAL}:
            ours, alone = self.trials.by_user(arm, choice), self.trials.by_user(BASE, self.real())
            over_real = paired_bootstrap(ours, alone, seed=self.settings.downstream.seed)
            figures |= over_real.gain()
        if arm in self.bars:
            figures["bar"] = self.bars[arm]
        if arm in self.refused:
            best, found = self.refused[arm]
            figures["refused"] = found.gain() | {"choice": best.to_json()}
        return choice, figures

    def real(self) -> Choice:
        """Return the best choice for real events alone: model settings, decay of events, boost."""
        if self._real is None:
            wanted, generation = self.settings.downstream, self.settings.generation
            draw = Draw(wanted.volumes[0], wanted.temperatures[0], generation.min_lift, generation.align)
            knobs = knobs_of(self.family)
            choice = Choice({knob.name: _value(knob, knob.values[0]) for knob in knobs}, draw, (0.0, 0.0, 0.0), 1.0)
            # Twice, since the best model settings depend on the boost. The other arms start from this result.
            choice = self._searched(BASE, choice, [*knobs, BOOST, *knobs])
            self._real = choice
        return self._real

    def strongest(self) -> tuple[str, NDArray[np.float64]]:
        """Return the best baseline without synthetic events by NDCG, and its validation scores [V]; `popular_lately` has only NDCG."""
        name = self.best_baselines()["all"]
        listed = name == "popular_lately" and self.trials.measure == "ndcg"
        return name, self.lately["by_user"] if listed else self.trials.by_user(BASE, self.real())

    def best_baselines(self) -> dict[str, str]:
        """Return the better of `popular_lately` and ``real`` on validation, for all users (``all``) and for each non-empty segment."""
        real, listed = self.trials.ndcg(BASE, self.real()), self.lately["by_user"]
        groups = {"all": np.ones(len(real), dtype=bool)} | {name: self.segments == n for n, name in enumerate(SEGMENTS)}
        return {
            name: "popular_lately" if listed[users].mean() > real[users].mean() else BASE
            for name, users in groups.items()
            if users.any()
        }

    def _rival(self) -> Choice:
        """Tune joint training: the source weight, all model settings again (two domains may need others), and the source weight again."""
        return self._searched(RIVAL, self.real(), [SOURCE_WEIGHT, *knobs_of(self.family), SOURCE_WEIGHT, BOOST])

    def _synthetic(self, arm: str) -> Choice:
        wanted, real = self.settings.downstream, self.real()
        draw = replace(real.draw, volume=wanted.volumes[-1], temperature=wanted.temperatures[len(wanted.temperatures) // 2])
        knobs = [
            Knob("weight", wanted.weights, step=10**0.5),
            *knobs_of(self.family),
            Knob("temperature", wanted.temperatures, step=2.0, low=0.02, high=4.0),
            Knob("volume", wanted.volumes, step=2.5, low=1, high=100, whole=True),
            FILTER,
            Knob("weight", wanted.weights, step=10**0.5),
            BOOST,
        ]
        start = replace(real, draw=draw, weights=(wanted.weights[0],) * 3)
        if self.few:
            knobs = [knob for knob in knobs[:-2] if knob.name not in {"temperature", "volume", FILTER.name}] + [BOOST]
        if arm == "synthetic_only":  # without real events λ has no effect
            return self._searched(arm, start, [knob for knob in knobs if knob.name != "weight"])
        choice = self._searched(arm, start, knobs)
        choice = self._by_segment(arm, choice, self.trials.by_user(BASE, real))
        if not any(choice.weights):
            logger.warning("%s: the events of %s do not help on the validation windows; λ is 0", self.family, arm)
            return replace(real, draw=choice.draw)
        over_real, over_strongest = self._compared(arm, choice)
        threshold = bar_of(self.stages[0]) if arm == OURS else STRICT
        bar = self.bars[arm] = threshold.judged(over_real, over_strongest)
        if not bar["passed"]:
            self.refused[arm] = choice, over_real
            gain = "%+.1f %% (95 %%: %+.1f … %+.1f; %s)"
            message = f"%s: the events of %s do not help on the validation windows beyond chance: {gain}; λ is 0"
            logger.warning(message, self.family, arm, over_real.lift_pct, *over_real.ci95, bar_sentence(bar))
            return replace(real, draw=choice.draw)
        return choice

    def _compared(self, arm: str, choice: Choice) -> tuple[Comparison, Comparison]:
        """Compare an arm with real events alone, and with the strongest baseline.

        For rankings, users and items are resampled: hits concentrate on few items, which limits the evidence of a validation slice.
        """
        seed = self.settings.downstream.seed
        if self.trials.measure != "ndcg":
            scores, (_, strongest) = self.trials.by_user(arm, choice), self.strongest()
            alone = self.trials.by_user(BASE, self.real())
            return paired_bootstrap(scores, alone, seed=seed), paired_bootstrap(scores, strongest, seed=seed)
        in_time = self.stages[::-1]
        panel = Panel.of([window.judge.scene for window in in_time])
        bootstrap = TwoWayBootstrap(panel.owner, panel.n_items, seed=seed)
        ours, real = (panel.hits(self.trials.outcomes(*one)[::-1]) for one in ((arm, choice), (BASE, self.real())))
        best = real
        if self.strongest()[0] == "popular_lately":
            best = panel.hits([[window.judge.judge(window.judge.lately(self.lately["half_life"]))] for window in in_time])
        return bootstrap.compare(ours, real), bootstrap.compare(ours, best)

    def _searched(self, arm: str, choice: Choice, knobs: Sequence[Knob]) -> Choice:
        """Search one hyperparameter after the other; each search starts from the best values found so far."""
        edges: dict[str, bool] = {}
        for knob in knobs:
            if len(knob.values) == 1 and knob.name in {"temperature", "volume"}:
                choice = _with(choice, knob, knob.values[0])
                continue
            best, edges[knob.name] = search(knob, partial(self._value, arm, choice, knob))
            choice = self._best_boost(arm, _with(choice, knob, best)) if knob.name == "weight" else _with(choice, knob, best)
        choice = self._boost_by_segment(arm, choice)
        self.edges[arm] = [name for name, on_edge in edges.items() if on_edge]
        for name in self.edges[arm]:
            logger.warning("%s, %s: the best %s is the outermost of those tried", self.family, arm, name)
        return choice

    def _value(self, arm: str, choice: Choice, knob: Knob, value: float) -> float:
        changed = _with(choice, knob, value)
        return self.trials.value(arm, self._best_boost(arm, changed) if knob.name == "weight" else changed)

    def _best_boost(self, arm: str, choice: Choice) -> Choice:
        """Return the choice with the best of a few boosts, which need no fit; the often large boost of real events alone would hide λ."""
        boosts = dict.fromkeys((choice.boost, (0.0,) * 3, (1.0,) * 3, self.real().boost))
        return max((replace(choice, boost=boost) for boost in boosts), key=partial(self.trials.value, arm))

    def _boost_by_segment(self, arm: str, choice: Choice) -> Choice:
        """Return the choice with the best boost of each segment, among those tried for all: recent popularity helps new users most."""
        boosts = dict.fromkeys((*choice.boost, *BOOST.values))
        by_user = {boost: self.trials.by_user(arm, _with(choice, BOOST, boost)) for boost in boosts}
        found = list(choice.boost)
        for segment in range(3):
            own = self.segments == segment
            if own.any():
                found[segment] = max(boosts, key=lambda boost, own=own: float(by_user[boost][own].mean()))  # type: ignore[misc]
        cold, sparse, dense = found
        return replace(choice, boost=(cold, sparse, dense))

    def _by_segment(self, arm: str, choice: Choice, alone: NDArray[np.float64]) -> Choice:
        """Tune λ by segment: the smallest that is as good as the best, and that does not make the segment worse than real events alone.

        As good is required both of all users together and of the segment's users.
        """
        own = [self.segments == segment for segment in range(3)]

        def harmed(one: Choice, segment: int) -> bool:
            by_user = self.trials.by_user(arm, one)
            return one.weights[segment] > 0 and by_user[own[segment]].sum() < alone[own[segment]].sum()

        for segment in (2, 1, 0):
            if not own[segment].any():
                continue
            candidates = [_weighted(choice, segment, choice.weights[segment] * factor) for factor in _PARTS]
            harmless = [candidate for candidate in candidates if not harmed(candidate, segment)]
            values = [self.trials.value(arm, candidate) for candidate in harmless]
            # Also required of the segment: a small one can lose most of its gain before the mean over all users shows it.
            own_values = [float(self.trials.by_user(arm, candidate)[own[segment]].mean()) for candidate in harmless]
            best = int(np.argmax(values))
            choice = next(
                candidate
                for candidate, value, own_value in zip(harmless, values, own_values, strict=True)
                if _as_good(value, values[best]) and _as_good(own_value, own_values[best])
            )
        # Lowering λ of other segments can make a segment worse that was not before.
        for _ in range(3):
            for segment in range(3):
                if harmed(choice, segment):
                    choice = _weighted(choice, segment, 0.0)
        return choice


def _as_good(value: float, best: float) -> bool:
    return value >= best - _WORTH * abs(best)


def _value(knob: Knob, value: float) -> float:
    return int(value) if knob.whole else value


def _with(choice: Choice, knob: Knob, value: float) -> Choice:
    value = _value(knob, value)
    if knob.name == "weight":
        return replace(choice, weights=(value,) * 3)
    if knob.name in {"temperature", "volume", "min_lift"}:
        return replace(choice, draw=replace(choice.draw, **{knob.name: value}))  # type: ignore[arg-type]
    if knob.name == "boost":
        return replace(choice, boost=(value,) * 3)
    if knob.name == "source_weight":
        return replace(choice, source_weight=value)
    return replace(choice, options=choice.options | {knob.name: value})


def _weighted(choice: Choice, segment: int, weight: float) -> Choice:
    cold, sparse, dense = (weight if number == segment else own for number, own in enumerate(choice.weights))
    return replace(choice, weights=(cold, sparse, dense))
