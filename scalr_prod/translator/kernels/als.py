# SPDX-License-Identifier: Apache-2.0
"""Kernels of `estimators.factorisation`: sums over the observed cells of a sparse matrix.

Tensor operations would gather two vectors per cell, store their product, sum it, and gather one of the vectors again. The kernels read the
vectors of each cell once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.translator.kernels.compilation import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray


_ZERO: Final = np.float32(0)


@compiled
def sum_by_row(
    start: NDArray[np.int64],
    column: NDArray[np.int64],
    values: NDArray[np.float32],
    v: NDArray[np.float32],
    y: NDArray[np.float32],
    out: NDArray[np.float32],
) -> Any:
    """Set ``found[r]`` to Σ values[c] (v[r] · y[column[c]]) y[column[c]] over the cells c of row r.

    Args:
        start: int64 [R + 1]. Start of each row's cells.
        column: int64 [C].
        values: float32 [C].
        v: float32 [R, d].
        y: float32 [columns, d].
        out: float32 [R, d]. Output.
    """
    dim = y.shape[1]
    for row in range(len(start) - 1):
        for k in range(dim):
            out[row, k] = 0
        for cell in range(start[row], start[row + 1]):
            other, product = column[cell], _ZERO
            for k in range(dim):
                product += v[row, k] * y[other, k]
            weight = values[cell] * product
            for k in range(dim):
                out[row, k] += weight * y[other, k]


@compiled
def add_by_column(
    start: NDArray[np.int64],
    column: NDArray[np.int64],
    offset: NDArray[np.float32],
    values: NDArray[np.float32],
    x: NDArray[np.float32],
    v: NDArray[np.float32],
    first: int,
    out: NDArray[np.float32],
) -> Any:
    """Add (offset[c] + values[c] (x[r] · v[i])) x[r] to ``found[i]`` for the cells c of each row r with ``column[c]`` = first + i.

    Args:
        start: int64 [R + 1]. Start of each row's cells.
        column: int64 [C].
        offset: float32 [C].
        values: float32 [C].
        x: float32 [R, d].
        v: float32 [I, d]. Cells outside the columns ``first`` … first + I - 1 are skipped.
        first: First column.
        out: float32 [I, d]. Added to.
    """
    dim = x.shape[1]
    for row in range(len(start) - 1):
        for cell in range(start[row], start[row + 1]):
            other = column[cell] - first
            if 0 <= other < len(v):
                product = _ZERO
                for k in range(dim):
                    product += x[row, k] * v[other, k]
                weight = offset[cell] + values[cell] * product
                for k in range(dim):
                    out[other, k] += weight * x[row, k]
