# SPDX-License-Identifier: Apache-2.0
"""Fidelity and privacy metrics of synthetic events.

Fidelity: Kolmogorov-Smirnov distances (0 alike, 1 apart) of item popularity, time and events per user, total variation over popularity
deciles, and the AUC of a detector that separates synthetic from real events (0.5: it cannot). Privacy: how often a synthetic event
equals a held-out real one, compared with the same events assigned to random other users (chance).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from scalr_prod.core.timestamps import DAY_US

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.evaluation.interactions import Interactions
    from scalr_prod.evaluation.split import EvaluationSplit


_PERMUTATIONS: Final = 20
_BUCKETS: Final = 10
_RIDGE: Final = 1e-3


def diagnose(split: EvaluationSplit, synthetic: Interactions) -> dict[str, float]:
    """Return fidelity and privacy metrics of one set of synthetic events; empty if there are none.

    Args:
        split: Supplies the real events and the held-out ones.
        synthetic: Synthetic events.
    """
    real = split.real
    if not len(synthetic):
        return {}
    popularity = real.popularity()
    rng = np.random.default_rng(0)
    copies = _copy_rate(split, synthetic.user, synthetic.item)
    chance = [_copy_rate(split, _permute_users(synthetic.user, rng), synthetic.item) for _ in range(_PERMUTATIONS)]
    return {
        "popularity_ks": _ks_distance(popularity[real.item], popularity[synthetic.item]),
        "popularity_tv": _total_variation(popularity, real.item, synthetic.item),
        "time_ks": _ks_distance(real.time, synthetic.time),
        "events_per_user_ks": _ks_distance(_events_per_user(real), _events_per_user(synthetic)),
        "detector_auc": _detector_auc(real, synthetic, popularity, rng),
        "detector_auc_without_time": _detector_auc(real, synthetic, popularity, rng, with_time=False),
        "held_out_copy_rate": copies,
        "held_out_copy_rate_by_chance": float(np.mean(chance)),
        "held_out_copy_rate_by_chance_max": float(np.max(chance)),
    }


def _copy_rate(split: EvaluationSplit, user: NDArray[np.int32], item: NDArray[np.int32]) -> float:
    """Return the share of pairs that are held-out real events."""
    return float(np.asarray(split.held_out[user, item]).ravel().astype(bool).mean())


def _permute_users(user: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int32]:
    """Return user numbers in which each user's events belong to another, random user."""
    owners = np.unique(user)
    return rng.permutation(owners)[np.searchsorted(owners, user)]


def _events_per_user(events: Interactions) -> NDArray[np.int64]:
    count = np.bincount(events.user)
    return count[count > 0]


def _ks_distance(left: NDArray[np.float64] | NDArray[np.int64], right: NDArray[np.float64] | NDArray[np.int64]) -> float:
    from scipy import stats

    return float(stats.ks_2samp(left, right, method="asymp").statistic)


def _total_variation(popularity: NDArray[np.float64], real: NDArray[np.int32], synthetic: NDArray[np.int32]) -> float:
    """Return the total variation between shares of popularity deciles (deciles of real events)."""
    edges = np.unique(np.quantile(popularity[real], np.linspace(0, 1, _BUCKETS + 1)[1:-1]))
    shares = [
        np.bincount(np.searchsorted(edges, popularity[items], side="right"), minlength=len(edges) + 1) / len(items)
        for items in (real, synthetic)
    ]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def _detector_auc(
    real: Interactions,
    synthetic: Interactions,
    popularity: NDArray[np.float64],
    rng: np.random.Generator,
    *,
    with_time: bool = True,
) -> float:
    """Return the held-out AUC of a ridge regression on item popularity, the user's event count, time, and their squares."""
    columns = []
    for events in (real, synthetic):
        event_count = np.bincount(events.user, minlength=events.n_users)[events.user]
        features = [np.log1p(popularity[events.item]), np.log1p(event_count)]
        if with_time:
            features.append((events.until - events.time) / DAY_US)
        columns.append(np.stack(features, axis=1))
    size = min(map(len, columns))
    balanced = [part[rng.permutation(len(part))[:size]] for part in columns]
    x = np.concatenate(balanced)
    x = (x - x.mean(0)) / x.std(0).clip(1e-9)
    x = np.concatenate([np.ones((len(x), 1)), x, x**2], axis=1)
    y = np.repeat([0.0, 1.0], size)
    train = rng.random(len(y)) < 0.5  # noqa: PLR2004 - a half
    gram = x[train].T @ x[train] + _RIDGE * len(y) * np.eye(x.shape[1])
    score = x[~train] @ np.linalg.solve(gram, x[train].T @ y[train])
    return _auc(score, y[~train] == 1)


def _auc(score: NDArray[np.float64], is_positive: NDArray[np.bool_]) -> float:
    from scipy import stats

    positive, negative = score[is_positive], score[~is_positive]
    if not len(positive) or not len(negative):
        return float("nan")
    return float(stats.mannwhitneyu(positive, negative, method="asymptotic").statistic / (len(positive) * len(negative)))
