# SPDX-License-Identifier: Apache-2.0
"""A batch of contexts as tensors on the module's device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from scalr_prod.translator.data.contexts import ConsumedItems

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scalr_prod.translator.data.contexts import Contexts


@dataclass(frozen=True)
class ContextBatch:
    """A batch of contexts as estimators see it.

    Attributes:
        items: int64 [B, L]. Source vocabulary indices, 0 = padding or unknown, the event to translate last.
        ages: float32 [B, L]. Days from each event to the event to translate.
        history_end: int64 [B]. Time of the event to translate, microseconds since the epoch.
        time: int64 [B]. Time as of which items are scored, microseconds since the epoch.
        eligible: int64 [B]. Target items 0 … eligible - 1 had been seen before the event.
        exclude: Items that must not be proposed, see `Contexts`; None: no item is excluded.
        off_shortlist: bool [B, N]. Items that are not on the context's shortlist; None: no shortlist is used.
    """

    items: torch.Tensor
    ages: torch.Tensor
    history_end: torch.Tensor
    time: torch.Tensor
    eligible: torch.Tensor
    exclude: NDArray[np.int32] | ConsumedItems | None = None
    off_shortlist: torch.Tensor | None = None

    @classmethod
    def from_contexts(cls, contexts: Contexts, first_seen: torch.Tensor) -> ContextBatch:
        """Build a batch on the device of ``first_seen``.

        Args:
            contexts: B contexts.
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

    def take(self, rows: torch.Tensor) -> ContextBatch:
        """Select rows.

        Args:
            rows: int64 [R]. Positions.

        Returns:
            R rows.
        """
        exclude = None if self.exclude is None else self.exclude[rows.cpu().numpy()]
        off_shortlist = None if self.off_shortlist is None else self.off_shortlist[rows]
        columns = self.items[rows], self.ages[rows], self.history_end[rows], self.time[rows], self.eligible[rows]
        return ContextBatch(*columns, exclude, off_shortlist)

    def ineligible_mask(self, n_target: int) -> torch.Tensor:
        """Return which target items are not eligible: not seen yet, excluded, or not on the shortlist.

        Args:
            n_target: Number of target items.

        Returns:
            bool [B, n_target].
        """
        device = self.eligible.device
        mask = torch.arange(n_target, device=device) >= self.eligible[:, None]
        if self.off_shortlist is not None:
            mask |= self.off_shortlist
        exclude = self.exclude.to_matrix() if isinstance(self.exclude, ConsumedItems) else self.exclude
        if exclude is not None and exclude.shape[1]:
            item = torch.from_numpy(exclude).to(device, torch.int64)
            row, column = torch.nonzero(item >= 0, as_tuple=True)
            mask[row, item[row, column]] = True
        return mask


def distinct_per_row(items: torch.Tensor) -> torch.Tensor:
    """Return each row's distinct items in ascending order, padded with 0: int64 [B, L]."""
    ordered = items.sort(1).values
    is_duplicate = torch.zeros_like(ordered, dtype=torch.bool)
    is_duplicate[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return ordered.masked_fill(is_duplicate, 0)
