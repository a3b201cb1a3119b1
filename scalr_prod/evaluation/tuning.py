# SPDX-License-Identifier: Apache-2.0
"""Hyperparameter tuning of each arm on validation splits, with the same budget for all arms.

Tuning covers the half-life of the popularity baseline, the model settings for real events only, the source weight of joint training,
and for every arm with synthetic events (real+scalr and controls alike) all model settings again, λ, temperature, volume and λ by segment.
Hyperparameters are searched one after the other, those that make a fit several times as slow last, and a grid whose best value is on its
edge is extended. Values are chosen by NDCG at a
depth of at least 100, which varies less between users than NDCG@20. λ, temperature, volume and filter follow the
one-standard-error rule: among values within one standard error of the best score, the one nearest to the default is chosen.

Scores are averaged over the test users of consecutive windows, as they are and as if they were new. One window is not enough: the best
temperature varies more between seasons than its confidence interval suggests (docs/adr/0017).

λ is set to 0 for a segment that ranks worse with synthetic events than with real events only. It is 0 for all segments if the gain over
real events only is not accepted (see `acceptance`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.config import DEFAULT_SYNTHETIC_WEIGHT
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.evaluation.acceptance import Acceptance, describe_acceptance
from scalr_prod.evaluation.arms import (
    BEST_BY_SEGMENT,
    JOINT_BASELINE,
    POPULARITY_BASELINE,
    REAL_ONLY,
    SYNTHETIC_ONLY,
    WITH_SYNTHETIC,
    Arm,
)
from scalr_prod.evaluation.models import family_hyperparameters
from scalr_prod.evaluation.models.cluster_popularity import CLUSTER_HALF_LIVES, CLUSTERS
from scalr_prod.evaluation.models.recent_popularity import HALF_LIVES
from scalr_prod.evaluation.parallel_fits import FitPool
from scalr_prod.evaluation.search import Hyperparameter, log_distance, search_values
from scalr_prod.evaluation.signal import Signal, classify_signal, measure_signal
from scalr_prod.evaluation.statistics import MetricContributions, TwoWayClusters, paired_bootstrap
from scalr_prod.evaluation.translation import DrawOptions
from scalr_prod.evaluation.trial_cache import TrialCache
from scalr_prod.evaluation.user_panel import UserPanel
from scalr_prod.generation import SEGMENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from scalr_prod.config import Settings
    from scalr_prod.evaluation.statistics import ArmComparison
    from scalr_prod.evaluation.trial_cache import ValidationSplit


logger = logging.getLogger(__name__)

SOURCE_WEIGHT: Final = Hyperparameter("source_weight", (0.1, 0.3, 1.0))
BOOST: Final = Hyperparameter("boost", (0.0, 0.1, 0.3, 1.0, 3.0), high=300.0)
#: λ of a segment is 0 unless synthetic events improve its validation metric by more than this share.
_TOLERANCE: Final = 0.01
#: Groups of users for nested selection: values are chosen by the other groups and judged on each.
_SELECTION_GROUPS: Final = 5


@dataclass(frozen=True)
class TunedHalfLife:
    """Half-life of the popularity baseline that validation chose.

    Attributes:
        half_life: Days.
        on_edge: Whether it is the outermost of the values tried.
        user_ndcg: float64 [V]. NDCG of the popularity baseline for each user of all windows.
        tried: Half-life → mean NDCG.
    """

    half_life: float
    on_edge: bool
    user_ndcg: NDArray[np.float64]
    tried: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        ndcg = float(self.user_ndcg.mean())
        return {"half_life": self.half_life, "on_edge": self.on_edge, "ndcg": ndcg, "tried": self.tried}


@dataclass(frozen=True)
class ValidationResults:
    """What validation measured for the values that it chose.

    Attributes:
        ndcg: Mean NDCG over the users of all windows, at the depth of validation.
        selection_metric: Metric that the values were chosen by.
        score: Mean of that metric.
        users: Number of validation users.
        windows: Number of validation windows.
        fits: Number of models fitted.
        rankings: Number of rankings made.
        on_edge: Hyperparameters whose best value is the outermost of those tried.
        tried: Every combination of values tried with its score, as plain JSON values.
        over_real: Comparison with real events only, by user; None for arms without synthetic events.
        acceptance: Decision about λ; None for arms that need none, and if no λ > 0 was better than λ = 0.
    """

    ndcg: float
    selection_metric: str
    score: float
    users: int
    windows: int
    fits: int
    rankings: int
    on_edge: Sequence[str]
    tried: Sequence[dict[str, Any]]
    over_real: ArmComparison | None
    acceptance: Acceptance | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        results: dict[str, Any] = {
            "ndcg": self.ndcg,
            "chosen_by": self.selection_metric,
            self.selection_metric: self.score,
            "users": self.users,
            "windows": self.windows,
            "fits": self.fits,
            "rankings": self.rankings,
            "on_edge": list(self.on_edge),
            "tried": list(self.tried),
        }
        if self.over_real is not None:
            results |= self.over_real.lift_to_json()
        if self.acceptance is not None:
            results["bar"] = self.acceptance.to_json()
            if not self.acceptance.passed:
                candidate = self.acceptance.candidate.hyperparameters_to_json()
                results["refused"] = self.acceptance.reported.lift_to_json() | {"choice": candidate}
        return results


@dataclass(frozen=True)
class TunedArm:
    """An arm with the values with which it is evaluated.

    Attributes:
        arm: The arm; λ is 0 if synthetic events were refused.
        blended: The arm with the boost by recent popularity that suits it best; no other value depends on it.
        validation: Results of validation; None for a run's default settings, which validation did not choose.
    """

    arm: Arm
    blended: Arm
    validation: ValidationResults | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "options": self.arm.options,
            "draw": self.arm.draw.to_json(),
            "lambda": dict(zip(SEGMENTS, self.arm.weights, strict=True)),
            "source_weight": self.arm.source_weight,
            "boost": dict(zip(SEGMENTS, self.blended.boost, strict=True)),
            "helps": any(self.arm.weights),
            "validation": self.validation and self.validation.to_json(),
        }


@dataclass(frozen=True)
class TunedClusters(Jsonable):
    """Popularity by cluster of users as validation chose it.

    Attributes:
        clusters: Number of clusters.
        half_life: Days; infinite: no decay.
        ndcg: Mean NDCG over the users of all windows.
    """

    clusters: int
    half_life: float
    ndcg: float


def tune_clusters(splits: Sequence[ValidationSplit]) -> TunedClusters:
    """Tune the number of clusters and the half-life of popularity by cluster."""

    def mean_ndcg(clusters: int, half_life: float) -> float:
        models = [(split.evaluator, split.evaluator.cluster_popularity(clusters, half_life)) for split in splits]
        return float(np.concatenate([evaluator.evaluate(model).ranking.ndcg for evaluator, model in models]).mean())

    trials = [TunedClusters(*values, mean_ndcg(*values)) for values in product(CLUSTERS, CLUSTER_HALF_LIVES)]
    return max(trials, key=lambda trial: trial.ndcg)


def tune_half_life(splits: Sequence[ValidationSplit]) -> TunedHalfLife:
    """Tune the half-life of the popularity baseline."""
    user_ndcg: dict[float, NDArray[np.float64]] = {}

    def mean_ndcg(half_life: float) -> float:
        user_ndcg[half_life] = np.concatenate(
            [split.evaluator.evaluate(split.evaluator.recent_popularity(half_life)).ranking.ndcg for split in splits]
        )
        return float(user_ndcg[half_life].mean())

    best, on_edge = search_values(Hyperparameter("half_life", HALF_LIVES), mean_ndcg)
    tried = {f"{half_life:g}": float(ndcg.mean()) for half_life, ndcg in sorted(user_ndcg.items())}
    return TunedHalfLife(best, on_edge, user_ndcg[best], tried)


class Tuner:
    """Tunes the arms of one model family.

    Args:
        family: Name of the family.
        splits: Validation splits, those of the latest window first.
        settings: ``[downstream]`` gives the values to try; ``[generation]`` gives filter and alignment.
        recent_popularity: Result of `tune_half_life`.
        on_fit: Called with a description and 1 after every fit.
        quick: Search each value of the model once, as in a quick verdict.

    Attributes:
        pool: Runs the family's fits.
    """

    def __init__(
        self,
        family: str,
        splits: Sequence[ValidationSplit],
        settings: Settings,
        recent_popularity: TunedHalfLife,
        on_fit: Callable[[str, int], None],
        *,
        quick: bool = False,
    ) -> None:
        self.quick = quick
        self.family, self.splits, self.settings, self.recent_popularity = family, splits, settings, recent_popularity
        self.pool = FitPool.from_family(family, settings.downstream.threads)
        self.trials = TrialCache(family, splits, recent_popularity.half_life, on_fit, self.pool)
        self.segments = np.concatenate([split.evaluator.segments for split in splits])
        users = np.concatenate([split.evaluator.split.users for split in splits])
        _, number = np.unique(users, return_inverse=True)
        #: int64 [V]. Group of each user, for nested selection; a user is in one group at all windows.
        self._groups = np.random.default_rng(settings.downstream.seed).permutation(number.max() + 1)[number] % _SELECTION_GROUPS
        self._on_edge: dict[str, list[str]] = {}
        self._acceptances: dict[str, Acceptance] = {}
        self._real_arm: Arm | None = None

    def tune(self, name: str) -> TunedArm:
        """Tune the arm of this name."""
        if name == REAL_ONLY:
            arm = self.real_arm()
        elif name == JOINT_BASELINE:
            arm = self._tune_joint_baseline()
        else:
            arm = self._tune_synthetic(name)
        ndcg, score = float(self.trials.ndcg(arm).mean()), self.trials.mean_score(arm)
        over_real = None
        if arm.has_synthetic_events:
            scores, real_scores = self.trials.user_scores(arm), self.trials.user_scores(self.real_arm())
            over_real = paired_bootstrap(scores, real_scores, seed=self.settings.downstream.seed)
        blended = self._blend(arm)
        validation = ValidationResults(
            ndcg=ndcg,
            selection_metric=self.trials.selection_metric,
            score=score,
            users=len(self.segments),
            windows=len({split.evaluator.split.cutoff for split in self.splits}),
            fits=self.trials.fits[name],
            rankings=self.trials.rankings[name],
            on_edge=self._on_edge.get(name, []),
            tried=[trial for trial in self.trials.tried if trial["arm"] == name],
            over_real=over_real,
            acceptance=self._acceptances.get(name),
        )
        return TunedArm(arm, blended, validation)

    def default_arm(self, weights: tuple[float, float, float]) -> TunedArm:
        """Return real+scalr as a run makes it without an evaluation, with the boost of real events only.

        Args:
            weights: λ of cold, sparse and dense users.
        """
        generation = self.settings.generation
        draw = DrawOptions(generation.events_per_source_event, generation.temperature, generation.min_lift, generation.align)
        real = self.real_arm()
        options = self._options_with_synthetic() if any(weights) else real.options
        arm = replace(real, name=WITH_SYNTHETIC, options=options, draw=draw, weights=weights)
        return TunedArm(arm, replace(arm, boost=self._blend(self.real_arm()).boost))

    def real_arm(self) -> Arm:
        """Return the arm of real events only with its best values: model settings, and decay of events."""
        if self._real_arm is None:
            downstream, generation = self.settings.downstream, self.settings.generation
            draw = DrawOptions(downstream.volumes[0], downstream.temperatures[0], generation.min_lift, generation.align)
            options = {one.name: _typed_value(one, one.values[0]) for one in family_hyperparameters(self.family)}
            start = Arm(self.family, REAL_ONLY, options, draw, weights=(0.0, 0.0, 0.0), source_weight=1.0)
            cheap, costly = self._model_hyperparameters
            # Twice, since the best model settings depend on each other. Joint training starts from this result.
            self._real_arm = self._search_in_turn(start, [*cheap, *costly] if self.quick else [*cheap, *cheap, *costly])
        return self._real_arm

    def best_baselines(self) -> dict[str, str]:
        """Return the better of the popularity baseline and real events only on validation, for each segment.

        A segment without validation users has the better one of all users; cold users, for whom a model may rank nothing, the list. ``all``
        is the baseline of every segment, or `BEST_BY_SEGMENT` if they differ.
        """
        real, popularity = self.trials.ndcg(self.real_arm()), self.recent_popularity.user_ndcg

        def better(users: NDArray[np.bool_]) -> str:
            return POPULARITY_BASELINE if popularity[users].mean() > real[users].mean() else REAL_ONLY

        overall = better(np.ones(len(real), dtype=bool))
        found = dict(zip(SEGMENTS, (POPULARITY_BASELINE, overall, overall), strict=True))
        for number, name in enumerate(SEGMENTS):
            if (users := self.segments == number).any():
                found[name] = better(users)
        names = set(found.values())
        return {"all": names.pop() if len(names) == 1 else BEST_BY_SEGMENT} | found

    def _tune_joint_baseline(self) -> Arm:
        """Tune the source weight, all model settings again (two domains may need others), and the source weight again."""
        start = replace(self.real_arm(), name=JOINT_BASELINE)
        cheap, costly = self._model_hyperparameters
        for one in costly:
            start = _with_value(start, one, one.values[0])
        return self._search_in_turn(start, [SOURCE_WEIGHT, *cheap, *costly, SOURCE_WEIGHT])

    def _tune_synthetic(self, name: str) -> Arm:
        """Tune an arm with synthetic events; λ is 0 if they do not help or their gain is not accepted."""
        real = self.real_arm()
        weight, *others = self._sampling_hyperparameters
        cheap, costly = self._model_hyperparameters
        hyperparameters = [*cheap, weight, *others, *costly, weight]
        start = replace(real, name=name, options=self._options_with_synthetic())
        for one in (weight, *others):
            start = _with_value(start, one, _nearest_value(one))
        if name == SYNTHETIC_ONLY:  # without real events λ has no effect
            return self._search_in_turn(start, [one for one in hyperparameters if one is not weight])
        arm = self._tune_segment_weights(self._search_in_turn(start, hyperparameters), self.trials.user_scores(real))
        refused = replace(real, name=name, draw=arm.draw)
        if not any(arm.weights):
            logger.warning("%s %s: %s", self.family, name, describe_acceptance(refused.weights, None))
            return refused
        acceptance = self._acceptances[name] = self._assess(arm)
        if not acceptance.passed:
            logger.warning("%s %s: %s", self.family, name, acceptance.describe())
        return arm if acceptance.passed else refused

    def _options_with_synthetic(self) -> dict[str, Any]:
        """Return the model settings that a search with synthetic events starts from, and that a quick verdict uses."""
        return {
            one.name: _typed_value(one, one.values[0] if one.with_synthetic is None else one.with_synthetic)
            for one in family_hyperparameters(self.family)
        }

    @cached_property
    def _model_hyperparameters(self) -> tuple[list[Hyperparameter], list[Hyperparameter]]:
        """Settings of the model that do not multiply the cost of a fit, and those that do."""
        cheap: list[Hyperparameter] = []
        costly: list[Hyperparameter] = []
        for one in family_hyperparameters(self.family):
            (costly if one.multiplies_cost else cheap).append(one)
        return cheap, costly

    @cached_property
    def _sampling_hyperparameters(self) -> tuple[Hyperparameter, ...]:
        """λ, temperature, volume and confidence filter, with the values to try and a run's defaults.

        The filter is off, or drops events less likely than popularity alone makes them.
        """
        downstream, generation = self.settings.downstream, self.settings.generation
        temperatures, volumes = downstream.temperatures, downstream.volumes
        default_volume = generation.events_per_source_event
        return (
            Hyperparameter("weight", downstream.weights, step=10**0.5, low=0.01, default=DEFAULT_SYNTHETIC_WEIGHT),
            Hyperparameter("temperature", temperatures, step=2.0, low=0.1, high=2.0, default=generation.temperature),
            Hyperparameter("volume", volumes, step=2.5, low=1, high=max(volumes), is_integer=True, default=default_volume),
            Hyperparameter("min_lift", (0.0, 1.0), high=1.0, default=generation.min_lift),
        )

    def _assess(self, arm: Arm) -> Acceptance:
        """Compare an arm with real events only on users who did not choose its values, and decide whether it keeps its λ."""
        chosen = self._chosen_without(arm)
        over_real = self._compare(chosen, [self.real_arm()] * _SELECTION_GROUPS)
        if arm.name != WITH_SYNTHETIC:
            return Acceptance(arm, over_real)
        signal = classify_signal(measure_signal(self.splits[0].cache, self.splits[0].data_builder))
        if signal is not Signal.UNCLEAR:
            return Acceptance(arm, over_real, signal)
        shuffled = [replace(one, name="shuffled") if any(one.weights) else one for one in chosen]
        return Acceptance(arm, over_real, signal, self._compare(chosen, shuffled))

    def _chosen_without(self, arm: Arm) -> list[Arm]:
        """Return what the users outside of each group would have chosen among everything tried for this arm, and real events only."""
        real, tried = self.real_arm(), self.trials.candidates(arm.name)
        chosen = []
        for group in range(_SELECTION_GROUPS):
            users = self._groups != group
            means = [float(self.trials.user_scores(one)[users].mean()) for one in (real, *tried)]
            best = int(np.argmax(means))
            if best == 0:
                chosen.append(real)
                continue
            as_good = [
                (self._distance_from_defaults(one), -mean, number)
                for number, (one, mean) in enumerate(zip(tried, means[1:], strict=True))
                if number == best - 1 or self._is_as_good(one, tried[best - 1], users)
            ]
            chosen.append(tried[min(as_good)[2]])
        return chosen

    def _distance_from_defaults(self, arm: Arm) -> float:
        """Return how far an arm's λ and sampling options are from a run's defaults, as a sum of `log_distance`."""
        of_weights = sum(log_distance(weight, DEFAULT_SYNTHETIC_WEIGHT) for weight in arm.weights) / len(arm.weights)
        of_draw = (
            log_distance(getattr(arm.draw, one.name), one.default)
            for one in self._sampling_hyperparameters
            if one.name != "weight" and one.default is not None
        )
        return of_weights + sum(of_draw)

    def _is_as_good(self, arm: Arm, best: Arm, users: NDArray[np.bool_] | None = None) -> bool:
        """Return whether an arm's score is worse than the best one's by no more than a standard error.

        For rankings it is that of their ratio, with errors clustered by user and item, else that of the users' difference.

        Args:
            arm: An arm.
            best: The arm with the best score.
            users: bool [V]. Users to count; None: all.
        """
        if self.trials.selection_metric != "ndcg":
            selected = np.ones(len(self.segments), dtype=bool) if users is None else users
            losses = (self.trials.user_scores(best) - self.trials.user_scores(arm))[selected]
            return bool(losses.mean() <= losses.std() / len(losses) ** 0.5)
        comparison = self._compare([arm] * _SELECTION_GROUPS, [best] * _SELECTION_GROUPS, users)
        return comparison.lift_pct >= -comparison.lift_error

    def _compare(self, arms: Sequence[Arm], baselines: Sequence[Arm], users: NDArray[np.bool_] | None = None) -> ArmComparison:
        """Compare two lists of arms, one for each group of users.

        For rankings, errors are clustered by user and item: hits concentrate on few items, which limits the evidence of a window.

        Args:
            arms: The arm of each group.
            baselines: The baseline of each group.
            users: bool [V]. Users to count, in rankings; None: all.
        """
        if self.trials.selection_metric != "ndcg":
            own, others = self._scores_by_group(arms), self._scores_by_group(baselines)
            return paired_bootstrap(own, others, seed=self.settings.downstream.seed)
        panel = UserPanel.from_splits([split.evaluator.split for split in self.splits[::-1]])
        # Cases are ordered by time in a panel, and latest first here.
        order = np.concatenate([np.flatnonzero(self.trials.split_number == n) for n in range(len(self.splits))[::-1]])
        groups = self._groups[order]
        clusters = TwoWayClusters(panel.user, panel.n_items)

        def contributions(of_groups: Sequence[Arm]) -> MetricContributions:
            by_group = [panel.renumber(self.trials.hits(one)[::-1]) for one in of_groups]
            return MetricContributions.concat([hits.select_cases(groups == group) for group, hits in enumerate(by_group)])

        return clusters.compare(contributions(arms), contributions(baselines), None if users is None else users[order])

    def _scores_by_group(self, arms: Sequence[Arm]) -> NDArray[np.float64]:
        """Return the score of each user by the arm of the user's group: [V]."""
        own: NDArray[np.float64] = np.choose(self._groups, [self.trials.user_scores(arm) for arm in arms])
        return own

    def _search_in_turn(self, arm: Arm, hyperparameters: Sequence[Hyperparameter]) -> Arm:
        """Search one hyperparameter after the other; each search starts from the best values found so far."""
        edges: dict[str, bool] = {}
        for hyperparameter in hyperparameters:
            name = hyperparameter.name
            if len(hyperparameter.values) == 1 and name in {"temperature", "volume"}:
                arm = _with_value(arm, hyperparameter, hyperparameter.values[0])
                continue
            self.trials.prepare(_with_value(arm, hyperparameter, value) for value in hyperparameter.values)
            chosen, edges[name] = search_values(
                hyperparameter,
                partial(self._trial_score, arm, hyperparameter),
                is_as_good=partial(self._is_trial_as_good, arm, hyperparameter),
            )
            arm = _with_value(arm, hyperparameter, chosen)
        self._on_edge[arm.name] = [name for name, on_edge in edges.items() if on_edge]
        for name in self._on_edge[arm.name]:
            logger.warning("%s, %s: the best %s is at the edge of the search grid", self.family, arm.name, name)
        return arm

    def _trial_score(self, arm: Arm, hyperparameter: Hyperparameter, value: float) -> float:
        return self.trials.mean_score(_with_value(arm, hyperparameter, value))

    def _is_trial_as_good(self, arm: Arm, hyperparameter: Hyperparameter, value: float, best: float) -> bool:
        return self._is_as_good(_with_value(arm, hyperparameter, value), _with_value(arm, hyperparameter, best))

    def _blend(self, arm: Arm) -> Arm:
        """Return the arm with the best boost by recent popularity, for all users and then for each segment; trying one needs no fit."""

        def mean_ndcg(boost: float) -> float:
            return float(self.trials.ndcg(_with_value(arm, BOOST, boost)).mean())

        self.trials.prepare(_with_value(arm, BOOST, boost) for boost in BOOST.values)
        value, _ = search_values(BOOST, mean_ndcg)
        boosts = dict.fromkeys((value, *BOOST.values))
        scores = {boost: self.trials.ndcg(_with_value(arm, BOOST, boost)) for boost in boosts}
        best = [value] * 3
        for segment in range(3):
            users = self.segments == segment
            if users.any():
                best[segment] = max(boosts, key=lambda boost, users=users: float(scores[boost][users].mean()))  # type: ignore[misc]
        cold, sparse, dense = best
        return replace(arm, boost=(cold, sparse, dense))

    def _tune_segment_weights(self, arm: Arm, real_scores: NDArray[np.float64]) -> Arm:
        """Choose λ of each segment from the trials in which all segments had the same λ.

        λ is 0 if real events only score within the tolerance of the segment's best. Otherwise it is the value nearest to the common λ among
        those as good as the best (`_is_as_good`). A segment keeps the common λ if its own would make all users together worse by more than
        the tolerance. It has λ = 0 if it ranks worse than with real events only.
        """
        trials = {
            candidate.weights[0]: candidate
            for candidate in self.trials.candidates(arm.name)
            if (candidate.draw, candidate.options) == (arm.draw, arm.options) and len(set(candidate.weights)) == 1
        }
        scores = {0.0: real_scores} | {weight: self.trials.user_scores(one) for weight, one in trials.items()}
        common = arm.weights[0]
        for segment in reversed(range(3)):
            users = self.segments == segment
            if not users.any():
                continue
            means = {weight: float(of_users[users].mean()) for weight, of_users in scores.items()}
            best = max(means, key=means.__getitem__)
            chosen = 0.0
            if not _is_within_tolerance(means[0.0], means[best]):
                as_good = [
                    weight for weight, one in trials.items() if weight == best or self._is_as_good(one, trials[best], users)
                ]
                chosen = min(as_good, key=lambda weight: log_distance(weight, common))
            candidate = _with_segment_weight(arm, segment, chosen)
            if _is_within_tolerance(self.trials.mean_score(candidate), self.trials.mean_score(arm)):
                arm = candidate
        for _ in range(3):  # lowering λ of one segment can make another worse that was not before
            users_scores = self.trials.user_scores(arm)
            for segment in range(3):
                users = self.segments == segment
                if arm.weights[segment] > 0 and users_scores[users].sum() < real_scores[users].sum():
                    arm = _with_segment_weight(arm, segment, 0.0)
        return arm


def _is_within_tolerance(score: float, best: float) -> bool:
    return score >= best - _TOLERANCE * abs(best)


def _nearest_value(hyperparameter: Hyperparameter) -> float:
    """Return the value to try that is nearest to the default."""
    default = hyperparameter.values[0] if hyperparameter.default is None else hyperparameter.default
    return _typed_value(hyperparameter, min(hyperparameter.values, key=lambda value: log_distance(value, default)))


def _typed_value(hyperparameter: Hyperparameter, value: float) -> float:
    return int(value) if hyperparameter.is_integer else value


def _with_value(arm: Arm, hyperparameter: Hyperparameter, value: float) -> Arm:
    value = _typed_value(hyperparameter, value)
    if hyperparameter.name == "weight":
        return replace(arm, weights=(value,) * 3)
    if hyperparameter.name in {"temperature", "volume", "min_lift"}:
        return replace(arm, draw=replace(arm.draw, **{hyperparameter.name: value}))  # type: ignore[arg-type]
    if hyperparameter.name == "boost":
        return replace(arm, boost=(value,) * 3)
    if hyperparameter.name == "source_weight":
        return replace(arm, source_weight=value)
    return replace(arm, options=arm.options | {hyperparameter.name: value})


def _with_segment_weight(arm: Arm, segment: int, weight: float) -> Arm:
    cold, sparse, dense = (weight if number == segment else other for number, other in enumerate(arm.weights))
    return replace(arm, weights=(cold, sparse, dense))
