# SPDX-License-Identifier: Apache-2.0
"""Popularity as of an event: how often an item had been chosen before it, in total and recently.

All users' events count, also those of a held-out fold: what happened before an event was known at that time. The prior P(i), which is
fitted once, leaves them out.

A feature of an item is the logarithm of its decayed count at a time: each earlier target event counts 0.5^(age / half-life). The effect of
one more event depends on the count: a second recent event makes an item several times as likely, a tenth hardly more. So each count gives
further features, its logarithm clamped from below at 1 and at 4 events, and the weighted sum of a count's features is piecewise linear.

Counts are exact at any time and never look ahead. Each event stores its item's counts just after it, and snapshots store the counts of all
items. A query takes the last snapshot before its time and replaces the counts of the items chosen since. There is about one snapshot for as
many events as there are items, so a query takes a few passes over the items, and an event takes at most 48 bytes (or 32 MB for all
snapshots, if that is more). Events of one item at one time are merged. After the end of the training data, popularity stays constant.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from scalr_prod.core.timestamps import DAY_US
from scalr_prod.translator.estimators.dot_products import UNIT_ROUNDOFF

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from scalr_prod.translator.data.training_pairs import Parameters, TrainingSlice


#: Count → (half-life in days, events added to every item's count as smoothing, so that rare items can be proposed).
DECAYED_COUNTS: Final[dict[str, tuple[float, float]]] = {
    "count": (math.inf, 0.5),
    "days_90": (90.0, 0.2),
    "days_20": (20.0, 0.1),
    "days_3": (3.0, 0.05),
}
COUNT_NAMES: Final = tuple(DECAYED_COUNTS)
#: Clamps of the piecewise linear features, in events including the smoothing. An item that can be proposed has at least one event.
_CLAMPS: Final = {"count": (4,), "days_90": (1, 4), "days_20": (1, 4), "days_3": (1, 4)}
_CLAMPED: Final = {f"{name}_from_{least}": (name, math.log(least)) for name, clamps in _CLAMPS.items() for least in clamps}
#: Popularity features of an item at a time; the calibration weighs each.
FEATURES: Final = (*COUNT_NAMES, *_CLAMPED)
#: Tensors of `fit`; a version that lacks one was written by another version of the package.
TENSOR_NAMES: Final = (
    "end",
    "time",
    "item",
    "next",
    "every",
    "since",
    *DECAYED_COUNTS,
    *(f"{name}_marked" for name in DECAYED_COUNTS),
)
#: Snapshots of a small log. A larger one has one per `n_target` events, so that snapshots take no more memory than events.
SNAPSHOTS: Final = 64
#: Minimum number of events between two snapshots of a large log.
_MIN_EVENTS_BETWEEN: Final = 1_000
#: Maximum numbers per count in the snapshots of a small log, and at the times that `choose_instants` chooses.
_MAX_NUMBERS: Final = 2_000_000
#: Approximate number of events counted at a time.
_BATCH_EVENTS: Final = 500_000
#: Times per row up to which one matrix product per time is faster.
_MAX_TIMES_PER_ROW: Final = 0.25


def fit(pairs: TrainingSlice, snapshots: int = SNAPSHOTS) -> Parameters:
    """Count every event, and take snapshots of all items' counts: about the given number, more if there are many events per item.

    Returns:
        ``end`` int64 [1], end of the training data (microseconds); for each of M events in order of time, ``time`` int64,
        ``item`` int32, ``next`` int32 (position of the item's next event; M if there is none) and, by name in `COUNT_NAMES`, float32
        the item's decayed count just after the event; ``every`` int64 [1], events between two snapshots; ``since`` int64 [G], the time
        of the last event before each snapshot, and ``<count>_marked`` float32 [G, n_target], all items' decayed counts just after it.
    """
    item, time, weight = pairs.popularity_events()
    by_item = np.lexsort((time, item))
    item, time, weight = item[by_item], time[by_item], None if weight is None else weight[by_item]
    stored = _last_per_time(item, time)
    in_time = np.argsort(time[stored], kind="stable")
    position = np.empty(len(stored), dtype=np.int32)
    position[in_time] = np.arange(len(stored), dtype=np.int32)
    following = np.full(len(stored), len(stored), dtype=np.int32)
    same = item[stored][1:] == item[stored][:-1]
    following[:-1][same] = position[1:][same]
    events: dict[str, NDArray[Any]] = {"time": time[stored][in_time], "item": item[stored][in_time].astype(np.int32)}
    events["next"] = following[in_time]
    stored = stored[in_time]
    del by_item, in_time, following, position, same
    for name, (half_life, _) in DECAYED_COUNTS.items():
        events[name] = _decayed_counts_batched(item, time, half_life, weight)[stored]
    end = np.array([pairs.popularity_until])
    number = max(min(snapshots, _MAX_NUMBERS // pairs.n_target), len(stored) // max(pairs.n_target, _MIN_EVENTS_BETWEEN), 1)
    arrays = events | {"end": end} | _snapshots(events, end, -(-len(stored) // number) or 1, pairs.n_target)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def choose_instants(pairs: TrainingSlice, max_instants: int) -> torch.Tensor:
    """Choose times with equally many events between neighbours, the last at the end of the data: int64 [G], ascending."""
    time = np.sort(pairs.popularity_events().time)
    count = int(np.clip(_MAX_NUMBERS // pairs.n_target, 8, max_instants))
    inner = time[(np.arange(count - 1) * len(time)) // (count - 1)] if len(time) else time
    return torch.from_numpy(np.unique(np.append(inner, pairs.popularity_until)))


def _decayed_counts_batched(
    item: NDArray[Any], time: NDArray[np.int64], half_life: float, weight: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Compute `decayed_counts` for some items at a time: its temporaries take several times the memory of the events."""
    counts = np.empty(len(item), dtype=np.float32)
    begins = np.append(np.flatnonzero(np.diff(item, prepend=-1)), len(item))  # start of each item's events
    first = 0
    while begins[first] < len(item):
        stop = max(int(np.searchsorted(begins, begins[first] + _BATCH_EVENTS, side="right")) - 1, first + 1)
        rows = slice(begins[first], begins[stop])
        counts[rows] = decayed_counts(item[rows], time[rows], half_life, None if weight is None else weight[rows])
        first = stop
    return counts


def decayed_counts(
    item: NDArray[Any], time: NDArray[np.int64], half_life: float, weight: NDArray[np.float32] | None = None
) -> NDArray[np.float64]:
    """Compute the decayed count of each event's item just after the event, in order of item and time: float64 [M].

    Args:
        item: [M], ascending.
        time: int64 [M], microseconds, ascending within each item.
        half_life: In days; infinity counts every event as one.
        weight: float32 [M]. Weight of each event; None: 1.
    """
    number = np.arange(len(item)) - np.searchsorted(item, item) + 1  # of each event among those of its item
    if math.isinf(half_life) and weight is None:
        return number.astype(np.float64)
    total = np.ones(len(item)) if weight is None else weight.astype(np.float64)
    step, remaining = 1, np.flatnonzero(number > 1)
    while len(remaining):  # sums over the last 1, 2, 4, … events
        days = (time[remaining] - time[remaining - step]) / DAY_US
        total[remaining] += 0.5 ** (days / half_life) * total[remaining - step]
        step *= 2
        remaining = remaining[number[remaining] > step]
    return total


def log_popularity(pairs: TrainingSlice) -> torch.Tensor:
    """Compute log P(i) from all events of the training slice: float32 [n_target]."""
    counts = np.log(np.asarray(pairs.target_matrix().sum(axis=0)).ravel() + DECAYED_COUNTS["count"][1])
    return torch.from_numpy(counts - np.logaddexp.reduce(counts)).float()


def feature_values(counts: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """Compute one of `FEATURES` from the logarithms of the counts (any shape)."""
    if name not in _CLAMPED:
        return counts[name]
    count, minimum = _CLAMPED[name]
    return counts[count].clamp(min=minimum)


def log_counts(
    parameters: Parameters, time: torch.Tensor, dtype: Any = torch.float32, items: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Compute the logarithms of the decayed counts as of each time.

    Args:
        parameters: The result of `fit`.
        time: int64 [B], microseconds.
        dtype: dtype of the result.
        items: int64 [B, C]. Default: all.

    Returns:
        Name of `COUNT_NAMES` → [B, N], or [B, C].
    """
    time = torch.minimum(time, parameters["end"])
    before = torch.searchsorted(parameters["time"], time)
    snapshot = torch.minimum(before // parameters["every"], parameters["since"].new_tensor(len(parameters["since"]) - 1))
    begin = snapshot * parameters["every"]
    if items is not None:
        return _log_counts_of_items(parameters, time, (snapshot, begin, before), items, dtype)
    event, owner = _last_events(parameters["next"], begin, before)
    position = owner * parameters["count_marked"].shape[1] + parameters["item"][event]
    # Days in float64, so that a decayed count is off by only a few units in the last place.
    elapsed = (time - parameters["since"][snapshot]).clamp(min=0).double() / DAY_US
    age = (time[owner] - parameters["time"][event]).double() / DAY_US
    logs = {}
    for name, (half_life, smoothing) in DECAYED_COUNTS.items():
        counts = parameters[f"{name}_marked"][snapshot].to(dtype)
        counts *= (-elapsed / half_life).exp2().to(dtype)[:, None]
        since = parameters[name][event].to(dtype) * (-age / half_life).exp2().to(dtype)
        counts.view(-1)[position] = since
        logs[name] = counts.add_(smoothing).log_()
    return logs


def _log_counts_of_items(
    parameters: Parameters,
    time: torch.Tensor,
    spans: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    items: torch.Tensor,
    dtype: Any,
) -> dict[str, torch.Tensor]:
    """Compute `log_counts` of given items by binary search of their last events: the cost does not depend on the number of items."""
    snapshot, begin, before = spans
    span = len(parameters["time"]) + 1
    key = parameters["by_item"] if "by_item" in parameters else events_by_item(parameters)
    position = torch.searchsorted(key, items * span + before[:, None]) - 1
    # Negative if the item has no event before; an event before the snapshot is part of its counts.
    event = torch.cat([key, key.new_full((1,), -span)])[position] - items * span
    since_mark = event >= begin[:, None]
    event = event.clamp(min=0) * since_mark
    elapsed = (time - parameters["since"][snapshot]).clamp(min=0).double() / DAY_US
    age = elapsed[:, None].expand(items.shape)
    if since_mark.any():
        age = (time[:, None] - parameters["time"][event]).double() / DAY_US
    logs = {}
    for name, (half_life, smoothing) in DECAYED_COUNTS.items():
        marked = parameters[f"{name}_marked"][snapshot[:, None], items].to(dtype)
        counts = marked * (-elapsed / half_life).exp2().to(dtype)[:, None]
        if since_mark.any():
            counts = torch.where(since_mark, parameters[name][event].to(dtype) * (-age / half_life).exp2().to(dtype), counts)
        logs[name] = counts.add_(smoothing).log_()
    return logs


def events_by_item(parameters: Parameters) -> torch.Tensor:
    """Index events by item and time, for `log_counts` of given items: int64 [M], item x (M + 1) + position, ascending."""
    item = parameters["item"].long()
    return (item * (len(item) + 1) + torch.arange(len(item), device=item.device)).sort().values


def _last_events(following: torch.Tensor, begin: torch.Tensor, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the last event of each item in each of B ranges of events: positions [E], and the range of each [E]."""
    latest = [
        (following[start:stop] >= stop).nonzero()[:, 0] + start
        for start, stop in zip(begin.tolist(), before.tolist(), strict=True)
    ]
    counts = torch.tensor([len(events) for events in latest], dtype=torch.int64, device=begin.device)
    return torch.cat([begin[:0], *latest]), torch.repeat_interleave(torch.arange(len(latest), device=begin.device), counts)


def log_popularity_at(parameters: Parameters, instants: torch.Tensor, weights: Mapping[str, float]) -> torch.Tensor:
    """Compute the log-softmax over items of weighted features as of some times: float32 [G, N]."""
    counts = log_counts(parameters, instants)
    return sum(weight * feature_values(counts, name) for name, weight in weights.items()).log_softmax(1)


def weighted_features(
    parameters: Parameters, time: torch.Tensor, weights: Sequence[torch.Tensor], dtype: Any = torch.float32
) -> list[torch.Tensor]:
    """Compute weighted sums of the features as of each time; equal times are computed once.

    Args:
        parameters: The result of `fit`.
        time: int64 [B], microseconds.
        weights: Each [F], or [B, F] if every row has its own; F in the order of `FEATURES`.
        dtype: dtype of the results.

    Returns:
        [B, N] for each set of weights.
    """
    distinct, index = torch.unique(time, return_inverse=True)
    counts = log_counts(parameters, distinct, dtype)
    used = torch.stack([row.reshape(-1, row.shape[-1]).ne(0).any(0) for row in weights]).any(0).nonzero()[:, 0].tolist()
    if not used:
        return [torch.zeros(len(time), counts["count"].shape[1], dtype=dtype, device=time.device) for _ in weights]
    features = torch.stack([feature_values(counts, FEATURES[number]) for number in used], 1)
    sums = []
    for row in weights:
        nonzero = row[..., used].to(dtype)
        if row.ndim == 1:
            sums.append((nonzero @ features)[index])
            continue
        sums.append(_weighted_per_row(nonzero, features, index))
    return sums


def weighted_item_features(
    parameters: Parameters, time: torch.Tensor, weights: torch.Tensor, items: torch.Tensor, dtype: Any
) -> torch.Tensor:
    """Compute weighted sums of the features of given items, int64 [B, C], with weights [F] or [B, F]: [B, C]; see `weighted_features`."""
    counts = log_counts(parameters, time, dtype, items)
    features = torch.stack([feature_values(counts, name) for name in FEATURES], 1)
    return (weights.to(dtype)[..., None] * features).sum(1)


def feature_bounds(parameters: Parameters) -> torch.Tensor:
    """Return an upper bound of the absolute value of each item's features at any time: float32 [F, N]."""
    sizes = {}
    for name, (_, smoothing) in DECAYED_COUNTS.items():
        # An item's counts are largest just after its events.
        most = torch.zeros_like(parameters[f"{name}_marked"][0])
        most.scatter_reduce_(0, parameters["item"].long(), parameters[name], "amax")
        sizes[name] = most.add_(smoothing).log_().clamp_(min=-math.log(smoothing)) * (1 + 8 * UNIT_ROUNDOFF)
    clamped = [sizes[of].clamp(min=abs(least)) for of, least in _CLAMPED.values()]
    return torch.stack([*sizes.values(), *clamped])


def _weighted_per_row(weights: torch.Tensor, features: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Multiply each row's weights [B, F] by the features [U, F, N] of its time, ``index`` [B]: [B, N]."""
    total = features.new_zeros(len(index), features.shape[2])
    if len(features) > _MAX_TIMES_PER_ROW * len(index):
        for number in range(features.shape[1]):
            total.addcmul_(weights[:, number, None], features[:, number][index])
        return total
    for distinct_time, values in enumerate(features):  # far fewer times than rows: one product for each
        rows = (index == distinct_time).nonzero()[:, 0]
        total[rows] = weights[rows] @ values
    return total


def _last_per_time(item: NDArray[Any], time: NDArray[np.int64]) -> NDArray[np.int64]:
    """Find the last event of each item and time; its counts include the others."""
    last = np.ones(len(item), dtype=bool)
    last[:-1] = (item[1:] != item[:-1]) | (time[1:] != time[:-1])
    return np.flatnonzero(last)


def _snapshots(
    events: Mapping[str, NDArray[Any]], end: NDArray[np.int64], every: int, n_target: int
) -> dict[str, NDArray[Any]]:
    """Compute ``every``, ``since`` and the snapshots, see `fit`."""
    item, time = events["item"], events["time"]
    starts = np.arange(0, max(len(item), 1), every)
    since = np.append(time, end)[np.maximum(starts - 1, 0)]
    counts = {name: np.zeros((len(starts), n_target), dtype=np.float32) for name in DECAYED_COUNTS}
    last = np.full(n_target, -1)
    for row, start in enumerate(starts.tolist()[1:], 1):
        passed = np.arange(start - every, start)
        last[item[passed]] = passed  # the last of an item's events wins
        known = np.flatnonzero(last >= 0)
        days = (since[row] - time[last[known]]) / DAY_US
        for name, (half_life, _) in DECAYED_COUNTS.items():
            counts[name][row, known] = events[name][last[known]] * 0.5 ** (days / half_life)
    return {"every": np.array([every]), "since": since} | {f"{name}_marked": array for name, array in counts.items()}
