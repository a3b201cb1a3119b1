# SPDX-License-Identifier: Apache-2.0
"""Kernels of `multinomial_logit`: loss, gradient and curvature for Newton's method, with one read of each row.

The reference is the torch code there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.translator.kernels.compilation import compiled, helper
from scalr_prod.translator.kernels.item_block import exp

if TYPE_CHECKING:
    from numpy.typing import NDArray


_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
#: Maxima computed in parallel, in vector registers.
_LANES: Final = 64


@helper
def _logits(values: Any, plain: Any, row_weights: Any, log_q: Any, r: Any, line: Any, partial_tops: Any) -> Any:
    """Compute a row's logits, minus log expected draws, into ``line``, and return the largest."""
    width = values.shape[2]
    for m in range(width):
        line[m] = -log_q[r, m]
    for c in range(len(plain)):
        column, factor = plain[c], row_weights[c]
        for m in range(width):
            line[m] += factor * values[r, column, m]
    vectorized = width // _LANES * _LANES
    top = line[0]
    for u in range(_LANES):
        partial_tops[u] = top
    for begin in range(0, vectorized, _LANES):
        for u in range(_LANES):
            partial_tops[u] = max(partial_tops[u], line[begin + u])
    for m in range(vectorized, width):
        top = max(top, line[m])
    for u in range(_LANES):
        top = max(top, partial_tops[u])
    return top


@helper
def _row_weights(weights: Any, z: Any, r: Any, out: Any) -> None:
    """Compute the weight of each column for a row: Σ_a z_a D[a, c]."""
    for c in range(len(out)):
        out[c] = 0
    for a in range(len(weights)):
        for c in range(len(out)):
            out[c] += z[r, a] * weights[a, c]


@compiled
def log_losses(
    values: NDArray[np.float32],
    rows: NDArray[np.int64],
    plain: NDArray[np.int64],
    z: NDArray[np.float32],
    log_q: NDArray[np.float32],
    weights: NDArray[np.float32],
    out: NDArray[np.float64],
) -> Any:
    """Compute -log P(label) of each row.

    Args:
        values: float32 [N, columns, 1 + M]. Features of the items, the label first.
        rows: int64 [R]. Rows of the N to compute.
        plain: int64 [C]. Columns that have a weight.
        z: float32 [R, A]. 1, followed by the traits that modify weights.
        log_q: float32 [N, 1 + M]. Logarithms of the expected numbers of draws.
        weights: float32 [A, C].
        out: float64 [R]. Output.
    """
    width = values.shape[2]
    line, partial_tops, row_weights = (
        np.empty(width, np.float32),
        np.empty(_LANES, np.float32),
        np.empty(len(plain), np.float32),
    )
    for n in range(len(rows)):
        r = rows[n]
        _row_weights(weights, z, n, row_weights)
        top = _logits(values, plain, row_weights, log_q, r, line, partial_tops)
        total = _ZERO
        for m in range(width):
            total += exp(line[m] - top)
        out[n] = np.log(np.float64(total)) - np.float64(line[0] - top)


@compiled
def add_derivatives(
    values: NDArray[np.float32],
    rows: NDArray[np.int64],
    plain: NDArray[np.int64],
    z: NDArray[np.float32],
    log_q: NDArray[np.float32],
    row_counts: NDArray[np.float32],
    weights: NDArray[np.float32],
    gradient: NDArray[np.float64],
    curvature: NDArray[np.float64],
) -> Any:
    """Add the gradient and the negative Hessian of the rows' Σ log P(label).

    Args:
        values: As in `log_losses`.
        rows: As in `log_losses`.
        plain: As in `log_losses`.
        z: As in `log_losses`.
        log_q: As in `log_losses`.
        row_counts: float32 [R]. Number of choices that each row counts as.
        weights: float32 [A, C].
        gradient: float64 [A, C]. Added to.
        curvature: float64 [A, A, C, C]. Added to.
    """
    n_traits, n_columns, width = len(weights), len(plain), values.shape[2]
    line, partial_tops, row_weights = np.empty(width, np.float32), np.empty(_LANES, np.float32), np.empty(n_columns, np.float32)
    weighted, mean = np.empty(width, np.float32), np.empty(n_columns, np.float32)
    covariance, blocks = np.empty(n_columns * n_columns), np.zeros((n_traits * n_traits, n_columns * n_columns))
    for n in range(len(rows)):
        r = rows[n]
        _row_weights(weights, z, n, row_weights)
        top = _logits(values, plain, row_weights, log_q, r, line, partial_tops)
        total = _ZERO
        for m in range(width):
            x = exp(line[m] - top)
            line[m] = x
            total += x
        scale = _ONE / total
        for m in range(width):
            line[m] *= scale
        for c in range(n_columns):
            column, total = plain[c], _ZERO
            for m in range(width):
                x = line[m] * values[r, column, m]
                weighted[m] = x
                total += x
            mean[c] = total
            d = 0
            while d + 3 <= c:
                d0, d1, d2, d3 = plain[d], plain[d + 1], plain[d + 2], plain[d + 3]
                t0 = t1 = t2 = t3 = _ZERO
                for m in range(width):
                    x = weighted[m]
                    t0 += x * values[r, d0, m]
                    t1 += x * values[r, d1, m]
                    t2 += x * values[r, d2, m]
                    t3 += x * values[r, d3, m]
                covariance[c * n_columns + d] = t0
                covariance[c * n_columns + d + 1] = t1
                covariance[c * n_columns + d + 2] = t2
                covariance[c * n_columns + d + 3] = t3
                d += 4
            for other in range(d, c + 1):
                d0, t0 = plain[other], _ZERO
                for m in range(width):
                    t0 += weighted[m] * values[r, d0, m]
                covariance[c * n_columns + other] = t0
        for c in range(n_columns):
            for d in range(c + 1):
                covariance[c * n_columns + d] -= np.float64(mean[c]) * mean[d]
                covariance[d * n_columns + c] = covariance[c * n_columns + d]
        for a in range(n_traits):
            factor_a = np.float64(row_counts[n]) * z[n, a]
            for c in range(n_columns):
                gradient[a, c] += factor_a * (values[r, plain[c], 0] - mean[c])
            for b in range(a + 1):
                factor, block = factor_a * z[n, b], a * n_traits + b
                for i in range(n_columns * n_columns):
                    blocks[block, i] += factor * covariance[i]
    for a in range(n_traits):
        for b in range(a + 1):
            for c in range(n_columns):
                for d in range(n_columns):
                    x = blocks[a * n_traits + b, c * n_columns + d]
                    curvature[a, b, c, d] += x
                    if b < a:
                        curvature[b, a, c, d] += x
