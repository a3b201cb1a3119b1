# SPDX-License-Identifier: Apache-2.0
"""Features of user-item pairs as of a point in time.

Features are the item's popularity at several half-lives, the user's event counts and recency in both domains, and affinities: the item's
popularity among users with similar histories. All features count only observed events strictly before that time, never synthetic ones.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core.timestamps import DAY_US

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scalr_prod.evaluation.interactions import Interactions


#: Days.
_HALF_LIVES: Final = (7.0, 30.0, 90.0, 365.0, float("inf"))
_AFFINITIES: Final = ("source_affinity", "close_source_affinity", "target_affinity")
FEATURES: Final = (
    *(f"popularity_{half_life:g}" for half_life in _HALF_LIVES),
    "item_age",
    "item_recency",
    "target_events",
    "target_recency",
    "source_events",
    "source_recency",
    *(f"{name}{kind}" for name in _AFFINITIES for kind in ("", "_lift")),
)
#: Added to popularities relative to the mean item; keeps logarithms finite.
_PRIOR: Final = 0.01
_USER_BATCH: Final = 256


class Snapshot:
    """Features as of one point in time.

    Args:
        events: Target events; ``events.source`` has those of the source domain. Later events are ignored.
        at: Microseconds since the epoch. Only observed events strictly before it count.

    Attributes:
        known: bool [N]. Items with an event before that time.
        log_popularity: float32 [half-lives, N]. Log of each item's decayed popularity relative to the mean item.
    """

    def __init__(self, events: Interactions, at: int) -> None:
        observed = events.in_history() & (events.time < at)
        target = events.take(observed)
        self.n_items = events.n_items
        self._user_items = _interaction_sets(target)
        age = (at - target.time) / DAY_US
        counts = [np.bincount(target.item, np.exp2(-age / half_life), self.n_items) for half_life in _HALF_LIVES]
        self.known: NDArray[np.bool_] = counts[-1] > 0
        self.log_popularity = np.log([count / max(count.mean(), 1e-300) + _PRIOR for count in counts]).astype(np.float32)
        self._items = np.stack([*self.log_popularity, *_ages(target.item, age, self.n_items)], axis=1)
        users = [*_user_features(target, age)]
        self._similar: list[tuple[Any, tuple[float, ...]]] = [(_unit_idf_rows(self._user_items), (1.0,))]
        if events.source is None:
            users += [np.zeros(events.n_users, np.float32), np.full(events.n_users, np.nan, np.float32)]
        else:
            source = events.source.take(events.source.in_history() & (events.source.time < at))
            users += _user_features(source, (at - source.time) / DAY_US)
            self._similar.insert(0, (_unit_idf_rows(_interaction_sets(source)), (1.0, 2.0)))
        self._users = np.stack(users, axis=1)

    def features(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return `FEATURES` of pairs, with NaN for recencies without an event: float32 [P, F].

        Args:
            users: int64 [P].
            items: int64 [P].
        """
        features = np.empty((len(users), len(FEATURES)), np.float32)
        first_affinity = len(FEATURES) - 2 * len(_AFFINITIES)
        n_item_features = self._items.shape[1]
        features[:, :n_item_features] = self._items[items]
        features[:, n_item_features:first_affinity] = self._users[users]
        unique_users, user_index = np.unique(users, return_inverse=True)
        for start, rows in iter_user_batches(user_index, len(unique_users), _USER_BATCH):
            affinities = self.affinities(unique_users[start : start + _USER_BATCH])
            affinity = affinities[:, user_index[rows] - start, items[rows]].T
            features[rows, first_affinity::2] = affinity
            features[rows, first_affinity + 1 :: 2] = affinity - self.log_popularity[-1][items[rows], None]
        return features

    def affinities(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return each item's log popularity among similar users: float32 [A, B, N].

        Other users are weighted by the IDF cosine similarity of their events to the user's; ``close_`` affinities use its square, which
        favours close neighbours. For a user without neighbours all items are equal.
        """
        affinity = np.zeros((len(_AFFINITIES), len(users), self.n_items), np.float32)
        kind = len(_AFFINITIES) - sum(len(powers) for _, powers in self._similar)
        for vectors, powers in self._similar:
            similarity = (vectors[users] @ vectors.T).tocsr()
            # A user is not their own neighbour.
            similarity.data[np.repeat(users, np.diff(similarity.indptr)) == similarity.indices] = 0
            for power in powers:
                weighted = similarity.copy()
                weighted.data **= power
                affinity[kind] = (weighted @ self._user_items).toarray()
                kind += 1
        mean = affinity.mean(2, keepdims=True)
        return np.log(np.where(mean > 0, affinity / np.where(mean > 0, mean, 1), 1) + np.float32(_PRIOR)).astype(np.float32)

    def user_items(self, users: NDArray[np.int64]) -> Any:
        """Return 1 where a user chose an item before that time: scipy CSR [B, N]."""
        return self._user_items[users]


def iter_user_batches(user_index: NDArray[np.int64], n_users: int, batch_size: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield batches of ``batch_size`` of the users: the number of a batch's first user, and the rows of its users."""
    order = np.argsort(user_index, kind="stable")
    ends = np.searchsorted(user_index[order], np.arange(0, n_users + batch_size, batch_size))
    for start, (begin, end) in zip(range(0, n_users, batch_size), itertools.pairwise(ends), strict=True):
        yield start, order[begin:end]


def _interaction_sets(events: Interactions) -> Any:
    """Return 1 for each pair that occurs: scipy CSR float32 [U, N]."""
    from scipy import sparse

    sets = sparse.csr_matrix((np.ones(len(events), np.float32), (events.user, events.item)), (events.n_users, events.n_items))
    sets.data[:] = 1
    return sets


def _unit_idf_rows(sets: Any) -> Any:
    """Return IDF-weighted rows of unit length, whose products are cosine similarities: scipy CSR float32 [U, N]."""
    from scipy import sparse

    document_frequency = np.bincount(sets.indices, minlength=sets.shape[1])
    idf = np.log1p(sets.shape[0] / document_frequency.clip(1)).astype(np.float32)
    weighted = (sets @ sparse.diags(idf)).tocsr()
    length = np.sqrt(np.asarray(weighted.multiply(weighted).sum(1)).ravel()).clip(1e-12)
    return (sparse.diags(1 / length) @ weighted).tocsr().astype(np.float32)


def _user_features(events: Interactions, age: NDArray[np.float64]) -> list[NDArray[np.float32]]:
    """Return log event count, and log days since the last event (NaN without one), of each user: float32 [U] each."""
    count = np.bincount(events.user, minlength=events.n_users)
    return [np.log1p(count).astype(np.float32), _ages(events.user, age, events.n_users)[1]]


def _ages(owner: NDArray[np.int32], age: NDArray[np.float64], count: int) -> list[NDArray[np.float32]]:
    """Return log days since each owner's first and last event, NaN without one: float32 [count] each."""
    first, last = np.full(count, -np.inf), np.full(count, np.inf)
    np.maximum.at(first, owner, age)
    np.minimum.at(last, owner, age)
    return [np.log1p(np.where(np.isfinite(days), days, np.nan)).astype(np.float32) for days in (first, last)]
