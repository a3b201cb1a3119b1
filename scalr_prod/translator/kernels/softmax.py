# SPDX-License-Identifier: Apache-2.0
"""Kernel of `estimators.sampled_softmax`: losses and gradients of a block of choices in one pass over the logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.translator.kernels.compilation import compiled
from scalr_prod.translator.kernels.item_block import exp

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["softmax_loss"]

#: Maxima computed in parallel, in vector registers.
_LANES: Final = 64
_LEAST: Final = np.float32(np.finfo(np.float32).min)


@compiled
def softmax_loss(
    logits: NDArray[np.float32],
    positive: NDArray[np.float32],
    offsets: NDArray[np.float32],
    offset_row: NDArray[np.int64],
    hits: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    weight: NDArray[np.float32],
    losses: NDArray[np.float32],
    label_gradient: NDArray[np.float32],
) -> Any:
    """Compute -log P of the label of B choices, and its gradients. The reference is `sampled_softmax.reference_loss`.

    Args:
        logits: float32 [B, M]. Logits of the drawn items without offsets. Output: the gradient by each, times the choice's weight.
        positive: float32 [B]. Logit of the label.
        offsets: float32 [K, M]. Offsets of the drawn items at K times.
        offset_row: int64 [B]. Row of the offsets for each choice.
        hits: int64 [M], [B] and [B]. Positions of the drawn items sorted by item, and for each choice the start and end of the range in it
            whose item is the choice's label; those draws are ignored.
        weight: float32 [B]. Weight of each choice in the total loss.
        losses: float32 [B]. Output.
        label_gradient: float32 [B]. Output: the gradient by ``positive``, times the weight.
    """
    order, begin, end = hits
    n_drawn = logits.shape[1]
    partial_tops = np.empty(_LANES, np.float32)
    for b in range(len(logits)):
        row = offset_row[b]
        for j in range(n_drawn):
            logits[b, j] += offsets[row, j]
        for hit in range(begin[b], end[b]):
            logits[b, order[hit]] = _LEAST
        top = positive[b]
        for u in range(_LANES):
            partial_tops[u] = top
        for start in range(0, n_drawn // _LANES * _LANES, _LANES):
            for u in range(_LANES):
                partial_tops[u] = max(partial_tops[u], logits[b, start + u])
        for j in range(n_drawn // _LANES * _LANES, n_drawn):
            top = max(top, logits[b, j])
        for u in range(_LANES):
            top = max(top, partial_tops[u])
        label_power = exp(positive[b] - top)
        total = label_power
        for j in range(n_drawn):
            x = exp(logits[b, j] - top)
            logits[b, j] = x
            total += x
        for hit in range(begin[b], end[b]):
            logits[b, order[hit]] = 0
        losses[b] = top + np.log(total) - positive[b]
        scale = weight[b] / total
        for j in range(n_drawn):
            logits[b, j] *= scale
        label_gradient[b] = (label_power - total) * scale
