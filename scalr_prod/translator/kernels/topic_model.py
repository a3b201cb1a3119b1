# SPDX-License-Identifier: Apache-2.0
"""Expectation maximisation of the topic model, compiled: no work for padding, and no copies.

The reference is in `estimators.topics`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.translator.kernels.compilation import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["expectation_step", "targets_given_topic", "topics_given_source"]

_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_LEAST: Final = np.float32(1e-30)


@compiled
def expectation_step(
    events: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]],
    weight: NDArray[np.float32],
    tables: tuple[NDArray[np.float32], NDArray[np.float32]],
    first: bool,
    found: tuple[NDArray[np.float32], NDArray[np.float32]],
    places: NDArray[np.float64],
) -> Any:
    """Run the expectation step: add up the expected events of each item and topic.

    Args:
        events: Items of histories int64 [R, L], 0 is padding; labels int64 [R]; weights of the events, float32 [R].
        weight: float32 [L]. Weight of an item by its position.
        tables: P(k | j) float32 [n_source + 1, K]; P(i | k) float32 [n_target, K].
        first: First iteration: P(i | k) is still unknown.
        found: Shaped as ``tables``. Added to: events of source items, divided by P(k | j), and events of target items.
        places: float64 [2, L]. Added to unless ``first``: prior and posterior weight of each position.
    """
    items, label, counted = events
    source, target = tables
    of_source, of_target = found
    length, many = items.shape[1], source.shape[1]
    topics, gain = np.empty(many, np.float32), np.empty(many, np.float32)
    for r in range(len(items)):
        total = _ZERO
        for place in range(length):
            if items[r, place] > 0:
                total += weight[place]
        if total == _ZERO:
            continue
        for k in range(many):
            topics[k] = 0
        for place in range(length):
            item = items[r, place]
            if item > 0:
                share = weight[place] / total
                for k in range(many):
                    topics[k] += share * source[item, k]
        i, times = label[r], counted[r]
        if first:
            for k in range(many):
                gain[k] = 1
        else:
            expected = _ZERO
            for k in range(many):
                expected += topics[k] * target[i, k]
            scale = _ONE / max(expected, _LEAST)
            for k in range(many):
                gain[k] = target[i, k] * scale
        for place in range(length):
            item = items[r, place]
            if item > 0:
                share = weight[place] / total * times
                for k in range(many):
                    of_source[item, k] += share * gain[k]
                if not first:
                    posterior = _ZERO
                    for k in range(many):
                        posterior += source[item, k] * gain[k]
                    places[0, place] += share
                    places[1, place] += share * posterior
        for k in range(many):
            of_target[i, k] += times * topics[k] * gain[k]


@compiled
def topics_given_source(
    counts: NDArray[np.float32],
    group: int,
    start: NDArray[np.float32],
    smoothing: tuple[np.float32, np.float32],
    out: NDArray[np.float32],
) -> Any:
    """Compute P(k | j) from all groups but one: [n_source + 1, K]; row 0 is P(k).

    Args:
        counts: float32 [groups, n_source + 1, K].
        group: The group to leave out; -1: none.
        start: float32 [n_source + 1, K]. Initial topics, from source events alone.
        smoothing: Pseudo-events that follow P(k), and that follow ``start``.
        out: float32 [n_source + 1, K]. Output.
    """
    by_shares, by_start = smoothing
    rows, many = start.shape
    sums, shares = np.ones(many), np.empty(many, np.float32)
    for j in range(1, rows):
        for k in range(many):
            out[j, k] = 0
        for g in range(len(counts)):
            if g != group:
                for k in range(many):
                    out[j, k] += counts[g, j, k]
        for k in range(many):
            sums[k] += out[j, k]
    total = 0.0
    for k in range(many):
        total += sums[k]
    for k in range(many):
        shares[k] = sums[k] / total
        out[0, k] = shares[k]
    for j in range(1, rows):
        mass = _ZERO
        for k in range(many):
            x = out[j, k] + by_shares * shares[k] + by_start * start[j, k]
            out[j, k] = x
            mass += x
        scale = _ONE / mass
        for k in range(many):
            out[j, k] *= scale


@compiled
def targets_given_topic(
    counts: NDArray[np.float32], group: int, chosen: NDArray[np.float32], smoothing: np.float32, out: NDArray[np.float32]
) -> Any:
    """Compute P(i | k) from all groups but one: [n_target, K].

    Args:
        counts: float32 [groups, n_target, K].
        group: The group to leave out; -1: none.
        chosen: float32 [n_target]. P(i).
        smoothing: Pseudo-events that follow ``chosen``.
        out: float32 [n_target, K]. Output.
    """
    rows, many = out.shape
    sums, scale = np.zeros(many), np.empty(many, np.float32)
    for i in range(rows):
        more = smoothing * chosen[i]
        for k in range(many):
            out[i, k] = more
        for g in range(len(counts)):
            if g != group:
                for k in range(many):
                    out[i, k] += counts[g, i, k]
        for k in range(many):
            sums[k] += out[i, k]
    for k in range(many):
        scale[k] = 1 / sums[k]
    for i in range(rows):
        for k in range(many):
            out[i, k] *= scale[k]
