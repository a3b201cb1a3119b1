# SPDX-License-Identifier: Apache-2.0
"""Recent popularity: the popularity baseline, one ranking for all users, and a boost that adds it to another model's scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from scalr_prod.core.timestamps import DAY_US

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.evaluation.interactions import Interactions, ItemScorer


#: Half-lives in days to try on validation.
HALF_LIVES: Final = (1.0, 3.0, 7.0, 20.0, 90.0, 365.0)
#: Added to decayed counts; keeps the logarithm of long inactive items finite.
_SMOOTHING: Final = 1e-3


class RecentPopularity:
    """Ranks items by their number of observed events with exponential decay.

    Args:
        half_life: Half-life in days.
    """

    def __init__(self, half_life: float) -> None:
        self.half_life = half_life

    def fit(self, events: Interactions, *, seed: int) -> None:  # noqa: ARG002 - part of the protocol
        """Count decayed events in float64, so that tiny weights of old events still order items without newer ones."""
        observed = events.take(events.in_history())
        # Ages are capped at 200 half-lives, since weights of older events would underflow.
        age = np.minimum((observed.until - observed.time) / DAY_US / self.half_life, 200.0)
        count = np.bincount(observed.item, weights=observed.weight * np.exp2(-age), minlength=events.n_items)
        self._count = count
        order = np.argsort(-count, kind="stable")
        self._negated_rank = np.empty(len(count), dtype=np.float32)
        self._negated_rank[order] = -np.arange(len(count), dtype=np.float32)

    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the negated rank of each item, the same row for all users: [B, n_items]."""
        scores: NDArray[np.float32] = np.broadcast_to(self._negated_rank, (len(users), len(self._negated_rank)))
        return scores

    def log_popularity(self) -> NDArray[np.float32]:
        """Return the log of decayed counts, standardised to mean 0 and standard deviation 1: float32 [n_items]."""
        log = np.log(self._count + _SMOOTHING)
        standardised: NDArray[np.float32] = ((log - log.mean()) / max(float(log.std()), 1e-12)).astype(np.float32)
        return standardised


class PopularityBoosted:
    """Adds b × log decayed popularity to a fitted model's scores.

    Each user's scores are first divided by their standard deviation, so that b has the same meaning for all models.

    Args:
        model: Fitted model.
        log_popularity: float32 [N]. Standardised log popularity.
        boost: float32 [U]. Each user's b; for large b the ranking approaches that of popularity.
    """

    def __init__(self, model: ItemScorer, log_popularity: NDArray[np.float32], boost: NDArray[np.float32]) -> None:
        self._model, self._log_popularity, self._boost = model, log_popularity, boost

    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return boosted scores [B, N]; the model's columns beyond the catalogue are dropped."""
        scores = np.asarray(self._model.score(users)[:, : len(self._log_popularity)], dtype=np.float32)
        spread = scores.std(1, keepdims=True).clip(1e-12)
        boosted: NDArray[np.float32] = scores / spread + self._boost[users, None] * self._log_popularity
        return boosted
