# SPDX-License-Identifier: Apache-2.0
"""Items that the GPU pass skips for a context: bit masks, and their mass in `frequency`'s table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from scalr_prod.translator.estimators import frequency

if TYPE_CHECKING:
    from scalr_prod.translator.context_batch import ContextBatch


_BITS: Final = 32


@dataclass(frozen=True)
class ItemLists:
    """Items that each context treats differently.

    Attributes:
        items: int64 [R, S], ascending, padded with N. Items whose logits are computed in float64 outside the pass.
        mass: float64 [R, S]. Their mass in `frequency`'s table.
        excluded: int32 [R, W]. Bit mask of the items that must not be proposed.
        special: int32 [R, W]. Bit mask of the items that the pass skips.
    """

    items: torch.Tensor
    mass: torch.Tensor
    excluded: torch.Tensor
    special: torch.Tensor


def table_entries(parameters: dict[str, torch.Tensor], batch: ContextBatch, absent: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Look up the entries of `frequency`'s table for each history: items int64 and mass float64, both [R, E]."""
    history, weight, _ = frequency.history_weights(parameters, batch, torch.float64)
    start = parameters["start"]
    if not len(parameters["item"]):
        return history[:, :0], weight[:, :0]
    begin, end = start[history], start[history + 1]
    position = begin[..., None] + torch.arange(frequency.MAX_ENTRIES, device=history.device)
    valid = (position < end[..., None]) & (weight[..., None] > 0)
    position = position.clamp(max=len(parameters["item"]) - 1)
    items = torch.where(valid, parameters["item"][position].long(), absent)
    mass = torch.where(valid, parameters["share"][position].double() * weight[..., None], 0.0)
    return items.flatten(1), mass.flatten(1)


def merge_duplicates(items: torch.Tensor, mass: torch.Tensor, absent: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge duplicate items in each row, and sum their mass: ascending, padded with ``absent``."""
    if not items.shape[1]:
        return items, mass
    items, order = items.sort(1)
    mass = mass.gather(1, order)
    first, last = torch.ones_like(items, dtype=torch.bool), torch.ones_like(items, dtype=torch.bool)
    first[:, 1:] = items[:, 1:] != items[:, :-1]
    last[:, :-1] = first[:, 1:]
    total = mass.cumsum(1)
    position = torch.arange(items.shape[1], device=items.device)
    begin = torch.where(first, position, 0).cummax(1).values
    mass = total - (total - mass).gather(1, begin)
    items, order = torch.where(last, items, absent).sort(1)
    widest = int((items < absent).sum(1).max()) if len(items) else 0
    return items[:, :widest].contiguous(), mass.gather(1, order)[:, :widest]


def pack_bits(items: torch.Tensor, absent: int) -> torch.Tensor:
    """Build bit masks of the items listed in int64 [R, C], without duplicates: int32 [R, W]."""
    words = torch.zeros(len(items), -(-absent // _BITS), dtype=torch.int32, device=items.device)
    bit = torch.ones_like(items) << (items % _BITS)
    bit = torch.where(items < absent, torch.where(bit >= 2**31, bit - 2**32, bit), 0).int()
    return words.scatter_add_(1, items.clamp(max=absent - 1) // _BITS, bit)


def has_bit(words: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """Return whether the bits of items, int64 [R, C], are set: bool [R, C]."""
    word = (items // _BITS).clamp(max=words.shape[1] - 1)
    return ((words.gather(1, word) >> (items % _BITS)) & 1).bool()


def table_mass(lists: ItemLists, items: torch.Tensor) -> torch.Tensor:
    """Look up the mass of items, int64 [R, C], in `frequency`'s table: float64 [R, C]; 0 if absent."""
    if not lists.items.shape[1]:
        return torch.zeros(items.shape, dtype=torch.float64, device=items.device)
    position = torch.searchsorted(lists.items, items.contiguous()).clamp(max=lists.items.shape[1] - 1)
    return torch.where(lists.items.gather(1, position) == items, lists.mass.gather(1, position), 0.0)
