# SPDX-License-Identifier: Apache-2.0
"""Negative sampling: items that a user could have chosen at a real event's time but had not consumed.

An item is eligible for an event at t if it was first seen strictly before t and the user has not consumed it by t. Each draw is a pure
function of the seed, the event and the draw's number, so equal events give equal negatives in any order, batch or partition of users.
Synthetic events are not used: a training set with them and one without have the same real and negative rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from scalr_prod.core.hashing import splitmix64
from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID, USER_ID

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from numpy.typing import NDArray


#: Rounds of rejection sampling before the remaining slots are enumerated.
_ROUNDS: Final = 24
#: Name of the relation of item ids and codes in the connection.
_ITEM_CODES: Final = "item_codes"


@dataclass(frozen=True)
class NegativePool:
    """Items to draw from: entries before t, with equal probability.

    Attributes:
        items: int32 [E] item codes. Uniform: each item once, at its first event; popularity: once per event.
        times: int64 [E] microseconds, ascending.
    """

    items: NDArray[np.int32]
    times: NDArray[np.int64]


@dataclass(frozen=True)
class UserEvents:
    """All known real events of some users, ordered by (user, time, item, occurrence).

    Attributes:
        users: int64 [P] user codes.
        items: int32 [P] item codes.
        times: int64 [P] microseconds.
        keys: uint64 [P] stable hash of (user, item, time, occurrence).
        labelled: bool [P] whether to draw negatives for the event.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int32]
    times: NDArray[np.int64]
    keys: NDArray[np.uint64]
    labelled: NDArray[np.bool_]


class KnownItems(NamedTuple):
    """The items of all known real events, as tables that can be sent to tasks.

    Attributes:
        codes: ``item_id`` and ``code`` of each item.
        pool: ``code`` and ``time`` of each entry of the pool, in order.
    """

    codes: pa.Table
    pool: pa.Table


@dataclass(frozen=True)
class NegativeDraws:
    """Which negatives to draw.

    Attributes:
        count: Negatives per labelled event.
        sampling: ``[training_set] negative_sampling``.
        seed: Seed of the draws.
        spans: Half-open time spans of the labelled events, µs, ascending. Events outside count as consumed, but get no negatives.
    """

    count: int
    sampling: Literal["uniform", "popularity"]
    seed: int
    spans: Sequence[tuple[int, int]]


def item_times_sql(rows: str, sampling: Literal["uniform", "popularity"]) -> str:
    """Return a query of what `merge_item_times` needs to know of some real events.

    Args:
        rows: Relation of the events.
        sampling: ``[training_set] negative_sampling``.
    """
    time = f"epoch_us({EVENT_TIMESTAMP})"
    if sampling == "popularity":
        return f"SELECT {ITEM_ID}, {time} AS time, count(*) AS events FROM {rows} GROUP BY ALL"
    return f"SELECT {ITEM_ID}, min({time}) AS time FROM {rows} GROUP BY {ITEM_ID}"


def merge_item_times(connection: DuckDBPyConnection, rows: str, sampling: Literal["uniform", "popularity"]) -> KnownItems:
    """Number the items by their first event, and make the pool.

    Args:
        connection: A DuckDB connection.
        rows: Table of the rows that `item_times_sql` gave for all known real events, in any order and division.
        sampling: ``[training_set] negative_sampling``.
    """
    import pyarrow as pa

    connection.execute(f"""
        CREATE OR REPLACE TEMP TABLE {_ITEM_CODES} AS
        SELECT {ITEM_ID}, seen, (row_number() OVER (ORDER BY seen, {ITEM_ID}) - 1)::INTEGER AS code
        FROM (SELECT {ITEM_ID}, min(time) AS seen FROM {rows} GROUP BY {ITEM_ID})""")
    codes = connection.sql(f"SELECT {ITEM_ID}, code FROM {_ITEM_CODES} ORDER BY code").to_arrow_table()
    query = f"SELECT code, seen AS time, 1 AS events FROM {_ITEM_CODES} ORDER BY code"
    if sampling == "popularity":
        query = f"SELECT code, time, events FROM {rows} JOIN {_ITEM_CODES} USING ({ITEM_ID}) ORDER BY time, code"
    found = connection.sql(query).fetchnumpy()
    connection.execute(f"DROP TABLE {_ITEM_CODES}")
    items, times = (np.repeat(np.asarray(found[name]), np.asarray(found["events"], np.int64)) for name in ("code", "time"))
    return KnownItems(codes, pa.table({"code": items.astype(np.int32), "time": times.astype(np.int64)}))


def draw_user_negatives(connection: DuckDBPyConnection, events: str, items: KnownItems, draws: NegativeDraws) -> pa.Table:
    """Return the negatives of some users: ``user_id``, ``item_id`` and ``time``, µs.

    Args:
        connection: A DuckDB connection.
        events: Table of all known real events of these users.
        items: The items of all users.
        draws: Which negatives to draw.
    """
    import pyarrow as pa

    user_ids, user_events = _user_events(connection, events, items.codes, draws.spans)
    pool = NegativePool(items.pool.column("code").to_numpy(), items.pool.column("time").to_numpy())
    rows, codes = draw_negatives(user_events, pool, draws.count, seed=draws.seed)
    columns = [
        user_ids.take(pa.array(rows)),
        items.codes.column(ITEM_ID).take(pa.array(codes)),
        pa.array(user_events.times[rows]),
    ]
    return pa.table(columns, names=[USER_ID, ITEM_ID, "time"])


def draw_negatives(
    events: UserEvents, pool: NegativePool, count: int, *, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Draw up to ``count`` negatives per labelled event, distinct among all events of one user at one time.

    Args:
        events: All known real events of the users.
        pool: The items to draw from.
        count: Negatives per labelled event.
        seed: Seed of the draws.

    Returns:
        (int64 [M] positions in ``events``, int32 [M] item codes), ordered by position, then by draw. An event gets fewer than
        ``count`` only if no eligible item is left.
    """
    draws = _Draws(events, pool, count, seed)
    opened = np.flatnonzero(draws.before > 0)
    for number in range(_ROUNDS):
        if not len(opened):
            break
        opened = draws.reject(opened, number)
    draws.enumerate(opened)
    found = draws.items >= 0
    return draws.rows[found], draws.items[found].astype(np.int32)


class _Draws:
    """One slot per requested negative, filled round by round.

    Attributes:
        rows: int64 [M] position of the event.
        items: int64 [M] item code; -1 while open.
        before: int64 [M] number of pool entries before the event.
    """

    def __init__(self, events: UserEvents, pool: NegativePool, count: int, seed: int) -> None:
        self.events, self.pool, self.seed = events, pool, seed
        self.rows = np.repeat(np.flatnonzero(events.labelled), count)
        self.slots = np.tile(np.arange(count, dtype=np.uint64), int(events.labelled.sum()))
        self.before = np.searchsorted(pool.times, events.times[self.rows], side="left")
        self.groups = _groups(events)[self.rows]
        self.items = np.full(len(self.rows), -1, np.int64)
        self.consumed = _Consumed(events)
        self.width = int(pool.items.max(initial=-1)) + 1
        #: Sorted group × item codes of all draws, so that a user has no item twice at one time.
        self.taken = np.empty(0, np.int64)

    def reject(self, opened: NDArray[np.int64], number: int) -> NDArray[np.int64]:
        """Draw for the open slots, keep eligible and new items, and return the slots that are still open."""
        rows = self.rows[opened]
        uniform = _uniform(self.events.keys[rows], self.slots[opened], number, self.seed)
        items = self.pool.items[(uniform * self.before[opened]).astype(np.int64)].astype(np.int64)
        marks = self.groups[opened] * self.width + items
        good = np.flatnonzero(~self.consumed.by(rows, items) & ~_among(marks, self.taken))
        accepted = np.zeros(len(opened), np.bool_)
        accepted[good[np.unique(marks[good], return_index=True)[1]]] = True
        self.items[opened[accepted]] = items[accepted]
        self.taken = np.sort(np.concatenate([self.taken, marks[accepted]]), kind="stable")
        return opened[~accepted]

    def enumerate(self, opened: NDArray[np.int64]) -> None:
        """Fill the slots that rejection sampling left open: list the eligible items and draw with the pool's weights."""
        order = np.argsort(self.groups, kind="stable")
        ordered = self.groups[order]
        for group in np.unique(self.groups[opened]):
            members = order[np.searchsorted(ordered, group) : np.searchsorted(ordered, group, side="right")]
            waiting = members[self.items[members] < 0]
            row = self.rows[waiting[0]]
            listed, counts = np.unique(self.pool.items[: self.before[waiting[0]]], return_counts=True)
            items = listed.astype(np.int64)
            free = ~self.consumed.by(np.full(len(items), row), items) & ~np.isin(items, self.items[members])
            items, weights = items[free], counts[free]
            uniform = _uniform(np.full(len(items), self.events.keys[row]), items.astype(np.uint64), _ROUNDS, self.seed)
            # The largest of u^(1/w) is a weighted draw without replacement (Efraimidis and Spirakis, 2006).
            best = np.lexsort((items, -np.log(uniform + 2.0**-54) / weights))[: len(waiting)]
            self.items[waiting[: len(best)]] = items[best]


class _Consumed:
    """Times at which users first consumed items."""

    def __init__(self, events: UserEvents) -> None:
        self.events = events
        self.width = int(events.items.max(initial=-1)) + 1
        pairs = events.users * self.width + events.items
        order = np.lexsort((events.times, pairs))
        self.pairs, first = np.unique(pairs[order], return_index=True)
        self.times = events.times[order][first]

    def by(self, rows: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the row's user has consumed the item by the row's time: bool [M]."""
        wanted = self.events.users[rows] * self.width + items
        where = np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)
        found: NDArray[np.bool_] = (self.pairs[where] == wanted) & (self.times[where] <= self.events.times[rows])
        return found & (items < self.width)


def _among(values: NDArray[np.int64], ordered: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether each value occurs in a sorted array: bool [N]."""
    # Not np.isin: numpy 2.4 hashes, which took 1 s per call on 300 k such keys.
    if not len(ordered):
        return np.zeros(len(values), np.bool_)
    found: NDArray[np.bool_] = ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values
    return found


def _groups(events: UserEvents) -> NDArray[np.int64]:
    """Number the groups of events with one user and time, int64 [P]; events are ordered by both."""
    changed = (np.diff(events.users, prepend=-1) != 0) | (np.diff(events.times, prepend=-1) != 0)
    return np.cumsum(changed)


def _uniform(keys: NDArray[np.uint64], slots: NDArray[np.uint64], number: int, seed: int) -> NDArray[np.float64]:
    """Return uniform numbers in [0, 1): splitmix64 over the event's key, the draw and the seed (Steele et al., 2014)."""
    salt = np.uint64((seed * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03) % 2**64)
    with np.errstate(over="ignore"):
        mixed = splitmix64(splitmix64(keys ^ salt) + slots * np.uint64(0x9E3779B97F4A7C15))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _user_events(
    connection: DuckDBPyConnection, events: str, codes: pa.Table, spans: Sequence[tuple[int, int]]
) -> tuple[Any, UserEvents]:
    """Return the user ids (Arrow) and the events of some users."""
    connection.register(_ITEM_CODES, codes)
    coded = f"SELECT {USER_ID}, {ITEM_ID}, epoch_us({EVENT_TIMESTAMP}) AS time, code FROM {events} JOIN {_ITEM_CODES} USING ({ITEM_ID})"
    found = connection.sql(f"""
        SELECT *, md5_number_lower(concat_ws('|', time, occurrence, {ITEM_ID}, {USER_ID})) AS key
        FROM (
            SELECT {USER_ID}, {ITEM_ID}, dense_rank() OVER (ORDER BY {USER_ID}) AS user_code, code, time,
                   row_number() OVER (PARTITION BY {USER_ID}, {ITEM_ID}, time) AS occurrence
            FROM ({coded}))
        ORDER BY {USER_ID}, time, code, occurrence""").to_arrow_table()
    connection.unregister(_ITEM_CODES)

    def column(name: str, kind: type[np.generic]) -> NDArray[Any]:
        return np.asarray(found.column(name).to_numpy(), kind)

    times = column("time", np.int64)
    user_events = UserEvents(
        users=column("user_code", np.int64),
        items=column("code", np.int32),
        times=times,
        keys=column("key", np.uint64),
        labelled=_inside(times, spans),
    )
    return found.column(USER_ID), user_events


def _inside(times: NDArray[np.int64], spans: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Return whether each time lies in one of the spans: bool [N]."""
    starts, ends = (np.array([span[side] for span in spans], np.int64) for side in (0, 1))
    # Inside a span, one more span has started than ended.
    inside: NDArray[np.bool_] = np.searchsorted(starts, times, side="right") > np.searchsorted(ends, times, side="right")
    return inside
