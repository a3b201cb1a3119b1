# SPDX-License-Identifier: Apache-2.0
"""Kernels of `estimators.attention`: forward and backward pass of causal attention for selected query events.

The events of all windows are concatenated. So no work is done for padding, for keys after a query, or for events that are not queries. The
reference is `estimators.attention.reference_states`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.translator.kernels.compilation import compiled, helper
from scalr_prod.translator.kernels.item_block import exp

if TYPE_CHECKING:
    from numpy.typing import NDArray


#: Loops over a window's events are padded to a multiple of this, so that they run in full vector registers.
_LANES: Final = 32
_ZERO: Final = np.float32(0)
_LEAST: Final = np.float32(np.finfo(np.float32).min)


@helper
def _transpose(rows: Any, begin: Any, n: Any, out: Any) -> None:
    """Transpose n rows into ``out``, padded with zeros."""
    padded = (n + _LANES - 1) // _LANES * _LANES
    for c in range(rows.shape[1]):
        for j in range(n):
            out[c, j] = rows[begin + j, c]
        for j in range(n, padded):
            out[c, j] = 0


@helper
def _add_transposed(columns: Any, begin: Any, n: Any, rows: Any) -> None:
    """Add ``columns``, transposed, to n rows, and set it to zero."""
    for c in range(rows.shape[1]):
        for j in range(n):
            rows[begin + j, c] += columns[c, j]
            columns[c, j] = 0


@helper
def _max_width(first: Any, last: Any) -> Any:
    """Return the largest number of keys of a query, rounded up to a multiple of `_LANES`."""
    width = 0
    for p in range(len(first)):
        width = max(width, last[p] - first[p] + 1)
    return (width + _LANES - 1) // _LANES * _LANES


@helper
def _window_queries(p: Any, first: Any, last: Any) -> Any:
    """Return the end of the queries in the window of query p, and the number of events up to its latest query."""
    stop, latest = p, last[p]
    while stop < len(first) and first[stop] == first[p]:
        latest = max(latest, last[stop])
        stop += 1
    return stop, latest - first[p] + 1


@compiled
def attention_forward(
    query_key_value: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    bias: NDArray[np.float32],
    events: tuple[NDArray[np.float32], NDArray[np.bool_]],
    spans: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    limits: NDArray[np.float32],
    classes: NDArray[np.uint8],
    weights: NDArray[np.float32],
    out: NDArray[np.float32],
) -> Any:
    """Compute the attention output of each query event.

    Args:
        query_key_value: Queries float32 [P, d], already divided by the root of the head size; keys and values float32 [E, d].
        bias: float32 [heads, A].
        events: float32 [E], time of each event, in days; bool [E], whether later events attend to it.
        spans: int64 [P] each: the window's first event, the query event, and the number of pairs before: Σ (last - first + 1).
            The queries of a window are adjacent.
        limits: float32 [A - 1]. Upper limits of the age classes, in days.
        classes: uint8 [pairs]. Output: the class of each age.
        weights: float32 [pairs x heads]. Output: attention weights, head by head for each query; 0 for hidden events.
        out: float32 [P, d]. Output.
    """
    query, key, value = query_key_value
    days, visible = events
    first, last, before = spans
    heads, dim, max_width = len(bias), query.shape[1], _max_width(first, last)
    size = dim // heads
    keys, values = np.empty((dim, max_width), np.float32), np.empty((dim, max_width), np.float32)
    ages, age_class, logits = np.empty(max_width, np.float32), np.empty(max_width, np.int32), np.empty(max_width, np.float32)
    seen = np.empty(max_width, np.float32)
    stop = 0
    for p in range(len(first)):
        begin, n, offset = first[p], last[p] - first[p] + 1, before[p]
        if p == stop:
            stop, n_events = _window_queries(p, first, last)
            _transpose(key, begin, n_events, keys)
            _transpose(value, begin, n_events, values)
        padded = (n + _LANES - 1) // _LANES * _LANES
        for j in range(n):
            ages[j] = days[last[p]] - days[begin + j]
        for j in range(n, padded):
            ages[j] = 0
        for j in range(padded):
            age_class[j] = 0
        for limit in limits:
            for j in range(padded):
                age_class[j] += np.int32(ages[j] > limit)
        for j in range(n):
            classes[offset + j] = age_class[j]
            seen[j] = visible[begin + j]
        seen[n - 1] = 1
        for j in range(n, padded):
            seen[j] = 0
        for h in range(heads):
            for j in range(padded):
                logits[j] = 0
            for c in range(h * size, (h + 1) * size):
                factor = query[p, c]
                for j in range(padded):
                    logits[j] += factor * keys[c, j]
            top = _LEAST
            for j in range(n):
                logits[j] += bias[h, age_class[j]]
                top = max(top, logits[j])
            for j in range(padded):
                logits[j] = exp(logits[j] - top) * seen[j]
            mass = _ZERO
            for j in range(padded):
                mass += logits[j]
            share = np.float32(1) / mass
            for j in range(padded):
                logits[j] *= share
            for j in range(n):
                weights[offset * heads + h * n + j] = logits[j]
            for c in range(h * size, (h + 1) * size):
                total = _ZERO
                for j in range(padded):
                    total += logits[j] * values[c, j]
                out[p, c] = total


@compiled
def attention_backward(
    gradient: NDArray[np.float32],
    query_key_value: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    spans: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    classes: NDArray[np.uint8],
    weights: NDArray[np.float32],
    outputs: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    bias_gradient: NDArray[np.float32],
) -> Any:
    """Compute the gradients of queries, keys, values and bias.

    Args:
        gradient: float32 [P, d]. Gradient of the output of `attention_forward`.
        query_key_value: As in `attention_forward`.
        spans: As in `attention_forward`.
        classes: As in `attention_forward`.
        weights: As in `attention_forward`.
        outputs: float32 [P, d], [E, d], [E, d]. Output: gradients of queries, keys and values; 0 before.
        bias_gradient: float32 [heads, A]. Output; 0 before.
    """
    query, key, value = query_key_value
    query_gradient, key_gradient, value_gradient = outputs
    first, last, before = spans
    heads, dim, max_width = len(bias_gradient), query.shape[1], _max_width(first, last)
    size = dim // heads
    keys, values = np.empty((dim, max_width), np.float32), np.empty((dim, max_width), np.float32)
    key_gradients, value_gradients = np.zeros((dim, max_width), np.float32), np.zeros((dim, max_width), np.float32)
    logits, own_weights = np.empty(max_width, np.float32), np.empty(max_width, np.float32)
    stop, n_events = 0, 0
    for p in range(len(first)):
        begin, n, offset = first[p], last[p] - first[p] + 1, before[p]
        if p == stop:
            stop, n_events = _window_queries(p, first, last)
            _transpose(key, begin, n_events, keys)
            _transpose(value, begin, n_events, values)
        padded = (n + _LANES - 1) // _LANES * _LANES
        for h in range(heads):
            for j in range(n):
                own_weights[j] = weights[offset * heads + h * n + j]
            for j in range(n, padded):
                own_weights[j] = 0
            for j in range(padded):
                logits[j] = 0
            for c in range(h * size, (h + 1) * size):
                factor = gradient[p, c]
                for j in range(padded):
                    logits[j] += factor * values[c, j]
                for j in range(padded):
                    value_gradients[c, j] += factor * own_weights[j]
            mean = _ZERO
            for j in range(padded):
                mean += own_weights[j] * logits[j]
            for j in range(padded):
                logits[j] = own_weights[j] * (logits[j] - mean)
            for j in range(n):
                bias_gradient[h, classes[offset + j]] += logits[j]
            for c in range(h * size, (h + 1) * size):
                total, factor = _ZERO, query[p, c]
                for j in range(padded):
                    total += logits[j] * keys[c, j]
                query_gradient[p, c] = total
                for j in range(padded):
                    key_gradients[c, j] += factor * logits[j]
        if p + 1 == stop:
            _add_transposed(key_gradients, begin, n_events, key_gradient)
            _add_transposed(value_gradients, begin, n_events, value_gradient)
