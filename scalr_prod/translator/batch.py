"""Contexts as tensors on the module's device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from scalr_prod.translator.contexts import Contexts

__all__ = ["Batch", "distinct"]


@dataclass(frozen=True)
class Batch:
    """What estimators see of a batch of contexts.

    Attributes:
        items: int64 [B, L]. Source vocabulary indices, 0 = padding or unknown, the translated event last.
        ages: float32 [B, L]. Days from each event to the translated one.
        history_end: int64 [B]. When the translated event happened, microseconds since the epoch.
        time: int64 [B]. The instant that is asked about, microseconds since the epoch.
        eligible: int64 [B]. Target items 0 … eligible - 1 had been seen before the event.
    """

    items: torch.Tensor
    ages: torch.Tensor
    history_end: torch.Tensor
    time: torch.Tensor
    eligible: torch.Tensor

    @classmethod
    def of(cls, contexts: Contexts, first_seen: torch.Tensor) -> Batch:
        """The tensors of a batch, on the device of ``first_seen`` (int64 [N], ascending)."""
        device = first_seen.device
        time = torch.from_numpy(contexts.event_time).to(device)
        return cls(
            items=torch.from_numpy(contexts.history_items).to(device, torch.int64),
            ages=torch.from_numpy(contexts.history_ages).to(device),
            history_end=torch.from_numpy(contexts.history_end).to(device),
            time=time,
            eligible=torch.searchsorted(first_seen, time),
        )

    def take(self, rows: torch.Tensor) -> Batch:
        """The named rows."""
        return Batch(self.items[rows], self.ages[rows], self.history_end[rows], self.time[rows], self.eligible[rows])


def distinct(items: torch.Tensor) -> torch.Tensor:
    """Each row's items once each, in ascending order, the rest 0: int64 [B, L]."""
    ordered = items.sort(1).values
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return ordered.masked_fill(again, 0)
