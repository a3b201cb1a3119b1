# SPDX-License-Identifier: Apache-2.0
"""Sampled softmax (Jean et al. 2015): the likelihood of a choice among many items, by a few that are drawn for all choices together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Negatives", "loss"]

#: Items drawn for each batch.
DRAWN: Final = 1024
#: Choices that are worked on at a time: their logits stay in the processor's cache.
_ROWS: Final = 64


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
    positive = (state * functional.embedding(label, vectors)).sum(1, keepdim=True) + own
    drawn = functional.embedding(negatives.items, vectors)
    loss_of_each: torch.Tensor = _Losses.apply(state, drawn, positive, others(negatives.items), label, negatives)
    return (loss_of_each if weight is None else loss_of_each * weight).mean()


class _Losses(torch.autograd.Function):
    """-log P of each label, [P], and its gradient.

    Plain operations pass a dozen times over a number for every choice and item, and write a new copy each time. Here a block of
    choices goes through all of them while it lies in the cache, with the same results to the bit.
    """

    @staticmethod
    def forward(
        ctx: Any,
        state: torch.Tensor,
        drawn: torch.Tensor,
        positive: torch.Tensor,
        others: torch.Tensor,
        label: torch.Tensor,
        negatives: Negatives,
    ) -> torch.Tensor:
        logits = state @ drawn.T
        loss_of_each, own = torch.empty(len(state)), torch.empty(len(state), 1)
        both = torch.empty(_ROWS, 1 + len(negatives.items))
        for start in range(0, len(state), _ROWS):
            rows = slice(start, start + _ROWS)
            of_drawn = logits[rows]
            block = both[: len(of_drawn)]
            block[:, :1] = positive[rows]
            torch.add(of_drawn, others if others.ndim == 1 else others[rows], out=of_drawn)
            of_drawn -= negatives.log_expected
            of_drawn.masked_fill_(negatives.items == label[rows, None], -torch.inf)
            block[:, 1:] = of_drawn
            total = block.logsumexp(1, keepdim=True)
            torch.sub(total, positive[rows], out=loss_of_each[rows, None])
            # What the backward pass needs: every item's share.
            block.sub_(total).exp_()
            own[rows], logits[rows] = block[:, :1], block[:, 1:]
        ctx.save_for_backward(state, drawn, logits, own)
        ctx.of_each = others.ndim > 1
        return loss_of_each

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        state, drawn, shares, own = ctx.saved_tensors
        shares.mul_(gradient[:, None])  # in place: torch refuses to ask a second time
        by_own = own * gradient[:, None] - gradient[:, None]
        by_others = None
        if ctx.needs_input_grad[3]:
            by_others = shares if ctx.of_each else shares.sum(0)
        return shares @ drawn, shares.T @ state, by_own, by_others, None, None
