# SPDX-License-Identifier: Apache-2.0
"""Contexts as tensors on the module's device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from scalr_prod.translator.contexts import Had

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
        exclude: Of them, those never to propose, see `Contexts`; None: there are none.
        left_out: bool [B, N]. Those that are not on the context's shortlist; None: all are.
    """

    items: torch.Tensor
    ages: torch.Tensor
    history_end: torch.Tensor
    time: torch.Tensor
    eligible: torch.Tensor
    exclude: NDArray[np.int32] | Had | None = None
    left_out: torch.Tensor | None = None

    @classmethod
    def of(cls, contexts: Contexts, first_seen: torch.Tensor) -> Batch:
        """The tensors of a batch, on the device of ``first_seen`` (int64 [N], ascending).

        Args:
            contexts: B of them.
            first_seen: int64 [N], ascending: microseconds since the epoch at which each target item was first seen.

        Returns:
            B rows.
        """
        device = first_seen.device
        time = torch.from_numpy(contexts.event_time).to(device)
        return cls(
            items=torch.from_numpy(contexts.history_items).to(device, torch.int64),
            ages=torch.from_numpy(contexts.history_ages).to(device),
            history_end=torch.from_numpy(contexts.history_end).to(device),
            time=time,
            eligible=torch.searchsorted(first_seen, time),
            exclude=contexts.exclude,
        )

    def take(self, rows: torch.Tensor) -> Batch:
        """The named rows.

        Args:
            rows: int64 [R]. Positions.

        Returns:
            R rows.
        """
        exclude = None if self.exclude is None else self.exclude[rows.cpu().numpy()]
        left_out = None if self.left_out is None else self.left_out[rows]
        of_rows = self.items[rows], self.ages[rows], self.history_end[rows], self.time[rows], self.eligible[rows]
        return Batch(*of_rows, exclude, left_out)

    def hidden(self, n_target: int) -> torch.Tensor:
        """Which of all target items cannot be proposed: not seen yet, excluded, or not on the shortlist. bool [B, n_target].

        Args:
            n_target: How many target items there are.

        Returns:
            True where an item cannot be proposed.
        """
        device = self.eligible.device
        hidden = torch.arange(n_target, device=device) >= self.eligible[:, None]
        if self.left_out is not None:
            hidden |= self.left_out
        exclude = self.exclude.matrix() if isinstance(self.exclude, Had) else self.exclude
        if exclude is not None and exclude.shape[1]:
            item = torch.from_numpy(exclude).to(device, torch.int64)
            row, column = torch.nonzero(item >= 0, as_tuple=True)
            hidden[row, item[row, column]] = True
        return hidden


def distinct(items: torch.Tensor) -> torch.Tensor:
    """Each row's items once each, in ascending order, the rest 0: int64 [B, L]."""
    ordered = items.sort(1).values
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return ordered.masked_fill(again, 0)
