# SPDX-License-Identifier: Apache-2.0
"""SASRec (Kang & McAuley 2018): a causal transformer over a user's own events that predicts the next one.

Input and output share one table of item vectors. An item's bias starts at the log of its popularity, so an untrained model ranks by
popularity. Training uses a sampled softmax with negatives shared by the batch and logQ correction; negatives are sampled in proportion to
the square root of item popularity. An event's weight multiplies its loss. Users without events are scored by the popularity of observed
events: the state before a first event only reflects what other users began with, long ago.

A synthetic event is predicted from the state after the user's earlier observed events, and is never part of a sequence. Users with only
synthetic events have no state. Each of them has a learned vector instead, fitted to those events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from scalr_prod.evaluation.models.ragged import EPOCHS, RaggedInteractions, UserTable, train
from scalr_prod.evaluation.search import HALF_LIFE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scalr_prod.evaluation.interactions import Interactions


_LEARNING_RATE: Final = 3e-3
_INITIAL_STD: Final = 0.02
#: Added to each item's popularity, in events of mean weight.
_SMOOTHING: Final = 0.1
_SCORING_BATCH: Final = 512


@dataclass(frozen=True)
class SasRecHyperparameters:
    """Hyperparameters of `SasRec`.

    Attributes:
        dim: Width of the item vectors and the transformer.
        layers: Transformer layers.
        heads: Attention heads.
        length: Maximum sequence length; a user's earlier events are dropped.
        epochs: Passes over the users.
        batch: Users in a batch.
        negatives: Sampled negatives, shared by the batch.
        dropout: Dropout of embeddings and layers.
        threads: Threads of torch.
    """

    dim: int = 48
    layers: int = 2
    heads: int = 2
    length: int = 50
    epochs: int = 16
    batch: int = 64
    negatives: int = 256
    dropout: float = 0.2
    threads: int = 1


class SasRec:
    """The sequential recommender.

    Args:
        hyperparameters: Architecture and training.
    """

    Hyperparameters: Final = SasRecHyperparameters
    #: Hyperparameters tuned on validation for real events only, one after the other.
    search_space: Final = (HALF_LIFE, EPOCHS)

    def __init__(self, hyperparameters: SasRecHyperparameters) -> None:
        self.hyperparameters = hyperparameters

    def fit(self, events: Interactions, *, seed: int) -> None:
        """Train; a user's events are ordered by time, and those of the same instant by item number."""
        config = self.hyperparameters
        torch.set_num_threads(config.threads)
        torch.manual_seed(seed)
        self.n_items = events.n_items
        observed = events.in_history()
        self._history = RaggedInteractions.from_interactions(events.take(observed), last=config.length)
        self._synthetic = RaggedInteractions.from_interactions(events.take(~observed))
        popularity = torch.from_numpy(_smoothed_popularity(events))
        # Users without events are scored by the popularity of observed events.
        self._popularity = _smoothed_popularity(events.take(observed) if observed.any() else events)
        self._net = _SasRecNet(popularity, config)
        self._user_vectors = UserTable(events.n_users, config.dim)
        proposal = (popularity.sqrt() / popularity.sqrt().sum()).float()
        count = self._history.count.numpy()
        self._empty = count + self._synthetic.count.numpy() == 0
        rows = np.flatnonzero(~self._empty)
        batches = max(1, -(-len(rows) // config.batch))
        #: Mean total weight of a batch. Dividing by each batch's own sum would cancel λ in batches of only synthetic events.
        self._batch_weight = float(self._history.total_weight + self._synthetic.total_weight) / batches
        rng = np.random.default_rng(seed)
        losses = (
            self._loss(torch.from_numpy(users), proposal)
            for _ in range(config.epochs)
            for users in _batches(rows, count, config.batch, rng)
        )
        steps = config.epochs * batches
        train(self._net, self._user_vectors, losses, rate=_LEARNING_RATE, weight_decay=1e-3, steps=steps, clip=1.0)

    @torch.inference_mode()
    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return logits of the next event: [B, n_items]."""
        scores = np.empty((len(users), self.n_items), dtype=np.float32)
        # Users with sequences of similar length share a batch, which limits padding.
        order = np.argsort(self._history.count.numpy()[users], kind="stable")
        for start in range(0, len(users), _SCORING_BATCH):
            rows = order[start : start + _SCORING_BATCH]
            chosen = torch.from_numpy(users[rows])
            items, _, count = self._sequences(chosen)
            states = self._states(items, count)
            last = states[torch.arange(len(count)), count] + self._learned_vectors(chosen)
            scores[rows] = (last @ self._net.item.weight[: self.n_items].T + self._net.bias).numpy()
        scores[self._empty[users]] = np.log(self._popularity)
        return scores

    def _loss(self, users: torch.Tensor, proposal: torch.Tensor) -> torch.Tensor:
        items, weight, count = self._sequences(users)
        states = self._states(items, count)
        row, position = (torch.arange(items.shape[1])[None] < count[:, None]).nonzero(as_tuple=True)
        synthetic, synthetic_row = self._synthetic.positions(users)
        label = torch.cat([items[row, position], self._synthetic.item[synthetic]])
        weight = torch.cat([weight[row, position], self._synthetic.weight[synthetic]])
        # Events predicted from the same state, such as synthetic events of one instant, share the logits of the negatives.
        width = states.shape[1]
        before = self._count_before(users, synthetic, synthetic_row)
        state_index = torch.cat([row * width + position, synthetic_row * width + before])
        state_index, event = state_index.unique(return_inverse=True)
        state = states.flatten(0, 1)[state_index] + self._learned_vectors(users)[state_index // width]
        n_negatives = self.hyperparameters.negatives
        negative = torch.multinomial(proposal, n_negatives, replacement=True)
        bias = self._net.bias[negative] - (n_negatives * proposal[negative]).log()
        logits = torch.addmm(bias, state, self._net.item(negative).T)
        negatives_logsumexp = logits.logsumexp(1)[event]
        # A label that was also sampled as a negative is masked out of its own event's negatives.
        is_negative = torch.zeros(self.n_items, dtype=torch.bool).index_fill_(0, negative, 1)
        collision = is_negative[label].nonzero()[:, 0]
        masked = logits[event[collision]].masked_fill(negative[None] == label[collision, None], -torch.inf)
        negatives_logsumexp = negatives_logsumexp.index_copy(0, collision, masked.logsumexp(1))
        positive = (state[event] * self._net.item(label)).sum(1) + self._net.bias[label]
        return (weight * functional.softplus(negatives_logsumexp - positive)).sum() / max(self._batch_weight, 1e-6)

    def _states(self, items: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        """Return states [B, T + 1, d] before and after each of items [B, T]; zero for users without observed events."""
        states: torch.Tensor = self._net(functional.pad(items, (1, 0), value=self.n_items))  # the start token first
        return states * (count > 0)[:, None, None]

    def _learned_vectors(self, users: torch.Tensor) -> torch.Tensor:
        """Return the learned vectors [B, d] of users without observed events; zero for the others."""
        return self._user_vectors(users) * (self._history.count[users] == 0)[:, None]

    def _sequences(self, users: torch.Tensor) -> _PaddedSequences:
        """Return items and weights [B, T] of the last observed events, padded on the right with zeros, and their counts [B]."""
        event, row = self._history.positions(users)
        count = self._history.count[users]
        position = event - self._history.begin[users][row]
        shape = (len(users), int(count.max()) if len(count) else 0)
        items, weight = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
        items[row, position], weight[row, position] = self._history.item[event], self._history.weight[event]
        return _PaddedSequences(items, weight, count)

    def _count_before(self, users: torch.Tensor, synthetic: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """Return how many of a user's last observed events precede each synthetic event: int64 [E]."""
        event, history_row = self._history.positions(users)
        position = event - self._history.begin[users][history_row]
        times = torch.full((len(users), int(self._history.count[users].max()) + 1), torch.iinfo(torch.int64).max)
        times[history_row, position] = self._history.time[event]
        return torch.searchsorted(times[row], self._synthetic.time[synthetic][:, None])[:, 0]


class _PaddedSequences(NamedTuple):
    """Sequences of a batch of users.

    Attributes:
        items: int64 [B, T].
        weight: float32 [B, T].
        count: int64 [B]. Events of each user; later positions are padding.
    """

    items: torch.Tensor
    weight: torch.Tensor
    count: torch.Tensor


class _SasRecNet(nn.Module):
    """Transformer over item and position vectors; item number n_items is the start token.

    Args:
        popularity: float64 [n_items]. Above 0.
        config: Architecture.
    """

    def __init__(self, popularity: torch.Tensor, config: SasRecHyperparameters) -> None:
        super().__init__()
        self.item = nn.Embedding(len(popularity) + 1, config.dim)
        self.position = nn.Embedding(config.length + 1, config.dim)
        for table in (self.item, self.position):
            nn.init.normal_(table.weight, std=_INITIAL_STD)
        self.bias = nn.Parameter((popularity / popularity.sum()).log().float())
        layer = nn.TransformerEncoderLayer(
            config.dim, config.heads, 2 * config.dim, config.dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(config.dim), enable_nested_tensor=False)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Return states [B, T, d] after each of items [B, T]; the causal mask hides the padding on the right."""
        length = items.shape[1]
        x = self.drop(self.item(items) + self.position(torch.arange(length)))
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        states: torch.Tensor = self.layers(x, mask=mask, is_causal=True)
        return states


def _smoothed_popularity(events: Interactions) -> NDArray[np.float64]:
    """Return the summed weight of each item plus a tenth of the mean event weight: float64 [n_items], above 0."""
    popularity = events.popularity()
    mean = popularity.sum() / len(events) if len(events) else 0.0
    return popularity + _SMOOTHING * (mean or 1.0)


def _batches(rows: NDArray[np.int64], count: NDArray[np.int64], size: int, rng: Any) -> Iterator[NDArray[np.int64]]:
    """Yield every user once, in random batches of users with sequences of similar length."""
    order = rows[np.lexsort((rng.random(len(rows)), count[rows]))]
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    for number in rng.permutation(len(parts)):
        yield parts[number]
