# SPDX-License-Identifier: Apache-2.0
"""A two-tower ranker: what a user's other events say, against an item, as a probability.

The user's tower is the mean of the user's other observed items (FISM, Kabbur et al. 2013), a vector of the user's activity and one of
the user; the item's a vector and a bias. Trained on every event beside negatives drawn uniformly from the catalogue, all with the
event's weight, by log loss: so it says P(positive) beside as many negatives.

A synthetic event is a term of the loss. It never joins the user's items: what it says of a user reaches the user's own vector.
An epoch sees no more synthetic than observed events: a random share of them, with weights that make up for the others. Where nothing is
observed, it sees them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from scalr_prod.evaluation.models.ragged import RaggedInteractions, UserTable, train
from scalr_prod.evaluation.search import HALF_LIFE, Hyperparameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.evaluation.interactions import Interactions

__all__ = ["TwoTower"]

_LEARNING_RATE: Final = 0.01
_SCORING_BATCH: Final = 4096
#: Classes of how many events a user has: 0, 1, 2–3, 4–7 …
_ACTIVITY_BUCKETS: Final = 12


class TwoTower:
    """The model.

    Args:
        dim: Width.
        epochs: Passes over the events.
        batch: Users in a batch.
        negatives: For each positive.
        length: Last events of a user in the user's tower.
        dropout: Of the user's vector.
        decay: Of weights (AdamW).
        threads: Of torch.
    """

    #: Tried on validation for real events alone, one after the other.
    knobs: Final = (
        Hyperparameter("decay", (1.0, 0.3, 3.0)),
        Hyperparameter("epochs", (8, 16), step=2.0, low=2, high=64, is_integer=True),
        HALF_LIFE,
    )

    def __init__(
        self,
        *,
        dim: int = 48,
        epochs: int = 8,
        batch: int = 256,
        negatives: int = 10,
        length: int = 50,
        dropout: float = 0.1,
        decay: float = 0.3,
        threads: int = 1,
    ) -> None:
        self.dim, self.epochs, self.batch, self.negatives = dim, epochs, batch, negatives
        self.length, self.dropout, self.decay, self.threads = length, dropout, decay, threads

    def fit(self, events: Interactions, *, seed: int) -> None:
        """Train."""
        torch.set_num_threads(self.threads)
        torch.manual_seed(seed)
        observed = events.in_history()
        self.n_items = events.n_items
        self._history = RaggedInteractions.from_interactions(events.take(observed), last=self.length)
        self._extra = RaggedInteractions.from_interactions(events.take(~observed))
        #: Of the synthetic events, which may be many times the observed ones: each epoch takes as many of them at random, and each
        #: of those counts for all that were left out.
        self._share = min(1.0, len(self._history.item) / max(1, len(self._extra.item))) or 1.0
        self._net = _TwoTowerNet(self.n_items, self.dim, self.dropout)
        self._person = UserTable(events.n_users, self.dim)
        rows = torch.nonzero(self._history.count + self._extra.count)[:, 0]
        batches = max(1, -(-len(rows) // self.batch))
        #: Of a batch, on average: a batch's own sum would cancel λ where all of its events are synthetic.
        self._mass = float(self._history.total_weight + self._extra.total_weight) / batches
        losses = (self._loss(users) for _ in range(self.epochs) for users in rows[torch.randperm(len(rows))].split(self.batch))
        train(self._net, self._person, losses, rate=_LEARNING_RATE, decay=self.decay, steps=self.epochs * batches)

    @torch.inference_mode()
    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """[B, n_items]: logits."""
        vectors = self._users(torch.from_numpy(users))
        scores: NDArray[np.float32] = (vectors @ self._net.item.weight.T + self._net.bias).numpy()
        return scores

    @torch.inference_mode()
    def probability(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.float32]:
        """P(positive) of pairs [P], beside ``negatives`` uniform negatives for each positive."""
        found = np.empty(len(users), dtype=np.float32)
        for start in range(0, len(users), _SCORING_BATCH):
            rows = np.s_[start : start + _SCORING_BATCH]
            chosen = torch.from_numpy(items[rows])
            vectors = self._users(torch.from_numpy(users[rows]))
            logits = (vectors * self._net.item(chosen)).sum(1) + self._net.bias[chosen]
            found[rows] = logits.sigmoid().numpy()
        return found

    def _sums(self, users: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sum of the vectors of each user's items [B, d]; the places and rows of those events ride along."""
        at, row = self._history.positions(users)
        vectors = self._net.history(self._history.item[at])
        return torch.zeros(len(users), self.dim).index_add(0, row, vectors), at, row

    def _users(self, users: torch.Tensor) -> torch.Tensor:
        sums, _, _ = self._sums(users)
        return self._net.user(sums, self._history.count[users]) + self._person(users)

    def _loss(self, users: torch.Tensor) -> torch.Tensor:
        sums, at, row = self._sums(users)
        extra, of = self._extra.positions(users)
        kept = torch.rand(len(extra)) < self._share
        extra, of = extra[kept], of[kept]
        own, count = self._history.item[at], self._history.count[users]
        item = torch.cat([own, self._extra.item[extra]])
        weight = torch.cat([self._history.weight[at], self._extra.weight[extra] / self._share])
        # Of an observed event, the user without it; of a synthetic one, the user as observed.
        sums = torch.cat([sums[row] - self._net.history(own), sums[of]])
        user = self._net.user(sums, torch.cat([count[row] - 1, count[of]])) + self._person(users)[torch.cat([row, of])]
        negative = torch.randint(self.n_items, (len(item), self.negatives))
        positive = (user * self._net.item(item)).sum(1) + self._net.bias[item]
        others = (self._net.item(negative) @ user[:, :, None])[:, :, 0] + self._net.bias[negative]
        loss = functional.softplus(-positive) + functional.softplus(others).sum(1)
        return (weight * loss).sum() / max(self._mass, 1e-6)


class _TwoTowerNet(nn.Module):
    def __init__(self, n_items: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.history = nn.Embedding(n_items, dim)
        self.item = nn.Embedding(n_items, dim)
        self.activity = nn.Embedding(_ACTIVITY_BUCKETS, dim)
        self.bias = nn.Parameter(torch.full((n_items,), -2.0))
        self.tower = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, dim))
        for table in (self.history, self.item, self.activity):
            nn.init.normal_(table.weight, std=0.05)

    def user(self, sums: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        """[R, d] from the sum of the vectors of a user's items and their number."""
        mean = sums / count.clamp(min=1)[:, None].sqrt()
        level = torch.bucketize(count, 2 ** torch.arange(_ACTIVITY_BUCKETS - 1), right=True)
        x = mean + self.activity(level)
        found: torch.Tensor = x + self.tower(x)
        return found
