# SPDX-License-Identifier: Apache-2.0
"""What is popular lately: one list for everybody, and the same as a term beside any model's scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.downstream.protocol import Interactions, Scorer

__all__ = ["HALF_LIVES", "Boosted", "PopularLately"]

#: Days; tried on validation.
HALF_LIVES: Final = (1.0, 3.0, 7.0, 20.0, 90.0, 365.0)
#: Of an event at the cutoff. Smooths the logarithm of items that nobody has met for long.
_PRIOR: Final = 1e-3


class PopularLately:
    """Ranks items by their number of observed events, each halved for every half-life of its age.

    Args:
        half_life: Days.
    """

    def __init__(self, half_life: float) -> None:
        self.half_life = half_life

    def fit(self, events: Interactions, *, seed: int) -> None:  # noqa: ARG002 - part of the protocol
        """Count, in float64: under a short half-life old events weigh very little, and still order the items that have no other."""
        observed = events.take(events.in_history())
        # Old logs under short half-lives underflow: what is older than 200 half-lives counts as that old.
        age = np.minimum((observed.until - observed.time) / 86_400_000_000 / self.half_life, 200.0)
        count = np.bincount(observed.item, weights=observed.weight * np.exp2(-age), minlength=events.n_items)
        self._count = count
        order = np.argsort(-count, kind="stable")
        self._place = np.empty(len(count), dtype=np.float32)
        self._place[order] = -np.arange(len(count), dtype=np.float32)

    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """[B, n_items]: the same row for everybody, minus each item's place in the list."""
        found: NDArray[np.float32] = np.broadcast_to(self._place, (len(users), len(self._place)))
        return found

    def log_popularity(self) -> NDArray[np.float32]:
        """float32 [n_items]: log of the decayed count, centred and scaled to standard deviation 1."""
        log = np.log(self._count + _PRIOR)
        found: NDArray[np.float32] = ((log - log.mean()) / max(float(log.std()), 1e-12)).astype(np.float32)
        return found


class Boosted:
    """A fitted model whose scores gain b × log decayed popularity.

    A user's scores are first divided by their standard deviation, so that b means the same to a factorisation and to logits.

    Args:
        model: Fitted.
        trend: float32 [N], see `PopularLately.log_popularity`.
        boost: float32 [U]. Each user's b; towards infinity the list itself remains.
    """

    def __init__(self, model: Scorer, trend: NDArray[np.float32], boost: NDArray[np.float32]) -> None:
        self._model, self._trend, self._boost = model, trend, boost

    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """[B, N]: columns of the model beyond the catalogue are left out."""
        scores = np.asarray(self._model.score(users)[:, : len(self._trend)], dtype=np.float32)
        spread = scores.std(1, keepdims=True).clip(1e-12)
        found: NDArray[np.float32] = scores / spread + self._boost[users, None] * self._trend
        return found
