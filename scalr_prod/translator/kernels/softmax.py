# SPDX-License-Identifier: Apache-2.0
"""Sampled softmax of a block of choices, compiled: losses and gradients in one pass over the logits."""

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
    moment: NDArray[np.int64],
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
        moment: int64 [B]. Row of the offsets for each choice.
        hits: int64 [M], [B] and [B]. Positions of the drawn items in the order of items, and the range of these that are draws of a
            choice's own label. Those are ignored.
        weight: float32 [B]. Weight of each choice in the total loss.
        losses: float32 [B]. Output.
        label_gradient: float32 [B]. Output: the gradient by ``positive``, times the weight.
    """
    order, begin, end = hits
    most = logits.shape[1]
    tops = np.empty(_LANES, np.float32)
    for b in range(len(logits)):
        k = moment[b]
        for j in range(most):
            logits[b, j] += offsets[k, j]
        for place in range(begin[b], end[b]):
            logits[b, order[place]] = _LEAST
        top = positive[b]
        for u in range(_LANES):
            tops[u] = top
        for start in range(0, most // _LANES * _LANES, _LANES):
            for u in range(_LANES):
                tops[u] = max(tops[u], logits[b, start + u])
        for j in range(most // _LANES * _LANES, most):
            top = max(top, logits[b, j])
        for u in range(_LANES):
            top = max(top, tops[u])
        own = exp(positive[b] - top)
        total = own
        for j in range(most):
            x = exp(logits[b, j] - top)
            logits[b, j] = x
            total += x
        for place in range(begin[b], end[b]):
            logits[b, order[place]] = 0
        losses[b] = top + np.log(total) - positive[b]
        scale = weight[b] / total
        for j in range(most):
            logits[b, j] *= scale
        label_gradient[b] = (own - total) * scale
