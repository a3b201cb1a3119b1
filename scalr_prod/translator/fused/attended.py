# SPDX-License-Identifier: Apache-2.0
"""Attention in training, compiled: what the asked events make of those up to them, and the gradients of it.

Events of all windows stand one after another, with nothing between them: no work is done for padding, for what comes later than an asked
event, or for events that nobody asks. The plain code is `attention.plain_states`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.translator.fused.block import exp
from scalr_prod.translator.fused.compiled import compiled, helper

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["attended", "gradients"]

#: Loops over a window's events go in steps of so many, so that all of them are done in whole registers.
_LANES: Final = 32
_ZERO: Final = np.float32(0)
_LEAST: Final = np.float32(np.finfo(np.float32).min)


@helper
def _turn(rows: Any, begin: Any, n: Any, found: Any) -> None:
    """Columns of ``found`` are n of the rows, and then zeros."""
    whole = (n + _LANES - 1) // _LANES * _LANES
    for c in range(rows.shape[1]):
        for j in range(n):
            found[c, j] = rows[begin + j, c]
        for j in range(n, whole):
            found[c, j] = 0


@helper
def _turn_back(found: Any, begin: Any, n: Any, rows: Any) -> None:
    """Add the columns to n of the rows, and make them zeros."""
    for c in range(rows.shape[1]):
        for j in range(n):
            rows[begin + j, c] += found[c, j]
            found[c, j] = 0


@helper
def _widest(first: Any, last: Any) -> Any:
    most = 0
    for p in range(len(first)):
        most = max(most, last[p] - first[p] + 1)
    return (most + _LANES - 1) // _LANES * _LANES


@helper
def _of_window(p: Any, first: Any, last: Any) -> Any:
    """The number after that of the last asked event of p's window, and how many events there are up to the latest of them."""
    stop, latest = p, last[p]
    while stop < len(first) and first[stop] == first[p]:
        latest = max(latest, last[stop])
        stop += 1
    return stop, latest - first[p] + 1


@compiled
def attended(
    parts: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    bias: NDArray[np.float32],
    when: tuple[NDArray[np.float32], NDArray[np.bool_]],
    asked: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    limits: NDArray[np.float32],
    classes: NDArray[np.uint8],
    weights: NDArray[np.float32],
    out: NDArray[np.float32],
) -> Any:
    """Mix the values of the events that each asked event sees.

    Args:
        parts: Queries float32 [P, d] of the asked events, already divided by the root of a head's size; keys and values float32 [E, d].
        bias: float32 [heads, A].
        when: float32 [E], when each event happened, in days; bool [E], whether later events see it.
        asked: int64 [P] each: the first event of the window, the asked event itself, and the number of pairs before: Σ (last - first + 1).
            Asked events of one window follow one another.
        limits: float32 [A - 1]. Upper limits of the classes of age, in days.
        classes: uint8 [pairs], written to: the class of each age.
        weights: float32 [pairs x heads], written to: of an asked event head by head; 0 for what it does not see.
        out: float32 [P, d], written to.
    """
    query, key, value = parts
    days, kept = when
    first, last, before = asked
    heads, dim, widest = len(bias), query.shape[1], _widest(first, last)
    size = dim // heads
    keys, values = np.empty((dim, widest), np.float32), np.empty((dim, widest), np.float32)
    ages, klass, line = np.empty(widest, np.float32), np.empty(widest, np.int32), np.empty(widest, np.float32)
    seen = np.empty(widest, np.float32)
    stop = 0
    for p in range(len(first)):
        begin, n, at = first[p], last[p] - first[p] + 1, before[p]
        if p == stop:
            stop, many = _of_window(p, first, last)
            _turn(key, begin, many, keys)
            _turn(value, begin, many, values)
        whole = (n + _LANES - 1) // _LANES * _LANES
        for j in range(n):
            ages[j] = days[last[p]] - days[begin + j]
        for j in range(n, whole):
            ages[j] = 0
        for j in range(whole):
            klass[j] = 0
        for limit in limits:
            for j in range(whole):
                klass[j] += np.int32(ages[j] > limit)
        for j in range(n):
            classes[at + j] = klass[j]
            seen[j] = kept[begin + j]
        seen[n - 1] = 1
        for j in range(n, whole):
            seen[j] = 0
        for h in range(heads):
            for j in range(whole):
                line[j] = 0
            for c in range(h * size, (h + 1) * size):
                factor = query[p, c]
                for j in range(whole):
                    line[j] += factor * keys[c, j]
            top = _LEAST
            for j in range(n):
                line[j] += bias[h, klass[j]]
                top = max(top, line[j])
            for j in range(whole):
                line[j] = exp(line[j] - top) * seen[j]
            mass = _ZERO
            for j in range(whole):
                mass += line[j]
            share = np.float32(1) / mass
            for j in range(whole):
                line[j] *= share
            for j in range(n):
                weights[at * heads + h * n + j] = line[j]
            for c in range(h * size, (h + 1) * size):
                total = _ZERO
                for j in range(whole):
                    total += line[j] * values[c, j]
                out[p, c] = total


@compiled
def gradients(
    gradient: NDArray[np.float32],
    parts: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    asked: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    classes: NDArray[np.uint8],
    weights: NDArray[np.float32],
    of_parts: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    of_bias: NDArray[np.float32],
) -> Any:
    """Gradients by queries, keys, values and bias.

    Args:
        gradient: float32 [P, d], by what `attended` gave.
        parts: As `attended` had them, and so the next three.
        asked: See there.
        classes: See there.
        weights: See there.
        of_parts: float32 [P, d], [E, d], [E, d], written to; 0 before.
        of_bias: float32 [heads, A], written to; 0 before.
    """
    query, key, value = parts
    of_query, of_key, of_value = of_parts
    first, last, before = asked
    heads, dim, widest = len(of_bias), query.shape[1], _widest(first, last)
    size = dim // heads
    keys, values = np.empty((dim, widest), np.float32), np.empty((dim, widest), np.float32)
    of_keys, of_values = np.zeros((dim, widest), np.float32), np.zeros((dim, widest), np.float32)
    line, own = np.empty(widest, np.float32), np.empty(widest, np.float32)
    stop, many = 0, 0
    for p in range(len(first)):
        begin, n, at = first[p], last[p] - first[p] + 1, before[p]
        if p == stop:
            stop, many = _of_window(p, first, last)
            _turn(key, begin, many, keys)
            _turn(value, begin, many, values)
        whole = (n + _LANES - 1) // _LANES * _LANES
        for h in range(heads):
            for j in range(n):
                own[j] = weights[at * heads + h * n + j]
            for j in range(n, whole):
                own[j] = 0
            for j in range(whole):
                line[j] = 0
            for c in range(h * size, (h + 1) * size):
                factor = gradient[p, c]
                for j in range(whole):
                    line[j] += factor * values[c, j]
                for j in range(whole):
                    of_values[c, j] += factor * own[j]
            mean = _ZERO
            for j in range(whole):
                mean += own[j] * line[j]
            for j in range(whole):
                line[j] = own[j] * (line[j] - mean)
            for j in range(n):
                of_bias[h, classes[at + j]] += line[j]
            for c in range(h * size, (h + 1) * size):
                total, factor = _ZERO, query[p, c]
                for j in range(whole):
                    total += line[j] * keys[c, j]
                of_query[p, c] = total
                for j in range(whole):
                    of_keys[c, j] += factor * line[j]
        if p + 1 == stop:
            _turn_back(of_keys, begin, many, of_key)
            _turn_back(of_values, begin, many, of_value)
