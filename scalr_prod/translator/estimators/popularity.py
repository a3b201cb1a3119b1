"""Popularity as of an event: how often an item had been chosen by then, and how often lately.

Time is cut at G instants, as many source events between each two. The features of an event are those of the last instant not
after it, counted over target events strictly before that instant. So popularity never looks ahead, for old events as for new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

if TYPE_CHECKING:
    from scalr_prod.translator.pairs import Pairs, Parameters

__all__ = ["FEATURES", "fit", "log_prior"]

#: What is known of an item's popularity at an instant; the calibration gives each a weight.
FEATURES: Final = ("count", "trend")
#: Events added to every item's count, so that the least known one can still be proposed.
COUNT_SMOOTHING: Final = 0.5
TREND_SMOOTHING: Final = 0.3
#: Days after which an event weighs half in the trend.
HALF_LIFE_DAYS: Final = 20.0
#: Instants, and the most numbers kept for one feature.
INSTANTS: Final = 128
_MOST_NUMBERS: Final = 2_000_000
_DAY_US: Final = 86_400_000_000.0


def fit(pairs: Pairs) -> Parameters:
    """Count at every instant, over the training users of a parameter set.

    Returns:
        ``instants`` int64 [G], ascending microseconds; ``count`` and ``trend`` float32 [G, n_target]: logs of smoothed counts.
    """
    import numpy as np

    item, time = pairs.popularity_events()
    order = np.argsort(time, kind="stable")
    item, time = item[order], time[order]
    instants = _instants(pairs)
    count = np.zeros(pairs.n_target)
    trend = np.zeros(pairs.n_target)
    table = np.empty((len(FEATURES), len(instants), pairs.n_target), dtype=np.float32)
    done = np.searchsorted(time, instants, side="left")
    for row, (begin, stop) in enumerate(zip(np.concatenate([[0], done[:-1]]), done, strict=True)):
        if row:
            trend *= _decay(instants[row] - instants[row - 1])
        new = item[begin:stop]
        count += np.bincount(new, minlength=pairs.n_target)
        trend += np.bincount(new, weights=_decay(instants[row] - time[begin:stop]), minlength=pairs.n_target)
        table[0, row] = np.log(count + COUNT_SMOOTHING)
        table[1, row] = np.log(trend + TREND_SMOOTHING)
    return {
        "instants": torch.from_numpy(instants),
        **{name: torch.from_numpy(rows.copy()) for name, rows in zip(FEATURES, table, strict=True)},
    }


def log_prior(parameters: Parameters) -> torch.Tensor:
    """log P(i) by all that was counted: float32 [n_target]."""
    return torch.log_softmax(parameters["count"][-1], 0)


def _instants(pairs: Pairs) -> Any:
    import numpy as np

    most = int(np.clip(_MOST_NUMBERS // pairs.n_target, 8, INSTANTS))
    time = np.sort(pairs.log.source.time[pairs.log.source.time < pairs.popularity_until])
    inner = time[(np.arange(most - 1) * len(time)) // (most - 1)] if len(time) else time
    return np.unique(np.append(inner, pairs.popularity_until))


def _decay(elapsed: Any) -> Any:
    return 0.5 ** (elapsed / (_DAY_US * HALF_LIFE_DAYS))
