# SPDX-License-Identifier: Apache-2.0
"""SASRec (Kang & McAuley 2018): a causal transformer over a user's own events that predicts the next one.

Input and output share one table of item vectors. An item's bias starts at the log of its popularity, so an untrained model ranks by
popularity. Training uses a sampled softmax with negatives shared by the batch, each corrected by the log of its expected number (logQ);
items are drawn in proportion to the square root of their popularity. An event's weight weighs its prediction. Users without
events are scored by the popularity of observed events: the state before a first event tells what others began with, long ago.

A synthetic event is predicted from the state after the user's observed events before it, and is never part of a sequence. Users who have
synthetic events alone have no state. Each of them has a vector in its place, fitted to those events; no other user has one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from scalr_prod.evaluation.models.ragged import RaggedInteractions, UserTable, train
from scalr_prod.evaluation.search import HALF_LIFE, Hyperparameter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scalr_prod.evaluation.interactions import Interactions

__all__ = ["SasRec"]

_LEARNING_RATE: Final = 3e-3
_INITIAL_STD: Final = 0.02
#: Added to each item's popularity, in events of mean weight.
_SMOOTHING: Final = 0.1
_SCORING_BATCH: Final = 512


class SasRec:
    """The model.

    Args:
        dim: Width.
        layers: Transformer layers.
        heads: Attention heads.
        length: Last events of a user that are looked at.
        epochs: Passes over the users.
        batch: Users in a batch.
        negatives: Shared by a batch.
        dropout: Of embeddings and layers.
        threads: Of torch.
    """

    #: Tried on validation for real events alone, one after the other.
    knobs: Final = (Hyperparameter("epochs", (8, 16), step=2.0, low=2, high=64, is_integer=True), HALF_LIFE)

    def __init__(
        self,
        *,
        dim: int = 48,
        layers: int = 2,
        heads: int = 2,
        length: int = 50,
        epochs: int = 8,
        batch: int = 128,
        negatives: int = 256,
        dropout: float = 0.2,
        threads: int = 1,
    ) -> None:
        self.dim, self.layers, self.heads, self.length = dim, layers, heads, length
        self.epochs, self.batch, self.drawn, self.dropout, self.threads = epochs, batch, negatives, dropout, threads

    def fit(self, events: Interactions, *, seed: int) -> None:
        """Train; time orders a user's events, and the item number those of one instant."""
        torch.set_num_threads(self.threads)
        torch.manual_seed(seed)
        self.n_items = events.n_items
        observed = events.in_history()
        self._history = RaggedInteractions.from_interactions(events.take(observed), last=self.length)
        self._extra = RaggedInteractions.from_interactions(events.take(~observed))
        popularity = torch.from_numpy(_smoothed_popularity(events))
        # Of somebody without any event nothing is known but what others really chose.
        self._popular = _smoothed_popularity(events.take(observed) if observed.any() else events)
        self._net = _SasRecNet(popularity, self)
        self._person = UserTable(events.n_users, self.dim)
        chance = (popularity.sqrt() / popularity.sqrt().sum()).float()
        count = self._history.count.numpy()
        self._empty = count + self._extra.count.numpy() == 0
        rows = np.flatnonzero(~self._empty)
        batches = max(1, -(-len(rows) // self.batch))
        #: Of a batch, on average: a batch's own sum would cancel λ where all of its events are synthetic.
        self._mass = float(self._history.total_weight + self._extra.total_weight) / batches
        rng = np.random.default_rng(seed)
        losses = (
            self._loss(torch.from_numpy(users), chance)
            for _ in range(self.epochs)
            for users in _batches(rows, count, self.batch, rng)
        )
        steps = self.epochs * batches
        train(self._net, self._person, losses, rate=_LEARNING_RATE, decay=1e-3, steps=steps, clip=1.0)

    @torch.inference_mode()
    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """[B, n_items]: logits of the next event."""
        scores = np.empty((len(users), self.n_items), dtype=np.float32)
        # Those of like length together: a sequence is as long as the longest beside it.
        order = np.argsort(self._history.count.numpy()[users], kind="stable")
        for start in range(0, len(users), _SCORING_BATCH):
            rows = order[start : start + _SCORING_BATCH]
            chosen = torch.from_numpy(users[rows])
            items, _, count = self._sequences(chosen)
            states = self._states(items, count)
            last = states[torch.arange(len(count)), count] + self._vectors(chosen)
            scores[rows] = (last @ self._net.item.weight[: self.n_items].T + self._net.bias).numpy()
        scores[self._empty[users]] = np.log(self._popular)
        return scores

    def _loss(self, users: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
        items, weight, count = self._sequences(users)
        states = self._states(items, count)
        row, place = (torch.arange(items.shape[1])[None] < count[:, None]).nonzero(as_tuple=True)
        extra, of = self._extra.positions(users)
        label = torch.cat([items[row, place], self._extra.item[extra]])
        weight = torch.cat([weight[row, place], self._extra.weight[extra]])
        # Events that are predicted from one state, as synthetic ones of one instant are, share what the negatives come to there.
        at = torch.cat([row * states.shape[1] + place, of * states.shape[1] + self._known_before(users, extra, of)])
        at, event = at.unique(return_inverse=True)
        state = states.flatten(0, 1)[at] + self._vectors(users)[at // states.shape[1]]
        negative = torch.multinomial(chance, self.drawn, replacement=True)
        bias = self._net.bias[negative] - (self.drawn * chance[negative]).log()
        logits = torch.addmm(bias, state, self._net.item(negative).T)
        others = logits.logsumexp(1)[event]
        drawn = torch.zeros(self.n_items, dtype=torch.bool).index_fill_(0, negative, 1)
        hit = drawn[label].nonzero()[:, 0]
        but = logits[event[hit]].masked_fill(negative[None] == label[hit, None], -torch.inf)
        others = others.index_copy(0, hit, but.logsumexp(1))
        positive = (state[event] * self._net.item(label)).sum(1) + self._net.bias[label]
        return (weight * functional.softplus(others - positive)).sum() / max(self._mass, 1e-6)

    def _states(self, items: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        """States [B, T + 1, d] before and after each of items [B, T]; zero for users without observed events."""
        states: torch.Tensor = self._net(_prepend_start(items, self.n_items))
        return states * (count > 0)[:, None, None]

    def _vectors(self, users: torch.Tensor) -> torch.Tensor:
        """Vectors [B, d] of users without observed events; zero for the others."""
        return self._person(users) * (self._history.count[users] == 0)[:, None]

    def _sequences(self, users: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Items and weights [B, T] of the last observed events, events first, zeros after them; counts [B]."""
        at, row = self._history.positions(users)
        count = self._history.count[users]
        place = at - self._history.begin[users][row]
        shape = (len(users), int(count.max()) if len(count) else 0)
        items, weight = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
        items[row, place], weight[row, place] = self._history.item[at], self._history.weight[at]
        return items, weight, count

    def _known_before(self, users: torch.Tensor, extra: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        """How many of a user's last observed events lie before each synthetic one: int64 [E]."""
        at, row = self._history.positions(users)
        place = at - self._history.begin[users][row]
        times = torch.full((len(users), int(self._history.count[users].max()) + 1), torch.iinfo(torch.int64).max)
        times[row, place] = self._history.time[at]
        return torch.searchsorted(times[of], self._extra.time[extra][:, None])[:, 0]


class _SasRecNet(nn.Module):
    """Item n_items stands for the beginning of a sequence; positions count from there.

    Args:
        popularity: float64 [n_items]. Above 0.
        config: The model's options.
    """

    def __init__(self, popularity: torch.Tensor, config: SasRec) -> None:
        super().__init__()
        self.item = nn.Embedding(len(popularity) + 1, config.dim)
        self.place = nn.Embedding(config.length + 1, config.dim)
        for table in (self.item, self.place):
            nn.init.normal_(table.weight, std=_INITIAL_STD)
        self.bias = nn.Parameter((popularity / popularity.sum()).log().float())
        layer = nn.TransformerEncoderLayer(
            config.dim, config.heads, 2 * config.dim, config.dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(config.dim), enable_nested_tensor=False)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """States [B, T, d] after each of items [B, T]; padding stands on the right, where causality hides it."""
        length = items.shape[1]
        x = self.drop(self.item(items) + self.place(torch.arange(length)))
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        states: torch.Tensor = self.layers(x, mask=mask, is_causal=True)
        return states


def _smoothed_popularity(events: Interactions) -> NDArray[np.float64]:
    """float64 [n_items], above 0: the weights of each item's events and a tenth of a mean event."""
    found = events.popularity()
    mean = found.sum() / len(events) if len(events) else 0.0
    return found + _SMOOTHING * (mean or 1.0)


def _prepend_start(items: torch.Tensor, start: int) -> torch.Tensor:
    """With the mark of the beginning before them."""
    return functional.pad(items, (1, 0), value=start)


def _batches(rows: NDArray[np.int64], count: NDArray[np.int64], size: int, rng: Any) -> Iterator[NDArray[np.int64]]:
    """All users once, those of like length together, in random order."""
    order = rows[np.lexsort((rng.random(len(rows)), count[rows]))]
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    for number in rng.permutation(len(parts)):
        yield parts[number]
