# SPDX-License-Identifier: Apache-2.0
"""One pass over a block of items for a group of contexts, compiled: popularity, logits, normalisers and Gumbel top-k sampling.

Everything is float32, except normalisers, which are summed in float64, and the keys of candidates, which are computed in float64 from
float32 logits. An item is a candidate unless a cheap bound of its key rules it out: E >= v for E = -log(1 - v), so an item whose
P^(1 / T) is below v times the K-th best key cannot be among the best. So the two logarithms of a key are computed for about a hundred items
instead of all.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from scalr_prod.translator.kernels.compilation import bits_to_float, compiled, float_to_bits, helper, strict_helper

__all__ = ["add_log_products", "exp", "exp2", "log", "score_block"]

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
#: Items checked for candidates at a time, with one bound.
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
    place: Any,
    state: Any,
    reference: Any,
    events: Any,
    span: Any,
    first: Any,
    half_lives: Any,
    added: Any,
    logs: Any,
) -> Any:
    """Apply a block's events before a time (those at positions below ``place``) to the counts; return the index of the next event.

    ``state`` holds decayed counts [4, items] as of ``reference``, one time for each count; ``logs[0]`` holds the logarithms of the count
    that does not decay.
    """
    item, when, count_0, count_1, count_2, count_3, order = events
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
    while event < end and order[event] < place:
        which = order[event]
        i = item[which] - first
        state[0, i] = count_0[which]
        logs[0, i] = log(count_0[which] + added[0])
        state[1, i] = count_1[which] * exp2((when[which] - reference[1]) * rate_1)
        state[2, i] = count_2[which] * exp2((when[which] - reference[2]) * rate_2)
        state[3, i] = count_3[which] * exp2((when[which] - reference[3]) * rate_3)
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
    top = _F(-np.inf)
    for i in range(n):
        top = max(top, line[i])
    return top


@helper
def _mass(line: Any, top: Any, powers: Any, n: Any) -> Any:
    """Compute Σ e^(logit - top) of the first n items, in float64 from float32 partial sums; store the terms in ``powers``."""
    total = 0.0
    for start in range(0, n, _PARTIAL_TERMS):
        part, of_part, powers_of_part = (
            _ZERO,
            line[start : min(start + _PARTIAL_TERMS, n)],
            powers[start : min(start + _PARTIAL_TERMS, n)],
        )
        for i in range(len(of_part)):
            x = exp(of_part[i] - top)
            powers_of_part[i] = x
            part += x
        total += np.float64(part)
    return total


@helper
def _add_frequency(r: Any, frequency: Any, own_prior: Any, likely: Any, line: Any, first: Any, n: Any) -> None:
    """Add the frequency estimator's weighted scores, and advance the context's table entries to the next block."""
    rest, _, c, entry_item, entry_share, entry, entry_end, entry_weight = frequency
    for i in range(n):
        likely[i] = rest[r] * own_prior[i]
    for h in range(entry.shape[1]):
        at, end, weight = entry[r, h], entry_end[r, h], entry_weight[r, h]
        while at < end and entry_item[at] < first + n:
            if entry_item[at] >= first:  # else in a block that was skipped
                likely[entry_item[at] - first] += weight * entry_share[at]
            at += 1
        entry[r, h] = at
    for i in range(n):
        line[i] += c * log(likely[i])


@helper
def _exclude(r: Any, exclude: Any, excluded: Any, line: Any, likely: Any, first: Any, n: Any) -> Any:
    """Exclude items from the logits, and return their mass in ``likely``."""
    excluded_mass, at = 0.0, excluded[r]
    while at < exclude.shape[1] and exclude[r, at] < first + n:
        i = exclude[r, at] - first
        if i >= 0 and line[i] > -np.inf:
            line[i] = -np.inf
            excluded_mass += np.float64(likely[i])
        at += 1
    excluded[r] = at
    return excluded_mass


@helper
def _bounds(some: Any, some_powers: Any, top: Any, worst: Any, temperature: Any, bounds: Any) -> None:
    """Compute an upper bound of P^(1 / T) over the K-th best key: float32, for some items."""
    bar = worst * temperature  # in units of logits, minus a bound of the rounding error
    bar -= 2.0**-21 * (2 * abs(bar) + 22 * temperature + 1) + 1e-4 * temperature
    if temperature == 1.0 and top - bar < _NEAR:
        scale = _F(math.exp(min(top - bar, 80.0)))
        for i in range(len(some)):
            bounds[i] = some_powers[i] * scale
    else:
        low_bar, slope = _F(bar), _F(1.0 / temperature)
        for i in range(len(some)):
            bounds[i] = exp((some[i] - low_bar) * slope)


@helper
def _insert(r: Any, key: Any, item: Any, logit: Any, prior: Any, best: Any) -> None:
    """Insert a candidate into the sorted list of the K best."""
    keys, items, logits, priors = best
    at = keys.shape[1] - 1
    while at > 0 and keys[r, at - 1] < key:
        keys[r, at] = keys[r, at - 1]
        items[r, at] = items[r, at - 1]
        logits[r, at] = logits[r, at - 1]
        priors[r, at] = priors[r, at - 1]
        at -= 1
    keys[r, at] = key
    items[r, at] = item
    logits[r, at] = logit
    priors[r, at] = prior


@helper
def _sample(r: Any, lines: Any, words: Any, temperature: Any, top: Any, best: Any, scratch: Any, first: Any, n: Any) -> None:
    """Sample from the first n items of a block: update the K best keys."""
    line, powers, of_popularity = lines
    low, high, numbers = words
    bounds, is_candidate, candidate_words = scratch
    last = best[0].shape[1] - 1
    row_low, row_high = low[r], high[r]
    for start in range(0, n, _STEP):
        stop = min(start + _STEP, n)
        some, some_numbers = line[start:stop], numbers[start:stop]
        worst = best[0][r, last]
        if worst > -np.inf:
            _bounds(some, powers[start:stop], top, worst, temperature, bounds)
            for i in range(len(some)):
                bits = _hash(some_numbers[i], row_low, row_high)
                is_candidate[i] = np.uint8(bounds[i] >= (_F(bits) + _HALF) * _UNIT)
        else:
            is_candidate[: len(some)] = 1
        is_candidate[len(some) :] = 0
        for word in range(len(candidate_words)):
            if candidate_words[word] == 0:
                continue
            for i in range(word * 8, word * 8 + 8):
                if is_candidate[i] == 0 or some[i] == -np.inf:
                    continue
                key = np.float64(some[i]) / temperature - _log_variate(_hash(some_numbers[i], row_low, row_high))
                if key > best[0][r, last]:
                    _insert(r, key, first + start + i, some[i], of_popularity[start + i], best)


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
    found: Any,
) -> None:
    """Process one block of items for R contexts, in order of their times.

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
        found: See `executor.BlockPassResult`.
    """
    first, count, number = block
    time, place, mark, eligible, exclude, excluded = rows
    since, half_lives, added, marked_0, marked_1, marked_2, marked_3 = popularity
    item, when, count_0, count_1, count_2, count_3, order, offset = events
    of_member, of_prior = weights
    low, high, numbers = noise
    temperature, candidates, of_candidates, prior_of_candidates = sampling
    keys, items, key_logits, key_priors, peak, mass, prior_peak, prior_mass, prior_gross = found
    size = logits.shape[1]
    state, logs = np.empty((4, size), np.float32), np.empty((4, size), np.float32)
    of_popularity, powers, likely = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.float32)
    prior_powers, reference = np.empty(size, np.float32), np.empty(4, np.float64)
    is_candidate = np.zeros(_STEP, np.uint8)
    scratch = (np.empty(_STEP, np.float32), is_candidate, is_candidate.view(np.uint64))
    at_mark, at_time, at_count, event = np.int64(-1), np.int64(0), np.int64(-1), np.int64(0)
    block_peak, block_mass = _F(-np.inf), 0.0
    # Views: an index that might be negative needs a check that costs more than the loop body.
    own_prior, own_numbers = frequency[1][first : first + count], numbers[first : first + count]
    for r in range(len(time)):
        n = min(eligible[r] - first, count)
        if n <= 0:
            continue
        if mark[r] != at_mark:
            at_mark, at_count = mark[r], np.int64(-1)
            _copy(marked_0[at_mark, first : first + count], state[0])
            _copy(marked_1[at_mark, first : first + count], state[1])
            _copy(marked_2[at_mark, first : first + count], state[2])
            _copy(marked_3[at_mark, first : first + count], state[3])
            all_counts, of_all = state[0], logs[0]
            for i in range(count):
                of_all[i] = log(all_counts[i] + added[0])
            reference[:] = since[at_mark]
            event = offset[at_mark, number]
        if time[r] != at_time or n != at_count:
            at_time, at_count = time[r], n
            known = (item, when, count_0, count_1, count_2, count_3, order)
            span = (event, offset[at_mark, number + 1])
            event = _advance_counts(at_time, place[r], state[:, :count], reference, known, span, first, half_lives, added, logs)
            _log_counts(at_time, state, reference, half_lives, added, logs, n)
            of_popularity[:n] = 0
            _add_features(logs, of_prior, of_popularity, n)
            block_peak = _highest(of_popularity, n)
            block_mass = _mass(of_popularity, block_peak, prior_powers, n)
        line = logits[r]
        _add_features(logs, of_member[r], line, n)
        if frequency[2] != _ZERO:
            _add_frequency(r, frequency, own_prior, likely, line, first, n)
        excluded_mass = _exclude(r, exclude, excluded, line, prior_powers, first, n)
        for c in range(candidates.shape[1]):
            i = candidates[r, c] - first
            if 0 <= i < n:
                of_candidates[r, c] = line[i]
                prior_of_candidates[r, c] = of_popularity[i]
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
            best, lines = (keys, items, key_logits, key_priors), (line, powers, of_popularity)
            _sample(r, lines, (low, high, own_numbers), temperature, top, best, scratch, first, n)


@compiled
def add_log_products(logits: Any, products: Any, count: int, weight: Any) -> None:
    """Add ``weight`` times the logarithms of dot products to logits: both float32 [R, size], the first ``count`` columns."""
    for r in range(len(logits)):
        line, of_products = logits[r], products[r]
        for i in range(count):
            line[i] += weight * log(of_products[i])
