# SPDX-License-Identifier: Apache-2.0
"""Attention's logits in training, compiled: scale, bias by age and mask in one pass, and their gradients in another.

The same to the bit as tensor operations, which pass a dozen times over a number for every head and pair of events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.translator.fused.compiled import exact

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NOT_SEEN", "biased", "gradients"]

#: In place of the class of an age, where an event does not see another.
NOT_SEEN = np.uint8(255)
_LEAST = np.float32(np.finfo(np.float32).min)


@exact
def biased(
    logits: NDArray[np.float32],
    days: NDArray[np.float32],
    seen: NDArray[np.bool_],
    bias: NDArray[np.float32],
    limits: NDArray[np.float32],
    scale: np.float32,
    classes: NDArray[np.uint8],
) -> Any:
    """Divide products of queries and keys by ``scale`` and add the bias of the time between the two events, in place.

    Args:
        logits: float32 [W, heads, L, L].
        days: float32 [W, L]. When each event happened.
        seen: bool [W, L, L]. Which events each one sees; where it does not, logits become the least number.
        bias: float32 [heads, A].
        limits: float32 [A - 1]. Upper limits of the classes of age, in days.
        scale: It.
        classes: uint8 [W, L, L], written to: the class of each age, or `NOT_SEEN`.
    """
    windows, heads, length, _ = logits.shape
    for window in range(windows):
        for i in range(length):
            for j in range(length):
                classes[window, i, j] = NOT_SEEN
                if seen[window, i, j]:
                    age, number = max(days[window, i] - days[window, j], np.float32(0)), 0
                    while number < len(limits) and limits[number] < age:
                        number += 1
                    classes[window, i, j] = number
        for head in range(heads):
            for i in range(length):
                for j in range(length):
                    number = classes[window, i, j]
                    if number == NOT_SEEN:
                        logits[window, head, i, j] = _LEAST
                    else:
                        logits[window, head, i, j] = logits[window, head, i, j] / scale + bias[head, number]


@exact
def gradients(
    gradient: NDArray[np.float32],
    classes: NDArray[np.uint8],
    scale: np.float32,
    of_logits: NDArray[np.float32],
    of_bias: NDArray[np.float32],
) -> Any:
    """Gradients by the products and by the bias, both written to, from the one by what `biased` gave.

    Args:
        gradient: float32 [W, heads, L, L].
        classes: As `biased` wrote them.
        scale: As it was given.
        of_logits: float32 [W, heads, L, L].
        of_bias: float32 [heads, A], 0 before.
    """
    windows, heads, length, _ = gradient.shape
    for window in range(windows):
        for head in range(heads):
            for i in range(length):
                for j in range(length):
                    number = classes[window, i, j]
                    if number == NOT_SEEN:
                        of_logits[window, head, i, j] = 0
                    else:
                        of_logits[window, head, i, j] = gradient[window, head, i, j] / scale
                        of_bias[head, number] += gradient[window, head, i, j]
