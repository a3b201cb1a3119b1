# SPDX-License-Identifier: Apache-2.0
"""Compiled encoders of histories: user vectors of the built-in estimators, and history traits, in float64 as in the reference.

Each kernel implements its estimator's ``user``, or `history_traits.raw_traits`, row by row, without temporary copies or padding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from scalr_prod.translator.data.history_traits import MAX_AGE_DAYS, MIN_TIME_US, RECENT_DAYS, SAME_EVENT_US, TRAITS
from scalr_prod.translator.estimators import attention, factorisation, linear, sequential, topics
from scalr_prod.translator.estimators.popularity import DECAYED_COUNTS
from scalr_prod.translator.kernels.compilation import compiled, helper

if TYPE_CHECKING:
    from collections.abc import Callable

    from scalr_prod.translator.context_batch import ContextBatch
    from scalr_prod.translator.data.training_pairs import Parameters

__all__ = ["USER_ENCODERS", "compute_traits"]

#: Loops are padded to a multiple of this, so that they run in full vector registers.
_LANES: Final = 16
_EPSILON: Final = 1e-5
_DAY_US: Final = 86_400_000_000
_HALF_LIVES: Final = np.array([days for days, _ in DECAYED_COUNTS.values()])
_ADDED: Final = np.array([added for _, added in DECAYED_COUNTS.values()])
_LIMITS: Final = np.array(attention.AGE_LIMITS_DAYS, np.float32)
_EXTRA_CONFIDENCE: Final = factorisation.CONFIDENCE * factorisation.SOURCE_WEIGHT


@helper
def _distinct(items: Any, out: Any) -> Any:
    """Write a history's distinct items, ascending and without padding, to ``out``, and return their number."""
    count = 0
    for item in items:
        if item == 0:
            continue
        position = count
        while position > 0 and out[position - 1] > item:
            position -= 1
        if position > 0 and out[position - 1] == item:
            continue
        for shifted in range(count, position, -1):
            out[shifted] = out[shifted - 1]
        out[position] = item
        count += 1
    return count


@helper
def _count_not_above(ascending: Any, value: Any) -> Any:
    """Count the elements of an ascending int64 array that are at most a value. Compiles faster than `np.searchsorted`, for int64 only."""
    first, last = 0, len(ascending)
    while first < last:
        middle = (first + last) // 2
        if ascending[middle] <= value:
            first = middle + 1
        else:
            last = middle
    return first


@compiled
def _linear(basis: Any, items: Any, out: Any) -> None:
    """Implement `linear.user`: basis float32 [n_source + 1, r], items int64 [B, L], out float64 [B, r]."""
    distinct = np.empty(items.shape[1], np.int64)
    for b in range(len(items)):
        count = _distinct(items[b], distinct)
        total = out[b]
        for i in range(len(total)):
            total[i] = (items.shape[1] - count) * np.float64(basis[0, i])
        for position in range(count):
            row = basis[distinct[position]]
            for i in range(len(total)):
                total[i] += row[i]
        scale = 1 / math.sqrt(max(count, 1))
        for i in range(len(total)):
            total[i] *= scale


@helper
def _solve(system: Any, right: Any, column: Any) -> None:
    """Solve a symmetric positive definite system in place by Cholesky factorisation of its lower triangle; overwrites the system."""
    n = len(right)
    for k in range(n):
        pivot = math.sqrt(system[k, k])
        system[k, k] = pivot
        first = (k + 1) // _LANES * _LANES  # full registers: entries before k + 1 stay unchanged, since their column is 0
        for i in range(first, k + 1):
            column[i] = 0
        for i in range(k + 1, n):
            system[i, k] /= pivot
            column[i] = system[i, k]
        for i in range(k + 1, n):
            end = min((i // _LANES + 1) * _LANES, n)
            line, below, factor = system[i, first:end], column[first:end], column[i]
            for j in range(len(line)):
                line[j] -= factor * below[j]
    for i in range(n):
        total = right[i]
        for j in range(i):
            total -= system[i, j] * right[j]
        right[i] = total / system[i, i]
    for i in range(n - 1, -1, -1):
        right[i] /= system[i, i]
        for j in range(i):
            right[j] -= system[i, j] * right[i]


@compiled
def _factorisation(vectors: Any, gram: Any, inverse: Any, extra: Any, items: Any, out: Any) -> None:
    """Implement `factorisation.user`: solve for ALS user vectors.

    For n << d items S [n, d], x = (1 + e) Vᵀ (1 + e S Vᵀ)⁻¹ 1 with V = S gram⁻¹ takes n equations instead of d.
    """
    d, length = len(gram), items.shape[1]
    distinct = np.empty(length, np.int64)
    rows, projected = np.zeros((length + 4, d)), np.empty((d, d))
    system, column, ones = np.empty((d, d)), np.zeros(d), np.empty(d)
    for b in range(len(items)):
        count = _distinct(items[b], distinct)
        x = out[b]
        for position in range(count):
            for i in range(d):
                rows[position, i] = vectors[distinct[position], i]
        if 2 * count <= d:
            for position in range(count):
                line = projected[position]
                line[:] = 0
                for i in range(d):
                    factor = rows[position, i]
                    for j in range(d):
                        line[j] += factor * inverse[i, j]
                for other in range(position + 1):
                    total = 0.0
                    for j in range(d):
                        total += line[j] * rows[other, j]
                    system[position, other] = extra * total
                system[position, position] += 1
                ones[position] = 1
            _solve(system[:count, :count], ones[:count], column)
            for position in range(count):
                for j in range(d):
                    x[j] += (1 + extra) * ones[position] * projected[position, j]
            continue
        for i in range(d):
            for j in range(i + 1):
                system[i, j] = gram[i, j]
        rows[count : count + 4] = 0
        for position in range(0, count, 4):
            r0, r1, r2, r3 = rows[position], rows[position + 1], rows[position + 2], rows[position + 3]
            for i in range(d):
                x[i] += (1 + extra) * (r0[i] + r1[i] + r2[i] + r3[i])
                a0, a1, a2, a3 = extra * r0[i], extra * r1[i], extra * r2[i], extra * r3[i]
                line = system[i]
                for j in range(min((i // _LANES + 1) * _LANES, d)):
                    line[j] += a0 * r0[j] + a1 * r1[j] + a2 * r2[j] + a3 * r3[j]
        _solve(system, x, column)


@compiled
def _topics(shares: Any, recency: Any, items: Any, out: Any) -> None:
    """Implement `topics.user`: shares float32 [n_source + 1, K], recency float64 [D], items int64 [B, up to D], out float64 [B, K]."""
    offset = len(recency) - items.shape[1]
    for b in range(len(items)):
        total, n_known, topics = 0.0, 0, out[b]
        for position in range(items.shape[1]):
            if items[b, position] > 0:
                total += recency[offset + position]
                n_known += 1
        if n_known == 0:
            for k in range(len(topics)):
                topics[k] = shares[0, k]
            continue
        for position in range(items.shape[1]):
            if items[b, position] > 0:
                weight, row = recency[offset + position] / max(total, 2.0**-1022), shares[items[b, position]]
                for k in range(len(topics)):
                    topics[k] += weight * row[k]


@helper
def _layer_norm(x: Any, out: Any) -> None:
    """Normalise a vector to mean 0 and variance 1."""
    d = len(x)
    mean = 0.0
    for i in range(d):
        mean += x[i]
    mean /= d
    square = 0.0
    for i in range(d):
        square += (x[i] - mean) ** 2
    scale = 1 / math.sqrt(square / d + _EPSILON)
    for i in range(d):
        out[i] = (x[i] - mean) * scale


@compiled
def _sequential(source: Any, weights: Any, limits: Any, history: Any, out: Any) -> None:
    """Implement `attention.last_state`: source float32 [n_source + 1, d], out float64 [B, d]."""
    norm_weight, query, key, value, bias, widen, narrow = weights
    items, ages = history
    length, d, heads, hidden_size = items.shape[1], source.shape[1], len(bias), widen.shape[1]
    head_size = d // heads
    x, normed = np.empty((length, d)), np.empty((length, d))
    folded_query, last_query, hidden, buffer = np.empty((heads, d)), np.empty(d), np.empty(hidden_size), np.empty(d)
    weight, age_class = np.empty(length), np.empty(length, np.int64)
    for b in range(len(items)):
        state = out[b]
        begin = 0
        while begin < length and items[b, begin] == 0:
            begin += 1
        if begin == length:
            continue
        for position in range(begin, length):
            row = source[items[b, position]]
            for i in range(d):
                x[position, i] = row[i]
            age_class[position] = 0
            for limit in limits:
                age_class[position] += ages[b, position] > limit
            _layer_norm(x[position], normed[position])
            for i in range(d):
                normed[position, i] *= norm_weight[i]
        last_query[:] = 0
        for i in range(d):
            for j in range(d):
                last_query[j] += normed[length - 1, i] * query[i, j]
        for h in range(heads):
            head_query = last_query[h * head_size : (h + 1) * head_size]
            for i in range(d):
                total, head_key = 0.0, key[i, h * head_size : (h + 1) * head_size]
                for j in range(head_size):
                    total += head_query[j] * head_key[j]
                folded_query[h, i] = total / math.sqrt(head_size)
        for h in range(heads):
            top = -np.inf
            for position in range(begin, length):
                if items[b, position] == 0:
                    continue
                total = 0.0
                for i in range(d):
                    total += folded_query[h, i] * normed[position, i]
                total += bias[h, age_class[position]]
                weight[position] = total
                top = max(top, total)
            total = 0.0
            buffer[:] = 0
            for position in range(begin, length):
                if items[b, position] == 0:
                    continue
                power = math.exp(weight[position] - top)
                total += power
                for i in range(d):
                    buffer[i] += power * x[position, i]
            head_output = state[h * head_size : (h + 1) * head_size]
            for i in range(d):
                share, head_value = buffer[i] / total, value[i, h * head_size : (h + 1) * head_size]
                for j in range(head_size):
                    head_output[j] += share * head_value[j]
        _layer_norm(state, buffer)
        hidden[:] = 0
        for i in range(d):
            for j in range(hidden_size):
                hidden[j] += buffer[i] * widen[i, j]
        for j in range(hidden_size):
            hidden[j] = 0.5 * hidden[j] * (1 + math.erf(hidden[j] * math.sqrt(0.5)))
        for j in range(hidden_size):
            for i in range(d):
                state[i] += hidden[j] * narrow[j, i]


@compiled
def _traits(tables: Any, constants: Any, history: Any, out: Any) -> None:
    """Implement `history_traits.raw_traits`: out float64 [B, 6]."""
    times, end, key, start, count_0, count_1, count_2, count_3, instants, interval_means = tables
    half_lives, added = constants
    items, ages, history_end = history
    base = len(times) + 1
    for b in range(len(items)):
        n_known, n_recent, traits = 0, 0, out[b]
        for position in range(items.shape[1]):
            item = items[b, position]
            if item == 0:
                continue
            n_known += 1
            n_recent += ages[b, position] < RECENT_DAYS
            days = min(max(np.float64(ages[b, position]), 0.0), MAX_AGE_DAYS)
            query_time = max(history_end[b], MIN_TIME_US) - np.int64(days * _DAY_US)
            row = max(_count_not_above(instants, query_time) - 1, 0)
            query_time = min(query_time, end[0] + SAME_EVENT_US)
            first, last = start[item], start[item + 1]
            while first < last:
                middle = (first + last) // 2
                if times[key[middle] - item * base] < query_time - SAME_EVENT_US:
                    first = middle + 1
                else:
                    last = middle
            counts = (0.0, 0.0, 0.0, 0.0)
            if first > start[item]:
                age = (query_time - times[key[first - 1] - item * base]) / np.float64(_DAY_US)
                counts = (
                    np.float64(count_0[first - 1]),
                    count_1[first - 1] * 0.5 ** (age / half_lives[1]),
                    count_2[first - 1] * 0.5 ** (age / half_lives[2]),
                    count_3[first - 1] * 0.5 ** (age / half_lives[3]),
                )
            for q in range(4):
                traits[q] += math.log(counts[q] + added[q]) - interval_means[row, q]
        for q in range(4):
            traits[q] = traits[q] / n_known if n_known else np.nan
        traits[4] = math.log1p(n_known) if n_known else np.nan
        traits[5] = math.log1p(n_recent) if n_known else np.nan


def _encode_linear(parameters: Parameters, batch: ContextBatch) -> torch.Tensor:
    basis = parameters["basis"].numpy()
    return _fill(batch, basis.shape[1], lambda out: _linear(basis, batch.items.numpy(), out))


def _encode_factorisation(parameters: Parameters, batch: ContextBatch) -> torch.Tensor:
    source, gram = parameters["source"].numpy(), parameters["gram"]
    inverse = torch.linalg.inv(gram).numpy()
    return _fill(
        batch, len(gram), lambda out: _factorisation(source, gram.numpy(), inverse, _EXTRA_CONFIDENCE, batch.items.numpy(), out)
    )


def _encode_topics(parameters: Parameters, batch: ContextBatch) -> torch.Tensor:
    source, recency = parameters["source"].numpy(), parameters["recency"].double().numpy()
    items = np.ascontiguousarray(batch.items[:, -len(recency) :].numpy())
    return _fill(batch, source.shape[1], lambda out: _topics(source, recency, items, out))


def _encode_sequential(parameters: Parameters, batch: ContextBatch) -> torch.Tensor:
    names = ("norm_weight", "query", "key", "value", "age_bias", "widen", "narrow")
    weights = tuple(parameters[name].double().numpy() for name in names)
    source, history = parameters["source"].numpy(), (batch.items.numpy(), batch.ages.numpy())
    return _fill(batch, source.shape[1], lambda out: _sequential(source, weights, _LIMITS, history, out))


#: Built-in estimator → its compiled encoder.
USER_ENCODERS: Final[dict[Any, Callable[[Parameters, ContextBatch], torch.Tensor]]] = {
    linear: _encode_linear,
    factorisation: _encode_factorisation,
    topics: _encode_topics,
    sequential: _encode_sequential,
}


def compute_traits(parameters: Parameters, batch: ContextBatch) -> torch.Tensor:
    """Compute `history_traits.raw_traits`: float64 [B, 6]."""
    names = ("times", "end", "key", "start", *DECAYED_COUNTS, "instants", "around")
    tables = tuple(parameters[name].numpy() for name in names)
    history = (batch.items.numpy(), batch.ages.numpy(), batch.history_end.numpy())
    return _fill(batch, len(TRAITS), lambda out: _traits(tables, (_HALF_LIVES, _ADDED), history, out))


def _fill(batch: ContextBatch, width: int, fill: Callable[[Any], None]) -> torch.Tensor:
    """Allocate float64 [B, width], fill it by a kernel, and return it."""
    out = np.zeros((len(batch.items), width))
    fill(out)
    return torch.from_numpy(out)
