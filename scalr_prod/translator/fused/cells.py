# SPDX-License-Identifier: Apache-2.0
"""Observed cells of a sparse matrix, compiled: what a step of the factorisation makes of them.

Plain tensor operations gather two vectors for each cell, write their products, sum them, and gather one of the two again. Here a
cell's vectors are read once. Sums are taken in torch's order, eight side by side, so that a fit gives the same numbers without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.translator.fused.compiled import exact

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["weighted_sums"]


@exact
def weighted_sums(
    start: NDArray[np.int64],
    column: NDArray[np.int64],
    values: NDArray[np.float32],
    v: NDArray[np.float32],
    y: NDArray[np.float32],
    found: NDArray[np.float32],
) -> Any:
    """``found[r]`` = Σ values[c] (v[r] · y[column[c]]) y[column[c]] over the cells c of row r.

    Args:
        start: int64 [R + 1]. Where the cells of each row begin.
        column: int64 [C].
        values: float32 [C].
        v: float32 [R, d], d at most 512: longer sums torch takes in another order.
        y: float32 [columns, d].
        found: float32 [R, d], written to.
    """
    dim = y.shape[1]
    steps, eights = dim // 32 * 32, dim // 8 * 8
    for row in range(len(start) - 1):
        mine, sums = v[row], found[row]
        for k in range(dim):
            sums[k] = 0
        for cell in range(start[row], start[row + 1]):
            other = y[column[cell]]
            t0 = t1 = t2 = t3 = t4 = t5 = t6 = t7 = np.float32(0)
            for vector in range(4):
                a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = np.float32(0)
                for k in range(8 * vector, steps, 32):
                    a0 += mine[k] * other[k]
                    a1 += mine[k + 1] * other[k + 1]
                    a2 += mine[k + 2] * other[k + 2]
                    a3 += mine[k + 3] * other[k + 3]
                    a4 += mine[k + 4] * other[k + 4]
                    a5 += mine[k + 5] * other[k + 5]
                    a6 += mine[k + 6] * other[k + 6]
                    a7 += mine[k + 7] * other[k + 7]
                if vector == 0:
                    for k in range(steps, eights, 8):
                        a0 += mine[k] * other[k]
                        a1 += mine[k + 1] * other[k + 1]
                        a2 += mine[k + 2] * other[k + 2]
                        a3 += mine[k + 3] * other[k + 3]
                        a4 += mine[k + 4] * other[k + 4]
                        a5 += mine[k + 5] * other[k + 5]
                        a6 += mine[k + 6] * other[k + 6]
                        a7 += mine[k + 7] * other[k + 7]
                t0 += a0
                t1 += a1
                t2 += a2
                t3 += a3
                t4 += a4
                t5 += a5
                t6 += a6
                t7 += a7
            product = np.float32(0)
            for k in range(eights, dim):
                product += mine[k] * other[k]
            weight = values[cell] * (product + t0 + t1 + t2 + t3 + t4 + t5 + t6 + t7)
            for k in range(dim):
                sums[k] += weight * other[k]
