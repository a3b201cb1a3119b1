"""What a source history tells of its user's taste, whatever its items are: for the popular, for the new, and how much there is of it.

Who buys in one domain what everybody buys there, or what has just come up, does so in the other. So every taste tilts every weight of
the target items' popularity (`calibration`). Four tastes are means over the history's known items of how popular each was when its user
chose it: the logarithms of its decayed counts strictly before, as `estimators.popularity` defines them, less what everybody chose around
then (the mean over the source events of the interval before). Two are the logarithms of the number of known events, and of those of the
last 30 days.

A count is kept at each of an item's events (evenly thinned where there are very many) and decays from there, so that it is exact at any
time and never looks ahead. After the slice's end it stands still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from scalr_prod.translator.batch import Batch
from scalr_prod.translator.estimators.popularity import DECAYED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.translator.pairs import Pairs, Parameters

__all__ = ["TASTES", "fit", "of"]

_RECENT_DAYS: Final = 30.0
#: Most events kept of an item, most intervals of time that have a mean, fewest events in one, most contexts that the spread comes from.
_MOST_OF_AN_ITEM: Final = 256
_INTERVALS: Final = 64
_EVENTS_IN_AN_INTERVAL: Final = 200
_MOST_CONTEXTS: Final = 20_000
#: Tastes beyond so many standard deviations count as that many.
_WIDEST: Final = 3.0
_DAY_US: Final = 86_400_000_000
#: Ages travel in float32: what happened within so many microseconds before an event may be the event itself.
_SAME_US: Final = 300_000_000
#: What is known of each user's taste.
TASTES: Final = (*(f"taste_{name}" for name in DECAYED), "length", "recent")


def fit(pairs: Pairs) -> Parameters:
    """Count the source events of a slice.

    Returns:
        ``times`` int64 [R], their distinct times; ``key`` int64 [M], ascending, of those kept: item x (R + 1) + place of their time in
        ``times``; ``start`` int64 [n_source + 2], where each item's begin; ``number`` float32 [M], how many events the item had by then;
        for each half-life float32 [M], its decayed count just after. ``instants`` int64 [G] and ``around`` float32 [G, 4]: what everybody
        chose before. ``mean`` and ``spread`` float32 [6]: of the tastes over the contexts of the slice's target events.
    """
    from scalr_prod.translator.pairs import contexts_at

    events = pairs.log.source
    index = pairs.source_index[events.item]
    counts = (events.time < pairs.until) & (index > 0)
    order = np.lexsort((events.time[counts], index[counts]))
    item, time = index[counts][order].astype(np.int64), events.time[counts][order]
    times = np.unique(time)
    start = np.searchsorted(item, np.arange(pairs.n_source + 2))
    number = np.arange(len(item)) - start[item] + 1
    kept = _thinned(number, np.diff(start)[item])
    found: dict[str, NDArray[Any]] = {
        "times": times,
        "key": (item * (len(times) + 1) + np.searchsorted(times, time))[kept],
        "start": np.searchsorted(item[kept], np.arange(pairs.n_source + 2)),
        "number": number[kept].astype(np.float32),
    }
    for name, (half_life, _) in DECAYED.items():
        if np.isfinite(half_life):
            found[name] = _decayed(item, time, half_life)[kept].astype(np.float32)
    found |= {"mean": np.zeros(len(TASTES), np.float32), "spread": np.ones(len(TASTES), np.float32)}
    parameters = {name: torch.from_numpy(array) for name, array in found.items()}
    parameters |= _around(parameters, torch.from_numpy(item), torch.from_numpy(time))
    rows = pairs.target_rows()
    rows = rows[np.arange(0, len(rows), max(1, len(rows) // _MOST_CONTEXTS))]
    contexts, _ = contexts_at(pairs.log, rows, source_index=pairs.source_index, target_index=pairs.target_index)
    batch = Batch.of(contexts, torch.from_numpy(pairs.first_seen))
    raw = _raw(parameters, batch, torch.float32)[(batch.items > 0).any(1)]
    if len(raw):
        parameters |= {"mean": raw.mean(0), "spread": raw.std(0, correction=0).clamp(min=1e-3)}
    return parameters


def of(parameters: Parameters, batch: Batch, dtype: Any = torch.float32) -> torch.Tensor:
    """Each context's tastes, in standard deviations from the mean: [B, 6], at most 3 of them; 0 where the history holds no known item."""
    standard = (_raw(parameters, batch, dtype) - parameters["mean"].to(dtype)) / parameters["spread"].to(dtype)
    return standard.clamp(-_WIDEST, _WIDEST) * (batch.items > 0).any(1, keepdim=True)


def _raw(parameters: Parameters, batch: Batch, dtype: Any) -> torch.Tensor:
    known = batch.items > 0
    time = batch.history_end[:, None] - (batch.ages.double() * _DAY_US).long()
    values = _relative(parameters, batch.items, time, dtype)
    many = known.sum(1, keepdim=True).to(dtype)
    mean = (values * known[..., None]).sum(1) / many.clamp(min=1)
    recent = (known & (batch.ages < _RECENT_DAYS)).sum(1, keepdim=True).to(dtype)
    return torch.cat([mean, many.log1p(), recent.log1p()], 1)


def _relative(parameters: Parameters, items: torch.Tensor, time: torch.Tensor, dtype: Any) -> torch.Tensor:
    """Log decayed counts of items at times (any shape), less what everybody chose around then: [..., 4]."""
    counts = _log_counts(parameters, items, time, dtype)
    row = torch.searchsorted(parameters["instants"], time, right=True) - 1
    return counts - parameters["around"][row.clamp(min=0)].to(dtype)


def _log_counts(parameters: Parameters, items: torch.Tensor, time: torch.Tensor, dtype: Any) -> torch.Tensor:
    """Logarithms of the decayed counts of items strictly before times (any shape): [..., 4]."""
    times, key = parameters["times"], parameters["key"]
    if not len(key):
        return torch.tensor([added for _, added in DECAYED.values()], dtype=dtype).log().expand(*items.shape, -1)
    time = torch.minimum(time, times[-1] + _SAME_US + 1)
    place = torch.searchsorted(key, items * (len(times) + 1) + torch.searchsorted(times, time - _SAME_US)) - 1
    before = place >= parameters["start"][items]
    place = place.clamp(min=0)
    age = (time - times[key[place] % (len(times) + 1)]).to(dtype) / _DAY_US
    found = []
    for name, (half_life, added) in DECAYED.items():
        state = parameters["number" if name == "count" else name][place].to(dtype)
        found.append((torch.where(before, state * 0.5 ** (age / half_life), 0) + added).log())
    return torch.stack(found, -1)


def _around(parameters: Parameters, item: torch.Tensor, time: torch.Tensor) -> Parameters:
    """``instants``, from which on a mean holds, and the mean ``around`` of the events of the interval before."""
    count = max(1, min(_INTERVALS, len(time) // _EVENTS_IN_AN_INTERVAL))
    ordered = time.sort().values
    instants = ordered[torch.arange(count) * len(time) // count].unique() if len(time) else torch.zeros(1, dtype=torch.int64)
    row = (torch.searchsorted(instants, time, right=True) - 1).clamp(min=0)
    values = _log_counts(parameters, item, time, torch.float64)
    total = torch.zeros(len(instants), values.shape[1], dtype=torch.float64).index_add_(0, row, values)
    mean = total / torch.bincount(row, minlength=len(instants)).clamp(min=1)[:, None]
    before = (torch.arange(len(instants)) - 1).clamp(min=0)
    return {"instants": instants, "around": mean[before].float()}


def _decayed(item: NDArray[np.int64], time: NDArray[np.int64], half_life: float) -> NDArray[np.float64]:
    """Each event's decayed count of its item's events up to it, itself included: sums over the last 1, 2, 4, … events."""
    total, step = np.ones(len(item)), 1
    while step < len(item) and (same := item[step:] == item[:-step]).any():
        days = np.where(same, time[step:] - time[:-step], 0) / _DAY_US
        total[step:] += same * 0.5 ** (days / half_life) * total[:-step]
        step *= 2
    return total


def _thinned(number: NDArray[np.int64], of_all: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of the events that are kept: every item's first, and of many every so manieth."""
    return np.flatnonzero((number - 1) % -(-of_all // _MOST_OF_AN_ITEM) == 0)
