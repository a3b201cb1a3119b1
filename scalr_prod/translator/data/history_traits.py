# SPDX-License-Identifier: Apache-2.0
"""Item-independent features of a source history: the user's taste for popular and new items, and the history's length.

Who buys in one domain what everybody buys there, or what has just come up, does so in the other. So every taste tilts every weight of
the target items' popularity (`calibration`). Four tastes are means over the history's known items of how popular each was when its user
chose it: the logarithms of its decayed counts just before, as `estimators.popularity` defines them, less what everybody chose around then
(the mean over the source events of the interval before; the first interval has its own). Two are the logarithms of the number of known
events, and of those of the last 30 days.

Counts are a feature that is known at the time of each event: like popularity's they are exact to the event and go on to the end of what
was known, whatever slice the parameters are fitted on. An item of more than 256 events is counted once a day from then on. "Just before"
leaves out five minutes, since a history's times are as exact as ages in float32. After the end, counts stand still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from scalr_prod.core.memmap import iter_row_slices
from scalr_prod.core.memory import release_memory
from scalr_prod.translator.estimators.popularity import DECAYED_COUNTS, decayed_counts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scalr_prod.translator.context_batch import ContextBatch
    from scalr_prod.translator.data.training_pairs import Parameters, TrainingSlice

__all__ = [
    "MAX_AGE_DAYS",
    "MIN_TIME_US",
    "RECENT_DAYS",
    "SAME_EVENT_US",
    "TRAITS",
    "fit",
    "raw_traits",
    "standardize_traits",
    "trait_moments",
]

RECENT_DAYS: Final = 30.0
#: Events of an item that are all kept; of the later ones, the last of each day.
_ALL_KEPT: Final = 256
#: Most intervals of time that have a mean, fewest events in one, and most events that the means are taken from.
_INTERVALS: Final = 64
_EVENTS_IN_AN_INTERVAL: Final = 200
_MOST_EVENTS: Final = 200_000
#: Most times of events that intervals are cut by.
_MOST_TIMES: Final = 4_000_000
#: Events that are counted at a time where the log is no larger than so many times that, and no item has more; else a share of it.
_AT_A_TIME: Final = 500_000
#: Of the events that means are taken from, those that are looked up at a time.
_LOOKED_UP: Final = 16_384
_PASSES: Final = 64
#: Tastes beyond so many standard deviations count as that many.
_WIDEST: Final = 3.0
_DAY_US: Final = 86_400_000_000
#: Ages travel in float32: what happened within so many microseconds before an event may be the event itself.
SAME_EVENT_US: Final = 300_000_000
#: Ages and times beyond these (days, microseconds) are nobody's: kept where arithmetic on them cannot overflow.
MAX_AGE_DAYS: Final = 1e6
MIN_TIME_US: Final = -(2**61)
#: What is known of each user's taste.
TRAITS: Final = (*(f"taste_{name}" for name in DECAYED_COUNTS), "length", "recent")


def fit(pairs: TrainingSlice) -> Parameters:
    """Count the source events of a slice's items, to the end of what was known.

    Returns:
        ``times`` int64 [R], distinct times of the M events kept, and ``end`` int64 [1], when counts stand still; ``key`` int64 [M],
        ascending: item x (R + 1) + place of the event's time in ``times``; ``start`` int64 [n_source + 2], where each item's begin;
        ``count`` float32 [M], how many events the item had by then, and for each half-life float32 [M] its decayed count just after;
        ``instants`` int64 [G] and ``around`` float32 [G, 4], what everybody chose before.
    """
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in ("item", "time", *DECAYED_COUNTS)}
    sampled: list[tuple[NDArray[np.int32], NDArray[np.int64]]] = []
    many = _many(pairs)
    begins = _begins(_times(pairs, int(many.sum())))
    stride, before = -(-int(many.sum()) // _MOST_EVENTS) or 1, 0
    for item, time in _by_item(pairs, many):
        kept = _kept(item, time, np.arange(len(item)) - np.searchsorted(item, item) + 1)
        found["item"].append(item[kept])
        found["time"].append(time[kept])
        for name, (half_life, _) in DECAYED_COUNTS.items():
            found[name].append(decayed_counts(item, time, half_life)[kept].astype(np.float32))
        # Copies, since a view holds all that it is of.
        sampled.append((item[-before % stride :: stride].copy(), time[-before % stride :: stride].copy()))
        before += len(item)
    release_memory()
    # One after the other, so that its parts go when one is whole.
    item, time, *counts = (np.concatenate([np.empty(0, found[name][0].dtype), *found.pop(name)]) for name in list(found))
    times, place = np.unique(time, return_inverse=True)
    del time
    arrays = {
        "times": times,
        "end": np.array([pairs.popularity_until]),
        "key": item.astype(np.int64) * (len(times) + 1) + place,
        "start": np.searchsorted(item, np.arange(pairs.n_source + 2, dtype=np.int32)),
        **dict(zip(DECAYED_COUNTS, counts, strict=True)),
    }
    parameters = {name: torch.from_numpy(array) for name, array in arrays.items()}
    some = (torch.from_numpy(np.concatenate(parts).astype(np.int64)) for parts in zip(*sampled, strict=True))
    return parameters | _around(parameters, begins, *some)


def _counted(
    pairs: TrainingSlice, first: int = 1, stop: int | None = None
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """Vocabulary index and time of the events that are counted, of the items ``first`` to ``stop`` (all), in the order of the log.

    Some at a time, and each time anew: an array of all of them would take as much as the log.
    """
    source = pairs.log.source
    for some in iter_row_slices(len(source), _AT_A_TIME):
        index, time = pairs.source_index[source.item[some]], source.time[some]
        wanted = (index >= first) & (time < pairs.popularity_until)
        if stop is not None:
            wanted &= index < stop
        yield index[wanted].astype(np.int32, copy=False), time[wanted]


def _many(pairs: TrainingSlice) -> NDArray[np.int64]:
    """How many counted events each item has: int64 [n_source + 1], 0 for the padding."""
    many = np.zeros(pairs.n_source + 1, dtype=np.int64)
    for index, _ in _counted(pairs):
        many += np.bincount(index, minlength=len(many))
    return many


def _times(pairs: TrainingSlice, many: int) -> NDArray[np.int64]:
    """When the counted events happened, ``many`` in all: int64; of more than `_MOST_TIMES` every k-th one, and the earliest."""
    stride, before = -(-many // _MOST_TIMES) or 1, 0
    times, least = [np.empty(0, dtype=np.int64)], np.empty(0, dtype=np.int64)
    for _, time in _counted(pairs):
        times.append(time[-before % stride :: stride].copy())
        if stride > 1 and len(time):
            least = np.append(least, time.min()).min(keepdims=True)
        before += len(time)
    return np.concatenate([*times, least])


def _by_item(pairs: TrainingSlice, many: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """Vocabulary index and time of the counted events, in order of both, some items at a time: all of them sorted would take GBs."""
    until = np.cumsum(many)  # events of the items up to each
    most, first = max(_AT_A_TIME, len(pairs.log.source) // _PASSES), 1
    while first <= pairs.n_source:
        stop = max(int(np.searchsorted(until, until[first - 1] + most, side="right")), first + 1)
        if until[stop - 1] > until[first - 1]:
            index, time = (np.concatenate(parts) for parts in zip(*_counted(pairs, first, stop), strict=True))
            order = np.lexsort((time, index))
            yield index[order], time[order]
        first = stop


def raw_traits(parameters: Parameters, batch: ContextBatch, dtype: Any = torch.float32) -> torch.Tensor:
    """Each context's tastes as they are told: [B, 6]; NaN where the history holds no known item."""
    known = batch.items > 0
    age = (batch.ages.double().clamp(0, MAX_AGE_DAYS) * _DAY_US).long()
    values = _relative(parameters, batch.items, batch.history_end[:, None].clamp(min=MIN_TIME_US) - age, dtype)
    many = known.sum(1, keepdim=True).to(dtype)
    mean = (values * known[..., None]).sum(1) / many
    recent = (known & (batch.ages < RECENT_DAYS)).sum(1, keepdim=True).to(dtype)
    return torch.cat([mean, many.log1p(), recent.log1p()], 1).masked_fill(many == 0, torch.nan)


def trait_moments(traits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation [6] of what `raw_traits` tells of some contexts."""
    traits = traits[~traits.isnan().any(1)]
    if not len(traits):
        return traits.new_zeros(len(TRAITS)), traits.new_ones(len(TRAITS))
    return traits.mean(0), traits.std(0, correction=0).clamp(min=1e-3)


def standardize_traits(traits: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Tastes in standard deviations from the mean, at most 3 of them; 0 where nothing was told."""
    return ((traits - mean.to(traits)) / deviation.to(traits)).clamp(-_WIDEST, _WIDEST).nan_to_num(0)


def _relative(parameters: Parameters, items: torch.Tensor, time: torch.Tensor, dtype: Any) -> torch.Tensor:
    """Log decayed counts of items at times (any shape), less what everybody chose around then: [..., 4]."""
    counts = _log_counts(parameters, items, time, dtype)
    row = torch.searchsorted(parameters["instants"], time, right=True) - 1
    return counts - parameters["around"][row.clamp(min=0)].to(dtype)


def _log_counts(parameters: Parameters, items: torch.Tensor, time: torch.Tensor, dtype: Any) -> torch.Tensor:
    """Logarithms of the decayed counts of items just before times (any shape): [..., 4]."""
    times, key = parameters["times"], parameters["key"]
    time = torch.minimum(time, parameters["end"] + SAME_EVENT_US)
    place = torch.searchsorted(key, items * (len(times) + 1) + torch.searchsorted(times, time - SAME_EVENT_US)) - 1
    before = place >= parameters["start"][items]
    place = place.clamp(min=0)
    age = (time - times[key[place] % (len(times) + 1)]).to(dtype) / _DAY_US
    found = []
    for name, (half_life, added) in DECAYED_COUNTS.items():
        count = parameters[name][place].to(dtype) * 0.5 ** (age / half_life)
        found.append((torch.where(before, count, 0) + added).log())
    return torch.stack(found, -1)


def _begins(time: NDArray[np.int64]) -> torch.Tensor:
    """Where the intervals begin, with as many events in each: int64 [at most 64], ascending; ``time`` is put in another order."""
    count = max(1, min(_INTERVALS, len(time) // _EVENTS_IN_AN_INTERVAL))
    places = np.arange(count) * len(time) // count
    time.partition(places)
    return torch.from_numpy(np.unique(time[places]))


def _around(parameters: Parameters, begins: torch.Tensor, item: torch.Tensor, time: torch.Tensor) -> Parameters:
    """``instants``, from which on a mean holds, and the mean ``around`` of some events of the interval before."""
    row = torch.searchsorted(begins, time, right=True) - 1
    total = torch.zeros(len(begins), len(DECAYED_COUNTS), dtype=torch.float64)
    for some in torch.arange(len(row)).split(_LOOKED_UP):
        total.index_add_(0, row[some], _log_counts(parameters, item[some], time[some], torch.float64))
    mean = (total / torch.bincount(row, minlength=len(begins)).clamp(min=1)[:, None]).float()
    return {"instants": torch.cat([begins, parameters["end"]]), "around": torch.cat([mean[:1], mean])}


def _kept(item: NDArray[Any], time: NDArray[np.int64], number: NDArray[Any]) -> NDArray[np.int64]:
    """Positions of the events that are kept: of those of one item and time the last, which counts the others; later, of one day."""
    moment = np.where(number <= _ALL_KEPT, time, time // _DAY_US)
    last = np.ones(len(item), dtype=bool)
    last[:-1] = (item[1:] != item[:-1]) | (moment[1:] != moment[:-1])
    return np.flatnonzero(last)
