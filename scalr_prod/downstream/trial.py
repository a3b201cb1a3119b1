# SPDX-License-Identifier: Apache-2.0
"""Evaluator: fits a model on one arm's events and evaluates it on the test users of a split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.downstream.metrics import Ranking, exposure, rank_users
from scalr_prod.downstream.models import make_model
from scalr_prod.downstream.models.lately import Boosted, PopularLately
from scalr_prod.downstream.odds import LabelledRows, LogitMap, Odds
from scalr_prod.downstream.protocol import Probabilistic

if TYPE_CHECKING:
    from scalr_prod.downstream.protocol import DownstreamModel, Interactions, Scorer
    from scalr_prod.downstream.scene import Scene

__all__ = ["Judge", "Outcome"]


@dataclass(frozen=True)
class Outcome:
    """Results of one fitted model on the test users.

    Attributes:
        ranking: Rankings and their metrics by user.
        exposure: Coverage, Gini index, share of tail items.
        odds: Calibrated probabilities of the test rows; None for a model without probabilities.
        negatives: Negatives per positive in those rows; 0 if there are none.
    """

    ranking: Ranking
    exposure: dict[str, float]
    odds: Odds | None = None
    negatives: int = 0


class Judge:
    """Evaluates models on one split; shared data is computed once.

    Args:
        scene: The split.
        k: Length of the rankings.
    """

    def __init__(self, scene: Scene, k: int) -> None:
        self.scene, self.k = scene, min(k, scene.real.n_items)
        self.seen, self.is_head = scene.seen(), scene.is_head()
        self._segment_of = scene.segments()
        self.segments = self._segment_of[scene.users]
        self._rows: dict[int, LabelledRows] = {}
        self._lately: dict[float, PopularLately] = {}

    def lately(self, half_life: float) -> PopularLately:
        """Return the recent-popularity model, fitted once per half-life (days)."""
        if half_life not in self._lately:
            self._lately[half_life] = PopularLately(half_life)
            self._lately[half_life].fit(self.scene.real, seed=0)
        return self._lately[half_life]

    def fit(self, family: str, options: dict[str, Any], events: Interactions, *, seed: int) -> DownstreamModel:
        """Fit a model, with access to source events; the option ``half_life`` (days) decays observed weights first."""
        model = make_model(
            family,
            {name: value for name, value in options.items() if name != "half_life"},
            threads=self.scene.settings.downstream.threads,
        )
        half_life = options.get("half_life", np.inf)
        events = replace(events, source=self.scene.source)
        if np.isfinite(half_life):
            events = events.decayed(half_life)
            if events.before is not None:
                events = replace(events, before=events.before.decayed(half_life))
        model.fit(events, seed=seed)
        return model

    def judge(
        self,
        model: Scorer,
        *,
        boost: tuple[float, float, float] = (0.0, 0.0, 0.0),
        half_life: float = np.inf,
        scale: LogitMap | None = None,
    ) -> Outcome:
        """Evaluate a model's rankings for the test users, and its probabilities if a calibration is given.

        Args:
            model: Fitted model.
            boost: b of score = model + b × log decayed popularity, for cold, sparse and dense users; 0 leaves scores unchanged.
            half_life: Half-life of that popularity in days.
            scale: Calibration of the probabilities, which ignore the boost; None: probabilities are not evaluated.
        """
        boosted = model
        if any(boost):
            boosted = Boosted(model, self.lately(half_life).log_popularity(), np.asarray(boost, np.float32)[self._segment_of])
        ranking = rank_users(
            boosted, self.scene.users, relevant=self.scene.relevant, seen=self.seen, is_head=self.is_head, k=self.k
        )
        spread = exposure(ranking.top, self.scene.real.n_items, self.is_head)
        if scale is None or not isinstance(model, Probabilistic):
            return Outcome(ranking, spread)
        rows = self.rows(model.negatives)
        return Outcome(ranking, spread, Odds(rows, scale(rows.predicted(model), rows.segment)), model.negatives)

    def rows(self, negatives: int) -> LabelledRows:
        """Return the rows that probabilities are evaluated on: every test pair with ``negatives`` negatives, the same for every model."""
        if negatives not in self._rows:
            self._rows[negatives] = LabelledRows.of(self.scene, negatives)
        return self._rows[negatives]
