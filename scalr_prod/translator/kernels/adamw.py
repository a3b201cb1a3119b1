# SPDX-License-Identifier: Apache-2.0
"""Kernels of `estimators.lazy_adamw`: AdamW on selected rows of a table. The reference is the torch code there."""

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
    """Apply all deferred updates of some rows at once: the effect of the steps that had no gradient for them.

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
        value, mean, square, updated = values[rows[r]], means[rows[r]], squares[rows[r]], out[r]
        shrink, step, mean_factor, square_factor = deferred[r, 0], deferred[r, 1], deferred[r, 2], deferred[r, 3]
        for k in range(len(value)):
            new_value = shrink * value[k] - step * (mean[k] / (np.sqrt(square[k]) + epsilon))
            value[k] = new_value
            updated[k] = new_value
            mean[k] *= mean_factor
            square[k] *= square_factor


@compiled
def adamw_step(
    tables: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    rows: NDArray[np.int64],
    gradient: NDArray[np.float32],
    rates: tuple[np.float32, np.float32, np.float32, np.float32, np.float32],
    epsilon: np.float32,
) -> Any:
    """Take one AdamW step on some rows.

    Args:
        tables: As in `apply_deferred_updates`.
        rows: int64 [R], distinct.
        gradient: float32 [R, d].
        rates: Factor of the value, step size, factors of the two moments, and bias correction of the root.
        epsilon: Added to the root of the second moment.
    """
    values, means, squares = tables
    shrink, step, beta_1, beta_2, root_correction = rates
    for r in range(len(rows)):
        value, mean, square, g = values[rows[r]], means[rows[r]], squares[rows[r]], gradient[r]
        for k in range(len(value)):
            new_mean = beta_1 * mean[k] + (np.float32(1) - beta_1) * g[k]
            new_square = beta_2 * square[k] + (np.float32(1) - beta_2) * g[k] * g[k]
            mean[k] = new_mean
            square[k] = new_square
            value[k] = shrink * value[k] - step * new_mean / (np.sqrt(new_square) * root_correction + epsilon)
