# SPDX-License-Identifier: Apache-2.0
"""What a distribution says of an event, compiled: one pass for rank, most probable item and classes of probability.

The plain code is `metrics.plain_said`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.translator.fused.compiled import as_int, compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["said"]


@compiled
def said(
    p: NDArray[np.float32],
    label: NDArray[np.int64],
    rank: NDArray[np.float64],
    best: NDArray[np.int64],
    share: NDArray[np.float64],
    pairs: NDArray[np.float64],
    own_class: NDArray[np.int64],
) -> Any:
    """Look at B distributions. An item of probability 2^-c … 2^-(c + 1), its upper limit included, is of class c; the rest of the last.

    Args:
        p: float32 [B, N].
        label: int64 [B]. Whose rank is asked.
        rank: float64 [B], written to: of the label, 1 = the most probable; ties share the mean.
        best: int64 [B], written to: the most probable item, the first of several.
        share: float64 [B, classes], added to: each class's probability.
        pairs: float64 [B, classes], added to: each class's items of a probability above 0.
        own_class: int64 [B], written to: the label's.
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
            classes[i] = min(max(np.int32(126) - ((as_int(p[b, i]) - np.int32(1)) >> np.int32(23)), np.int32(0)), last)
        own_class[b] = classes[label[b]]
        for i in range(items):
            share[b, classes[i]] += p[b, i]
            pairs[b, classes[i]] += np.float64(p[b, i] > 0)
