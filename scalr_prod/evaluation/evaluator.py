# SPDX-License-Identifier: Apache-2.0
"""Evaluator: fits a model on one arm's events and evaluates it on the test users of a split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.evaluation.interactions import ProbabilisticModel
from scalr_prod.evaluation.models import make_model
from scalr_prod.evaluation.models.cluster_popularity import ClusterPopularity
from scalr_prod.evaluation.models.recent_popularity import PopularityBoosted, RecentPopularity
from scalr_prod.evaluation.probabilities import CalibratedPredictions, LabelledRows, PlattCalibrator
from scalr_prod.evaluation.ranking_metrics import Ranking, exposure_metrics, rank_users

if TYPE_CHECKING:
    from scalr_prod.evaluation.interactions import DownstreamModel, Interactions, ItemScorer
    from scalr_prod.evaluation.split import EvaluationSplit


@dataclass(frozen=True)
class Outcome:
    """Results of one fitted model on the test users.

    Attributes:
        ranking: Rankings and their metrics by user.
        exposure: Coverage, Gini index, share of tail items.
        predictions: Calibrated probabilities of the test rows; None for a model without probabilities.
        negatives: Negatives per positive in those rows; 0 if there are none.
    """

    ranking: Ranking
    exposure: dict[str, float]
    predictions: CalibratedPredictions | None = None
    negatives: int = 0


class SplitEvaluator:
    """Evaluates models on one split; shared data is computed once.

    Args:
        split: The split.
        k: Length of the rankings.
    """

    def __init__(self, split: EvaluationSplit, k: int) -> None:
        self.split, self.k = split, min(k, split.real.n_items)
        self.seen, self.is_head = split.seen(), split.is_head()
        self._segment_of = split.segments()
        self.segments = self._segment_of[split.users]
        self._labelled_rows: dict[int, LabelledRows] = {}
        self._recent_popularity: dict[float, RecentPopularity] = {}

    def recent_popularity(self, half_life: float) -> RecentPopularity:
        """Return the recent-popularity model, fitted once per half-life (days)."""
        if half_life not in self._recent_popularity:
            model = RecentPopularity(half_life)
            model.fit(self.split.real, seed=0)
            self._recent_popularity[half_life] = model
        return self._recent_popularity[half_life]

    def cluster_popularity(self, clusters: int, half_life: float) -> ClusterPopularity:
        """Return popularity by cluster of users, fitted."""
        model = ClusterPopularity(self.split.user_clusters(clusters), half_life)
        model.fit(self.split.real, seed=0)
        return model

    def fit(
        self, family: str, options: dict[str, Any], events: Interactions, *, seed: int, threads: int = 1
    ) -> DownstreamModel:
        """Fit a model, with access to source events; the option ``half_life`` (days) decays observed weights first."""
        model = make_model(
            family,
            {name: value for name, value in options.items() if name != "half_life"},
            threads=threads,
        )
        half_life = options.get("half_life", np.inf)
        events = replace(events, source=self.split.source)
        if np.isfinite(half_life):
            events = events.decayed(half_life)
            if events.before is not None:
                events = replace(events, before=events.before.decayed(half_life))
        model.fit(events, seed=seed)
        return model

    def evaluate(
        self,
        model: ItemScorer,
        *,
        boost: tuple[float, float, float] = (0.0, 0.0, 0.0),
        half_life: float = np.inf,
        calibrator: PlattCalibrator | None = None,
    ) -> Outcome:
        """Evaluate a model's rankings for the test users, and its probabilities if a calibration is given.

        Args:
            model: Fitted model.
            boost: b of score = model + b × log decayed popularity, for cold, sparse and dense users; 0 leaves scores unchanged.
            half_life: Half-life of that popularity in days.
            calibrator: Calibration of the probabilities, which ignore the boost; None: probabilities are not evaluated.
        """
        boosted = model
        if any(boost):
            boosted = PopularityBoosted(
                model, self.recent_popularity(half_life).log_popularity(), np.asarray(boost, np.float32)[self._segment_of]
            )
        ranking = rank_users(
            boosted, self.split.users, relevant=self.split.relevant, seen=self.seen, is_head=self.is_head, k=self.k
        )
        exposure = exposure_metrics(ranking.top, self.split.real.n_items, self.is_head)
        if calibrator is None or not isinstance(model, ProbabilisticModel):
            return Outcome(ranking, exposure)
        rows = self.labelled_rows(model.negatives)
        predictions = CalibratedPredictions(rows, calibrator(rows.predict(model), rows.segment))
        return Outcome(ranking, exposure, predictions, model.negatives)

    def labelled_rows(self, negatives: int) -> LabelledRows:
        """Return the rows on which probabilities are evaluated: every test pair with ``negatives`` negatives, the same for every model."""
        if negatives not in self._labelled_rows:
            self._labelled_rows[negatives] = LabelledRows.from_split(self.split, negatives)
        return self._labelled_rows[negatives]
