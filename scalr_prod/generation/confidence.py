# SPDX-License-Identifier: Apache-2.0
"""Confidence weight of a synthetic event, before λ is applied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


#: SQL of an event's lift over popularity, P / prior = w / (1 − w), from its confidence weight; at most 10⁸.
LIFT_SQL: Final = "(weight::DOUBLE / greatest(1 - weight::DOUBLE, 1e-8))"


def confidence_weight(probability: NDArray[np.float64], prior: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return P / (P + prior): ½ for an item as likely as its popularity, towards 1 for one that the history favours.

    Args:
        probability: float64 [M]. Of the drawn items, given the history.
        prior: float64 [M]. Of the same items, by popularity alone.

    Returns:
        float32 [M].
    """
    found: NDArray[np.float32] = (probability / (probability + prior)).astype(np.float32)
    return found
