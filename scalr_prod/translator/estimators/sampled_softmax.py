# SPDX-License-Identifier: Apache-2.0
"""Sampled softmax (Jean et al. 2015): the log-likelihood of a choice among many items, with negatives shared by the whole batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional

from scalr_prod.translator.estimators.compiled_kernels import load_kernels

if TYPE_CHECKING:
    from scalr_prod.translator.estimators.compiled_kernels import TrainingKernels

__all__ = ["Labels", "Negatives", "reference_loss", "sampled_softmax_loss"]

#: Negatives per batch.
NEGATIVES_PER_BATCH: Final = 1024
#: Choices per block: their logits fit the processor's cache.
_ROWS: Final = 128


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
    compiled = load_kernels() if state.device.type == "cpu" else None
    if compiled is None:
        return reference_loss(state, vectors, labels, negatives, drawn_offsets)
    positive = (state * functional.embedding(labels.items, vectors)).sum(1) + labels.offset
    drawn = functional.embedding(negatives.items, vectors)
    number = max(len(state), 1)
    weights = torch.full((len(state),), 1 / number) if labels.weight is None else labels.weight / number
    rows = torch.zeros(len(state), dtype=torch.int64) if labels.offset_row is None else labels.offset_row
    total: torch.Tensor = _Loss.apply(state, drawn, positive, drawn_offsets, (labels.items, negatives, rows, weights, compiled))
    return total


def reference_loss(
    state: torch.Tensor, vectors: torch.Tensor, labels: Labels, negatives: Negatives, drawn_offsets: torch.Tensor
) -> torch.Tensor:
    """Compute `sampled_softmax_loss` by tensor operations: the reference for the compiled code, and the fallback without it."""
    positive = (state * functional.embedding(labels.items, vectors)).sum(1, keepdim=True) + labels.offset[:, None]
    offsets = drawn_offsets if labels.offset_row is None else drawn_offsets[labels.offset_row]
    logits = state @ functional.embedding(negatives.items, vectors).T + offsets - negatives.log_expected
    logits = logits.masked_fill(negatives.items == labels.items[:, None], -torch.inf)
    losses = torch.cat([positive, logits], 1).logsumexp(1) - positive[:, 0]
    return (losses if labels.weight is None else losses * labels.weight).mean()


class _Loss(torch.autograd.Function):
    """Σ weight × -log P(label) and its gradient, by `kernels.softmax`.

    Tensor operations pass over all logits a dozen times, and keep a copy for each pass. Here each block of choices goes through loss and
    gradient while it is in the cache, and its logits are then discarded.
    """

    @staticmethod
    def forward(
        ctx: Any,
        state: torch.Tensor,
        drawn: torch.Tensor,
        positive: torch.Tensor,
        drawn_offsets: torch.Tensor,
        constants: tuple[torch.Tensor, Negatives, torch.Tensor, torch.Tensor, TrainingKernels],
    ) -> torch.Tensor:
        label, negatives, moment, weight, compiled = constants
        offsets = (drawn_offsets - negatives.log_expected).contiguous()
        state_gradient, drawn_gradient = torch.empty_like(state), torch.zeros_like(drawn)
        losses, label_gradients, offset_gradient = torch.empty(len(state)), torch.empty(len(state)), torch.zeros_like(offsets)
        block = torch.empty(min(_ROWS, len(state)), len(drawn))
        drawn_items, order = negatives.items.sort()
        begin, end = (torch.searchsorted(drawn_items, label, right=right) for right in (False, True))
        for start in range(0, len(state), _ROWS):
            rows = slice(start, start + _ROWS)
            states = state[rows]
            logits = torch.mm(states, drawn.T, out=block[: len(states)])
            views = (x[rows].numpy() for x in (begin, end, weight, losses, label_gradients))
            first, last, block_weight, block_losses, label_gradient = views
            compiled.softmax_loss(
                logits.numpy(),
                positive[rows].numpy(),
                offsets.numpy(),
                moment[rows].numpy(),
                (order.numpy(), first, last),
                block_weight,
                block_losses,
                label_gradient,
            )
            torch.mm(logits, drawn, out=state_gradient[rows])
            drawn_gradient.addmm_(logits.T, states)
            if ctx.needs_input_grad[3]:
                offset_gradient.index_add_(0, moment[rows], logits) if len(offset_gradient) > 1 else offset_gradient[0].add_(
                    logits.sum(0)
                )
        ctx.save_for_backward(state_gradient, drawn_gradient, label_gradients, offset_gradient)
        return (losses * weight).sum()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        needed = ctx.needs_input_grad
        gradients = (saved * gradient if need else None for saved, need in zip(ctx.saved_tensors, needed, strict=False))
        return (*gradients, None)
