# SPDX-License-Identifier: Apache-2.0
"""Shared parts of the torch models: events grouped by user, learned user vectors, and the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import nn

from scalr_prod.evaluation.search import Hyperparameter

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from scalr_prod.evaluation.interactions import Interactions


#: Passes over the events; tuned last, since a fit takes as many times longer.
EPOCHS: Final = Hyperparameter("epochs", (16, 32), step=2.0, low=2, high=64, is_integer=True, multiplies_cost=True)
_LEARNING_RATE: Final = 0.02


@dataclass(frozen=True)
class RaggedInteractions:
    """Events ordered by user, time and item.

    Attributes:
        item: int64 [M].
        time: int64 [M]. Microseconds since the epoch.
        weight: float32 [M].
        begin: int64 [U]. Position of each user's first event that is used.
        count: int64 [U]. Number of each user's events that are used.
    """

    item: torch.Tensor
    time: torch.Tensor
    weight: torch.Tensor
    begin: torch.Tensor
    count: torch.Tensor

    @classmethod
    def from_interactions(cls, events: Interactions, *, last: int | None = None) -> Self:
        """Group all events of each user, or only the ``last`` ones."""
        order = np.lexsort((events.item, events.time, events.user))
        bounds = np.searchsorted(events.user[order], np.arange(events.n_users + 1))
        count = np.diff(bounds) if last is None else np.minimum(np.diff(bounds), last)
        return cls(
            item=torch.from_numpy(events.item[order].astype(np.int64)),
            time=torch.from_numpy(events.time[order].astype(np.int64)),
            weight=torch.from_numpy(events.weight[order].astype(np.float32)),
            begin=torch.from_numpy(bounds[1:] - count),
            count=torch.from_numpy(count),
        )

    @property
    def total_weight(self) -> float:
        """Sum of the weights of the events that are used."""
        event, _ = self.positions(torch.arange(len(self.count)))
        return float(self.weight[event].sum())

    def positions(self, users: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the positions of the events of users [B], and each event's row in ``users``: two int64 [E]."""
        count = self.count[users]
        row = torch.repeat_interleave(torch.arange(len(users)), count)
        offset = torch.arange(len(row)) - (count.cumsum(0) - count)[row]
        return self.begin[users][row] + offset, row


class UserTable:
    """A learned vector per user, zero until an event of that user is trained on.

    Only the rows of users in the batch are updated (lazy Adam): with ordinary Adam a row would keep moving for a hundred batches after its
    only batch of an epoch.
    """

    def __init__(self, n_users: int, dim: int) -> None:
        self._table = nn.Embedding(n_users, dim, sparse=True)
        nn.init.zeros_(self._table.weight)
        self._optimizer = torch.optim.SparseAdam(self._table.parameters(), lr=_LEARNING_RATE)

    def __call__(self, users: torch.Tensor) -> torch.Tensor:
        """Return the vectors of users: [B, d]."""
        vectors: torch.Tensor = self._table(users)
        return vectors

    def zero_grad(self) -> None:
        """Reset the gradients before a batch."""
        self._optimizer.zero_grad()

    def step(self) -> None:
        """Update the vectors after a batch."""
        self._optimizer.step()


def train(
    net: nn.Module,
    users: UserTable,
    losses: Iterable[torch.Tensor],
    *,
    rate: float,
    weight_decay: float,
    steps: int,
    clip: float | None = None,
) -> None:
    """Train a network with AdamW and a one-cycle learning rate, together with the user vectors; one step per loss.

    Args:
        net: The network; in training mode while losses are computed, in evaluation mode afterwards.
        users: The user vectors.
        losses: Loss of each batch, computed lazily with the weights of the previous step.
        rate: Maximum learning rate.
        weight_decay: Weight decay of the network.
        steps: Number of losses.
        clip: Maximum gradient norm of the network; None: no clipping.
    """
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1)
    net.train()
    for loss in losses:
        optimizer.zero_grad()
        users.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        users.step()
        schedule.step()
    net.eval()
