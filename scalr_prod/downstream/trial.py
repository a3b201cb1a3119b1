"""Fit one family on one arm's events and judge it on a scene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.downstream.metrics import Ranking, calibration, exposure, rank_users
from scalr_prod.downstream.models import make_model
from scalr_prod.downstream.models.lately import Boosted, PopularLately
from scalr_prod.downstream.protocol import Probabilistic

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.downstream.protocol import Interactions, Recommender, Scorer
    from scalr_prod.downstream.scene import Scene

__all__ = ["Judge", "Outcome"]


@dataclass(frozen=True)
class Outcome:
    """One fitted model on the test users.

    Attributes:
        ranking: By user.
        exposure: Coverage, Gini, tail share.
        calibration: NE, calibration ratio, ECE; empty for a model without probabilities.
    """

    ranking: Ranking
    exposure: dict[str, float]
    calibration: dict[str, float]


class Judge:
    """Everything that judges models on one scene; worked out once.

    Args:
        scene: The scene.
        k: Depth of the rankings.
    """

    def __init__(self, scene: Scene, k: int) -> None:
        self.scene, self.k = scene, min(k, scene.real.n_items)
        self.seen, self.is_head = scene.seen(), scene.is_head()
        self.segments = scene.segments()[scene.users]
        self._pairs: dict[int, tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]] = {}
        self._lately: dict[float, PopularLately] = {}

    def lately(self, half_life: float) -> PopularLately:
        """The list of what is popular lately, fitted once for each half-life (days)."""
        if half_life not in self._lately:
            self._lately[half_life] = PopularLately(half_life)
            self._lately[half_life].fit(self.scene.real, seed=0)
        return self._lately[half_life]

    def fit(self, family: str, options: dict[str, Any], events: Interactions, *, seed: int) -> Recommender:
        """A fitted model; the option ``half_life`` (days) decays observed events first."""
        model = make_model(
            family,
            {name: value for name, value in options.items() if name != "half_life"},
            threads=self.scene.settings.downstream.threads,
        )
        half_life = options.get("half_life", np.inf)
        model.fit(events.decayed(half_life) if np.isfinite(half_life) else events, seed=seed)
        return model

    def judge(self, model: Scorer, *, boost: float = 0.0, half_life: float = np.inf) -> Outcome:
        """Rank the test users' items.

        Args:
            model: Fitted.
            boost: b of score = model + b × log decayed popularity; 0 leaves the scores as they are.
            half_life: Of that popularity, days.
        """
        boosted = Boosted(model, self.lately(half_life).log_popularity(), boost) if boost else model
        ranking = rank_users(
            boosted, self.scene.users, relevant=self.scene.relevant, seen=self.seen, is_head=self.is_head, k=self.k
        )
        figures = {}
        if isinstance(model, Probabilistic):
            users, items, label = self._labelled(model.negatives)
            figures = calibration(np.asarray(model.probability(users, items)), label)
        return Outcome(ranking, exposure(ranking.top, self.scene.real.n_items, self.is_head), figures)

    def trial(self, family: str, options: dict[str, Any], events: Interactions, *, seed: int) -> Outcome:
        """Fit and judge, without a boost."""
        return self.judge(self.fit(family, options, events, seed=seed))

    def _labelled(self, negatives: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Every test pair, and for each so many items drawn uniformly that are no test item of that user."""
        if negatives not in self._pairs:
            users, items = self.scene.relevant.nonzero()
            rng = np.random.default_rng(0)
            others = rng.integers(0, self.scene.real.n_items, (len(users), negatives)).ravel()
            owners = np.repeat(users, negatives)
            apart = np.asarray(self.scene.relevant[owners, others]).ravel() == 0
            self._pairs[negatives] = (
                np.concatenate([users, owners[apart]]).astype(np.int64),
                np.concatenate([items, others[apart]]).astype(np.int64),
                np.concatenate([np.ones(len(users), dtype=bool), np.zeros(int(apart.sum()), dtype=bool)]),
            )
        return self._pairs[negatives]
