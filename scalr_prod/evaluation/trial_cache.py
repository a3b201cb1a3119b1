# SPDX-License-Identifier: Apache-2.0
"""Validation results of one family: each arm is fitted once on every window for each combination of hyperparameters, and fits are counted.

The selection metric is NDCG, or the information gain of the probabilities if the model class sets ``selection_metric = "information"``.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.evaluation.evaluator import SplitEvaluator
from scalr_prod.evaluation.interactions import ProbabilisticModel
from scalr_prod.evaluation.models import selection_metric
from scalr_prod.evaluation.probabilities import CalibratedPredictions, PlattCalibrator
from scalr_prod.evaluation.result_cache import (
    ARRAY_CODEC,
    JSON_CODEC,
    NULL_CACHE,
    ResultCache,
    family_source_digest,
)
from scalr_prod.evaluation.statistics import MetricContributions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from scalr_prod.evaluation.arms import Arm, ArmDataBuilder
    from scalr_prod.evaluation.interactions import DownstreamModel
    from scalr_prod.evaluation.parallel_fits import FitPool
    from scalr_prod.evaluation.probabilities import LabelledRows


#: With as many users in one half, validation looks at new users in that half alone.
_ENOUGH_NEW_USERS: Final = 1000
#: Depth of the rankings that values are chosen by: NDCG@100 differs more between values, relative to its spread over users, than NDCG@20.
MIN_DEPTH: Final = 100


@dataclass(frozen=True, eq=False)
class ValidationSplit:
    """A validation window with its users as they are, or with one half of them as if they were new.

    Attributes:
        evaluator: Evaluator of the split.
        data_builder: Builder of the arms' training events.
        cache: Cached results.
    """

    evaluator: SplitEvaluator
    data_builder: ArmDataBuilder
    cache: ResultCache = NULL_CACHE


def validation_splits(data_builder: ArmDataBuilder, k: int) -> list[ValidationSplit]:
    """Return the validation splits of a builder's split: its users as they are, and then each half of them as if they were new.

    If one half has enough users, the other one is left out: every split costs a fit for each combination of values.

    Args:
        data_builder: Builder of the arms' training events of the split.
        k: Length of reported rankings; validation looks at 100 items at least.
    """
    depth = max(k, MIN_DEPTH)
    folds = data_builder.split.new_user_folds()
    if folds and len(folds[0].users) >= _ENOUGH_NEW_USERS:
        folds = folds[:1]
    builders = [data_builder, *map(data_builder.with_new_users, folds)]
    return [
        ValidationSplit(SplitEvaluator(builder.split, depth), builder, ResultCache.from_split(builder.split))
        for builder in builders
    ]


class TrialCache:
    """Scores of arms by validation user. Results cached by an earlier command are reused, not fitted again.

    Attributes:
        fits: Number of models needed by name of the arm, whether fitted now or cached.
        rankings: Number of rankings by name of the arm, counted the same way; a boost needs no fit of its own.
        tried: Every combination of hyperparameters with its mean score, in order.
        selection_metric: Selection metric: ``ndcg``, or ``information`` (nats per row over the base rate, calibrated).
        split_number: int64 [V]. Position of each user's split.

    Args:
        family: Model family.
        splits: Validation splits.
        half_life: Half-life in days of the popularity that a boost adds.
        on_fit: Called with a description and 1 after every fit.
        pool: Runs the fits.
    """

    def __init__(
        self,
        family: str,
        splits: Sequence[ValidationSplit],
        half_life: float,
        on_fit: Callable[[str, int], None],
        pool: FitPool,
    ) -> None:
        self.fits: Counter[str] = Counter()
        self.rankings: Counter[str] = Counter()
        self.tried: list[dict[str, Any]] = []
        self.selection_metric = selection_metric(family)
        self._splits, self._half_life, self._on_fit, self._pool = splits, half_life, on_fit, pool
        self.split_number = np.repeat(np.arange(len(splits)), [len(split.evaluator.segments) for split in splits])
        self._candidates: dict[Any, Arm] = {}
        self._source_digest = family_source_digest(family)
        self._counted: set[Any] = set()
        self._models: dict[Any, DownstreamModel] = {}
        self._fitting: dict[Any, threading.Lock] = {}
        self._hits: dict[Any, list[MetricContributions]] = {}
        self._information: dict[Any, NDArray[np.float64]] = {}

    def mean_score(self, arm: Arm) -> float:
        """Return the mean score over the users of all splits."""
        return float(self.user_scores(arm).mean())

    def user_scores(self, arm: Arm) -> NDArray[np.float64]:
        """Return the selection metric of each user of all splits: [V]."""
        self._candidates.setdefault(arm.fit_key(), arm)
        return self.ndcg(arm) if self.selection_metric == "ndcg" else self._information_gain(arm)

    def candidates(self, name: str) -> list[Arm]:
        """Return every combination of values that was tried for the arm of this name, without a boost."""
        return [arm for arm in self._candidates.values() if arm.name == name]

    def hits(self, arm: Arm) -> list[MetricContributions]:
        """Return what each hit adds to NDCG, by split; cases are the split's users, and items have its numbers."""
        self._find_all_hits([arm])
        return self._hits[_hits_key(arm)]

    def prepare(self, arms: Iterable[Arm]) -> None:
        """Fit and rank several arms at once where the family allows that; their scores are then known."""
        if self.selection_metric == "ndcg":
            self._find_all_hits(arms)

    def _find_all_hits(self, arms: Iterable[Arm]) -> None:
        lacking = {_hits_key(arm): arm for arm in arms if _hits_key(arm) not in self._hits}
        # Arms that differ in their boost alone share a fit: the first of them makes it.
        first: dict[Any, Arm] = {}
        others = [arm for arm in lacking.values() if first.setdefault(arm.fit_key(), arm) is not arm]
        for some in (first.values(), others):
            jobs = [(number, arm) for arm in some for number in range(len(self._splits))]
            found = iter(self._pool.map(self._cached_hits, jobs))
            for arm in some:
                self._count_fits(arm)
                arrays = [next(found) for _ in self._splits]
                hits = [MetricContributions(case.astype(np.int64), item.astype(np.int64), gain) for case, item, gain in arrays]
                self._hits[_hits_key(arm)] = hits
                self.rankings[arm.name] += len(self._splits)
                self._record_tried(arm, ndcg=float(self._user_ndcg(hits).mean()))

    def _cached_hits(self, job: tuple[int, Arm], threads: int) -> NDArray[np.float64]:
        """Return user, item and gain of each hit of one split: [3, H]."""
        number, arm = job
        find = partial(self._find_hits, number, arm, threads)
        return self._splits[number].cache.get_or_compute(self._cache_key("hits", arm), find, ARRAY_CODEC)

    def ndcg(self, arm: Arm) -> NDArray[np.float64]:
        """Return NDCG of each user of all splits: [V]."""
        return self._user_ndcg(self.hits(arm))

    def fit_calibrator(self, arm: Arm) -> PlattCalibrator | None:
        """Fit the calibration of an arm's probabilities on real events of all splits; None for models without probabilities."""

        def fit() -> dict[str, Any] | None:
            predicted = self._predictions(arm)
            return PlattCalibrator.fit(*zip(*predicted, strict=True)).to_json() if predicted else None

        self._count_fits(arm)
        calibrator = self._splits[0].cache.get_or_compute(self._cache_key("scale", arm, all_splits=True), fit, JSON_CODEC)
        return None if calibrator is None else PlattCalibrator(tuple(calibrator["slope"]), tuple(calibrator["offset"]))

    def drop_models(self, name: str) -> None:
        """Drop the fitted models of the arm of this name to free memory; its scores stay."""
        self._models = {key: model for key, model in self._models.items() if key[0] != name}
        self._counted = {key for key in self._counted if key[0] != name}

    def _information_gain(self, arm: Arm) -> NDArray[np.float64]:
        """Return the information gain of each user: [V]."""

        def compute() -> NDArray[np.float64]:
            predicted = self._predictions(arm)
            calibrator = PlattCalibrator.fit(*zip(*predicted, strict=True))
            return np.concatenate(
                [CalibratedPredictions(rows, calibrator(p, rows.segment)).information_gain() for rows, p in predicted]
            )

        key = arm.fit_key()
        if key not in self._information:
            self._count_fits(arm)
            self._information[key] = self._splits[0].cache.get_or_compute(
                self._cache_key("information", arm, all_splits=True), compute, ARRAY_CODEC
            )
            self._record_tried(arm, information=float(self._information[key].mean()))
        return self._information[key]

    def _find_hits(self, index: int, arm: Arm, threads: int) -> NDArray[np.float64]:
        model = self._fitted_model(index, arm, threads)
        outcome = self._splits[index].evaluator.evaluate(model, boost=arm.boost, half_life=self._half_life)
        hits = outcome.ranking.hits()
        return np.stack([hits.case, hits.item, hits.gain])

    def _user_ndcg(self, hits: Sequence[MetricContributions]) -> NDArray[np.float64]:
        by_split = zip(self._splits, hits, strict=True)
        return np.concatenate([found.sum_by_case(len(split.evaluator.segments)) for split, found in by_split])

    def _predictions(self, arm: Arm) -> list[tuple[LabelledRows, NDArray[np.float64]]]:
        """Return each split's labelled rows with an arm's uncalibrated probabilities; empty for models without probabilities."""
        predictions = []
        models = self._pool.map(lambda number, threads: self._fitted_model(number, arm, threads), range(len(self._splits)))
        for split, model in zip(self._splits, models, strict=True):
            if isinstance(model, ProbabilisticModel):
                rows = split.evaluator.labelled_rows(model.negatives)
                predictions.append((rows, rows.predict(model)))
        return predictions

    def _record_tried(self, arm: Arm, **score: float) -> None:
        self.tried.append({"arm": arm.name} | arm.hyperparameters_to_json() | score)

    def _cache_key(self, kind: str, arm: Arm, *, all_splits: bool = False) -> tuple[Any, ...]:
        """Return the cache key of a result; results over all splits also depend on each split's fingerprint."""
        fingerprints = [split.cache.fingerprint for split in self._splits] if all_splits else []
        inputs = (arm.family, arm.name, arm.hyperparameters_to_json(), self._half_life)
        return (kind, self._source_digest, *inputs, fingerprints)

    def _count_fits(self, arm: Arm) -> None:
        """Count the fits of an arm's hyperparameters once, also if results are cached, until the arm's models are dropped."""
        key = arm.fit_key()
        if key not in self._counted:
            self._counted.add(key)
            self.fits[arm.name] += len(self._splits)

    def _fitted_model(self, index: int, arm: Arm, threads: int) -> DownstreamModel:
        key = (*arm.fit_key(), index)
        with self._pool.lock:
            fitting = self._fitting.setdefault(key, threading.Lock())
        with fitting:  # arms that differ in their boost alone share a model
            if key not in self._models:
                split = self._splits[index]
                with self._pool.lock:
                    events = split.data_builder.events(arm, 0)
                self._models[key] = split.evaluator.fit(arm.family, arm.options, events, seed=0, threads=threads)
                with self._pool.lock:
                    self._on_fit(f"{arm.family} {arm.name}", 1)
            return self._models[key]


def _hits_key(arm: Arm) -> tuple[Any, ...]:
    return (*arm.fit_key(), arm.boost)
