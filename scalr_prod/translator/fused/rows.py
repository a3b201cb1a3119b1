# SPDX-License-Identifier: Apache-2.0
"""AdamW on some rows of a table, compiled; see `learning`, which has the plain code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.translator.fused.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["caught_up", "moved"]


@compiled
def caught_up(
    tables: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    rows: NDArray[np.int64],
    owed: NDArray[np.float32],
    least: np.float32,
    out: NDArray[np.float32],
) -> Any:
    """Do for rows what steps without a gradient do, all that were left out at once.

    Args:
        tables: float32 [N, d] each: the values, the means of the gradients and of their squares. Written to.
        rows: int64 [R], none twice.
        owed: float32 [R, 4]. Of each row: the factor of its value, how many times mean over root are taken from it, and
            the two means' factors.
        least: Added to the root.
        out: float32 [R, d], written to: the values.
    """
    values, means, squares = tables
    for r in range(len(rows)):
        value, mean, square, found = values[rows[r]], means[rows[r]], squares[rows[r]], out[r]
        shrink, times, of_mean, of_square = owed[r, 0], owed[r, 1], owed[r, 2], owed[r, 3]
        for k in range(len(value)):
            now = shrink * value[k] - times * (mean[k] / (np.sqrt(square[k]) + least))
            value[k] = now
            found[k] = now
            mean[k] *= of_mean
            square[k] *= of_square


@compiled
def moved(
    tables: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    rows: NDArray[np.int64],
    gradient: NDArray[np.float32],
    rates: tuple[np.float32, np.float32, np.float32, np.float32, np.float32],
    least: np.float32,
) -> Any:
    """One step of AdamW.

    Args:
        tables: As in `caught_up`.
        rows: int64 [R], none twice.
        gradient: float32 [R, d].
        rates: The value's factor, the length of a step, the two means' factors, and the root's factor.
        least: Added to the root.
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
            value[k] = shrink * value[k] - step * m / (np.sqrt(s) * of_root + least)
