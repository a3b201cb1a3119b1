# SPDX-License-Identifier: Apache-2.0
"""Kernels of `estimators.topics`: expectation maximisation without padding and without temporary copies.

The reference is the torch code there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.translator.kernels.compilation import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray


_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_LEAST: Final = np.float32(1e-30)


@compiled
def expectation_step(
    events: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]],
    weight: NDArray[np.float32],
    tables: tuple[NDArray[np.float32], NDArray[np.float32]],
    first: bool,
    sums: tuple[NDArray[np.float32], NDArray[np.float32]],
    position_sums: NDArray[np.float64],
) -> Any:
    """Run the expectation step: sum the expected events of each item and topic.

    Args:
        events: Items of histories int64 [R, L], 0 is padding; labels int64 [R]; weights of the events, float32 [R].
        weight: float32 [L]. Weight of an item by its position.
        tables: P(k | j) float32 [n_source + 1, K]; P(i | k) float32 [n_target, K].
        first: Whether this is the first iteration, in which P(i | k) is unknown.
        sums: Shaped as ``tables``. Added to: events of source items, divided by P(k | j), and events of target items.
        position_sums: float64 [2, L]. Added to unless ``first``: prior and posterior weight of each position.
    """
    items, label, event_weights = events
    source, target = tables
    source_sums, target_sums = sums
    length, n_topics = items.shape[1], source.shape[1]
    topics, gain = np.empty(n_topics, np.float32), np.empty(n_topics, np.float32)
    for r in range(len(items)):
        total = _ZERO
        for position in range(length):
            if items[r, position] > 0:
                total += weight[position]
        if total == _ZERO:
            continue
        for k in range(n_topics):
            topics[k] = 0
        for position in range(length):
            item = items[r, position]
            if item > 0:
                share = weight[position] / total
                for k in range(n_topics):
                    topics[k] += share * source[item, k]
        i, event_weight = label[r], event_weights[r]
        if first:
            for k in range(n_topics):
                gain[k] = 1
        else:
            expected = _ZERO
            for k in range(n_topics):
                expected += topics[k] * target[i, k]
            scale = _ONE / max(expected, _LEAST)
            for k in range(n_topics):
                gain[k] = target[i, k] * scale
        for position in range(length):
            item = items[r, position]
            if item > 0:
                share = weight[position] / total * event_weight
                for k in range(n_topics):
                    source_sums[item, k] += share * gain[k]
                if not first:
                    posterior = _ZERO
                    for k in range(n_topics):
                        posterior += source[item, k] * gain[k]
                    position_sums[0, position] += share
                    position_sums[1, position] += share * posterior
        for k in range(n_topics):
            target_sums[i, k] += event_weight * topics[k] * gain[k]


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
        smoothing: Numbers of pseudo-events distributed as P(k) and as ``start``.
        out: float32 [n_source + 1, K]. Output.
    """
    by_shares, by_start = smoothing
    rows, n_topics = start.shape
    sums, shares = np.ones(n_topics), np.empty(n_topics, np.float32)
    for j in range(1, rows):
        for k in range(n_topics):
            out[j, k] = 0
        for g in range(len(counts)):
            if g != group:
                for k in range(n_topics):
                    out[j, k] += counts[g, j, k]
        for k in range(n_topics):
            sums[k] += out[j, k]
    total = 0.0
    for k in range(n_topics):
        total += sums[k]
    for k in range(n_topics):
        shares[k] = sums[k] / total
        out[0, k] = shares[k]
    for j in range(1, rows):
        mass = _ZERO
        for k in range(n_topics):
            x = out[j, k] + by_shares * shares[k] + by_start * start[j, k]
            out[j, k] = x
            mass += x
        scale = _ONE / mass
        for k in range(n_topics):
            out[j, k] *= scale


@compiled
def targets_given_topic(
    counts: NDArray[np.float32],
    group: int,
    item_probability: NDArray[np.float32],
    smoothing: np.float32,
    out: NDArray[np.float32],
) -> Any:
    """Compute P(i | k) from all groups but one: [n_target, K].

    Args:
        counts: float32 [groups, n_target, K].
        group: The group to leave out; -1: none.
        item_probability: float32 [n_target]. P(i).
        smoothing: Number of pseudo-events distributed as ``item_probability``.
        out: float32 [n_target, K]. Output.
    """
    rows, n_topics = out.shape
    sums, scale = np.zeros(n_topics), np.empty(n_topics, np.float32)
    for i in range(rows):
        pseudo_count = smoothing * item_probability[i]
        for k in range(n_topics):
            out[i, k] = pseudo_count
        for g in range(len(counts)):
            if g != group:
                for k in range(n_topics):
                    out[i, k] += counts[g, i, k]
        for k in range(n_topics):
            sums[k] += out[i, k]
    for k in range(n_topics):
        scale[k] = 1 / sums[k]
    for i in range(rows):
        for k in range(n_topics):
            out[i, k] *= scale[k]
