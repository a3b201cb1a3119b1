"""Popularity as of an event: how often an item had been chosen by then, and how often lately, to the event.

Everybody's events count, a held-out fold's too: what had happened before an event was known to whoever looked then. The prior
P(i), which is fitted once, leaves them out.

A feature of an item is the logarithm of its decayed count at a time: each target event before counts 0.5^(age / half-life). How much one
event more says depends on how many there were: a second one of late makes an item several times as likely, a tenth hardly more. So
counts make further features, their logarithm from one and from four on (constant below), and the weighted sum of a count's features is
a line with bends.

The counts are kept at G instants, and the events between two instants beside them, so that a feature is exact at any time and never
looks ahead, for old events as for new. After the last instant popularity stands still.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scalr_prod.translator.pairs import Pairs, Parameters

__all__ = ["COUNTS", "DECAYED", "FEATURES", "at_instants", "feature", "fit", "log_counts", "prior", "weighted"]

#: Count → (half-life in days, events added to every item's count, so that the least known one can still be proposed).
DECAYED: Final[dict[str, tuple[float, float]]] = {
    "count": (math.inf, 0.5),
    "days_90": (90.0, 0.2),
    "days_20": (20.0, 0.1),
    "days_3": (3.0, 0.05),
}
COUNTS: Final = tuple(DECAYED)
#: Where the line bends, in events with what is added; an item that can be proposed has one event in all at least.
_BENDS: Final = {"count": (4,), "days_90": (1, 4), "days_20": (1, 4), "days_3": (1, 4)}
_BENT: Final = {f"{name}_from_{least}": (name, math.log(least)) for name, bends in _BENDS.items() for least in bends}
#: What is known of an item's popularity at a time; the calibration gives each a weight.
FEATURES: Final = (*COUNTS, *_BENT)
#: Most instants, most numbers kept for one feature, and most events kept between two instants (more are thinned, evenly).
INSTANTS: Final = 64
_MOST_NUMBERS: Final = 2_000_000
_MOST_BETWEEN: Final = 2_000
#: Moments for each row, up to which one matrix product a moment is the faster way.
_FEW: Final = 0.25
_DAY_US: Final = 86_400_000_000.0


def fit(pairs: Pairs, most: int = INSTANTS) -> Parameters:
    """Count at every instant (at most so many).

    Returns:
        ``instants`` int64 [G], ascending microseconds; one float32 [G, n_target] for each half-life, decayed counts of the events
        strictly before each instant; ``start`` int64 [G + 1], where the events from each instant on begin; ``item`` int32,
        ``time`` int64 and ``number`` float32 [M], those events (each standing for so many).
    """
    import numpy as np

    item, time = pairs.popularity_events()
    order = np.argsort(time, kind="stable")
    item, time = item[order], time[order]
    instants = _instants(pairs, time, most)
    start = np.searchsorted(time, np.append(instants, pairs.popularity_until), side="left")
    states = {name: np.zeros((len(instants), pairs.n_target)) for name in DECAYED}
    for row in range(1, len(instants)):
        passed = slice(start[row - 1], start[row])
        for name, (half_life, _) in DECAYED.items():
            age = (instants[row] - time[passed]) / (_DAY_US * half_life)
            states[name][row] = states[name][row - 1] * 0.5 ** ((instants[row] - instants[row - 1]) / (_DAY_US * half_life))
            states[name][row] += np.bincount(item[passed], weights=0.5**age, minlength=pairs.n_target)
    kept, number = _thinned(start)
    return {
        "instants": torch.from_numpy(instants),
        **{name: torch.from_numpy(state.astype(np.float32)) for name, state in states.items()},
        "start": torch.from_numpy(np.searchsorted(kept, start).astype(np.int64)),
        "item": torch.from_numpy(item[kept].astype(np.int32)),
        "time": torch.from_numpy(time[kept].astype(np.int64)),
        "number": torch.from_numpy(number.astype(np.float32)),
    }


def prior(pairs: Pairs) -> torch.Tensor:
    """log P(i) by all events of the training slice: float32 [n_target]."""
    import numpy as np

    counts = np.log(np.asarray(pairs.target_matrix().sum(axis=0)).ravel() + DECAYED["count"][1])
    return torch.from_numpy(counts - np.logaddexp.reduce(counts)).float()


def feature(counts: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """One of `FEATURES`, from the logarithms of the counts (any shape)."""
    if name not in _BENT:
        return counts[name]
    of, least = _BENT[name]
    return counts[of].clamp(min=least)


def log_counts(parameters: Parameters, time: torch.Tensor, dtype: Any = torch.float32) -> dict[str, torch.Tensor]:
    """Logarithms of the decayed counts as of each time.

    Args:
        parameters: As `fit` gives them.
        time: int64 [B], microseconds.
        dtype: Of the answer.

    Returns:
        Name of `COUNTS` → [B, N].
    """
    time = time.clamp(max=parameters["instants"][-1])
    row = _row(parameters, time)
    instant = parameters["instants"][row]
    begin = parameters["start"][row]
    # Events within an instant's share that are later than the time weigh nothing.
    between = parameters["start"][row + 1] - begin
    event = torch.repeat_interleave(begin - (between.cumsum(0) - between), between)
    event += torch.arange(len(event), device=event.device)
    owner = torch.repeat_interleave(torch.arange(len(time), device=time.device), between)
    age = (time[owner] - parameters["time"][event]).to(dtype) / _DAY_US
    before = age > 0
    age, number = age[before], parameters["number"][event][before].to(dtype)
    place = (owner * parameters["count"].shape[1] + parameters["item"][event])[before]
    elapsed = ((time - instant).to(dtype) / _DAY_US)[:, None]
    found = {}
    for name, (half_life, smoothing) in DECAYED.items():
        state = parameters[name][row].to(dtype).mul_(0.5 ** (elapsed / half_life))
        state.view(-1).index_add_(0, place, number * 0.5 ** (age / half_life))
        found[name] = state.add_(smoothing).log_()
    return found


def at_instants(parameters: Parameters, weights: Mapping[str, float]) -> torch.Tensor:
    """Weighted features at the instants alone, normalised over the items: float32 [G, N]."""
    counts = {name: (parameters[name] + added).log() for name, (_, added) in DECAYED.items()}
    return sum(weight * feature(counts, name) for name, weight in weights.items()).log_softmax(1)


def weighted(
    parameters: Parameters, time: torch.Tensor, weights: Sequence[torch.Tensor], dtype: Any = torch.float32
) -> list[torch.Tensor]:
    """Weighted sums of the features as of each time, which are worked out once for equal times.

    Args:
        parameters: As `fit` gives them.
        time: int64 [B], microseconds.
        weights: Each [F], or [B, F] where every row has its own; F in the order of `FEATURES`.
        dtype: Of the answers.

    Returns:
        [B, N] for each set of weights.
    """
    distinct, index = torch.unique(time, return_inverse=True)
    counts = log_counts(parameters, distinct, dtype)
    used = torch.stack([one.reshape(-1, one.shape[-1]).ne(0).any(0) for one in weights]).any(0).nonzero()[:, 0].tolist()
    if not used:
        return [torch.zeros(len(time), counts["count"].shape[1], dtype=dtype, device=time.device) for _ in weights]
    features = torch.stack([feature(counts, FEATURES[number]) for number in used], 1)
    sums = []
    for one in weights:
        kept = one[..., used].to(dtype)
        if one.ndim == 1:
            sums.append((kept @ features)[index])
            continue
        sums.append(_own_weights(kept, features, index))
    return sums


def _own_weights(weights: torch.Tensor, features: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Each row's weights [B, F] times the features [U, F, N] of its moment, ``index`` [B]: [B, N]."""
    total = features.new_zeros(len(index), features.shape[2])
    if len(features) > _FEW * len(index):
        for number in range(features.shape[1]):
            total.addcmul_(weights[:, number, None], features[:, number][index])
        return total
    for moment, values in enumerate(features):  # far fewer moments than rows: a product for each
        rows = (index == moment).nonzero()[:, 0]
        total[rows] = weights[rows] @ values
    return total


def _row(parameters: Parameters, time: torch.Tensor) -> torch.Tensor:
    return (torch.searchsorted(parameters["instants"], time, right=True) - 1).clamp(min=0)


def _instants(pairs: Pairs, time: Any, most: int) -> Any:
    """As many events between each two, the last one at the end."""
    import numpy as np

    most = int(np.clip(_MOST_NUMBERS // pairs.n_target, 8, most))
    inner = time[(np.arange(most - 1) * len(time)) // (most - 1)] if len(time) else time
    return np.unique(np.append(inner, pairs.popularity_until))


def _thinned(start: Any) -> tuple[Any, Any]:
    """Positions of the events that are kept, evenly out of those between two instants, and how many each stands for."""
    import numpy as np

    kept, number = [np.empty(0, dtype=np.int64)], [np.empty(0)]
    for begin, stop in itertools.pairwise(start.tolist()):
        count = min(stop - begin, _MOST_BETWEEN)
        kept.append(begin + (np.arange(count) * (stop - begin)) // max(count, 1))
        number.append(np.full(count, (stop - begin) / max(count, 1)))
    return np.concatenate(kept), np.concatenate(number)
