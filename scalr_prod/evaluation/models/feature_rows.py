# SPDX-License-Identifier: Apache-2.0
"""Labelled feature rows: events and sampled negatives with features as of the start of their period.

Training time is divided into periods with equal numbers of events. A row has the features of its period's start, as rows to score have the
features of the end of training. So features contain nothing at or after a row's time, and have a similar age in training and in scoring.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, TypeVar

import numpy as np

from scalr_prod.evaluation.models.snapshot import FEATURES, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scalr_prod.evaluation.interactions import Interactions


Cached = TypeVar("Cached")

#: Number of periods; rows of the first are not used, since nothing precedes it.
_N_PERIODS: Final = 10
#: Items to rank by the model, from each of popularity and the affinities; all others follow in order of popularity.
_SHORTLIST_ITEMS: Final = 150
_USER_BATCH: Final = 512
#: Number of logs whose features are cached: all arms share those of an evaluation's windows.
_MAX_CACHED: Final = 3


class WeightedRows(NamedTuple):
    """Rows to train on.

    Attributes:
        features: float32 [R, F].
        label: bool [R].
        weight: float32 [R].
    """

    features: NDArray[np.float32]
    label: NDArray[np.bool_]
    weight: NDArray[np.float32]


class Shortlist(NamedTuple):
    """Items to rank for a batch of users.

    Attributes:
        row: int64 [R]. Position of the user in the batch.
        item: int64 [R].
        features: float32 [R, F].
    """

    row: NDArray[np.int64]
    item: NDArray[np.int64]
    features: NDArray[np.float32]


@dataclass(frozen=True)
class FeatureRows:
    """Labelled rows with features.

    Attributes:
        features: float32 [R, F].
        label: bool [R].
        event: int64 [R]. Number of the event that the row is, or is a negative of.
        user: int64 [R].
        item: int64 [R].
    """

    features: NDArray[np.float32]
    label: NDArray[np.bool_]
    event: NDArray[np.int64]
    user: NDArray[np.int64]
    item: NDArray[np.int64]

    def take(self, mask: NDArray[np.bool_]) -> FeatureRows:
        """Select rows by a mask."""
        return FeatureRows(self.features[mask], self.label[mask], self.event[mask], self.user[mask], self.item[mask])

    def with_weights(self, event_weight: NDArray[np.float32], negative_weight: float) -> WeightedRows:
        """Add weights: a positive has its event's weight, a negative its event's weight times ``negative_weight``."""
        weight = event_weight[self.event]
        return WeightedRows(self.features, self.label, np.where(self.label, weight, weight * np.float32(negative_weight)))


class FeatureLog:
    """Observed events of both domains with their features, computed once for all arms.

    Args:
        events: Observed target events; ``source`` has those of the source domain.
    """

    _instances: ClassVar[OrderedDict[bytes, FeatureLog]] = OrderedDict()

    def __init__(self, events: Interactions) -> None:
        self.events = events
        shares = np.arange(1, _N_PERIODS) / _N_PERIODS
        cuts = np.quantile(events.time, shares if len(events) else [], method="higher")
        #: Times of the feature snapshots, ascending; the last is the end of training.
        self.instants = np.unique(np.append(cuts.astype(np.int64), events.until))
        self._pairs = np.unique(events.user.astype(np.int64) * events.n_items + events.item)
        self._latest_snapshot: Snapshot | None = None
        self._observed_rows: dict[int, FeatureRows] = {}
        self._synthetic_rows: tuple[bytes, FeatureRows] | None = None
        self._shortlists: dict[bytes, Shortlist] = {}

    @classmethod
    def from_events(cls, events: Interactions) -> FeatureLog:
        """Return the log of the observed events; the most recently used logs are cached."""
        observed = events.take(events.in_history())
        observed = observed.take(canonical_order(observed))
        key = events_digest(observed) + (b"" if observed.source is None else events_digest(observed.source))
        return cached_value(cls._instances, key, lambda: cls(observed), max_entries=_MAX_CACHED)

    def latest_snapshot(self) -> Snapshot:
        """Return the snapshot of the end of training."""
        if self._latest_snapshot is None:
            self._latest_snapshot = Snapshot(self.events, self.events.until)
        return self._latest_snapshot

    def observed_rows(self, negatives: int) -> FeatureRows:
        """Return rows of the observed events, numbered by time, user and item."""
        if negatives not in self._observed_rows:
            self._observed_rows[negatives] = self.build_rows(self.events, negatives, salt=0)
        return self._observed_rows[negatives]

    def synthetic_rows(self, events: Interactions) -> FeatureRows:
        """Return rows of synthetic events with one negative each; cached, since tuning tries many weights for the same events."""
        key = events_digest(events)
        if self._synthetic_rows is None or self._synthetic_rows[0] != key:
            self._synthetic_rows = (key, self.build_rows(events, 1, salt=1))
        return self._synthetic_rows[1]

    def build_rows(self, events: Interactions, negatives: int, *, salt: int) -> FeatureRows:
        """Build rows of events and sampled negatives, with features of the last snapshot up to their time.

        Events before the first snapshot are dropped, and events of an item that was unknown at the snapshot or that the user already had.
        This matches scoring, which ranks known items that are new to the user.

        Args:
            events: Observed or synthetic events.
            negatives: Negatives per event; items that the user chose at any time are dropped.
            salt: Seed of the negatives.
        """
        rng = np.random.default_rng([salt, negatives])
        period = np.searchsorted(self.instants, events.time, side="right") - 1
        parts = []
        for number in range(len(self.instants)):
            event = np.flatnonzero(period == number)
            if not len(event):
                continue
            last = number == len(self.instants) - 1
            snapshot = self.latest_snapshot() if last else Snapshot(self.events, int(self.instants[number]))
            user, item = events.user[event].astype(np.int64), events.item[event].astype(np.int64)
            seen = np.asarray(snapshot.user_items(user)[np.arange(len(user)), item]).ravel() > 0
            eligible = snapshot.known[item] & ~seen
            event, user, item = event[eligible], user[eligible], item[eligible]
            candidates = np.flatnonzero(snapshot.known)
            if not len(event):
                continue
            negative_item = candidates[rng.integers(0, len(candidates), len(event) * negatives)]
            negative_user = np.repeat(user, negatives)
            is_negative = ~np.isin(negative_user * self.events.n_items + negative_item, self._pairs, kind="sort")
            users = np.concatenate([user, negative_user[is_negative]])
            items = np.concatenate([item, negative_item[is_negative]])
            label = np.concatenate([np.ones(len(event), bool), np.zeros(int(is_negative.sum()), bool)])
            row_event = np.concatenate([event, np.repeat(event, negatives)[is_negative]])
            parts.append((snapshot.features(users, items), label, row_event, users, items))
        if not parts:
            empty = np.empty(0, np.int64)
            return FeatureRows(np.empty((0, len(FEATURES)), np.float32), np.empty(0, bool), empty, empty, empty)
        return FeatureRows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def shortlist(self, users: NDArray[np.int64]) -> Shortlist:
        """Return the items to rank for each user: the top items by popularity and by each affinity."""
        key = users.tobytes()
        if key not in self._shortlists:
            snapshot = self.latest_snapshot()
            count = min(_SHORTLIST_ITEMS, self.events.n_items)
            chosen = np.zeros((len(users), self.events.n_items), bool)
            chosen[:, np.argsort(-snapshot.log_popularity[-2], kind="stable")[:count]] = True
            for start in range(0, len(users), _USER_BATCH):
                for affinity in snapshot.affinities(users[start : start + _USER_BATCH]):
                    best = np.argpartition(-affinity, count - 1, axis=1)[:, :count]
                    np.put_along_axis(chosen[start : start + _USER_BATCH], best, values=True, axis=1)
            row, item = chosen.nonzero()
            self._shortlists[key] = Shortlist(row, item, snapshot.features(users[row], item))
        return self._shortlists[key]

    def popularity_ranks(self) -> NDArray[np.float32]:
        """Return relative popularity ranks in (0, 1], smaller for more popular items: float32 [N]."""
        order = np.argsort(-self.latest_snapshot().log_popularity[-2], kind="stable")
        ranks = np.empty(len(order), np.float32)
        ranks[order] = np.arange(1, len(order) + 1) / len(order)
        return ranks


def cached_value(cache: OrderedDict[bytes, Cached], key: bytes, compute: Callable[[], Cached], *, max_entries: int) -> Cached:
    """Return the cached value of a key, computing it if needed; the ``max_entries`` most recently used values stay cached."""
    if key not in cache:
        cache[key] = compute()
    cache.move_to_end(key)
    while len(cache) > max_entries:
        cache.popitem(last=False)
    return cache[key]


def canonical_order(events: Interactions) -> NDArray[np.int64]:
    """Return the order by time, user and item, which does not depend on the order of the input."""
    return np.lexsort((events.item, events.user, events.time))


def events_digest(events: Interactions) -> bytes:
    """Return a digest of users, items and times, not of weights."""
    digest = hashlib.blake2b(repr((events.n_users, events.n_items, events.until)).encode())
    for column in (events.user, events.item, events.time):
        digest.update(column.tobytes())
    return digest.digest()
