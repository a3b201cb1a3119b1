# SPDX-License-Identifier: Apache-2.0
"""Ranking and calibration metrics of distributions, compiled: rank, most probable item and probability classes.

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
    own_class: NDArray[np.int64],
) -> Any:
    """Measure B distributions. Class c holds probabilities in (2^-(c + 1), 2^-c]; the last class holds all smaller ones.

    Args:
        p: float32 [B, N].
        label: int64 [B].
        rank: float64 [B]. Output: rank of the label, 1 = most probable; ties get their mean rank.
        best: int64 [B]. Output: the most probable item, the first of several.
        share: float64 [B, classes]. Added to: probability of each class.
        pairs: float64 [B, classes]. Added to: number of items of each class with a probability above 0.
        own_class: int64 [B]. Output: class of the label.
    """
    items, last = p.shape[1], np.int32(share.shape[1] - 1)
    classes = np.empty(items, np.int32)
    for b in range(len(p)):
        own, above, level = p[b, label[b]], np.int64(0), np.int64(0)
        for i in range(items):
            above += np.int64(p[b, i] > own)
        for i in range(items):
            level += np.int64(p[b, i] == own)
        rank[b] = 1 + above + (level - 1) / 2
        which = 0
        for i in range(items):
            if p[b, i] > p[b, which]:
                which = i
        best[b] = which
        for i in range(items):
            classes[i] = min(max(np.int32(126) - ((float_to_bits(p[b, i]) - np.int32(1)) >> np.int32(23)), np.int32(0)), last)
        own_class[b] = classes[label[b]]
        for i in range(items):
            share[b, classes[i]] += p[b, i]
            pairs[b, classes[i]] += np.float64(p[b, i] > 0)
