# SPDX-License-Identifier: Apache-2.0
"""Sampled softmax (Jean et al. 2015): the log-likelihood of a choice among many items, with negatives shared by the whole batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.nn import functional

#: Negatives per batch.
NEGATIVES_PER_BATCH: Final = 1024


@dataclass(frozen=True)
class Labels:
    """The items chosen in a batch.

    Attributes:
        items: int64 [P]. Rows of the items' vectors.
        offset: float32 [P]. Offset of each label's logit.
        offset_row: int64 [P]. Row of the negatives' offsets for each label; None: the first.
        weight: float32 [P]. Weight of each label, 1 on average; None: 1.
    """

    items: torch.Tensor
    offset: torch.Tensor
    offset_row: torch.Tensor | None = None
    weight: torch.Tensor | None = None


@dataclass(frozen=True)
class Negatives:
    """Items drawn from the catalogue, each to be weighted by one over its expected number of draws.

    Attributes:
        items: int64 [M].
        log_expected: float32 [M].
    """

    items: torch.Tensor
    log_expected: torch.Tensor

    @classmethod
    def sample(cls, probabilities: torch.Tensor, generator: torch.Generator) -> Negatives:
        """Draw `NEGATIVES_PER_BATCH` items with replacement, by probabilities [N]; on the CPU, so that all devices get the same ones."""
        items = torch.multinomial(probabilities, NEGATIVES_PER_BATCH, replacement=True, generator=generator)
        return cls(items, (NEGATIVES_PER_BATCH * probabilities[items]).log())


def sampled_softmax_loss(
    state: torch.Tensor, vectors: torch.Tensor, labels: Labels, negatives: Negatives, drawn_offsets: torch.Tensor
) -> torch.Tensor:
    """Compute the mean -log P(label), where log P is state · vector + offset up to a constant.

    Args:
        state: float32 [P, d].
        vectors: float32 [N, d].
        labels: P of them.
        negatives: M drawn items.
        drawn_offsets: float32 [K, M]. Offsets of the drawn items at K times.

    Returns:
        float32, a scalar.
    """
    own, drawn = functional.embedding(labels.items, vectors), functional.embedding(negatives.items, vectors)
    positive = (state * own).sum(1) + labels.offset
    offsets = drawn_offsets - negatives.log_expected
    losses: torch.Tensor = _SampledLosses.apply(state, drawn, positive, offsets, labels, negatives)
    return (losses if labels.weight is None else losses * labels.weight).sum() / max(len(losses), 1)


class _SampledLosses(torch.autograd.Function):
    """-log P of each label [P], given its own logit [P]. Works in place on one [P, M] array, where autograd would keep ten."""

    @staticmethod
    def forward(
        ctx: Any,
        state: torch.Tensor,
        drawn: torch.Tensor,
        positive: torch.Tensor,
        offsets: torch.Tensor,
        labels: Labels,
        negatives: Negatives,
    ) -> torch.Tensor:
        rows = labels.offset_row
        odds = torch.addmm(offsets, state, drawn.T) if rows is None else offsets[rows].addmm_(state, drawn.T)
        is_drawn = torch.isin(labels.items, negatives.items).nonzero()[:, 0]
        odds[is_drawn] = odds[is_drawn].masked_fill_(negatives.items == labels.items[is_drawn, None], -torch.inf)
        highest = torch.maximum(odds.amax(1), positive)
        total = odds.sub_(highest[:, None]).exp_().sum(1).add_((positive - highest).exp_())
        losses = total.log().add_(highest).sub_(positive)
        ctx.save_for_backward(state, drawn, odds, total, losses)
        ctx.offset_row, ctx.n_times = rows, len(offsets)
        return losses

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        state, drawn, odds, total, losses = ctx.saved_tensors
        odds.mul_((gradient / total)[:, None])
        of_offsets = None
        if ctx.needs_input_grad[3]:
            row = torch.zeros(len(odds), dtype=torch.int64, device=odds.device) if ctx.offset_row is None else ctx.offset_row
            of_offsets = odds.new_zeros(ctx.n_times, odds.shape[1]).index_add_(0, row, odds)
        return odds @ drawn, odds.T @ state, gradient * ((-losses).exp() - 1), of_offsets, None, None
