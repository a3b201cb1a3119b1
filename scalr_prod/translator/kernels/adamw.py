# SPDX-License-Identifier: Apache-2.0
"""AdamW on some rows of a table, compiled. The reference is in `lazy_adamw`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.translator.kernels.compilation import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["adamw_step", "apply_deferred_updates"]


@compiled
def apply_deferred_updates(
    tables: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    rows: NDArray[np.int64],
    deferred: NDArray[np.float32],
    epsilon: np.float32,
    out: NDArray[np.float32],
) -> Any:
    """Apply to rows all skipped steps without a gradient at once.

    Args:
        tables: float32 [N, d] each: values, first and second moments. Updated in place.
        rows: int64 [R], distinct.
        deferred: float32 [R, 4]. For each row: the factor of its value, the factor of the momentum update subtracted from it, and
            the factors of the two moments.
        epsilon: Added to the root of the second moment.
        out: float32 [R, d]. Output: the values.
    """
    values, means, squares = tables
    for r in range(len(rows)):
        value, mean, square, found = values[rows[r]], means[rows[r]], squares[rows[r]], out[r]
        shrink, times, of_mean, of_square = deferred[r, 0], deferred[r, 1], deferred[r, 2], deferred[r, 3]
        for k in range(len(value)):
            now = shrink * value[k] - times * (mean[k] / (np.sqrt(square[k]) + epsilon))
            value[k] = now
            found[k] = now
            mean[k] *= of_mean
            square[k] *= of_square


@compiled
def adamw_step(
    tables: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    rows: NDArray[np.int64],
    gradient: NDArray[np.float32],
    rates: tuple[np.float32, np.float32, np.float32, np.float32, np.float32],
    epsilon: np.float32,
) -> Any:
    """Take one step of AdamW.

    Args:
        tables: As in `apply_deferred_updates`.
        rows: int64 [R], distinct.
        gradient: float32 [R, d].
        rates: Factor of the value, step size, factors of the two moments, and bias correction of the root.
        epsilon: Added to the root of the second moment.
    """
    values, means, squares = tables
    shrink, step, of_mean, of_square, of_root = rates
    for r in range(len(rows)):
        value, mean, square, by = values[rows[r]], means[rows[r]], squares[rows[r]], gradient[r]
        for k in range(len(value)):
            m = of_mean * mean[k] + (np.float32(1) - of_mean) * by[k]
            s = of_square * square[k] + (np.float32(1) - of_square) * by[k] * by[k]
            mean[k] = m
            square[k] = s
            value[k] = shrink * value[k] - step * m / (np.sqrt(s) * of_root + epsilon)
