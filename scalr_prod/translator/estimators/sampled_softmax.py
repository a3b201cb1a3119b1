# SPDX-License-Identifier: Apache-2.0
"""Sampled softmax (Jean et al. 2015): the log-likelihood of a choice among many items, with negatives shared by the whole batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

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
    positive = (state * functional.embedding(labels.items, vectors)).sum(1, keepdim=True) + labels.offset[:, None]
    offsets = drawn_offsets if labels.offset_row is None else drawn_offsets[labels.offset_row]
    logits = state @ functional.embedding(negatives.items, vectors).T + offsets - negatives.log_expected
    logits = logits.masked_fill(negatives.items == labels.items[:, None], -torch.inf)
    losses = torch.cat([positive, logits], 1).logsumexp(1) - positive[:, 0]
    return (losses if labels.weight is None else losses * labels.weight).sum() / max(len(losses), 1)
