# SPDX-License-Identifier: Apache-2.0
"""Rows to train and to rank on: events and sampled negatives, under the features of the last instant up to their time.

Training time is cut into periods of as many events each. A row's features are those of its period's begin (see `Snapshot`), as the
features of what is scored are those of the end of training: so nothing at or after a row's time is in them, and rows are as far from
their features in training as in use.
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

Kept = TypeVar("Kept")

#: The first of them has too little before it to learn from.
_PERIODS: Final = 10
#: Of a user's items, by each of popularity and the affinities, that are ranked; the others follow in order of popularity.
_SHORTLIST: Final = 150
_USERS_AT_ONCE: Final = 512
#: Logs whose features are kept: those of one evaluation's windows, since all arms share them.
_KEPT: Final = 3


class Rows:
    """Labelled rows with features.

    Attributes:
        features: float32 [R, F].
        label: bool [R].
        event: int64 [R]. The event that each row is, or is a negative of, by number.
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
        """Those rows."""
        return Rows(self.features[kept], self.label[kept], self.event[kept], self.user[kept], self.item[kept])

    def weighed(
        self, weight: NDArray[np.float32], negative: float
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
        """Features, labels and weights, given those of the events, and what a negative weighs relative to its event."""
        own = weight[self.event]
        return self.features, self.label, np.where(self.label, own, own * np.float32(negative))


class Log:
    """The observed events of both domains, and the features that follow from them; worked out once for all arms.

    Args:
        events: Observed target events; ``source`` those of the other domain.
    """

    _known: ClassVar[OrderedDict[bytes, Log]] = OrderedDict()

    def __init__(self, events: Interactions) -> None:
        self.events = events
        shares = np.arange(1, _PERIODS) / _PERIODS
        cuts = np.quantile(events.time, shares if len(events) else [], method="higher")
        #: Instants that features are as of, ascending; the last is the end of training.
        self.instants = np.unique(np.append(cuts.astype(np.int64), events.until))
        self._pairs = np.unique(events.user.astype(np.int64) * events.n_items + events.item)
        self._now: Snapshot | None = None
        self._real: dict[int, Rows] = {}
        self._synthetic: tuple[bytes, Rows] | None = None
        self._shortlists: dict[bytes, tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = {}

    @classmethod
    def of(cls, events: Interactions) -> Log:
        """That of the observed ones among some events; the last few are kept."""
        observed = events.take(events.in_history())
        observed = observed.take(in_order(observed))
        key = digest_of(observed) + (b"" if observed.source is None else digest_of(observed.source))
        return once(cls._known, key, lambda: cls(observed), most=_KEPT)

    def now(self) -> Snapshot:
        """As of the end of training."""
        if self._now is None:
            self._now = Snapshot(self.events, self.events.until)
        return self._now

    def real(self, drawn: int) -> Rows:
        """Rows of the observed events, which are numbered in `in_order`."""
        if drawn not in self._real:
            self._real[drawn] = self.rows(self.events, drawn, salt=0)
        return self._real[drawn]

    def synthetic(self, events: Interactions) -> Rows:
        """Rows of synthetic events beside one negative each; the last are kept, since a search tries many weights for them."""
        key = digest_of(events)
        if self._synthetic is None or self._synthetic[0] != key:
            self._synthetic = (key, self.rows(events, 1, salt=1))
        return self._synthetic[1]

    def rows(self, events: Interactions, drawn: int, *, salt: int) -> Rows:
        """Rows of events, each followed by negatives, under the features of the last instant up to their time.

        Left out are events before the first instant, and those of an item that nobody had met by then or that the user had met already:
        the catalogue that is ranked holds known items alone, without what a user had.

        Args:
            events: Observed or not.
            drawn: Negatives for each; those that the user chose at some time fall away.
            salt: Of the draws.
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
            met = np.asarray(snapshot.has(user)[np.arange(len(user)), item]).ravel() > 0
            fresh = snapshot.known[item] & ~met
            mine, user, item = mine[fresh], user[fresh], item[fresh]
            pool = np.flatnonzero(snapshot.known)
            if not len(mine):
                continue
            others = pool[rng.integers(0, len(pool), len(mine) * drawn)]
            owners = np.repeat(user, drawn)
            apart = ~np.isin(owners * self.events.n_items + others, self._pairs, kind="sort")
            people, things = np.concatenate([user, owners[apart]]), np.concatenate([item, others[apart]])
            label = np.concatenate([np.ones(len(mine), bool), np.zeros(int(apart.sum()), bool)])
            event = np.concatenate([mine, np.repeat(mine, drawn)[apart]])
            parts.append((snapshot.features(people, things), label, event, people, things))
        if not parts:
            none = np.empty(0, np.int64)
            return Rows(np.empty((0, len(FEATURES)), np.float32), np.empty(0, bool), none, none, none)
        return Rows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def shortlist(self, users: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Rows (places in ``users``), items and features of what is ranked for users: the best by popularity and each affinity."""
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
        """float32 [N]: above 0 and at most 1, the less the more popular."""
        order = np.argsort(-self.now().shares[-2], kind="stable")
        found = np.empty(len(order), np.float32)
        found[order] = np.arange(1, len(order) + 1) / len(order)
        return found


def once(kept: OrderedDict[bytes, Kept], key: bytes, make: Callable[[], Kept], *, most: int) -> Kept:
    """What is kept under a key, made first where it is not there; the ``most`` that were asked for last are kept."""
    if key not in kept:
        kept[key] = make()
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)
    return kept[key]


def in_order(events: Interactions) -> NDArray[np.int64]:
    """By time, user and item: the same for the same events however they come."""
    return np.lexsort((events.item, events.user, events.time))


def digest_of(events: Interactions) -> bytes:
    """Of who met what when, and of nothing else."""
    found = hashlib.blake2b(repr((events.n_users, events.n_items, events.until)).encode())
    for column in (events.user, events.item, events.time):
        found.update(column.tobytes())
    return found.digest()
