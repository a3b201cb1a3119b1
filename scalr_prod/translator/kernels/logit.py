# SPDX-License-Identifier: Apache-2.0
"""Loss, gradient and curvature of the multinomial logit for the calibration's Newton steps, compiled: each row is read once.

The reference is in `multinomial_logit`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.translator.kernels.compilation import compiled, helper
from scalr_prod.translator.kernels.item_block import exp

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["add_derivatives", "log_losses"]

_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
#: Maxima computed in parallel, in vector registers.
_LANES: Final = 64


@helper
def _logits(values: Any, plain: Any, own: Any, log_q: Any, r: Any, line: Any, tops: Any) -> Any:
    """Write a row's logits, and return the largest."""
    most = values.shape[2]
    for m in range(most):
        line[m] = -log_q[r, m]
    for c in range(len(plain)):
        column, factor = plain[c], own[c]
        for m in range(most):
            line[m] += factor * values[r, column, m]
    whole = most // _LANES * _LANES
    top = line[0]
    for u in range(_LANES):
        tops[u] = top
    for begin in range(0, whole, _LANES):
        for u in range(_LANES):
            tops[u] = max(tops[u], line[begin + u])
    for m in range(whole, most):
        top = max(top, line[m])
    for u in range(_LANES):
        top = max(top, tops[u])
    return top


@helper
def _row_weights(weights: Any, z: Any, r: Any, own: Any) -> None:
    """Compute a row's weights: Σ_a z_a D[a, c]."""
    for c in range(len(own)):
        own[c] = 0
    for a in range(len(weights)):
        for c in range(len(own)):
            own[c] += z[r, a] * weights[a, c]


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
        plain: int64 [C]. Columns with a weight.
        z: float32 [R, A]. 1, and the tastes that modify weights.
        log_q: float32 [N, 1 + M]. Logarithms of the expected numbers of draws.
        weights: float32 [A, C].
        out: float64 [R]. Output.
    """
    most = values.shape[2]
    line, tops, own = np.empty(most, np.float32), np.empty(_LANES, np.float32), np.empty(len(plain), np.float32)
    for n in range(len(rows)):
        r = rows[n]
        _row_weights(weights, z, n, own)
        top = _logits(values, plain, own, log_q, r, line, tops)
        total = _ZERO
        for m in range(most):
            total += exp(line[m] - top)
        out[n] = np.log(np.float64(total)) - np.float64(line[0] - top)


@compiled
def add_derivatives(
    values: NDArray[np.float32],
    rows: NDArray[np.int64],
    plain: NDArray[np.int64],
    z: NDArray[np.float32],
    log_q: NDArray[np.float32],
    counted: NDArray[np.float32],
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
        counted: float32 [R]. Weight of each row, in choices.
        weights: float32 [A, C].
        gradient: float64 [A, C]. Added to.
        curvature: float64 [A, A, C, C]. Added to.
    """
    many, columns, most = len(weights), len(plain), values.shape[2]
    line, tops, own = np.empty(most, np.float32), np.empty(_LANES, np.float32), np.empty(columns, np.float32)
    weighed, mean = np.empty(most, np.float32), np.empty(columns, np.float32)
    covariance, found = np.empty(columns * columns), np.zeros((many * many, columns * columns))
    for n in range(len(rows)):
        r = rows[n]
        _row_weights(weights, z, n, own)
        top = _logits(values, plain, own, log_q, r, line, tops)
        total = _ZERO
        for m in range(most):
            x = exp(line[m] - top)
            line[m] = x
            total += x
        scale = _ONE / total
        for m in range(most):
            line[m] *= scale
        for c in range(columns):
            column, total = plain[c], _ZERO
            for m in range(most):
                x = line[m] * values[r, column, m]
                weighed[m] = x
                total += x
            mean[c] = total
            d = 0
            while d + 3 <= c:
                d0, d1, d2, d3 = plain[d], plain[d + 1], plain[d + 2], plain[d + 3]
                t0 = t1 = t2 = t3 = _ZERO
                for m in range(most):
                    x = weighed[m]
                    t0 += x * values[r, d0, m]
                    t1 += x * values[r, d1, m]
                    t2 += x * values[r, d2, m]
                    t3 += x * values[r, d3, m]
                covariance[c * columns + d] = t0
                covariance[c * columns + d + 1] = t1
                covariance[c * columns + d + 2] = t2
                covariance[c * columns + d + 3] = t3
                d += 4
            for other in range(d, c + 1):
                d0, t0 = plain[other], _ZERO
                for m in range(most):
                    t0 += weighed[m] * values[r, d0, m]
                covariance[c * columns + other] = t0
        for c in range(columns):
            for d in range(c + 1):
                covariance[c * columns + d] -= np.float64(mean[c]) * mean[d]
                covariance[d * columns + c] = covariance[c * columns + d]
        for a in range(many):
            times = np.float64(counted[n]) * z[n, a]
            for c in range(columns):
                gradient[a, c] += times * (values[r, plain[c], 0] - mean[c])
            for b in range(a + 1):
                factor, place = times * z[n, b], a * many + b
                for i in range(columns * columns):
                    found[place, i] += factor * covariance[i]
    for a in range(many):
        for b in range(a + 1):
            for c in range(columns):
                for d in range(columns):
                    x = found[a * many + b, c * columns + d]
                    curvature[a, b, c, d] += x
                    if b < a:
                        curvature[b, a, c, d] += x
