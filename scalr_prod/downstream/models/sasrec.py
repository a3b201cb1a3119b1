"""SASRec (Kang & McAuley 2018): a causal transformer over a user's own events that predicts the next one.

Sampled softmax with negatives shared by the batch, each corrected by the log of its expected number (logQ); items are drawn in
proportion to the square root of their weight. An event's weight weighs its prediction. Users without events are scored from the
state before a first event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scalr_prod.downstream.protocol import Interactions

__all__ = ["SasRec"]

_LEARNING_RATE: Final = 3e-3
_SCORED_AT_ONCE: Final = 2048


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
        self._sequences = _Sequences.of(events, self.length)
        self._net = _Net(self.n_items, self)
        chance = torch.from_numpy(np.sqrt(events.popularity() + 0.1))
        chance = (chance / chance.sum()).float()
        rows = np.flatnonzero(self._sequences.count)
        steps = self.epochs * -(-len(rows) // self.batch)
        optimizer = torch.optim.AdamW(self._net.parameters(), lr=_LEARNING_RATE, weight_decay=1e-3, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps + 1)
        rng = np.random.default_rng(seed)
        self._net.train()
        for _ in range(self.epochs):
            for chosen in _batches(rows, self._sequences.count, self.batch, rng):
                loss = self._loss(chosen, chance)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self._net.parameters(), 1.0)
                optimizer.step()
                schedule.step()
        self._net.eval()

    @torch.inference_mode()
    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """[B, n_items]: logits of the next event."""
        scores = np.empty((len(users), self.n_items), dtype=np.float32)
        for start in range(0, len(users), _SCORED_AT_ONCE):
            items, _, count = self._sequences.take(users[start : start + _SCORED_AT_ONCE])
            states = self._net(_shifted(items, self.n_items))
            last = states[torch.arange(len(count)), count]
            scores[start : start + _SCORED_AT_ONCE] = (last @ self._net.target.weight.T + self._net.bias).numpy()
        return scores

    def _loss(self, users: NDArray[np.int64], chance: torch.Tensor) -> torch.Tensor:
        items, weight, count = self._sequences.take(users)
        states = self._net(_shifted(items, self.n_items))[:, :-1]
        there = torch.arange(items.shape[1])[None] < count[:, None]
        states, label, weight = states[there], items[there], weight[there]
        negative = torch.multinomial(chance, self.drawn, replacement=True)
        logits = states @ self._net.target(negative).T + self._net.bias[negative] - (self.drawn * chance[negative]).log()
        logits = logits.masked_fill(negative[None] == label[:, None], -torch.inf)
        own = (states * self._net.target(label)).sum(1) + self._net.bias[label]
        loss = torch.cat([own[:, None], logits], 1).logsumexp(1) - own
        return (weight * loss).sum() / weight.sum().clamp(min=1e-6)


class _Net(nn.Module):
    """Item n_items stands for the beginning of a sequence; positions count back from a user's latest event."""

    def __init__(self, n_items: int, of: SasRec) -> None:
        super().__init__()
        self.source = nn.Embedding(n_items + 1, of.dim)
        self.target = nn.Embedding(n_items, of.dim)
        self.place = nn.Embedding(of.length + 1, of.dim)
        self.bias = nn.Parameter(torch.zeros(n_items))
        for table in (self.source, self.target, self.place):
            nn.init.normal_(table.weight, std=of.dim**-0.5)
        layer = nn.TransformerEncoderLayer(
            of.dim, of.heads, 2 * of.dim, of.dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, of.layers, nn.LayerNorm(of.dim), enable_nested_tensor=False)
        self.drop = nn.Dropout(of.dropout)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """States [B, T, d] after each of items [B, T]; padding stands on the right, where causality hides it."""
        length = items.shape[1]
        x = self.drop(self.source(items) + self.place(torch.arange(length)))
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        states: torch.Tensor = self.layers(x, mask=mask, is_causal=True)
        return states


class _Sequences:
    """Each user's last L events in order."""

    def __init__(self, item: torch.Tensor, weight: torch.Tensor, begin: NDArray[np.int64], count: NDArray[np.int64]) -> None:
        self.item, self.weight, self.begin, self.count = item, weight, begin, count

    @classmethod
    def of(cls, events: Interactions, length: int) -> _Sequences:
        order = np.lexsort((events.item, events.time, events.user))
        user = events.user[order]
        bounds = np.searchsorted(user, np.arange(events.n_users + 1))
        count = np.minimum(np.diff(bounds), length)
        item = torch.from_numpy(events.item[order].astype(np.int64))
        return cls(item, torch.from_numpy(events.weight[order]), bounds[1:] - count, count)

    def take(self, users: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Items and weights [B, T], events first, zeros after them; counts [B]."""
        begin, count = torch.from_numpy(self.begin[users]), torch.from_numpy(self.count[users])
        place = torch.arange(int(count.max()) if len(count) else 0)
        there = place[None] < count[:, None]
        at = (begin[:, None] + place).clamp(max=max(len(self.item) - 1, 0))
        if not len(self.item):
            return torch.zeros(len(users), 0, dtype=torch.int64), torch.zeros(len(users), 0), count
        return torch.where(there, self.item[at], 0), torch.where(there, self.weight[at], 0), count


def _shifted(items: torch.Tensor, start: int) -> torch.Tensor:
    """With the mark of the beginning before them."""
    return functional.pad(items, (1, 0), value=start)


def _batches(rows: NDArray[np.int64], count: NDArray[np.int64], size: int, rng: Any) -> Iterator[NDArray[np.int64]]:
    """All users once, those of like length together, in random order."""
    order = rows[np.lexsort((rng.random(len(rows)), count[rows]))]
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    for number in rng.permutation(len(parts)):
        yield parts[number]
