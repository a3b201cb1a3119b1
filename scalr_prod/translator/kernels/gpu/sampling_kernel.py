# SPDX-License-Identifier: Apache-2.0
"""Triton kernel of the GPU executor: dot products, popularity as of each context's time, normalisers, and the best sampling keys.

A tile is up to `CONTEXTS_PER_TILE` contexts that share a popularity state. Each program processes the blocks of one segment of the items
for one tile. Logits, features and keys stay in registers; nothing of size [rows, items] is written. Items that need a computation of their
own for a context (excluded, in the frequency table of its history, or chosen between the state and its time) have a bit in ``special`` and
are skipped.
"""

from __future__ import annotations

import math
from typing import Final

import triton
import triton.language as tl

#: Contexts per tile, items per block, and items per stored best key.
CONTEXTS_PER_TILE: Final = 32
ITEMS_PER_BLOCK: Final = 64
ITEMS_PER_KEY: Final = 32

_LOG_4 = tl.constexpr(math.log(4))
_M1 = tl.constexpr(0x7FEB352D)
_M2 = tl.constexpr(0x846CA68B)
_M3 = tl.constexpr(0x9E3779B1)
_LAST = tl.constexpr(0x7FFFFFFF)
_UNIT = tl.constexpr(2.0**-31)
_HALF = tl.constexpr(0.5)
#: Below this v, a series is more accurate for the logarithm of 1 - v.
_SMALL = tl.constexpr(0.0625)
_NOWHERE = tl.constexpr(float("-inf"))


@triton.jit
def _product(
    users,
    vectors,
    row,
    valid,
    item,
    in_range,
    width: tl.constexpr,
    depth: tl.constexpr,
    precision: tl.constexpr,
):
    """Compute dot products of users [R, width] and items [N, width]: [rows, items] in float32."""
    total = tl.zeros((row.shape[0], item.shape[0]), tl.float32)
    for start in range(0, width, depth):
        column = start + tl.arange(0, depth)
        of_users = tl.load(users + row[:, None].to(tl.int64) * width + column[None, :], mask=valid[:, None], other=0.0)
        of_items = tl.load(vectors + item[None, :].to(tl.int64) * width + column[:, None], mask=in_range[None, :], other=0.0)
        total = tl.dot(of_users, of_items, total, input_precision=precision)
    return total


@triton.jit
def _log_variate(numbers, low, high):
    """Compute log E of `counter_rng.exponential`, within 2^-17: [rows, items]."""
    bits = (numbers[None, :] ^ low[:, None]) * _M1
    bits = ((bits ^ (bits >> 15)) + high[:, None]) * _M2
    bits = ((bits ^ (bits >> 16)) * _M3) & _LAST
    v = (bits.to(tl.float32) + 0.5) * _UNIT
    rest = ((bits ^ _LAST).to(tl.float32) + 0.5) * _UNIT
    series = v * (1 + v * (0.5 + v * (1 / 3 + v * (0.25 + v * (0.2 + v * (1 / 6))))))
    return tl.log(tl.where(v < _SMALL, series, -tl.log(tl.where(v < _HALF, 1 - v, rest))))


@triton.jit
def _features(counts, weights, row, valid, shared: tl.constexpr):
    """Compute the weighted sum of features, in the order of `popularity.FEATURES`; if ``shared``, all rows have the same weights."""
    count, days_90, days_20, days_3 = counts
    at = weights + (tl.zeros_like(row) if shared else row) * 11
    total = tl.load(at, mask=valid, other=0.0)[:, None] * count
    total += tl.load(at + 1, mask=valid, other=0.0)[:, None] * days_90
    total += tl.load(at + 2, mask=valid, other=0.0)[:, None] * days_20
    total += tl.load(at + 3, mask=valid, other=0.0)[:, None] * days_3
    total += tl.load(at + 4, mask=valid, other=0.0)[:, None] * tl.maximum(count, _LOG_4)
    total += tl.load(at + 5, mask=valid, other=0.0)[:, None] * tl.maximum(days_90, 0.0)
    total += tl.load(at + 6, mask=valid, other=0.0)[:, None] * tl.maximum(days_90, _LOG_4)
    total += tl.load(at + 7, mask=valid, other=0.0)[:, None] * tl.maximum(days_20, 0.0)
    total += tl.load(at + 8, mask=valid, other=0.0)[:, None] * tl.maximum(days_20, _LOG_4)
    total += tl.load(at + 9, mask=valid, other=0.0)[:, None] * tl.maximum(days_3, 0.0)
    total += tl.load(at + 10, mask=valid, other=0.0)[:, None] * tl.maximum(days_3, _LOG_4)
    return total


@triton.jit
def _gather_mass(line, peak, mass):
    """Add a block's logits to a running log-sum-exp: float32 peak and float64 mass of each row."""
    top = tl.maximum(peak, tl.max(line, 1))
    level = tl.where(top == _NOWHERE, 0.0, top)
    return top, mass * tl.exp(peak - level).to(tl.float64) + tl.sum(tl.exp(line - level[:, None]), 1).to(tl.float64)


@triton.jit
def sampling_pass(
    tile_first,
    tile_rows,
    users,
    vectors,
    log_users,
    log_vectors,
    log_weight,
    rest,
    log_prior,
    frequency_weight,
    base,
    decay,
    added,
    weights,
    prior_weights,
    eligible,
    special,
    low,
    high,
    numbers,
    slope,
    best,
    peak_out,
    mass_out,
    prior_peak_out,
    prior_mass_out,
    n_items,
    blocks_each,
    width: tl.constexpr,
    log_width: tl.constexpr,
    with_frequency: tl.constexpr,
    with_keys: tl.constexpr,
    rows: tl.constexpr,
    items: tl.constexpr,
    each: tl.constexpr,
    depth: tl.constexpr,
    precision: tl.constexpr,
):
    """Process one tile of contexts over one segment of the items; see the module docstring and `gpu_executor`.

    Args:
        tile_first: int32 [J]. First context of each tile.
        tile_rows: int32 [J]. Its number of contexts.
        users: float32 [R, width]. User vectors times the estimators' weights, concatenated; zero-padded to a multiple of ``depth``.
        vectors: float32 [N, width]. Item vectors, likewise.
        log_users: float32 [R, log_width]. User vectors of the log-score estimator; ``log_width`` 0: there is none.
        log_vectors: float32 [N, log_width]. Its item vectors.
        log_weight: Its weight.
        rest: float32 [R]. Logarithm of the weight of popularity in `frequency`.
        log_prior: float32 [N].
        frequency_weight: Weight of `frequency`.
        base: float32 [J, 4, N]. Decayed counts in each tile's state.
        decay: float32 [R, 4]. Decay of each count from the state to a context's time.
        added: float32 [4]. Smoothing of the counts.
        weights: float32 [R, 11]. Feature weights of the component.
        prior_weights: float32 [11]. Feature weights of the prior.
        eligible: int32 [R]. Items below this number are eligible.
        special: int32 [R, W]. A bit per item, 1: skipped here.
        low: int32 [R]. First word of each context's noise.
        high: int32 [R]. Second word.
        numbers: int32 [N]. The items' words.
        slope: 1 / temperature.
        best: float32 [R, W]. Output: the best key of each `ITEMS_PER_KEY` items.
        peak_out: float32 [R, S]. Output: the largest logit of each segment.
        mass_out: float64 [R, S]. Output: the sum of e^(logit - peak).
        prior_peak_out: float32 [R, S]. Output: likewise, of the prior.
        prior_mass_out: float64 [R, S]. Output: likewise, of the prior.
        n_items: N.
        blocks_each: Blocks per segment.
        width: Columns of the vectors.
        log_width: Columns of the log-score vectors.
        with_frequency: Whether `frequency` has a weight.
        with_keys: Whether to compute keys.
        rows: `CONTEXTS_PER_TILE`.
        items: `ITEMS_PER_BLOCK`.
        each: `ITEMS_PER_KEY`.
        depth: Columns multiplied at a time.
        precision: Precision of products, see ``input_precision`` of Triton's ``dot``.
    """
    tile, share, shares = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    slot = tl.arange(0, rows)
    valid = slot < tl.load(tile_rows + tile)
    row = tl.load(tile_first + tile) + tl.where(valid, slot, 0)
    row_low, row_high = tl.load(low + row).to(tl.uint32, bitcast=True), tl.load(high + row).to(tl.uint32, bitcast=True)
    last = tl.where(valid, tl.load(eligible + row), 0)
    decay_90, decay_20, decay_3 = tl.load(decay + row * 4 + 1), tl.load(decay + row * 4 + 2), tl.load(decay + row * 4 + 3)
    words = (n_items + each - 1) // each
    peak, prior_peak = tl.full((rows,), _NOWHERE, tl.float32), tl.full((rows,), _NOWHERE, tl.float32)
    mass, prior_mass = tl.zeros((rows,), tl.float64), tl.zeros((rows,), tl.float64)
    for block in range(blocks_each):
        first = (share * blocks_each + block) * items
        item = first + tl.arange(0, items)
        in_range = item < n_items
        line = _product(users, vectors, row, valid, item, in_range, width, depth, precision)
        if log_width > 0:
            product = _product(log_users, log_vectors, row, valid, item, in_range, log_width, depth, precision)
            line += log_weight * tl.log(tl.where(product > 0, product, 1.0))
        if with_frequency:
            of_items = tl.load(log_prior + item, mask=in_range, other=0.0)
            line += frequency_weight * (tl.load(rest + row)[:, None] + of_items[None, :])
        state = base + (tile.to(tl.int64) * 4) * n_items + item
        added_0, added_1, added_2, added_3 = tl.load(added), tl.load(added + 1), tl.load(added + 2), tl.load(added + 3)
        count = tl.log(tl.load(state, mask=in_range, other=1.0) + added_0)[None, :] + tl.zeros((rows, items), tl.float32)
        days_90 = tl.log(tl.load(state + n_items, mask=in_range, other=1.0)[None, :] * decay_90[:, None] + added_1)
        days_20 = tl.log(tl.load(state + 2 * n_items, mask=in_range, other=1.0)[None, :] * decay_20[:, None] + added_2)
        days_3 = tl.log(tl.load(state + 3 * n_items, mask=in_range, other=1.0)[None, :] * decay_3[:, None] + added_3)
        counts = (count, days_90, days_20, days_3)
        line += _features(counts, weights, row, valid, shared=False)
        of_prior = _features(counts, prior_weights, row, valid, shared=True)
        word = tl.load(special + row[:, None].to(tl.int64) * words + item[None, :] // each, mask=in_range[None, :], other=0)
        plain = (item[None, :] < last[:, None]) & (((word >> (item[None, :] % each)) & 1) == 0)
        line = tl.where(plain, line, _NOWHERE)
        peak, mass = _gather_mass(line, peak, mass)
        prior_peak, prior_mass = _gather_mass(tl.where(plain, of_prior, _NOWHERE), prior_peak, prior_mass)
        if with_keys:
            own = tl.load(numbers + item, mask=in_range, other=0).to(tl.uint32, bitcast=True)
            keys = line * slope - _log_variate(own, row_low, row_high)
            highest = tl.max(tl.reshape(keys, (rows, items // each, each)), 2)
            column = first // each + tl.arange(0, items // each)
            target = best + row[:, None].to(tl.int64) * words + column[None, :]
            tl.store(target, highest, mask=valid[:, None] & (column < words)[None, :])
    at = row * shares + share
    tl.store(peak_out + at, peak, mask=valid)
    tl.store(mass_out + at, mass, mask=valid)
    tl.store(prior_peak_out + at, prior_peak, mask=valid)
    tl.store(prior_mass_out + at, prior_mass, mask=valid)
