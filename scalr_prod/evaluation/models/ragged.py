# SPDX-License-Identifier: Apache-2.0
"""What the torch models share: events by user, a vector for each user that is learned from the loss alone, and the training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from scalr_prod.evaluation.interactions import Interactions

__all__ = ["RaggedInteractions", "UserTable", "train"]

_LEARNING_RATE: Final = 0.02


@dataclass(frozen=True)
class RaggedInteractions:
    """Events ordered by user, time and item.

    Attributes:
        item: int64 [M].
        time: int64 [M]. Microseconds since the epoch.
        weight: float32 [M].
        begin: int64 [U]. Place of each user's first event that counts.
        count: int64 [U]. Events that count.
    """

    item: torch.Tensor
    time: torch.Tensor
    weight: torch.Tensor
    begin: torch.Tensor
    count: torch.Tensor

    @classmethod
    def from_interactions(cls, events: Interactions, *, last: int | None = None) -> Self:
        """All events of each user, or the last ones."""
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
        """Sum of the weights that count."""
        at, _ = self.positions(torch.arange(len(self.count)))
        return float(self.weight[at].sum())

    def positions(self, users: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Places of the events of users [B], and the row in ``users`` of each: two int64 [E]."""
        count = self.count[users]
        row = torch.repeat_interleave(torch.arange(len(users)), count)
        offset = torch.arange(len(row)) - (count.cumsum(0) - count)[row]
        return self.begin[users][row] + offset, row


class UserTable:
    """A vector for each user, zero until an event of that user is learned from.

    Rows are updated when their user is in the batch, and only then (lazy Adam): under ordinary Adam a row would go on moving for a
    hundred batches after its one visit in an epoch.
    """

    def __init__(self, n_users: int, dim: int) -> None:
        self._table = nn.Embedding(n_users, dim, sparse=True)
        nn.init.zeros_(self._table.weight)
        self._optimizer = torch.optim.SparseAdam(self._table.parameters(), lr=_LEARNING_RATE)

    def __call__(self, users: torch.Tensor) -> torch.Tensor:
        """[B, d]."""
        found: torch.Tensor = self._table(users)
        return found

    def zero_grad(self) -> None:
        """Before a batch."""
        self._optimizer.zero_grad()

    def step(self) -> None:
        """After it."""
        self._optimizer.step()


def train(
    net: nn.Module,
    users: UserTable,
    losses: Iterable[torch.Tensor],
    *,
    rate: float,
    decay: float,
    steps: int,
    clip: float | None = None,
) -> None:
    """Train a net and the users' vectors beside it: AdamW under one cycle of the learning rate, a step a loss.

    Args:
        net: Is in training mode while losses are asked for, and in evaluation mode afterwards.
        users: The users' vectors.
        losses: Of one batch after the other, each worked out when it is asked for: with the weights of the step before.
        rate: The highest learning rate.
        decay: Of the net's weights.
        steps: How many losses there are.
        clip: Norm of the net's gradients, at most; None: any.
    """
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=decay, fused=True)
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
