"""Worlds whose translation is known: two logs made by a rule, and the best prediction of the target events that the rule allows.

Every item has one topic. Every user has a few topics in each domain, chosen independently of each other. A source event is about one
of the user's source topics. A target event is, with probability ``signal``, about the topic of the user's last source event before it,
and otherwise about one of the user's target topics, of which the source says nothing. Within a topic, items are chosen by popularity.
So a source history says one thing about a target event: its last topic, with probability ``signal``. Two predictors are computed exactly
(`WorldLogs.oracles`):

- the *oracle* knows the topics of all items, their popularity at every time and the signal, and sees the source history;
- the *knowing oracle* also knows the user's target topics, so that its P is what events are drawn from.

Both are asked as the translator is: which of the items that the user has not had yet comes next? Of what the user had they make no more
than that. Events that repeat an earlier one are not asked about.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scalr_prod.core.hashing import hash_fold
from scalr_prod.translator.data.domain_events import DomainEvents as LogEvents
from scalr_prod.translator.data.event_log import EventLog

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Events", "Oracles", "World", "WorldLogs"]

START_US = 1_672_531_200_000_000  # 2023-01-01
DAY_US = 86_400_000_000
DAYS = 365
#: Popularity drifts in so many steps.
PERIODS = 60


@dataclass(frozen=True)
class World:
    """The knobs.

    Attributes:
        signal: Share of target events that follow the topic of the last source event before them; 0 makes the logs independent.
        drift: 0 keeps each item's popularity within its topic; 1 replaces it by another one, step by step, until the end.
        overlap: Share of users who are in both domains; the others are in one, half of them in each.
        late: Share of users whose target events all lie in the last tenth of the time.
        repeats: Share of target events that repeat one of the user's former target items.
        users: In all.
        topics: Of both domains.
        own_topics: Of a user in each domain.
        source_items: In all.
        target_items: In all.
        source_events: Of each user.
        target_events: Of each user.
        skew: Popularity of the r-th item of a topic is r ** -skew.
        seed: Of everything.
    """

    signal: float = 0.6
    drift: float = 0.0
    overlap: float = 1.0
    late: float = 0.0
    repeats: float = 0.0
    users: int = 8_000
    topics: int = 60
    own_topics: int = 3
    source_items: int = 3_000
    target_items: int = 3_000
    source_events: int = 20
    target_events: int = 8
    skew: float = 1.0
    seed: int = 0

    def changed(self) -> dict[str, Any]:
        """The knobs that are not at their default."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def make(self) -> WorldLogs:
        """Draw both logs."""
        rng = np.random.default_rng(self.seed)
        in_both = rng.random(self.users) < self.overlap
        first_half = np.arange(self.users) % 2 == 0
        own = np.stack([[rng.permutation(self.topics)[: self.own_topics] for _ in range(self.users)] for _ in range(2)])
        source = self._source(rng, np.flatnonzero(in_both | first_half), own[0])
        target = self._target(rng, np.flatnonzero(in_both | ~first_half), own[1], source)
        return WorldLogs(self, source, target, own[1])

    def popularity(self, items: int, *, of_target: bool) -> NDArray[np.float64]:
        """Each item's probability within its topic in every period: [periods, topics, items of a topic]; item = place x topics + topic."""
        rng = np.random.default_rng([self.seed, of_target])
        places = items // self.topics
        rank = np.stack([np.stack([rng.permutation(places) for _ in range(self.topics)]) for _ in range(2)]) + 1.0
        far = self.drift * np.linspace(0, 1, PERIODS)[:, None, None] if of_target else np.zeros((1, 1, 1))
        weight = np.exp(-self.skew * ((1 - far) * np.log(rank[0]) + far * np.log(rank[1])))
        shares: NDArray[np.float64] = weight / weight.sum(2, keepdims=True)
        return shares

    def _source(self, rng: np.random.Generator, users: NDArray[np.int64], own: NDArray[np.int64]) -> Events:
        user = np.repeat(users, self.source_events)
        topic = own[user, rng.integers(0, self.own_topics, len(user))]
        time = START_US + (rng.random(len(user)) * DAYS * DAY_US).astype(np.int64)
        item = self._items(rng, self.popularity(self.source_items, of_target=False), topic, np.zeros(len(user), dtype=int))
        order = np.lexsort((time, user))
        return Events(user[order], item[order], time[order])

    def _target(self, rng: np.random.Generator, users: NDArray[np.int64], own: NDArray[np.int64], source: Events) -> Events:
        user = np.repeat(users, self.target_events)
        begin = np.where(rng.random(self.users) < self.late, 0.9, 0.0)[user]
        time = START_US + ((begin + (1 - begin) * rng.random(len(user))) * DAYS * DAY_US).astype(np.int64)
        order = np.lexsort((time, user))
        user, time = user[order], time[order]
        last = last_topic(source, user, time, self.topics)
        follows = (last >= 0) & (rng.random(len(user)) < self.signal)
        topic = np.where(follows, last, own[user, rng.integers(0, self.own_topics, len(user))])
        item = self._items(rng, self.popularity(self.target_items, of_target=True), topic, period_of(time))
        number = np.arange(len(user)) - np.searchsorted(user, user)
        former = np.arange(len(user)) - 1 - (rng.random(len(user)) * number).astype(np.int64)
        repeats = (number > 0) & (rng.random(len(user)) < self.repeats)
        for row in np.flatnonzero(repeats):  # in order: what is repeated may be a repetition itself
            item[row] = item[former[row]]
        return Events(user, item, time)

    def _items(
        self, rng: np.random.Generator, shares: NDArray[np.float64], topic: NDArray[np.int64], period: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        below = shares.cumsum(2)
        place = (rng.random(len(topic))[:, None] > below[period, topic]).sum(1).clip(max=shares.shape[2] - 1)
        return place * self.topics + topic


@dataclass(frozen=True)
class Events:
    """One domain's events, by user and time: int64 [M] each; times in microseconds since the epoch."""

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    time: NDArray[np.int64]


@dataclass(frozen=True)
class Oracles:
    """-log P of target events, natural logarithm, over the items that could be generated: float64 [R] each.

    Attributes:
        rows: Positions of the events among the target's.
        uniform: All of these items alike.
        oracle: See the module.
        knowing: See the module.
    """

    rows: NDArray[np.int64]
    uniform: NDArray[np.float64]
    oracle: NDArray[np.float64]
    knowing: NDArray[np.float64]


@dataclass(frozen=True)
class WorldLogs:
    """A world's two logs.

    Attributes:
        world: Its knobs.
        source: Source events.
        target: Target events.
        own: int64 [users, own_topics]. The users' target topics.
    """

    world: World
    source: Events
    target: Events
    own: NDArray[np.int64]

    def split(self) -> dict[str, Events]:
        """The source log as two domains, one of the even topics' items and one of the odd ones', each with numbers from 0 on.

        The last topic before a target event is of the one or the other, so that either domain says half of what both say.
        """
        odd = self.source.item % self.world.topics % 2 == 1
        found = {}
        for name, rows in (("even", ~odd), ("odd", odd)):
            numbers = np.unique(self.source.item[rows], return_inverse=True)[1]
            found[name] = Events(self.source.user[rows], numbers, self.source.time[rows])
        return found

    def write(self, folder: Path, extra: str = "", *, sources: dict[str, Events] | None = None) -> Path:
        """Write the logs and a scalr.toml with more lines; gives the latter's path.

        Args:
            folder: Where to.
            extra: More lines.
            sources: Source domains by name; default: the source log as one.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name, events in (({"source": self.source} if sources is None else sources) | {"target": self.target}).items():
            columns = {
                "user_id": events.user,
                "item_id": events.item,
                "timestamp": pa.array(events.time, pa.timestamp("us", "UTC")),
            }
            pq.write_table(pa.table(columns), folder / f"{name}.parquet")
        config = folder / "scalr.toml"
        domains = [f'[domains.sources.{name}]\nevents = "{name}.parquet"' for name in sources or ()]
        config.write_text(
            ("\n".join(domains) or '[domains.source]\nname = "source"\nevents = "source.parquet"')
            + f'\n[domains.target]\nname = "target"\nevents = "target.parquet"\n{extra}\n'
        )
        return config

    def log(self, *, length: int, folds: int, exclude_consumed: bool = True) -> EventLog:
        """What the translator would read of both logs, with histories of ``length`` events, without a lake."""
        users = pa.array(np.arange(self.world.users))
        source, target = self.source, self.target
        stop = place_before(source, target.user, target.time) + 1
        place = stop[:, None] + np.arange(-length, 0)
        begin = np.searchsorted(source.user, target.user)
        history = np.where(place >= begin[:, None], place, -1).astype(np.int32)
        sides = (
            LogEvents(events.user.astype(np.int32), events.item.astype(np.int32), events.time, pa.array(np.arange(items)))
            for events, items in ((source, self.world.source_items), (target, self.world.target_items))
        )
        return EventLog(users, hash_fold(users, folds), *sides, history, exclude_consumed)

    def oracles(self, begin: int, end: int) -> Oracles:
        """Of the target events with ``begin <= time < end`` whose item was seen before ``begin`` and is new to the user, over the
        items that both are true of.
        """
        world, target = self.world, self.target
        topic, place = target.item % world.topics, target.item // world.topics
        seen = np.zeros(world.target_items, dtype=bool)
        seen[target.item[target.time < begin]] = True
        former = self._former()
        again = ((former >= 0) & (target.item[former] == target.item[:, None])).any(1)
        rows = np.flatnonzero((target.time >= begin) & (target.time < end) & seen[target.item] & ~again)
        shares = world.popularity(world.target_items, of_target=True)
        period = period_of(target.time[rows])
        there = (shares * seen.reshape(-1, world.topics).T).sum(2)[period]  # of each topic's mass, what was seen: [R, topics]
        had = former[rows]
        counts = (had >= 0) & ~again[had] & seen[target.item[had]]  # each former item once

        def loss(topics: NDArray[np.float64]) -> NDArray[np.float64]:
            each = np.arange(len(rows))
            lost = topics[each[:, None], topic[had]] * shares[period[:, None], topic[had], place[had]]
            mass = (topics * there).sum(1) - (lost * counts).sum(1)
            found: NDArray[np.float64] = -np.log(topics[each, topic[rows]] * shares[period, topic[rows], place[rows]] / mass)
            return found

        followed, own = self.laws(rows)
        return Oracles(rows, np.log(seen.sum() - counts.sum(1)), loss(followed), loss(own))

    def _former(self) -> NDArray[np.int64]:
        """Positions of the same user's earlier target events, -1 where there are fewer: int64 [M, target_events - 1]."""
        user = self.target.user
        place = np.arange(len(user))[:, None] - 1 - np.arange(self.world.target_events - 1)
        return np.where(place >= np.searchsorted(user, user)[:, None], place, -1)

    def laws(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Topics of target events that repeat nothing, as either oracle weighs them: [R, topics] each."""
        world = self.world
        user, every = self.target.user[rows], np.arange(len(rows))
        last = last_topic(self.source, user, self.target.time[rows], world.topics)
        follows = np.where(last >= 0, world.signal, 0.0)
        followed = np.repeat((1 - follows)[:, None] / world.topics, world.topics, axis=1)
        own = np.zeros_like(followed)
        for column in range(world.own_topics):
            own[every, self.own[user, column]] += (1 - follows) / world.own_topics
        for law in (followed, own):
            law[every[last >= 0], last[last >= 0]] += follows[last >= 0]
        return followed, own


def period_of(time: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of the steps of drift times lie in."""
    return (time - START_US) * PERIODS // (DAYS * DAY_US)


def place_before(events: Events, user: NDArray[np.int64], time: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of the last event of ``user`` or of a user before it that is strictly before each time; -1 where there is none."""
    span = DAYS * DAY_US + 1
    last = max(int(users.max(initial=0)) for users in (events.user, user))
    assert last < np.iinfo(np.int64).max // span - 1, "so many users and times do not fit into one number"
    return np.searchsorted(events.user * span + events.time - START_US, user * span + time - START_US) - 1


def last_topic(source: Events, user: NDArray[np.int64], time: NDArray[np.int64], topics: int) -> NDArray[np.int64]:
    """Topic of each user's last source event strictly before each time; -1 where there is none."""
    place = place_before(source, user, time)
    return np.where((place >= 0) & (source.user[place] == user), source.item[place] % topics, -1)
