# SPDX-License-Identifier: Apache-2.0
"""Kernel of `metrics`: rank of the label, most probable item, and histogram of probabilities of a distribution.

The reference is `metrics.score_labels_with_torch`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.translator.kernels.compilation import compiled, float_to_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["distribution_metrics"]


@compiled
def distribution_metrics(
    p: NDArray[np.float32],
    label: NDArray[np.int64],
    rank: NDArray[np.float64],
    best: NDArray[np.int64],
    share: NDArray[np.float64],
    pairs: NDArray[np.float64],
    label_class: NDArray[np.int64],
) -> Any:
    """Measure B distributions. Class c holds probabilities in (2^-(c + 1), 2^-c]; the last class holds all smaller ones.

    Args:
        p: float32 [B, N].
        label: int64 [B].
        rank: float64 [B]. Output: rank of the label, 1 = most probable; ties get their mean rank.
        best: int64 [B]. Output: the most probable item, the first of several.
        share: float64 [B, classes]. Added to: probability of each class.
        pairs: float64 [B, classes]. Added to: number of items of each class with a probability above 0.
        label_class: int64 [B]. Output: class of the label.
    """
    n_items, last = p.shape[1], np.int32(share.shape[1] - 1)
    classes = np.empty(n_items, np.int32)
    for b in range(len(p)):
        label_p, above, tied = p[b, label[b]], np.int64(0), np.int64(0)
        for i in range(n_items):
            above += np.int64(p[b, i] > label_p)
        for i in range(n_items):
            tied += np.int64(p[b, i] == label_p)
        rank[b] = 1 + above + (tied - 1) / 2
        top_item = 0
        for i in range(n_items):
            if p[b, i] > p[b, top_item]:
                top_item = i
        best[b] = top_item
        for i in range(n_items):
            classes[i] = min(max(np.int32(126) - ((float_to_bits(p[b, i]) - np.int32(1)) >> np.int32(23)), np.int32(0)), last)
        label_class[b] = classes[label[b]]
        for i in range(n_items):
            share[b, classes[i]] += p[b, i]
            pairs[b, classes[i]] += np.float64(p[b, i] > 0)
