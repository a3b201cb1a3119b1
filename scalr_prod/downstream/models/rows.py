# SPDX-License-Identifier: Apache-2.0
"""Labelled feature rows: events and sampled negatives with features as of the start of their period.

Training time is divided into periods with equal numbers of events. A row has the features of its period's start, as rows to score have the
features of the end of training. So features contain nothing at or after a row's time, and have a similar age in training and in scoring.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

import numpy as np

from scalr_prod.downstream.models.snapshot import FEATURES, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scalr_prod.downstream.protocol import Interactions

__all__ = ["Log", "Rows", "digest_of", "in_order", "once"]

Cached = TypeVar("Cached")

#: Number of periods; rows of the first are not used, since nothing precedes it.
_PERIODS: Final = 10
#: Items to rank by the model, from each of popularity and the affinities; all others follow in order of popularity.
_SHORTLIST: Final = 150
_USERS_AT_ONCE: Final = 512
#: Number of logs whose features are cached: all arms share those of an evaluation's windows.
_KEPT: Final = 3


class Rows:
    """Labelled rows with features.

    Attributes:
        features: float32 [R, F].
        label: bool [R].
        event: int64 [R]. Number of the event that the row is, or is a negative of.
        user: int64 [R].
        item: int64 [R].
    """

    def __init__(
        self,
        features: NDArray[np.float32],
        label: NDArray[np.bool_],
        event: NDArray[np.int64],
        user: NDArray[np.int64],
        item: NDArray[np.int64],
    ) -> None:
        self.features, self.label, self.event, self.user, self.item = features, label, event, user, item

    def take(self, kept: NDArray[np.bool_]) -> Rows:
        """Select rows by a mask."""
        return Rows(self.features[kept], self.label[kept], self.event[kept], self.user[kept], self.item[kept])

    def weighed(
        self, weight: NDArray[np.float32], negative: float
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
        """Return features, labels and weights; a negative has its event's weight times ``negative``."""
        own = weight[self.event]
        return self.features, self.label, np.where(self.label, own, own * np.float32(negative))


class Log:
    """Observed events of both domains with their features, computed once for all arms.

    Args:
        events: Observed target events; ``source`` has those of the source domain.
    """

    _known: ClassVar[OrderedDict[bytes, Log]] = OrderedDict()

    def __init__(self, events: Interactions) -> None:
        self.events = events
        shares = np.arange(1, _PERIODS) / _PERIODS
        cuts = np.quantile(events.time, shares if len(events) else [], method="higher")
        #: Times of the feature snapshots, ascending; the last is the end of training.
        self.instants = np.unique(np.append(cuts.astype(np.int64), events.until))
        self._pairs = np.unique(events.user.astype(np.int64) * events.n_items + events.item)
        self._now: Snapshot | None = None
        self._real: dict[int, Rows] = {}
        self._synthetic: tuple[bytes, Rows] | None = None
        self._shortlists: dict[bytes, tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = {}

    @classmethod
    def of(cls, events: Interactions) -> Log:
        """Return the log of the observed events; the most recently used logs are cached."""
        observed = events.take(events.in_history())
        observed = observed.take(in_order(observed))
        key = digest_of(observed) + (b"" if observed.source is None else digest_of(observed.source))
        return once(cls._known, key, lambda: cls(observed), most=_KEPT)

    def now(self) -> Snapshot:
        """Return the snapshot of the end of training."""
        if self._now is None:
            self._now = Snapshot(self.events, self.events.until)
        return self._now

    def real(self, drawn: int) -> Rows:
        """Return rows of the observed events, numbered by time, user and item."""
        if drawn not in self._real:
            self._real[drawn] = self.rows(self.events, drawn, salt=0)
        return self._real[drawn]

    def synthetic(self, events: Interactions) -> Rows:
        """Return rows of synthetic events with one negative each; cached, since tuning tries many weights for the same events."""
        key = digest_of(events)
        if self._synthetic is None or self._synthetic[0] != key:
            self._synthetic = (key, self.rows(events, 1, salt=1))
        return self._synthetic[1]

    def rows(self, events: Interactions, drawn: int, *, salt: int) -> Rows:
        """Build rows of events and sampled negatives, with features of the last snapshot up to their time.

        Events before the first snapshot are dropped, and events of an item that was unknown at the snapshot or that the user already had.
        This matches scoring, which ranks known items that are new to the user.

        Args:
            events: Observed or synthetic events.
            drawn: Negatives per event; items that the user chose at any time are dropped.
            salt: Seed of the negatives.
        """
        rng = np.random.default_rng([salt, drawn])
        period = np.searchsorted(self.instants, events.time, side="right") - 1
        parts = []
        for number in range(len(self.instants)):
            mine = np.flatnonzero(period == number)
            if not len(mine):
                continue
            last = number == len(self.instants) - 1
            snapshot = self.now() if last else Snapshot(self.events, int(self.instants[number]))
            user, item = events.user[mine].astype(np.int64), events.item[mine].astype(np.int64)
            seen = np.asarray(snapshot.has(user)[np.arange(len(user)), item]).ravel() > 0
            fresh = snapshot.known[item] & ~seen
            mine, user, item = mine[fresh], user[fresh], item[fresh]
            pool = np.flatnonzero(snapshot.known)
            if not len(mine):
                continue
            others = pool[rng.integers(0, len(pool), len(mine) * drawn)]
            owners = np.repeat(user, drawn)
            apart = ~np.isin(owners * self.events.n_items + others, self._pairs, kind="sort")
            all_users, all_items = np.concatenate([user, owners[apart]]), np.concatenate([item, others[apart]])
            label = np.concatenate([np.ones(len(mine), bool), np.zeros(int(apart.sum()), bool)])
            event = np.concatenate([mine, np.repeat(mine, drawn)[apart]])
            parts.append((snapshot.features(all_users, all_items), label, event, all_users, all_items))
        if not parts:
            none = np.empty(0, np.int64)
            return Rows(np.empty((0, len(FEATURES)), np.float32), np.empty(0, bool), none, none, none)
        return Rows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def shortlist(self, users: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Return row numbers (positions in ``users``), items and features to rank: the top items by popularity and by each affinity."""
        key = users.tobytes()
        if key not in self._shortlists:
            now = self.now()
            count = min(_SHORTLIST, self.events.n_items)
            chosen = np.zeros((len(users), self.events.n_items), bool)
            chosen[:, np.argsort(-now.shares[-2], kind="stable")[:count]] = True
            for start in range(0, len(users), _USERS_AT_ONCE):
                for affinity in now.affinities(users[start : start + _USERS_AT_ONCE]):
                    best = np.argpartition(-affinity, count - 1, axis=1)[:, :count]
                    np.put_along_axis(chosen[start : start + _USERS_AT_ONCE], best, values=True, axis=1)
            row, item = chosen.nonzero()
            self._shortlists[key] = (row, item, now.features(users[row], item))
        return self._shortlists[key]

    def places(self) -> NDArray[np.float32]:
        """Return relative popularity ranks in (0, 1], smaller for more popular items: float32 [N]."""
        order = np.argsort(-self.now().shares[-2], kind="stable")
        found = np.empty(len(order), np.float32)
        found[order] = np.arange(1, len(order) + 1) / len(order)
        return found


def once(kept: OrderedDict[bytes, Cached], key: bytes, make: Callable[[], Cached], *, most: int) -> Cached:
    """Return the cached value of a key, computing it if needed; the ``most`` recently used values stay cached."""
    if key not in kept:
        kept[key] = make()
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)
    return kept[key]


def in_order(events: Interactions) -> NDArray[np.int64]:
    """Return the order by time, user and item, which does not depend on the order of the input."""
    return np.lexsort((events.item, events.user, events.time))


def digest_of(events: Interactions) -> bytes:
    """Return a digest of users, items and times, not of weights."""
    found = hashlib.blake2b(repr((events.n_users, events.n_items, events.until)).encode())
    for column in (events.user, events.item, events.time):
        found.update(column.tobytes())
    return found.digest()
