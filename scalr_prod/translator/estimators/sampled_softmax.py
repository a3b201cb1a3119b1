# SPDX-License-Identifier: Apache-2.0
"""Sampled softmax (Jean et al. 2015): the likelihood of a choice among many items, by a few that are drawn for all choices together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Negatives", "loss"]

#: Items drawn for each batch.
DRAWN: Final = 1024


@dataclass(frozen=True)
class Negatives:
    """Items that stand for the whole catalogue, each weighted by one over its expected number.

    Attributes:
        items: int64 [M].
        log_expected: float32 [M].
    """

    items: torch.Tensor
    log_expected: torch.Tensor

    @classmethod
    def drawn(cls, chance: torch.Tensor, generator: torch.Generator) -> Negatives:
        """`DRAWN` of them, with replacement, by chance [N] (sums to 1)."""
        items = torch.multinomial(chance, DRAWN, replacement=True, generator=generator)
        return cls(items, (DRAWN * chance[items]).log())


def loss(
    state: torch.Tensor,
    vectors: torch.Tensor,
    label: torch.Tensor,
    negatives: Negatives,
    *,
    own: torch.Tensor,
    others: Callable[[torch.Tensor], torch.Tensor],
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean -log P(label), where log P is state · vector + offset but for a constant.

    Args:
        state: [P, d].
        vectors: [N, d].
        label: int64 [P].
        negatives: M of them.
        own: [P, 1]. Offset of each label.
        others: Offsets of items [M]: [P, M] or [M].
        weight: [P]. How much each label counts, 1 on average; None: one.
    """
    logits = state @ functional.embedding(negatives.items, vectors).T
    # In place: a copy of so many numbers takes as long as the arithmetic.
    logits += others(negatives.items)
    logits -= negatives.log_expected
    logits.masked_fill_(negatives.items == label[:, None], -torch.inf)
    positive = (state * functional.embedding(label, vectors)).sum(1, keepdim=True) + own
    loss_of_each = torch.cat([positive, logits], 1).logsumexp(1) - positive[:, 0]
    return (loss_of_each if weight is None else loss_of_each * weight).mean()
