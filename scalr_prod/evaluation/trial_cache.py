# SPDX-License-Identifier: Apache-2.0
"""Validation results of one family: each choice is fitted once on every window, and fits are counted.

The selection metric is NDCG, or the information gain of the probabilities if the model class sets ``chosen_by = "information"``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.evaluation.arms import JOINT_TRAINING, REAL_ONLY
from scalr_prod.evaluation.interactions import ProbabilisticModel
from scalr_prod.evaluation.models import selection_metric, uses_earlier_events
from scalr_prod.evaluation.probabilities import CalibratedPredictions, PlattCalibrator
from scalr_prod.evaluation.result_cache import (
    ARRAY_CODEC,
    JSON_CODEC,
    NULL_CACHE,
    ResultCache,
    family_source_digest,
    outcome_codec,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from scalr_prod.evaluation.arms import ArmChoice, ArmDataBuilder
    from scalr_prod.evaluation.evaluator import Outcome, SplitEvaluator
    from scalr_prod.evaluation.interactions import DownstreamModel
    from scalr_prod.evaluation.probabilities import LabelledRows

__all__ = ["TrialCache", "ValidationWindow"]


@dataclass(frozen=True, eq=False)
class ValidationWindow:
    """A validation window: its evaluator, its data builder, and its cached results."""

    evaluator: SplitEvaluator
    data_builder: ArmDataBuilder
    cache: ResultCache = NULL_CACHE


class TrialCache:
    """Scores of arms and choices by validation user. Results cached by an earlier command are reused, not fitted again.

    Attributes:
        fits: Number of models needed by arm, whether fitted now or cached.
        rankings: Number of rankings by arm, counted the same way; a boost needs no fit of its own.
        tried: Every choice with its mean score, in order.
        selection_metric: Selection metric: ``ndcg``, or ``information`` (nats per row over the base rate, calibrated).

    Args:
        family: Model family.
        windows: Validation windows.
        half_life: Half-life in days of the popularity that a boost adds.
        on_fit: Called with a description and 1 after every fit.
    """

    def __init__(
        self, family: str, windows: Sequence[ValidationWindow], half_life: float, on_fit: Callable[[str, int], None]
    ) -> None:
        self.fits: Counter[str] = Counter()
        self.rankings: Counter[str] = Counter()
        self.tried: list[dict[str, Any]] = []
        self.selection_metric = selection_metric(family)
        self._family, self._windows, self._half_life, self._on_fit = family, windows, half_life, on_fit
        self._code = family_source_digest(family)
        self._counted: set[Any] = set()
        self._models: dict[Any, DownstreamModel] = {}
        self._ndcg: dict[Any, NDArray[np.float64]] = {}
        self._information: dict[Any, NDArray[np.float64]] = {}

    def mean_score(self, arm: str, choice: ArmChoice) -> float:
        """Return the mean score over the users of all windows."""
        return float(self.user_scores(arm, choice).mean())

    def user_scores(self, arm: str, choice: ArmChoice) -> NDArray[np.float64]:
        """Return the selection metric of each user of all windows [V]; a boost changes NDCG but not information."""
        return self.ndcg(arm, choice) if self.selection_metric == "ndcg" else self._information_gain(arm, choice)

    def outcomes(self, arm: str, choice: ArmChoice) -> list[list[Outcome]]:
        """Return the outcome of each window, nested as `UserPanel` expects."""
        self._count_fits(arm, choice)
        return [
            [
                window.cache.get_or_compute(
                    self._cache_key("outcome", arm, choice),
                    partial(self._evaluated, number, arm, choice),
                    outcome_codec(window.evaluator),
                )
            ]
            for number, window in enumerate(self._windows)
        ]

    def ndcg(self, arm: str, choice: ArmChoice) -> NDArray[np.float64]:
        """Return NDCG of each user of all windows: [V]."""
        key = (arm, choice.fit_key(), choice.boost)
        if key not in self._ndcg:
            self._count_fits(arm, choice)
            ranked = [
                window.cache.get_or_compute(
                    self._cache_key("ndcg", arm, choice), partial(self._user_ndcg, number, arm, choice), ARRAY_CODEC
                )
                for number, window in enumerate(self._windows)
            ]
            self._ndcg[key] = np.concatenate(ranked)
            self.rankings[arm] += len(self._windows)
            self._record_tried(arm, choice, ndcg=float(self._ndcg[key].mean()))
        return self._ndcg[key]

    def fit_calibrator(self, arm: str, choice: ArmChoice) -> PlattCalibrator | None:
        """Fit the calibration of an arm's probabilities on real events of all windows; None for models without probabilities."""

        def fit() -> dict[str, Any] | None:
            predicted = self._predictions(arm, choice)
            return PlattCalibrator.fit(*zip(*predicted, strict=True)).to_json() if predicted else None

        self._count_fits(arm, choice)
        found = self._windows[0].cache.get_or_compute(self._cache_key("scale", arm, choice, all_windows=True), fit, JSON_CODEC)
        return None if found is None else PlattCalibrator(tuple(found["slope"]), tuple(found["offset"]))

    def drop_models(self, arm: str) -> None:
        """Drop an arm's fitted models to free memory; its scores stay."""
        self._models = {key: model for key, model in self._models.items() if key[0] != arm}
        self._counted = {key for key in self._counted if key[0] != arm}

    def _information_gain(self, arm: str, choice: ArmChoice) -> NDArray[np.float64]:
        """Return the information gain of each user: [V]."""

        def compute() -> NDArray[np.float64]:
            predicted = self._predictions(arm, choice)
            scale = PlattCalibrator.fit(*zip(*predicted, strict=True))
            return np.concatenate(
                [CalibratedPredictions(rows, scale(p, rows.segment)).information_gain() for rows, p in predicted]
            )

        key = (arm, choice.fit_key())
        if key not in self._information:
            self._count_fits(arm, choice)
            kept = self._windows[0].cache
            self._information[key] = kept.get_or_compute(
                self._cache_key("information", arm, choice, all_windows=True), compute, ARRAY_CODEC
            )
            self._record_tried(arm, choice, information=float(self._information[key].mean()))
        return self._information[key]

    def _evaluated(self, index: int, arm: str, choice: ArmChoice) -> Outcome:
        model = self._fitted_model(index, arm, choice)
        return self._windows[index].evaluator.evaluate(model, boost=choice.boost, half_life=self._half_life)

    def _user_ndcg(self, index: int, arm: str, choice: ArmChoice) -> NDArray[np.float64]:
        return self._evaluated(index, arm, choice).ranking.ndcg

    def _predictions(self, arm: str, choice: ArmChoice) -> list[tuple[LabelledRows, NDArray[np.float64]]]:
        """Return each window's labelled rows with an arm's uncalibrated probabilities; empty for models without probabilities."""
        found = []
        for number, window in enumerate(self._windows):
            model = self._fitted_model(number, arm, choice)
            if isinstance(model, ProbabilisticModel):
                rows = window.evaluator.labelled_rows(model.negatives)
                found.append((rows, rows.predict(model)))
        return found

    def _record_tried(self, arm: str, choice: ArmChoice, **figure: float) -> None:
        self.tried.append({"arm": arm} | choice.to_json() | figure)

    def _cache_key(self, kind: str, arm: str, choice: ArmChoice, *, all_windows: bool = False) -> tuple[Any, ...]:
        """Return the cache key of a result; results over all windows also depend on each window's fingerprint."""
        fingerprints = [window.cache.fingerprint for window in self._windows] if all_windows else []
        budgets = (
            [window.data_builder.budget.to_json() for window in self._windows] if arm not in {REAL_ONLY, JOINT_TRAINING} else []
        )
        return (kind, self._family, self._code, arm, choice.to_json(), self._half_life, fingerprints, budgets)

    def _count_fits(self, arm: str, choice: ArmChoice) -> None:
        """Count the fits of a choice once, also if its results are cached, until the arm's models are dropped."""
        key = (arm, choice.fit_key())
        if key not in self._counted:
            self._counted.add(key)
            self.fits[arm] += len(self._windows)

    def _fitted_model(self, index: int, arm: str, choice: ArmChoice) -> DownstreamModel:
        key = (arm, choice.fit_key(), index)
        if key not in self._models:
            window = self._windows[index]
            events = window.data_builder.events(arm, choice, 0)
            if uses_earlier_events(self._family):
                events = window.data_builder.with_earlier_events(events, arm, choice, 0)
            self._models[key] = window.evaluator.fit(self._family, choice.options, events, seed=0)
            self._on_fit(f"{self._family} {arm}", 1)
        return self._models[key]
