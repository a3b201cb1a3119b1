# SPDX-License-Identifier: Apache-2.0
"""Hyperparameter tuning of each arm on validation windows, with the same budget for all arms.

Tuned are the half-life of recent popularity, the model settings for real events alone, the source weight of joint training, and for every
arm with synthetic events (real+scalr and controls alike) λ, model settings, temperature, volume, boost and λ by segment. Hyperparameters
are searched one after the other, and a grid whose best value is on its edge is extended.

Windows follow one another in time, and the users of all windows count: the best temperature varies between seasons by more than one
window's confidence interval shows (docs/adr/0017).

λ is set to 0 for a segment that ranks worse with synthetic events than with real events alone. It is 0 for all segments if the arm is not
ahead of real events alone on validation, or is behind the strongest baseline.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.evaluation.acceptance import STRICT, describe_acceptance, threshold_for
from scalr_prod.evaluation.arms import JOINT_TRAINING, REAL_ONLY, WITH_SYNTHETIC, ArmChoice
from scalr_prod.evaluation.models import family_hyperparameters
from scalr_prod.evaluation.models.recent_popularity import HALF_LIVES
from scalr_prod.evaluation.search import Hyperparameter, search_values
from scalr_prod.evaluation.statistics import TwoWayBootstrap, paired_bootstrap
from scalr_prod.evaluation.translation import DrawOptions
from scalr_prod.evaluation.trial_cache import TrialCache
from scalr_prod.evaluation.user_panel import UserPanel
from scalr_prod.generation import SEGMENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from scalr_prod.config import Settings
    from scalr_prod.evaluation.statistics import ArmComparison
    from scalr_prod.evaluation.trial_cache import ValidationWindow

__all__ = ["Tuner", "tune_half_life"]

logger = logging.getLogger(__name__)

SOURCE_WEIGHT: Final = Hyperparameter("source_weight", (0.1, 0.3, 1.0))
#: The confidence filter is off, or drops events less likely than popularity alone makes them.
MIN_LIFT: Final = Hyperparameter("min_lift", (0.0, 1.0), high=1.0)
BOOST: Final = Hyperparameter("boost", (0.0, 0.1, 0.3, 1.0, 3.0), high=300.0)
#: λ of one segment relative to the λ chosen for all, in ascending order.
_SEGMENT_FACTORS: Final = (0.0, 1 / 3, 1.0, 3.0)
#: Choices whose validation metrics differ relatively by less than this count as equal.
_TOLERANCE: Final = 0.005


def tune_half_life(windows: Sequence[ValidationWindow]) -> dict[str, Any]:
    """Tune the ``half_life`` (days) of `popular_lately`, and return it with the validation results."""
    found: dict[float, NDArray[np.float64]] = {}

    def value(half_life: float) -> float:
        found[half_life] = np.concatenate(
            [window.evaluator.evaluate(window.evaluator.recent_popularity(half_life)).ranking.ndcg for window in windows]
        )
        return float(found[half_life].mean())

    knob = Hyperparameter("half_life", HALF_LIVES)
    best, on_edge = search_values(knob, value)
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
        windows: Validation windows, latest first.
        settings: ``[downstream]`` gives the values to try; ``[generation]`` gives filter and alignment.
        recent_popularity: Result of `tune_half_life`.
        on_fit: Called with a description and 1 after every fit.
        quick: For arms with synthetic events, search only λ, the model settings and the boost, as in a quick verdict.
    """

    def __init__(
        self,
        family: str,
        windows: Sequence[ValidationWindow],
        settings: Settings,
        recent_popularity: dict[str, Any],
        on_fit: Callable[[str, int], None],
        *,
        quick: bool = False,
    ) -> None:
        self.quick = quick
        self.family, self.windows, self.settings, self.recent_popularity = family, windows, settings, recent_popularity
        self.trials = TrialCache(family, windows, recent_popularity["half_life"], on_fit)
        self.segments = np.concatenate([window.evaluator.segments for window in windows])
        self.params_on_edge: dict[str, list[str]] = {}
        #: Best choices of arms whose λ was set to 0 for lack of evidence, and their gain over real events alone.
        self.refused: dict[str, tuple[ArmChoice, ArmComparison]] = {}
        #: Acceptance result of each arm with λ > 0.
        self.acceptances: dict[str, dict[str, Any]] = {}
        self._real_choice: ArmChoice | None = None

    def choose(self, arm: str) -> tuple[ArmChoice, dict[str, Any]]:
        """Tune an arm, and return its choice with the validation results."""
        if arm == REAL_ONLY:
            choice = self.real_choice()
        elif arm == JOINT_TRAINING:
            choice = self._choose_joint()
        else:
            choice = self._choose_synthetic(arm)
        figures: dict[str, Any] = {
            "ndcg": float(self.trials.ndcg(arm, choice).mean()),
            "chosen_by": self.trials.selection_metric,
            self.trials.selection_metric: self.trials.mean_score(arm, choice),
            "users": len(self.segments),
            "windows": len(self.windows),
            "fits": self.trials.fits[arm],
            "rankings": self.trials.rankings[arm],
            "on_edge": self.params_on_edge.get(arm, []),
            "tried": [trial for trial in self.trials.tried if trial["arm"] == arm],
        }
        if arm not in {REAL_ONLY, JOINT_TRAINING}:
            ours, alone = self.trials.user_scores(arm, choice), self.trials.user_scores(REAL_ONLY, self.real_choice())
            over_real = paired_bootstrap(ours, alone, seed=self.settings.downstream.seed)
            figures |= over_real.lift_to_json()
        if arm in self.acceptances:
            figures["bar"] = self.acceptances[arm]
        if arm in self.refused:
            best, found = self.refused[arm]
            figures["refused"] = found.lift_to_json() | {"choice": best.to_json()}
        return choice, figures

    def real_choice(self) -> ArmChoice:
        """Return the best choice for real events alone: model settings, decay of events, boost."""
        if self._real_choice is None:
            wanted, generation = self.settings.downstream, self.settings.generation
            draw = DrawOptions(wanted.volumes[0], wanted.temperatures[0], generation.min_lift, generation.align)
            knobs = family_hyperparameters(self.family)
            choice = ArmChoice({knob.name: _typed_value(knob, knob.values[0]) for knob in knobs}, draw, (0.0, 0.0, 0.0), 1.0)
            # Twice, since the best model settings depend on the boost. The other arms start from this result.
            choice = self._search_in_turn(REAL_ONLY, choice, [*knobs, BOOST, *knobs])
            self._real_choice = choice
        return self._real_choice

    def strongest_baseline(self) -> tuple[str, NDArray[np.float64]]:
        """Return the best baseline without synthetic events by NDCG, and its validation scores [V]; `popular_lately` has only NDCG."""
        name = self.best_baselines()["all"]
        listed = name == "popular_lately" and self.trials.selection_metric == "ndcg"
        return name, self.recent_popularity["by_user"] if listed else self.trials.user_scores(REAL_ONLY, self.real_choice())

    def best_baselines(self) -> dict[str, str]:
        """Return the better of `popular_lately` and ``real`` on validation, for all users (``all``) and for each non-empty segment."""
        real, listed = self.trials.ndcg(REAL_ONLY, self.real_choice()), self.recent_popularity["by_user"]
        groups = {"all": np.ones(len(real), dtype=bool)} | {name: self.segments == n for n, name in enumerate(SEGMENTS)}
        return {
            name: "popular_lately" if listed[users].mean() > real[users].mean() else REAL_ONLY
            for name, users in groups.items()
            if users.any()
        }

    def _choose_joint(self) -> ArmChoice:
        """Tune joint training: the source weight, all model settings again (two domains may need others), and the source weight again."""
        return self._search_in_turn(
            JOINT_TRAINING, self.real_choice(), [SOURCE_WEIGHT, *family_hyperparameters(self.family), SOURCE_WEIGHT, BOOST]
        )

    def _choose_synthetic(self, arm: str) -> ArmChoice:
        wanted, real = self.settings.downstream, self.real_choice()
        draw = replace(real.draw, volume=wanted.volumes[-1], temperature=wanted.temperatures[len(wanted.temperatures) // 2])
        knobs = [
            Hyperparameter("weight", wanted.weights, step=10**0.5),
            *family_hyperparameters(self.family),
            Hyperparameter("temperature", wanted.temperatures, step=2.0, low=0.02, high=4.0),
            Hyperparameter("volume", wanted.volumes, step=2.5, low=1, high=100, is_integer=True),
            MIN_LIFT,
            Hyperparameter("weight", wanted.weights, step=10**0.5),
            BOOST,
        ]
        start = replace(real, draw=draw, weights=(wanted.weights[0],) * 3)
        if self.quick:
            knobs = [knob for knob in knobs[:-2] if knob.name not in {"temperature", "volume", MIN_LIFT.name}] + [BOOST]
        if arm == "synthetic_only":  # without real events λ has no effect
            return self._search_in_turn(arm, start, [knob for knob in knobs if knob.name != "weight"])
        choice = self._search_in_turn(arm, start, knobs)
        choice = self._tune_segment_weights(arm, choice, self.trials.user_scores(REAL_ONLY, real))
        if not any(choice.weights):
            logger.warning("%s: the events of %s do not help on the validation windows; λ is 0", self.family, arm)
            return replace(real, draw=choice.draw)
        over_real, over_strongest = self._compare_with_baselines(arm, choice)
        threshold = threshold_for(self.windows[0]) if arm == WITH_SYNTHETIC else STRICT
        bar = self.acceptances[arm] = threshold.assess(over_real, over_strongest)
        if not bar["passed"]:
            self.refused[arm] = choice, over_real
            gain = "%+.1f %% (95 %%: %+.1f … %+.1f; %s)"
            message = f"%s: the events of %s do not help on the validation windows beyond chance: {gain}; λ is 0"
            logger.warning(message, self.family, arm, over_real.lift_pct, *over_real.ci95, describe_acceptance(bar))
            return replace(real, draw=choice.draw)
        return choice

    def _compare_with_baselines(self, arm: str, choice: ArmChoice) -> tuple[ArmComparison, ArmComparison]:
        """Compare an arm with real events alone, and with the strongest baseline.

        For rankings, users and items are resampled: hits concentrate on few items, which limits the evidence of a validation slice.
        """
        seed = self.settings.downstream.seed
        if self.trials.selection_metric != "ndcg":
            scores, (_, strongest) = self.trials.user_scores(arm, choice), self.strongest_baseline()
            alone = self.trials.user_scores(REAL_ONLY, self.real_choice())
            return paired_bootstrap(scores, alone, seed=seed), paired_bootstrap(scores, strongest, seed=seed)
        in_time = self.windows[::-1]
        panel = UserPanel.from_splits([window.evaluator.split for window in in_time])
        bootstrap = TwoWayBootstrap(panel.user, panel.n_items, seed=seed)
        ours, real = (
            panel.ndcg_contributions(self.trials.outcomes(*one)[::-1])
            for one in ((arm, choice), (REAL_ONLY, self.real_choice()))
        )
        best = real
        if self.strongest_baseline()[0] == "popular_lately":
            best = panel.ndcg_contributions(
                [
                    [window.evaluator.evaluate(window.evaluator.recent_popularity(self.recent_popularity["half_life"]))]
                    for window in in_time
                ]
            )
        return bootstrap.compare(ours, real), bootstrap.compare(ours, best)

    def _search_in_turn(self, arm: str, choice: ArmChoice, hyperparameters: Sequence[Hyperparameter]) -> ArmChoice:
        """Search one hyperparameter after the other; each search starts from the best values found so far."""
        edges: dict[str, bool] = {}
        for knob in hyperparameters:
            if len(knob.values) == 1 and knob.name in {"temperature", "volume"}:
                choice = _with_value(choice, knob, knob.values[0])
                continue
            best, edges[knob.name] = search_values(knob, partial(self._objective, arm, choice, knob))
            choice = (
                self._best_boost(arm, _with_value(choice, knob, best))
                if knob.name == "weight"
                else _with_value(choice, knob, best)
            )
        choice = self._tune_segment_boosts(arm, choice)
        self.params_on_edge[arm] = [name for name, on_edge in edges.items() if on_edge]
        for name in self.params_on_edge[arm]:
            logger.warning("%s, %s: the best %s is the outermost of those tried", self.family, arm, name)
        return choice

    def _objective(self, arm: str, choice: ArmChoice, hyperparameter: Hyperparameter, value: float) -> float:
        changed = _with_value(choice, hyperparameter, value)
        return self.trials.mean_score(arm, self._best_boost(arm, changed) if hyperparameter.name == "weight" else changed)

    def _best_boost(self, arm: str, choice: ArmChoice) -> ArmChoice:
        """Return the choice with the best of a few boosts, which need no fit; the often large boost of real events alone would hide λ."""
        boosts = dict.fromkeys((choice.boost, (0.0,) * 3, (1.0,) * 3, self.real_choice().boost))
        return max((replace(choice, boost=boost) for boost in boosts), key=partial(self.trials.mean_score, arm))

    def _tune_segment_boosts(self, arm: str, choice: ArmChoice) -> ArmChoice:
        """Return the choice with the best boost of each segment, among those tried for all: recent popularity helps new users most."""
        boosts = dict.fromkeys((*choice.boost, *BOOST.values))
        by_user = {boost: self.trials.user_scores(arm, _with_value(choice, BOOST, boost)) for boost in boosts}
        found = list(choice.boost)
        for segment in range(3):
            own = self.segments == segment
            if own.any():
                found[segment] = max(boosts, key=lambda boost, own=own: float(by_user[boost][own].mean()))  # type: ignore[misc]
        cold, sparse, dense = found
        return replace(choice, boost=(cold, sparse, dense))

    def _tune_segment_weights(self, arm: str, choice: ArmChoice, real_scores: NDArray[np.float64]) -> ArmChoice:
        """Tune λ by segment: the smallest that is as good as the best, and that does not make the segment worse than real events alone.

        As good is required both of all users together and of the segment's users.
        """
        own = [self.segments == segment for segment in range(3)]

        def harmed(one: ArmChoice, segment: int) -> bool:
            by_user = self.trials.user_scores(arm, one)
            return one.weights[segment] > 0 and by_user[own[segment]].sum() < real_scores[own[segment]].sum()

        for segment in (2, 1, 0):
            if not own[segment].any():
                continue
            candidates = [
                _with_segment_weight(choice, segment, choice.weights[segment] * factor) for factor in _SEGMENT_FACTORS
            ]
            harmless = [candidate for candidate in candidates if not harmed(candidate, segment)]
            values = [self.trials.mean_score(arm, candidate) for candidate in harmless]
            # Also required of the segment: a small one can lose most of its gain before the mean over all users shows it.
            own_values = [float(self.trials.user_scores(arm, candidate)[own[segment]].mean()) for candidate in harmless]
            best = int(np.argmax(values))
            choice = next(
                candidate
                for candidate, value, own_value in zip(harmless, values, own_values, strict=True)
                if _is_as_good(value, values[best]) and _is_as_good(own_value, own_values[best])
            )
        # Lowering λ of other segments can make a segment worse that was not before.
        for _ in range(3):
            for segment in range(3):
                if harmed(choice, segment):
                    choice = _with_segment_weight(choice, segment, 0.0)
        return choice


def _is_as_good(value: float, best: float) -> bool:
    return value >= best - _TOLERANCE * abs(best)


def _typed_value(hyperparameter: Hyperparameter, value: float) -> float:
    return int(value) if hyperparameter.is_integer else value


def _with_value(choice: ArmChoice, hyperparameter: Hyperparameter, value: float) -> ArmChoice:
    value = _typed_value(hyperparameter, value)
    if hyperparameter.name == "weight":
        return replace(choice, weights=(value,) * 3)
    if hyperparameter.name in {"temperature", "volume", "min_lift"}:
        return replace(choice, draw=replace(choice.draw, **{hyperparameter.name: value}))  # type: ignore[arg-type]
    if hyperparameter.name == "boost":
        return replace(choice, boost=(value,) * 3)
    if hyperparameter.name == "source_weight":
        return replace(choice, source_weight=value)
    return replace(choice, options=choice.options | {hyperparameter.name: value})


def _with_segment_weight(choice: ArmChoice, segment: int, weight: float) -> ArmChoice:
    cold, sparse, dense = (weight if number == segment else own for number, own in enumerate(choice.weights))
    return replace(choice, weights=(cold, sparse, dense))
