# SPDX-License-Identifier: Apache-2.0
"""Kernel of the CPU executor: popularity, logits, normalisers and Gumbel top-k sampling of a block of items for a batch of contexts.

All numbers are float32, except normalisers, which are summed in float64, and candidates' keys, which are computed in float64 from float32
logits. An item is a candidate unless a cheap bound of its key rules it out: with E = -log(1 - v) ≥ v, an item whose P^(1 / T) is below v
times the K-th best key cannot be among the K best. Therefore the two logarithms of a key are computed for about a hundred items per context
instead of all.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from scalr_prod.translator.kernels.compilation import bits_to_float, compiled, float_to_bits, helper, strict_helper

_F = np.float32
_LN2_HIGH: Final = _F(0.693359375)
_LN2_LOW: Final = _F(-2.12194440e-4)
_LOG2_E: Final = _F(1.4426950408889634)
_LOG_4: Final = _F(math.log(4))
_HALF: Final = _F(0.5)
_ONE: Final = _F(1)
_ZERO: Final = _F(0)
_LOWEST: Final = _F(-87)
_HIGHEST: Final = _F(80)
#: Smallest exponent of a normal float32.
_MIN_EXPONENT: Final = -126
#: Terms of the normaliser within this distance of the largest logit keep full precision.
_NEAR: Final = 60.0
_TO_INT: Final = _F(128.5)
_ROOT_HALF: Final = np.int32(0x3F3504F3)
_UNIT: Final = _F(2.0**-31)
# Polynomials through Chebyshev nodes: 2^x = 1 + x e(x) in [-1/2, 1/2]; log(1 + x) = x - x² / 2 + x³ l(x) in [√½ - 1, √2 - 1].
_E0, _E1, _E2, _E3, _E4, _E5 = (_F(x) for x in (0.69314718, 0.24022651, 0.05550357, 0.009618057, 0.0013390867, 0.00015461448))
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7 = (
    _F(x) for x in (0.33333328, -0.25000298, 0.20001468, -0.16642247, 0.14202173, -0.12972239, 0.12712307, -0.08101559)
)
#: Half-lives after which the reference time of decayed counts is moved forward, so that they stay within the range of float32.
_MAX_HALF_LIVES: Final = 48.0
#: Terms of a normaliser summed in float32, in parallel partial sums: the error is a few units.
_PARTIAL_TERMS: Final = 256
#: Items that are checked for candidates against the same K-th best key.
_STEP: Final = 64


@strict_helper
def exp(x: Any) -> Any:
    """Compute e^x of a float32 clamped to [-87, 80]. Error: 3 units."""
    x = min(max(x, _LOWEST), _HIGHEST)
    n = np.int32(x * _LOG2_E + _TO_INT) - np.int32(128)
    whole = _F(n)
    f = ((x - whole * _LN2_HIGH) - whole * _LN2_LOW) * _LOG2_E
    p = ((((_E5 * f + _E4) * f + _E3) * f + _E2) * f + _E1) * f + _E0
    return (_ONE + f * p) * bits_to_float(np.int32((n + np.int32(127)) << np.int32(23)))


@strict_helper
def log(x: Any) -> Any:
    """Compute the natural logarithm of a positive, normal float32. Error: 3 units."""
    bits = float_to_bits(x)
    e = np.int32(np.int32(bits - _ROOT_HALF) >> np.int32(23))
    f = bits_to_float(np.int32(bits - np.int32(e << np.int32(23)))) - _ONE
    z = f * f
    p = ((((((_L7 * f + _L6) * f + _L5) * f + _L4) * f + _L3) * f + _L2) * f + _L1) * f + _L0
    whole = _F(e)
    return whole * _LN2_HIGH + (f + (z * (f * p - _HALF) + whole * _LN2_LOW))


@strict_helper
def exp2(x: Any) -> Any:
    """Compute 2^x of a float64 below 127 as a float32; 0 if the result is not a normal number. Error: 3 units."""
    whole = math.floor(x + 0.5)
    if whole < _MIN_EXPONENT:
        return _ZERO
    f = _F(x - whole)
    p = ((((_E5 * f + _E4) * f + _E3) * f + _E2) * f + _E1) * f + _E0
    return (_ONE + f * p) * bits_to_float(np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)))


@strict_helper
def _hash(number: Any, low: Any, high: Any) -> Any:
    """Compute the 31 bits of `counter_rng.exponential`."""
    bits = np.uint32(np.uint32(number ^ low) * np.uint32(0x7FEB352D))
    bits = np.uint32(np.uint32(bits ^ np.uint32(bits >> np.uint32(15))) + high)
    bits = np.uint32(bits * np.uint32(0x846CA68B))
    bits = np.uint32(np.uint32(bits ^ np.uint32(bits >> np.uint32(16))) * np.uint32(0x9E3779B1))
    return np.int32(bits & np.uint32(0x7FFFFFFF))


@strict_helper
def _log_variate(bits: Any) -> Any:
    """Compute log E in float64 from the bits; see `counter_rng.exponential`."""
    if bits < 2**30:
        return math.log(-math.log1p(-(bits + 0.5) * 2.0**-31))
    return math.log(-math.log(max(((bits ^ 0x7FFFFFFF) + 0.5) * 2.0**-31, 2.0**-24)))


@helper
def _copy(values: Any, to: Any) -> None:
    """Copy values to the start of an array. A slice assignment would double the compile time, because of its error message."""
    for i in range(len(values)):
        to[i] = values[i]


@helper
def _advance_counts(
    time: Any,
    end_position: Any,
    state: Any,
    reference: Any,
    events: Any,
    span: Any,
    first: Any,
    half_lives: Any,
    added: Any,
    logs: Any,
) -> Any:
    """Apply a block's events before a time (those at positions below ``end_position``) to the counts; return the index of the next event.

    ``state`` holds decayed counts [4, items] as of ``reference``, one time for each count; ``logs[0]`` holds the logarithms of the count
    that does not decay.
    """
    item, event_time, count_0, count_1, count_2, count_3, order = events
    event, end = span
    for q in range(1, 4):
        ages = (time - reference[q]) / half_lives[q]
        if ages > _MAX_HALF_LIVES:  # powers of 2 only: no rounding
            steps = math.floor(ages)
            shrink = _F(2.0 ** -min(steps, 200.0))
            for i in range(state.shape[1]):
                state[q, i] *= shrink
            reference[q] += steps * half_lives[q]
    rate_1, rate_2, rate_3 = 1 / half_lives[1], 1 / half_lives[2], 1 / half_lives[3]
    while event < end and order[event] < end_position:
        row = order[event]
        i = item[row] - first
        state[0, i] = count_0[row]
        logs[0, i] = log(count_0[row] + added[0])
        state[1, i] = count_1[row] * exp2((event_time[row] - reference[1]) * rate_1)
        state[2, i] = count_2[row] * exp2((event_time[row] - reference[2]) * rate_2)
        state[3, i] = count_3[row] * exp2((event_time[row] - reference[3]) * rate_3)
        event += 1
    return event


@helper
def _log_counts(time: Any, state: Any, reference: Any, half_lives: Any, added: Any, logs: Any, n: Any) -> None:
    """Compute the logarithms of the first n items' smoothed decayed counts as of a time."""
    for q in range(1, 4):
        decay, more = _F(2.0 ** -max((time - reference[q]) / half_lives[q], 0.0)), added[q]
        counts, line = state[q], logs[q]
        for i in range(n):
            line[i] = log(counts[i] * decay + more)


@helper
def _add_features(logs: Any, w: Any, line: Any, n: Any) -> None:
    """Add weighted features, in the order of `popularity.FEATURES`, to the first n items' logits."""
    w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10 = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10]
    for i in range(n):
        l0, l1, l2, l3 = logs[0, i], logs[1, i], logs[2, i], logs[3, i]
        x = w0 * l0 + w1 * l1 + w2 * l2 + w3 * l3 + w4 * max(l0, _LOG_4) + w5 * max(l1, _ZERO) + w6 * max(l1, _LOG_4)
        line[i] += x + w7 * max(l2, _ZERO) + w8 * max(l2, _LOG_4) + w9 * max(l3, _ZERO) + w10 * max(l3, _LOG_4)


@helper
def _highest(line: Any, n: Any) -> Any:
    """Return the largest of the first n logits."""
    top = _F(-np.inf)
    for i in range(n):
        top = max(top, line[i])
    return top


@helper
def _mass(line: Any, top: Any, powers: Any, n: Any) -> Any:
    """Compute Σ e^(logit - top) of the first n items, in float64 from float32 partial sums; store the terms in ``powers``."""
    total = 0.0
    for start in range(0, n, _PARTIAL_TERMS):
        partial, chunk, chunk_powers = (
            _ZERO,
            line[start : min(start + _PARTIAL_TERMS, n)],
            powers[start : min(start + _PARTIAL_TERMS, n)],
        )
        for i in range(len(chunk)):
            x = exp(chunk[i] - top)
            chunk_powers[i] = x
            partial += x
        total += np.float64(partial)
    return total


@helper
def _add_frequency(r: Any, frequency: Any, prior: Any, probability: Any, line: Any, first: Any, n: Any) -> None:
    """Add the frequency estimator's weighted scores, and advance the context's table entries to the next block."""
    rest, _, c, entry_item, entry_share, entry, entry_end, entry_weight = frequency
    for i in range(n):
        probability[i] = rest[r] * prior[i]
    for h in range(entry.shape[1]):
        position, end, weight = entry[r, h], entry_end[r, h], entry_weight[r, h]
        while position < end and entry_item[position] < first + n:
            if entry_item[position] >= first:  # else in a block that was skipped
                probability[entry_item[position] - first] += weight * entry_share[position]
            position += 1
        entry[r, h] = position
    for i in range(n):
        line[i] += c * log(probability[i])


@helper
def _exclude(r: Any, exclude: Any, excluded: Any, line: Any, powers: Any, first: Any, n: Any) -> Any:
    """Set the logits of excluded items to -infinity, and return their sum in ``powers``."""
    excluded_mass, position = 0.0, excluded[r]
    while position < exclude.shape[1] and exclude[r, position] < first + n:
        i = exclude[r, position] - first
        if i >= 0 and line[i] > -np.inf:
            line[i] = -np.inf
            excluded_mass += np.float64(powers[i])
        position += 1
    excluded[r] = position
    return excluded_mass


@helper
def _bounds(logits: Any, powers: Any, top: Any, worst: Any, temperature: Any, bounds: Any) -> None:
    """Compute an upper bound of P^(1 / T) over the K-th best key: float32, for some items."""
    bar = worst * temperature  # in units of logits, minus a bound of the rounding error
    bar -= 2.0**-21 * (2 * abs(bar) + 22 * temperature + 1) + 1e-4 * temperature
    if temperature == 1.0 and top - bar < _NEAR:
        scale = _F(math.exp(min(top - bar, 80.0)))
        for i in range(len(logits)):
            bounds[i] = powers[i] * scale
    else:
        low_bar, slope = _F(bar), _F(1.0 / temperature)
        for i in range(len(logits)):
            bounds[i] = exp((logits[i] - low_bar) * slope)


@helper
def _insert(r: Any, key: Any, item: Any, logit: Any, prior: Any, best: Any) -> None:
    """Insert a candidate into the sorted list of the K best."""
    keys, items, logits, priors = best
    slot = keys.shape[1] - 1
    while slot > 0 and keys[r, slot - 1] < key:
        keys[r, slot] = keys[r, slot - 1]
        items[r, slot] = items[r, slot - 1]
        logits[r, slot] = logits[r, slot - 1]
        priors[r, slot] = priors[r, slot - 1]
        slot -= 1
    keys[r, slot] = key
    items[r, slot] = item
    logits[r, slot] = logit
    priors[r, slot] = prior


@helper
def _sample(r: Any, lines: Any, words: Any, temperature: Any, top: Any, best: Any, scratch: Any, first: Any, n: Any) -> None:
    """Update the context's K best keys with the first n items of the block."""
    line, powers, prior_logits = lines
    low, high, item_words = words
    bounds, is_candidate, candidate_words = scratch
    last = best[0].shape[1] - 1
    row_low, row_high = low[r], high[r]
    for start in range(0, n, _STEP):
        stop = min(start + _STEP, n)
        chunk, chunk_words = line[start:stop], item_words[start:stop]
        worst = best[0][r, last]
        if worst > -np.inf:
            _bounds(chunk, powers[start:stop], top, worst, temperature, bounds)
            for i in range(len(chunk)):
                bits = _hash(chunk_words[i], row_low, row_high)
                is_candidate[i] = np.uint8(bounds[i] >= (_F(bits) + _HALF) * _UNIT)
        else:
            is_candidate[: len(chunk)] = 1
        is_candidate[len(chunk) :] = 0
        for word in range(len(candidate_words)):
            if candidate_words[word] == 0:
                continue
            for i in range(word * 8, word * 8 + 8):
                if is_candidate[i] == 0 or chunk[i] == -np.inf:
                    continue
                key = np.float64(chunk[i]) / temperature - _log_variate(_hash(chunk_words[i], row_low, row_high))
                if key > best[0][r, last]:
                    _insert(r, key, first + start + i, chunk[i], prior_logits[start + i], best)


@compiled
def score_block(
    block: Any,
    logits: Any,
    rows: Any,
    popularity: Any,
    events: Any,
    weights: Any,
    frequency: Any,
    noise: Any,
    sampling: Any,
    result: Any,
) -> None:
    """Process one block of items for R contexts, sorted by time.

    Args:
        block: First item, number of items, number of the block.
        logits: float32 [R, size]. Dot products; overwritten.
        rows: For each context: time, position of the first event not before it, snapshot, number of eligible items, excluded items
            (int32 [R, E], ascending), and how many of them are in earlier blocks.
        popularity: Times of the snapshots, half-lives in microseconds, smoothing of the counts, and the four counts at the snapshots.
        events: For each event: item, time and four counts; the order by snapshot, block and time, and where each block starts in it.
        weights: Feature weights of each context, float32 [R, 11], and of the prior, [11].
        frequency: Weight of the prior [R], P(i), the estimator's weight, items and shares of its table entries, and for each context and
            item of its history the next entry, the end and the weight [R, H].
        noise: Two words of each context's key, and the items' words.
        sampling: Temperature; candidates int32 [R, C], and two arrays to which their logits and prior logits are written.
        result: See `executor.BlockPassResult`.
    """
    first, count, number = block
    time, position, snapshot, eligible, exclude, excluded = rows
    since, half_lives, added, marked_0, marked_1, marked_2, marked_3 = popularity
    item, event_time, count_0, count_1, count_2, count_3, order, offset = events
    component_weights, prior_weights = weights
    low, high, item_words = noise
    temperature, candidates, candidate_logits, candidate_priors = sampling
    keys, items, key_logits, key_priors, peak, mass, prior_peak, prior_mass, prior_gross = result
    size = logits.shape[1]
    state, logs = np.empty((4, size), np.float32), np.empty((4, size), np.float32)
    prior_logits, powers, probability = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.float32)
    prior_powers, reference = np.empty(size, np.float32), np.empty(4, np.float64)
    is_candidate = np.zeros(_STEP, np.uint8)
    scratch = (np.empty(_STEP, np.float32), is_candidate, is_candidate.view(np.uint64))
    current_snapshot, current_time, current_count, event = np.int64(-1), np.int64(0), np.int64(-1), np.int64(0)
    block_peak, block_mass = _F(-np.inf), 0.0
    # Views, since numba checks indices that may be negative, which costs more than the loop body.
    block_prior, block_words = frequency[1][first : first + count], item_words[first : first + count]
    for r in range(len(time)):
        n = min(eligible[r] - first, count)
        if n <= 0:
            continue
        if snapshot[r] != current_snapshot:
            current_snapshot, current_count = snapshot[r], np.int64(-1)
            _copy(marked_0[current_snapshot, first : first + count], state[0])
            _copy(marked_1[current_snapshot, first : first + count], state[1])
            _copy(marked_2[current_snapshot, first : first + count], state[2])
            _copy(marked_3[current_snapshot, first : first + count], state[3])
            total_counts, total_logs = state[0], logs[0]
            for i in range(count):
                total_logs[i] = log(total_counts[i] + added[0])
            reference[:] = since[current_snapshot]
            event = offset[current_snapshot, number]
        if time[r] != current_time or n != current_count:
            current_time, current_count = time[r], n
            known = (item, event_time, count_0, count_1, count_2, count_3, order)
            span = (event, offset[current_snapshot, number + 1])
            event = _advance_counts(
                current_time, position[r], state[:, :count], reference, known, span, first, half_lives, added, logs
            )
            _log_counts(current_time, state, reference, half_lives, added, logs, n)
            prior_logits[:n] = 0
            _add_features(logs, prior_weights, prior_logits, n)
            block_peak = _highest(prior_logits, n)
            block_mass = _mass(prior_logits, block_peak, prior_powers, n)
        line = logits[r]
        _add_features(logs, component_weights[r], line, n)
        if frequency[2] != _ZERO:
            _add_frequency(r, frequency, block_prior, probability, line, first, n)
        excluded_mass = _exclude(r, exclude, excluded, line, prior_powers, first, n)
        for c in range(candidates.shape[1]):
            i = candidates[r, c] - first
            if 0 <= i < n:
                candidate_logits[r, c] = line[i]
                candidate_priors[r, c] = prior_logits[i]
        # The prior's normaliser is shared by all contexts of this time; subtract what this context excludes.
        top = max(prior_peak[r], block_peak)
        old, new = math.exp(np.float64(prior_peak[r] - top)), math.exp(np.float64(block_peak - top))
        prior_mass[r] = prior_mass[r] * old + (block_mass - excluded_mass) * new
        prior_gross[r] = prior_gross[r] * old + block_mass * new
        prior_peak[r] = top
        line_peak = _highest(line, n)
        if line_peak == -np.inf:
            continue
        top = max(peak[r], line_peak)
        mass[r] = mass[r] * math.exp(np.float64(peak[r] - top)) + _mass(line, top, powers, n)
        peak[r] = top
        if keys.shape[1] > 0:
            best, lines = (keys, items, key_logits, key_priors), (line, powers, prior_logits)
            _sample(r, lines, (low, high, block_words), temperature, top, best, scratch, first, n)


@compiled
def add_log_products(logits: Any, products: Any, count: int, weight: Any) -> None:
    """Add ``weight`` times the logarithms of dot products to logits: both float32 [R, size], the first ``count`` columns."""
    for r in range(len(logits)):
        line, product_line = logits[r], products[r]
        for i in range(count):
            line[i] += weight * log(product_line[i])
