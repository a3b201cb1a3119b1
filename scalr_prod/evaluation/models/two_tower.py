# SPDX-License-Identifier: Apache-2.0
"""Two-tower ranker: the dot product of a user tower and an item tower, as a probability.

The user tower combines the mean of the user's other observed items (FISM, Kabbur et al. 2013), a vector of the user's activity level and
a vector of the user. The item tower is a vector and a bias. It is trained by log loss on every event and uniformly sampled negatives, all
with the event's weight, so its output is P(positive) at that ratio of negatives.

A synthetic event is a term of the loss and never one of the user's items: it only changes the user's own vector. An epoch uses at most as
many synthetic as observed events: a random subset, with weights that compensate for the others. Without observed events it uses all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from scalr_prod.evaluation.models.ragged import EPOCHS, RaggedInteractions, UserTable, train
from scalr_prod.evaluation.search import HALF_LIFE, Hyperparameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.evaluation.interactions import Interactions


_LEARNING_RATE: Final = 0.01
_SCORING_BATCH: Final = 4096
#: Activity levels by number of a user's events: 0, 1, 2–3, 4–7 …
_ACTIVITY_BUCKETS: Final = 12


@dataclass(frozen=True)
class TwoTowerHyperparameters:
    """Hyperparameters of `TwoTower`.

    Attributes:
        dim: Width of both towers.
        epochs: Passes over the events.
        batch: Users in a batch.
        negatives: Negatives per positive.
        length: Maximum number of a user's last events in the user tower.
        dropout: Dropout of the user tower.
        weight_decay: Weight decay of AdamW.
        threads: Threads of torch.
    """

    dim: int = 48
    epochs: int = 16
    batch: int = 256
    negatives: int = 10
    length: int = 50
    dropout: float = 0.1
    weight_decay: float = 0.3
    threads: int = 1


class TwoTower:
    """The two-tower ranker.

    Args:
        hyperparameters: Architecture and training.
    """

    Hyperparameters: Final = TwoTowerHyperparameters
    #: Hyperparameters tuned on validation for real events only, one after the other.
    search_space: Final = (Hyperparameter("weight_decay", (1.0, 0.3, 3.0)), HALF_LIFE, EPOCHS)

    def __init__(self, hyperparameters: TwoTowerHyperparameters) -> None:
        self.hyperparameters, self.negatives = hyperparameters, hyperparameters.negatives

    def fit(self, events: Interactions, *, seed: int) -> None:
        """Train on observed and synthetic events."""
        config = self.hyperparameters
        torch.set_num_threads(config.threads)
        torch.manual_seed(seed)
        observed = events.in_history()
        self.n_items = events.n_items
        self._history = RaggedInteractions.from_interactions(events.take(observed), last=config.length)
        self._synthetic = RaggedInteractions.from_interactions(events.take(~observed))
        #: Share of the synthetic events, which can far outnumber the observed ones, that an epoch samples.
        self._sampled_share = min(1.0, len(self._history.item) / max(1, len(self._synthetic.item))) or 1.0
        self._net = _TwoTowerNet(self.n_items, config)
        self._user_vectors = UserTable(events.n_users, config.dim)
        rows = torch.nonzero(self._history.count + self._synthetic.count)[:, 0]
        batches = max(1, -(-len(rows) // config.batch))
        #: Mean total weight of a batch. Dividing by each batch's own sum would cancel λ in batches of only synthetic events.
        self._batch_weight = float(self._history.total_weight + self._synthetic.total_weight) / batches
        losses = (
            self._loss(users) for _ in range(config.epochs) for users in rows[torch.randperm(len(rows))].split(config.batch)
        )
        steps = config.epochs * batches
        train(self._net, self._user_vectors, losses, rate=_LEARNING_RATE, weight_decay=config.weight_decay, steps=steps)

    @torch.inference_mode()
    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return logits [B, n_items]."""
        vectors = self._encode_users(torch.from_numpy(users))
        scores: NDArray[np.float32] = (vectors @ self._net.item.weight.T + self._net.bias).numpy()
        return scores

    @torch.inference_mode()
    def probability(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return P(positive) of pairs [P], at ``negatives`` uniform negatives per positive."""
        probability = np.empty(len(users), dtype=np.float32)
        for start in range(0, len(users), _SCORING_BATCH):
            rows = np.s_[start : start + _SCORING_BATCH]
            chosen = torch.from_numpy(items[rows])
            vectors = self._encode_users(torch.from_numpy(users[rows]))
            logits = (vectors * self._net.item(chosen)).sum(1) + self._net.bias[chosen]
            probability[rows] = logits.sigmoid().numpy()
        return probability

    def _history_sums(self, users: torch.Tensor) -> _HistorySums:
        event, row = self._history.positions(users)
        vectors = self._net.history(self._history.item[event])
        return _HistorySums(torch.zeros(len(users), vectors.shape[1]).index_add(0, row, vectors), event, row)

    def _encode_users(self, users: torch.Tensor) -> torch.Tensor:
        """Return user vectors [B, d]."""
        return self._net.user(self._history_sums(users).sums, self._history.count[users]) + self._user_vectors(users)

    def _loss(self, users: torch.Tensor) -> torch.Tensor:
        sums, observed, row = self._history_sums(users)
        synthetic, synthetic_row = self._synthetic.positions(users)
        sampled = torch.rand(len(synthetic)) < self._sampled_share
        synthetic, synthetic_row = synthetic[sampled], synthetic_row[sampled]
        own, count = self._history.item[observed], self._history.count[users]
        item = torch.cat([own, self._synthetic.item[synthetic]])
        weight = torch.cat([self._history.weight[observed], self._synthetic.weight[synthetic] / self._sampled_share])
        # An observed event is left out of its own user's history; a synthetic event is not in it.
        sums = torch.cat([sums[row] - self._net.history(own), sums[synthetic_row]])
        event_row = torch.cat([row, synthetic_row])
        user = self._net.user(sums, torch.cat([count[row] - 1, count[synthetic_row]])) + self._user_vectors(users)[event_row]
        negative = torch.randint(self.n_items, (len(item), self.negatives))
        positive = (user * self._net.item(item)).sum(1) + self._net.bias[item]
        negatives = (self._net.item(negative) @ user[:, :, None])[:, :, 0] + self._net.bias[negative]
        loss = functional.softplus(-positive) + functional.softplus(negatives).sum(1)
        return (weight * loss).sum() / max(self._batch_weight, 1e-6)


class _HistorySums(NamedTuple):
    """Summed item vectors of a batch of users.

    Attributes:
        sums: float32 [B, d].
        event: int64 [E]. Positions of the users' observed events.
        row: int64 [E]. Row of each event's user in the batch.
    """

    sums: torch.Tensor
    event: torch.Tensor
    row: torch.Tensor


class _TwoTowerNet(nn.Module):
    def __init__(self, n_items: int, config: TwoTowerHyperparameters) -> None:
        super().__init__()
        dim = config.dim
        self.history = nn.Embedding(n_items, dim)
        self.item = nn.Embedding(n_items, dim)
        self.activity = nn.Embedding(_ACTIVITY_BUCKETS, dim)
        self.bias = nn.Parameter(torch.full((n_items,), -2.0))
        self.tower = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(dim, dim))
        for table in (self.history, self.item, self.activity):
            nn.init.normal_(table.weight, std=0.05)

    def user(self, sums: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        """Return user vectors [R, d] from the sum of the vectors of each user's items and their number [R]."""
        mean = sums / count.clamp(min=1)[:, None].sqrt()
        level = torch.bucketize(count, 2 ** torch.arange(_ACTIVITY_BUCKETS - 1), right=True)
        x = mean + self.activity(level)
        vectors: torch.Tensor = x + self.tower(x)
        return vectors
