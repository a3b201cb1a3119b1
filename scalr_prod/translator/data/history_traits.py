# SPDX-License-Identifier: Apache-2.0
"""Traits of a user's source history that do not depend on the items: taste for popular and for new items, and length.

Users who choose popular or new items in one domain tend to do so in the other. Therefore `calibration` lets each trait modify the weights
of the target items' popularity. There are six traits:

- Four tastes, one for each decayed count of `estimators.popularity`: the mean, over the history's known items, of the logarithm of the
  item's decayed count just before its event, relative to the mean of all source events in the previous time interval. Events of the first
  interval are compared with the mean of the first interval itself.
- ``length`` and ``recent``: logarithms of 1 + the number of known events, in total and in the last 30 days.

Counts are a feature that is known at the time of each event. As in popularity, they are exact to the event, and continue to the end of the
known log whatever slice the parameters are fitted on. After that end they stay constant. From an item's 257th event on, counts are updated
once a day. "Just before" excludes the last five minutes, since ages in float32 make times inexact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from scalr_prod.core.memmap import iter_row_slices
from scalr_prod.core.memory import release_memory
from scalr_prod.core.timestamps import DAY_US
from scalr_prod.translator.estimators.popularity import DECAYED_COUNTS, decayed_counts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scalr_prod.translator.context_batch import ContextBatch
    from scalr_prod.translator.data.training_pairs import Parameters, TrainingSlice


RECENT_DAYS: Final = 30.0
#: First events of an item that are all stored; of later ones, only the last of each day is.
_MAX_EXACT_EVENTS: Final = 256
#: Maximum number of time intervals, minimum number of events in each, and maximum number of events that the means are computed from.
_MAX_INTERVALS: Final = 64
_MIN_INTERVAL_EVENTS: Final = 200
_MAX_SAMPLED_EVENTS: Final = 200_000
#: Maximum number of event times that the interval limits are computed from.
_MAX_SAMPLED_TIMES: Final = 4_000_000
#: Events in memory at a time; more if one item has more, or if the log would take more than `_MAX_PASSES` passes.
_BATCH_EVENTS: Final = 500_000
_MAX_PASSES: Final = 64
#: Events whose counts are looked up at a time.
_LOOKUP_BATCH: Final = 16_384
#: Traits are clipped to this many standard deviations.
_MAX_DEVIATIONS: Final = 3.0
#: Counts exclude this many microseconds before an event: ages are float32, so that an event so close may be the event itself.
SAME_EVENT_US: Final = 300_000_000
#: Ages (days) and times (microseconds) are clipped to these limits, within which integer arithmetic cannot overflow.
MAX_AGE_DAYS: Final = 1e6
MIN_TIME_US: Final = -(2**61)
#: Names of the traits, in order.
TRAITS: Final = (*(f"taste_{name}" for name in DECAYED_COUNTS), "length", "recent")


def fit(pairs: TrainingSlice) -> Parameters:
    """Count the source events of a slice's items, up to the end of the known log.

    Returns:
        Tensors of the M stored events at R distinct times, and of the G intervals:

        - ``times`` int64 [R], ascending: the distinct times, microseconds; ``end`` int64 [1]: the time after which counts are constant.
        - ``key`` int64 [M], ascending: item x (R + 1) + position of the event's time in ``times``.
        - ``start`` int64 [n_source + 2]: position of each item's first stored event.
        - ``count`` float32 [M]: number of the item's events up to this one, and for each half-life float32 [M]: its decayed count just
          after this one.
        - ``instants`` int64 [G], ascending: start of each interval; ``around`` float32 [G, 4]: mean log counts that events in it are
          compared with.
    """
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in ("item", "time", *DECAYED_COUNTS)}
    sampled: list[tuple[NDArray[np.int32], NDArray[np.int64]]] = []
    counts = _count_events(pairs)
    interval_starts = _interval_starts(_sample_times(pairs, int(counts.sum())))
    stride, n_before = -(-int(counts.sum()) // _MAX_SAMPLED_EVENTS) or 1, 0
    for item, time in _iter_sorted_by_item(pairs, counts):
        stored = _stored_positions(item, time, np.arange(len(item)) - np.searchsorted(item, item) + 1)
        columns["item"].append(item[stored])
        columns["time"].append(time[stored])
        for name, (half_life, _) in DECAYED_COUNTS.items():
            columns[name].append(decayed_counts(item, time, half_life)[stored].astype(np.float32))
        # Copies, since a view would keep the whole batch in memory.
        sampled.append((item[-n_before % stride :: stride].copy(), time[-n_before % stride :: stride].copy()))
        n_before += len(item)
    release_memory()
    # One column after the other, so that the batches of each are freed as soon as it is concatenated.
    item, time, *decayed = (np.concatenate([np.empty(0, columns[name][0].dtype), *columns.pop(name)]) for name in list(columns))
    times, position = np.unique(time, return_inverse=True)
    del time
    arrays = {
        "times": times,
        "end": np.array([pairs.popularity_until]),
        "key": item.astype(np.int64) * (len(times) + 1) + position,
        "start": np.searchsorted(item, np.arange(pairs.n_source + 2, dtype=np.int32)),
        **dict(zip(DECAYED_COUNTS, decayed, strict=True)),
    }
    parameters = {name: torch.from_numpy(array) for name, array in arrays.items()}
    sampled_item, sampled_time = (
        torch.from_numpy(np.concatenate(batches).astype(np.int64)) for batches in zip(*sampled, strict=True)
    )
    return parameters | _interval_means(parameters, interval_starts, sampled_item, sampled_time)


def _iter_counted_events(
    pairs: TrainingSlice, first: int = 1, stop: int | None = None
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """Yield vocabulary index and time of the counted events in batches, in the order of the log.

    Batches are computed again on each call, since an array of all events would take as much memory as the log.

    Args:
        pairs: The slice.
        first: First item.
        stop: End of the items, exclusive; None: all.
    """
    source = pairs.log.source
    for rows in iter_row_slices(len(source), _BATCH_EVENTS):
        index, time = pairs.source_index[source.item[rows]], source.time[rows]
        mask = (index >= first) & (time < pairs.popularity_until)
        if stop is not None:
            mask &= index < stop
        yield index[mask].astype(np.int32, copy=False), time[mask]


def _count_events(pairs: TrainingSlice) -> NDArray[np.int64]:
    """Return the number of counted events of each item: int64 [n_source + 1], 0 for the padding."""
    counts = np.zeros(pairs.n_source + 1, dtype=np.int64)
    for index, _ in _iter_counted_events(pairs):
        counts += np.bincount(index, minlength=len(counts))
    return counts


def _sample_times(pairs: TrainingSlice, n_events: int) -> NDArray[np.int64]:
    """Return the times of the counted events: int64. Of more than `_MAX_SAMPLED_TIMES`, return every k-th and the earliest.

    Args:
        pairs: The slice.
        n_events: Number of counted events.
    """
    stride, n_before = -(-n_events // _MAX_SAMPLED_TIMES) or 1, 0
    times, earliest = [np.empty(0, dtype=np.int64)], np.empty(0, dtype=np.int64)
    for _, time in _iter_counted_events(pairs):
        times.append(time[-n_before % stride :: stride].copy())
        if stride > 1 and len(time):
            earliest = np.append(earliest, time.min()).min(keepdims=True)
        n_before += len(time)
    return np.concatenate([*times, earliest])


def _iter_sorted_by_item(
    pairs: TrainingSlice, counts: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """Yield vocabulary index and time of the counted events, sorted by both, some items at a time: sorting all would take GBs.

    Args:
        pairs: The slice.
        counts: Result of `_count_events`.
    """
    cumulative = np.cumsum(counts)
    max_size, first = max(_BATCH_EVENTS, len(pairs.log.source) // _MAX_PASSES), 1
    while first <= pairs.n_source:
        stop = max(int(np.searchsorted(cumulative, cumulative[first - 1] + max_size, side="right")), first + 1)
        if cumulative[stop - 1] > cumulative[first - 1]:
            index, time = (np.concatenate(batches) for batches in zip(*_iter_counted_events(pairs, first, stop), strict=True))
            order = np.lexsort((time, index))
            yield index[order], time[order]
        first = stop


def raw_traits(parameters: Parameters, batch: ContextBatch, dtype: Any = torch.float32) -> torch.Tensor:
    """Compute each context's traits before standardization: [B, 6] in ``dtype``; NaN if the history holds no known item."""
    known = batch.items > 0
    age = (batch.ages.double().clamp(0, MAX_AGE_DAYS) * DAY_US).long()
    values = _relative_log_counts(parameters, batch.items, batch.history_end[:, None].clamp(min=MIN_TIME_US) - age, dtype)
    length = known.sum(1, keepdim=True).to(dtype)
    mean = (values * known[..., None]).sum(1) / length
    recent = (known & (batch.ages < RECENT_DAYS)).sum(1, keepdim=True).to(dtype)
    return torch.cat([mean, length.log1p(), recent.log1p()], 1).masked_fill(length == 0, torch.nan)


def trait_moments(traits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and the standard deviation of `raw_traits` [B, 6]: [6] each."""
    traits = traits[~traits.isnan().any(1)]
    if not len(traits):
        return traits.new_zeros(len(TRAITS)), traits.new_ones(len(TRAITS))
    return traits.mean(0), traits.std(0, correction=0).clamp(min=1e-3)


def standardize_traits(traits: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Standardize `raw_traits` [B, 6] with `trait_moments`, and clip them to ±3; 0 for NaN."""
    return ((traits - mean.to(traits)) / deviation.to(traits)).clamp(-_MAX_DEVIATIONS, _MAX_DEVIATIONS).nan_to_num(0)


def _relative_log_counts(parameters: Parameters, items: torch.Tensor, time: torch.Tensor, dtype: Any) -> torch.Tensor:
    """Return log decayed counts of items at times (any shape), minus the mean of the previous interval: [..., 4]."""
    counts = _log_counts(parameters, items, time, dtype)
    row = torch.searchsorted(parameters["instants"], time, right=True) - 1
    return counts - parameters["around"][row.clamp(min=0)].to(dtype)


def _log_counts(parameters: Parameters, items: torch.Tensor, time: torch.Tensor, dtype: Any) -> torch.Tensor:
    """Return the logarithms of the items' decayed counts just before times (any shape): [..., 4]."""
    times, key = parameters["times"], parameters["key"]
    time = torch.minimum(time, parameters["end"] + SAME_EVENT_US)
    last = torch.searchsorted(key, items * (len(times) + 1) + torch.searchsorted(times, time - SAME_EVENT_US)) - 1
    has_events = last >= parameters["start"][items]
    last = last.clamp(min=0)
    age = (time - times[key[last] % (len(times) + 1)]).to(dtype) / DAY_US
    logs = []
    for name, (half_life, added) in DECAYED_COUNTS.items():
        count = parameters[name][last].to(dtype) * 0.5 ** (age / half_life)
        logs.append((torch.where(has_events, count, 0) + added).log())
    return torch.stack(logs, -1)


def _interval_starts(time: NDArray[np.int64]) -> torch.Tensor:
    """Return the starts of intervals with equally many events: int64 [at most 64], ascending. Partially sorts ``time`` in place."""
    n_intervals = max(1, min(_MAX_INTERVALS, len(time) // _MIN_INTERVAL_EVENTS))
    positions = np.arange(n_intervals) * len(time) // n_intervals
    time.partition(positions)
    return torch.from_numpy(np.unique(time[positions]))


def _interval_means(
    parameters: Parameters, interval_starts: torch.Tensor, item: torch.Tensor, time: torch.Tensor
) -> Parameters:
    """Return ``instants`` and ``around``, see `fit`, from a sample of events: each mean is that of the interval before.

    Args:
        parameters: Tensors of the stored events.
        interval_starts: int64 [G - 1].
        item: int64 [E]. Vocabulary indices of the sample.
        time: int64 [E]. Microseconds.
    """
    row = torch.searchsorted(interval_starts, time, right=True) - 1
    total = torch.zeros(len(interval_starts), len(DECAYED_COUNTS), dtype=torch.float64)
    for batch in torch.arange(len(row)).split(_LOOKUP_BATCH):
        total.index_add_(0, row[batch], _log_counts(parameters, item[batch], time[batch], torch.float64))
    mean = (total / torch.bincount(row, minlength=len(interval_starts)).clamp(min=1)[:, None]).float()
    return {"instants": torch.cat([interval_starts, parameters["end"]]), "around": torch.cat([mean[:1], mean])}


def _stored_positions(item: NDArray[Any], time: NDArray[np.int64], number: NDArray[Any]) -> NDArray[np.int64]:
    """Return the positions of the events to store: the last of each item and time, or of each day after `_MAX_EXACT_EVENTS` events.

    Args:
        item: int32 [E], ascending.
        time: int64 [E], ascending within an item.
        number: int64 [E]. Number of each event among its item's events, from 1.
    """
    moment = np.where(number <= _MAX_EXACT_EVENTS, time, time // DAY_US)
    is_last = np.ones(len(item), dtype=bool)
    is_last[:-1] = (item[1:] != item[:-1]) | (moment[1:] != moment[:-1])
    return np.flatnonzero(is_last)
