# SPDX-License-Identifier: Apache-2.0
"""Sampled softmax (Jean et al. 2015): the likelihood of a choice among many items, by a few that are drawn for all choices together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional

from scalr_prod.translator.estimators.kernels import kernels

if TYPE_CHECKING:
    from scalr_prod.translator.estimators.kernels import Kernels

__all__ = ["Negatives", "loss", "plain_loss"]

#: Items drawn for each batch.
DRAWN: Final = 1024
#: Choices that are worked on at a time: their logits stay in the processor's cache.
_ROWS: Final = 128


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
        """`DRAWN` of them, with replacement, by chance [N] (sums to 1); on the CPU, so that every device learns from the same."""
        items = torch.multinomial(chance, DRAWN, replacement=True, generator=generator)
        return cls(items, (DRAWN * chance[items]).log())


def loss(
    state: torch.Tensor,
    vectors: torch.Tensor,
    label: torch.Tensor,
    negatives: Negatives,
    *,
    own: torch.Tensor,
    others: torch.Tensor,
    moment: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean -log P(label), where log P is state · vector + offset but for a constant.

    Args:
        state: float32 [P, d].
        vectors: float32 [N, d].
        label: int64 [P].
        negatives: M of them.
        own: float32 [P]. Offset of each label.
        others: float32 [K, M]. Offsets of the drawn items, at so many moments.
        moment: int64 [P]. Row of ``others`` for each label; None: the first.
        weight: float32 [P]. How much each label counts, 1 on average; None: one.

    Returns:
        float32, a scalar.
    """
    compiled = kernels() if state.device.type == "cpu" else None
    if compiled is None:
        return plain_loss(state, vectors, label, negatives, own=own, others=others, moment=moment, weight=weight)
    positive = (state * functional.embedding(label, vectors)).sum(1) + own
    drawn = functional.embedding(negatives.items, vectors)
    shares = torch.full((len(label),), 1 / max(len(label), 1)) if weight is None else weight / max(len(label), 1)
    told = torch.zeros(len(label), dtype=torch.int64) if moment is None else moment
    found: torch.Tensor = _Loss.apply(state, drawn, positive, others, (label, negatives, told, shares, compiled))
    return found


def plain_loss(
    state: torch.Tensor,
    vectors: torch.Tensor,
    label: torch.Tensor,
    negatives: Negatives,
    *,
    own: torch.Tensor,
    others: torch.Tensor,
    moment: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """`loss`, by tensor operations alone: what the compiled one is compared with, and what runs where nothing compiles."""
    positive = (state * functional.embedding(label, vectors)).sum(1, keepdim=True) + own[:, None]
    logits = state @ functional.embedding(negatives.items, vectors).T + (others if moment is None else others[moment])
    logits = (logits - negatives.log_expected).masked_fill(negatives.items == label[:, None], -torch.inf)
    of_each = torch.cat([positive, logits], 1).logsumexp(1) - positive[:, 0]
    return (of_each if weight is None else of_each * weight).mean()


class _Loss(torch.autograd.Function):
    """Σ weight × -log P(label), and its gradient, by `fused.choices`.

    Plain operations pass a dozen times over a number for every choice and item, and keep a copy of each pass. Here a block of choices
    goes through all of them while it lies in the cache, gradients included; no logit outlives its block.
    """

    @staticmethod
    def forward(
        ctx: Any,
        state: torch.Tensor,
        drawn: torch.Tensor,
        positive: torch.Tensor,
        others: torch.Tensor,
        told: tuple[torch.Tensor, Negatives, torch.Tensor, torch.Tensor, Kernels],
    ) -> torch.Tensor:
        label, negatives, moment, weight, compiled = told
        offsets = (others - negatives.log_expected).contiguous()
        of_state, of_drawn = torch.empty_like(state), torch.zeros_like(drawn)
        losses, of_own, of_others = torch.empty(len(state)), torch.empty(len(state)), torch.zeros_like(offsets)
        block = torch.empty(min(_ROWS, len(state)), len(drawn))
        drawn_items, order = negatives.items.sort()
        begin, end = (torch.searchsorted(drawn_items, label, right=right) for right in (False, True))
        for start in range(0, len(state), _ROWS):
            rows = slice(start, start + _ROWS)
            mine = state[rows]
            logits = torch.mm(mine, drawn.T, out=block[: len(mine)])
            told_of = (x[rows].numpy() for x in (begin, end, weight, losses, of_own))
            first, last, own_weight, own_losses, by_own = told_of
            compiled.chosen(
                logits.numpy(),
                positive[rows].numpy(),
                offsets.numpy(),
                moment[rows].numpy(),
                (order.numpy(), first, last),
                own_weight,
                own_losses,
                by_own,
            )
            torch.mm(logits, drawn, out=of_state[rows])
            of_drawn.addmm_(logits.T, mine)
            if ctx.needs_input_grad[3]:
                of_others.index_add_(0, moment[rows], logits) if len(of_others) > 1 else of_others[0].add_(logits.sum(0))
        ctx.save_for_backward(of_state, of_drawn, of_own, of_others)
        return (losses * weight).sum()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        wanted = ctx.needs_input_grad
        found = (one * gradient if want else None for one, want in zip(ctx.saved_tensors, wanted, strict=False))
        return (*found, None)
