"""Bridge: can content translate between two logs that share no user?

The users of both domains are split at random. 300 of them are set aside. Of the others, one half (A) keeps its target events alone, and
the other half (B) its source events alone; then the halves change places. Everything is learned before the cutoff (the 80th percentile of
target time). B's target events after the cutoff are the test: the first ones of a user with an item that A had chosen before it. All arms
rank, and give a probability to, all items that A had chosen before the cutoff, as of the cutoff. NDCG@20 and nats an event; 95 %
intervals, users and items being clusters.

The logit of an item is that of *popularity* and what *tastes* add. Popularity: decayed counts of A's events with six half-lives, weighed
by the likelihood of A's events in the tenth of time before the cutoff. A taste scores an item for a history of titles, whichever domain
it is of:

- ``similarity``: the mean title of the history times that of the item, after the mean title of each domain was subtracted;
- ``last``: the same of the last item alone;
- ``whitened``: the same after each domain's titles were whitened;
- ``learned``: the same with the title that a ridge regression predicts, fitted on A's last target events given those before;
- ``mapped``: the history as the target items with the nearest titles, then their neighbours in a factorisation of A's events;
- ``neighbours``: the items of A's users with the nearest mean titles, over popularity.

Of each taste of an item, the mean over the domain's users is subtracted, so that no item is favoured for all; its scale is that over
these users. How the six are weighed is what differs; each fit is by likelihood:

- ``bridge`` (the planned arm): without common users. A's own target events before an event stand in for the source history. Items are in
  eight clusters by title. An event is explained among the items of its cluster, by the history without this cluster, since a source
  history holds nothing like a target item either;
- ``next item``: the same with all of A's earlier events, among all items;
- ``few``: by the target events of the 300 users set aside, whose source histories are known: few common users;
- ``all``: by A's target events and A's true source histories: as many common users as there are. What content can say at most;
- ``third``: the weights of ``bridge``, times a third. Added after the figures of the worlds, of food and of Yelp by the other arms had been
  seen, since ``bridge`` says too much there; for kitchen goods it was defined before.

Controls: another user's history; titles dealt out among target items at random, everything fitted anew. The ceiling is the ordinary
translator (the quick one of `scalr scout`) with A as common users; ``translator, few``: with the 300 alone.

Two *tests of information* are made, as the quality gate reads them (own history over another user's, users whose events fitted nothing,
99 %): a proxy on A's target events, in the way of ``bridge``; and one on the 300 common users, in the way of ``few``.

Pairs: food and kitchen goods in both directions (titles); 6 000 of Yelp's users, restaurants → others (categories); a world whose titles
say the items' topics; and the same world with the target log's users renamed at random, so that the two logs are independent. Encoder:
hashed n-grams with a truncated SVD, which need nothing that is not installed; ``bridge`` and ``all`` with wordllama, too.

Fixed before any figure of the real logs was seen: a bridge for logs without common users is built if NDCG and nats of ``bridge`` are over
popularity, another user's history and shuffled titles, with intervals above 0, in food and kitchen or on Yelp, and if a test of
information that needs no common user refuses the independent world. One for few common users is built if ``few`` is over the same
controls, and over ``translator, few``, too.

Needs the logs (SCALR_TEST_DATA, or ../shared/data beside the checkout), and wordllama 0.4.0.post1 on the Python path. One thread.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from benchmarks.bench_cold_items import (
    SHARPNESS,
    Cases,
    Logs,
    binary_matrix,
    contexts_as_of,
    last_source_events,
    train_translator,
)
from benchmarks.bench_run import DATA, DIRECTIONS
from benchmarks.worlds import World
from scalr_prod.config.sections import ComputeSettings, HistorySettings, TranslatorSettings
from scalr_prod.evaluation.models.recent_popularity import HALF_LIVES
from scalr_prod.evaluation.statistics import MetricContributions, TwoWayClusters
from scalr_prod.translator.data.contexts import COLD_USERS
from scalr_prod.translator.information_gain import MeanCI, bootstrap_mean
from scalr_prod.translator.trainer import time_quantile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

SEED = 39
#: Of target time: the cutoff; where the events begin that weights are fitted on; the same for the few common users.
TEST_AT, FIT_AT, FEW_AT = 0.8, 0.72, 0.5
#: Users set aside as common ones; users of Yelp; most users that weights are fitted on, and that are tested in each half; most users that
#: the mean of a taste is taken over.
FEW, YELP_USERS, FIT_USERS, TEST_USERS, REFERENCE_USERS = 300, 6_000, 1_200, 2_000, 500
HISTORY = HistorySettings().length
ARMS = ("bridge", "next item", "few", "all")
TASTES = ("similarity", "last", "whitened", "learned", "mapped", "neighbours")
CLUSTERS, NEAREST, NEIGHBOURS, FACTORS, PENALTY = 8, 10, 50, 32, 10.0
#: Added to decayed counts.
SMOOTHING = 0.05
_ROWS, _STEPS, _RESAMPLES = 256, 12, 1000
_DAY_US = 86_400_000_000
QUICK: Any = SimpleNamespace(
    translator=TranslatorSettings(
        threads=1,
        estimators=("popularity", "frequency", "topics", "linear", "factorisation"),
        dim=32,
        pretraining_events=50_000,
    ),
    histories=HistorySettings(),
    compute=ComputeSettings(device="cpu"),
)
#: Arms that are compared: the first over the second.
COMPARED = (
    ("bridge", "popularity"),
    ("bridge", "bridge, another user"),
    ("bridge", "bridge, shuffled titles"),
    ("next item", "popularity"),
    ("next item", "next item, another user"),
    ("third", "popularity"),
    ("third", "third, another user"),
    ("third", "third, shuffled titles"),
    ("few", "popularity"),
    ("few", "few, another user"),
    ("few", "few, shuffled titles"),
    ("few", "translator, few"),
    ("all", "popularity"),
    ("all", "all, another user"),
    ("all", "all, shuffled titles"),
    ("bridge, wordllama", "popularity"),
    ("all, wordllama", "popularity"),
    ("all, wordllama", "all"),
    ("translator", "popularity"),
    ("translator", "translator, another user"),
    ("translator, few", "popularity"),
    ("all", "translator"),
)


def main() -> dict[str, Any]:
    """The figures of all pairs."""
    if not (DATA / "amazon_food_kitchen").exists():
        return {"skipped": f"the data sets are not at {DATA}; set SCALR_TEST_DATA"}
    if importlib.util.find_spec("wordllama") is None:
        return {"skipped": "wordllama is not installed: pip install wordllama==0.4.0.post1"}
    torch.set_num_threads(1)
    world = Logs.from_world(World(users=3_000, topics=15, source_items=450, target_items=450))
    figures = {"world": measure(world), "independent_world": measure(with_users_renamed(world))}
    figures |= {f"{target}_from_{source}": measure(Logs.read(source, target)) for source, target in DIRECTIONS}
    return figures | {"yelp": measure(read_yelp())}


def read_yelp() -> Logs:
    """Visits of a random sample of the users of both domains; an item's title is its categories."""
    folder = DATA / "yelp_restaurants_other"
    events = {name: pd.read_parquet(folder / f"{name}.parquet") for name in ("source", "target")}
    both = np.intersect1d(*(log.user_id.to_numpy().astype(str) for log in events.values()))
    kept = set(np.random.default_rng(SEED).permutation(both)[:YELP_USERS])
    events = {name: log[log.user_id.isin(kept)] for name, log in events.items()}
    titles = pd.concat([log.drop_duplicates("item_id").set_index("item_id").title for log in events.values()])
    return Logs.from_frames(events, titles)


def with_users_renamed(logs: Logs) -> Logs:
    """The same two logs, in which the target log's users are others: what they chose is independent of source histories."""
    user, item, at = logs.target
    name = np.random.default_rng(SEED).permutation(len(logs.users)).astype(np.int32)
    order = np.lexsort((at, name[user]))
    return replace(logs, target=(name[user][order], item[order], at[order]))


def measure(logs: Logs) -> dict[str, Any]:
    """Both halves of a pair."""
    started = time.process_time()
    cuts = Cuts(*(time_quantile(logs.target[2], share) for share in (FEW_AT, FIT_AT, TEST_AT)))
    order = np.random.default_rng(SEED).permutation(len(logs.users))
    few, halves = order[:FEW], np.array_split(order[FEW:], 2)
    collected, found = Collected(len(logs.target_ids)), []
    for number, (a, b) in enumerate((halves, halves[::-1])):
        half = Half.split(logs, a, b, few)
        found.append(_measure_half(half, cuts, number, collected))
        print(f"  half {number}: {found[-1]}, {time.process_time() - started:.0f} s", file=sys.stderr, flush=True)
    return {
        "cutoff": str(np.datetime64(cuts.test, "us")),
        "halves": found,
        **collected.compare(),
        "cpu_seconds": round(time.process_time() - started, 1),
    }


class Cuts(NamedTuple):
    """Times in microseconds: where fits by few common users begin, those by many, and the test."""

    few: int
    fit: int
    test: int


class Events(NamedTuple):
    """Events in the order of users and times."""

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    time: NDArray[np.int64]

    def of(self, users: NDArray[np.int64]) -> Events:
        rows = np.isin(self.user, users)
        return Events(*(column[rows] for column in self))

    def before(self, until: int) -> Events:
        rows = self.time < until
        return Events(*(column[rows] for column in self))


@dataclass(frozen=True)
class Half:
    """What is visible if A has target events alone, and B source events alone.

    Attributes:
        logs: Everything; read for items, titles and truth alone.
        a: Users.
        b: Users.
        few: Common users, for the arms that know them.
        source: Source events of B.
        target: Target events of A.
    """

    logs: Logs
    a: NDArray[np.int64]
    b: NDArray[np.int64]
    few: NDArray[np.int64]
    source: Events
    target: Events

    @classmethod
    def split(cls, logs: Logs, a: NDArray[np.int64], b: NDArray[np.int64], few: NDArray[np.int64]) -> Half:
        return cls(logs, a, b, few, Events(*logs.source).of(b), Events(*logs.target).of(a))

    def visible(self, common: NDArray[np.int64]) -> Logs:
        """The logs with some users as common ones."""
        source, target = Events(*self.logs.source), Events(*self.logs.target)
        users = np.union1d(self.b, common), np.union1d(self.a, common)
        return replace(self.logs, source=tuple(source.of(users[0])), target=tuple(target.of(users[1])))

    def with_titles_shuffled(self, seed: int) -> Half:
        """The titles of target items dealt out among them at random."""
        titled = np.flatnonzero(self.logs.titled)
        dealt = np.random.default_rng([SEED, seed]).permutation(titled)
        titles = {}
        for name, rows in self.logs.target_titles.items():
            titles[name] = rows.copy()
            titles[name][titled] = rows[dealt]
        return replace(self, logs=replace(self.logs, target_titles=titles))


def _measure_half(half: Half, cuts: Cuts, number: int, collected: Collected) -> dict[str, Any]:
    fits = {"ngrams": Fits.fit(half, cuts, "ngrams"), "wordllama": Fits.fit(half, cuts, "wordllama", ("bridge", "all"))}
    shuffled = Fits.fit(half.with_titles_shuffled(number), cuts, "ngrams", ("bridge", "few", "all"))
    own = fits["ngrams"]
    bridge = Bridge.fit(half, cuts.test, "ngrams")
    tested = Rows.of_test(half, bridge, cuts.test, number)
    offset = own.popularity.log(half.target, bridge.items, cuts.test)
    logits = {"popularity": np.broadcast_to(offset, (len(tested.users), len(offset)))}
    x = bridge.features(tested)
    weights_of = own.weights | {"third": own.weights["bridge"] / 3}
    for name, weights in weights_of.items():
        logits[name] = offset + x @ weights
    x = bridge.features(tested.with_histories_of_others())
    for name, weights in weights_of.items():
        logits[f"{name}, another user"] = offset + x @ weights
    x = Bridge.fit(half.with_titles_shuffled(number), cuts.test, "ngrams").features(tested)
    for name, weights in (shuffled.weights | {"third": shuffled.weights["bridge"] / 3}).items():
        logits[f"{name}, shuffled titles"] = offset + x @ weights
    x = Bridge.fit(half, cuts.test, "wordllama").features(tested)
    for name in ("bridge", "all"):
        logits[f"{name}, wordllama"] = offset + x @ fits["wordllama"].weights[name]
    del x
    logits |= _translator(half, half.a, tested, cuts.test, "translator")
    logits |= _translator(half, half.few, tested, cuts.test, "translator, few")
    collected.add(tested, logits)
    return {
        "test_users": len(tested.users),
        "test_events": int(tested.relevant.sum()),
        "candidates": len(bridge.items),
        "fits": {name: fit.describe() for name, fit in fits.items()},
        "weights, shuffled titles": shuffled.describe()["weights"],
    }


def _translator(half: Half, common: NDArray[np.int64], tested: Rows, cutoff: int, name: str) -> dict[str, NDArray[np.float32]]:
    """Logits of the ordinary translator with some common users, and of it with another user's history."""
    logs = half.visible(common)
    log = logs.event_log(cutoff, np.zeros(len(logs.target_ids), dtype=bool))
    module, pairs = train_translator(log, cutoff, QUICK)
    index, found = pairs.target_index[tested.items], {}
    for arm, users in ((name, tested.users), (f"{name}, another user", tested.users[tested.other])):
        contexts = contexts_as_of(log, pairs, last_source_events(log, users), cutoff)
        contexts = replace(contexts, fold=np.full(len(users), COLD_USERS, np.int32))
        p = np.empty((len(users), len(tested.items)), np.float32)
        for rows, (mixture,) in module.distributions(contexts):
            p[rows] = mixture.numpy()[:, index]
        found[arm] = np.log(p.clip(1e-30))
    return found


_BY_ROW = ("users", "history", "relevant", "seen", "group")


@dataclass(frozen=True)
class Rows:
    """Users, each with a history of one domain and the items that were chosen after it.

    Attributes:
        users: int64 [R].
        items: int64 [N]. Candidates.
        domain: Of the histories.
        history: int32 [R, L]. Items, -1 on the left.
        relevant: bool [R, N].
        seen: bool [R, N]. Not ranked: what the user had before, or another cluster's.
        group: int64 [R]. Cluster that is not in the history; 0 for all where none is left out. A user has one row of a group.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    domain: str
    history: NDArray[np.int32]
    relevant: NDArray[np.bool_]
    seen: NDArray[np.bool_]
    group: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> Rows:
        return replace(self, **{name: getattr(self, name)[rows] for name in _BY_ROW})

    @property
    def other(self) -> NDArray[np.int64]:
        """Row of another user of the same group for each row, at random."""
        other = np.arange(len(self.users))
        for group in np.unique(self.group):
            order = np.random.default_rng(SEED).permutation(np.flatnonzero(self.group == group))
            other[order] = np.roll(order, 1)
        return other

    def with_histories_of_others(self) -> Rows:
        """The same with another user's history; ``users`` are those of the histories."""
        return replace(self, history=self.history[self.other], users=self.users[self.other])

    @classmethod
    def of_test(cls, half: Half, bridge: Bridge, cutoff: int, number: int) -> Rows:
        """B's users with a source history and a new target item after the cutoff."""
        rows = cls.of_users(half, bridge, half.b, "source", (cutoff, np.iinfo(np.int64).max))
        rows = replace(rows, seen=np.zeros_like(rows.seen))  # B's target events are not known
        return rows.take(_sample(len(rows.users), TEST_USERS, number))

    @classmethod
    def of_users(cls, half: Half, bridge: Bridge, users: NDArray[np.int64], domain: str, window: tuple[int, int]) -> Rows:
        """Users with a history before a window, and the items that they chose in it for the first time."""
        begin, end = window
        users = np.sort(users)
        log, target = (Events(*side).of(users) for side in (getattr(half.logs, domain), half.logs.target))
        history = last_items(log.before(begin), users)
        shape = len(users), len(bridge.items)

        def chosen(rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
            column = bridge.index[target.item[rows]]
            mask = np.zeros(shape, dtype=bool)
            mask[np.searchsorted(users, target.user[rows])[column >= 0], column[column >= 0]] = True
            return mask

        seen = chosen(target.time < begin)
        relevant = chosen((target.time >= begin) & (target.time < end)) & ~seen
        found = cls(users, bridge.items, domain, history, relevant, seen, np.zeros(len(users), np.int64))
        return found.take(np.flatnonzero((history[:, -1] >= 0) & relevant.any(1)))

    def without_own_cluster(self, cluster: NDArray[np.int64]) -> Rows:
        """A row for each user and cluster of chosen items: among the cluster's items, by the history without the cluster.

        Args:
            cluster: int64 [target ids]. -1: no title.
        """
        of_candidate, of_history = cluster[self.items], np.where(self.history >= 0, cluster[self.history], -1)
        found = []
        for number in range(CLUSTERS):
            relevant = self.relevant & (of_candidate == number)
            history = np.where(of_history == number, -1, self.history)
            rows = np.flatnonzero(relevant.any(1) & (history >= 0).any(1))
            seen, group = self.seen | (of_candidate != number), np.full(len(self.users), number)
            found.append(replace(self, relevant=relevant, seen=seen, history=history, group=group).take(rows))
        return replace(self, **{name: np.concatenate([getattr(part, name) for part in found]) for name in _BY_ROW})


def last_items(events: Events, users: NDArray[np.int64]) -> NDArray[np.int32]:
    """The last items of users: int32 [users, L], -1 on the left."""
    begin, stop = (np.searchsorted(events.user, users, side=side) for side in ("left", "right"))
    position = stop[:, None] + np.arange(-HISTORY, 0)
    if not len(events.item):
        return np.full(position.shape, -1, np.int32)
    return np.where(position >= begin[:, None], events.item[position.clip(0)], -1).astype(np.int32)


def _sample(count: int, size: int, seed: int) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng([SEED, seed]).permutation(count)[:size])


@dataclass(frozen=True)
class Bridge:
    """The tastes as of a time.

    Attributes:
        items: int64 [N]. Candidates: items of A's events before that time.
        index: int64 [target ids]. Candidate; -1: none.
        titles: Domain → float32 [ids, d], centred; 0 without a title.
        whitened: As ``titles``.
        maps: Domain → scipy CSR [ids, N]: the candidates with the nearest titles.
        learned: float32 [d, d].
        factors: float32 [N, f].
        scale: float32 [N]. By which an item's share of a history is divided.
        a: int64 [users]. Whose rows ``profiles`` and ``chosen`` are.
        profiles: float32 [users, d].
        chosen: scipy CSR [users, N].
        popularity: float32 [N].
        centre: Domain → float32 [N, tastes].
        spread: Domain → float32 [tastes].
    """

    items: NDArray[np.int64]
    index: NDArray[np.int64]
    titles: dict[str, NDArray[np.float32]]
    whitened: dict[str, NDArray[np.float32]]
    maps: dict[str, Any]
    learned: NDArray[np.float32]
    factors: NDArray[np.float32]
    scale: NDArray[np.float32]
    a: NDArray[np.int64]
    profiles: NDArray[np.float32]
    chosen: Any
    popularity: NDArray[np.float32]
    centre: dict[str, NDArray[np.float32]]
    spread: dict[str, NDArray[np.float32]]

    @classmethod
    def fit(cls, half: Half, until: int, encoder: str) -> Bridge:
        """Fit on the target events of A and the source events of B before a time."""
        sides = {"source": half.source.before(until), "target": half.target.before(until)}
        raw = {"source": half.logs.source_titles[encoder], "target": half.logs.target_titles[encoder]}
        titles = {name: _centred(rows, sides[name].item) for name, rows in raw.items()}
        whitened = {name: _whitened(rows, sides[name].item) for name, rows in titles.items()}
        items = np.unique(sides["target"].item).astype(np.int64)
        index = np.full(len(half.logs.target_ids), -1)
        index[items] = np.arange(len(items))
        users = np.sort(half.a)
        chosen = binary_matrix(
            np.searchsorted(users, sides["target"].user), index[sides["target"].item], (len(users), len(items))
        )
        history = last_items(sides["target"], users)
        popularity = np.asarray(chosen.sum(0)).ravel() / chosen.sum()
        scale = np.sqrt(popularity / popularity.mean())
        bridge = cls(
            items=items,
            index=index,
            titles=titles,
            whitened=whitened,
            maps={
                name: _nearest(rows, titles["target"][items], items if name == "target" else None)
                for name, rows in titles.items()
            },
            learned=_learned(titles["target"], history),
            factors=_factors(chosen, scale),
            scale=scale.astype(np.float32),
            a=users,
            profiles=_profiles(titles["target"], history),
            chosen=chosen,
            popularity=popularity.astype(np.float32),
            centre={},
            spread={},
        )
        for name, (domain_users, events) in {"source": (half.b, sides["source"]), "target": (users, sides["target"])}.items():
            sample = np.sort(domain_users)[_sample(len(domain_users), REFERENCE_USERS, 7)]
            seen_items = last_items(events, sample)
            keep = seen_items[:, -1] >= 0
            x = np.concatenate([block for _, block in bridge.raw_features(sample[keep], seen_items[keep], name)])
            bridge.centre[name] = x.mean(0)
            x -= bridge.centre[name]
            spread = np.sqrt(np.mean([(rows.astype(np.float64) ** 2).mean(0) for rows in x], axis=0))
            bridge.spread[name] = np.where(spread > 1e-9, spread, np.inf).astype(np.float32)
        return bridge

    def features(self, rows: Rows) -> NDArray[np.float32]:
        """Standardised tastes: float32 [R, N, tastes]."""
        found = np.empty((len(rows.users), len(self.items), len(TASTES)), np.float32)
        for block, x in self.raw_features(rows.users, rows.history, rows.domain):
            found[block] = (x - self.centre[rows.domain]) / self.spread[rows.domain]
        return found

    def raw_features(
        self, users: NDArray[np.int64], history: NDArray[np.int32], domain: str
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Blocks of rows of all tastes, in the order of `TASTES`."""
        titles, white, to_target = self.titles[domain], self.whitened[domain], self.maps[domain]
        candidates, white_candidates = self.titles["target"][self.items].T, self.whitened["target"][self.items].T
        for start in range(0, len(users), _ROWS):
            block = slice(start, min(start + _ROWS, len(users)))
            items = history[block]
            row, column = np.nonzero(items >= 0)
            had = binary_matrix(row, items[row, column], (len(items), len(titles)))
            profile = _unit(had @ titles)
            last = titles[items[np.arange(len(items)), items.shape[1] - 1 - (items[:, ::-1] >= 0).argmax(1)]]
            mapped = had @ to_target
            mapped = np.asarray(mapped.todense()) / np.asarray(mapped.sum(1)).clip(1e-9)
            yield (
                block,
                np.stack(
                    [
                        profile @ candidates,
                        last @ candidates,
                        _unit(had @ white) @ white_candidates,
                        _unit(profile @ self.learned) @ candidates,
                        (mapped / self.scale) @ self.factors @ self.factors.T,
                        self._of_neighbours(users[block], profile, domain),
                    ],
                    axis=2,
                ).astype(np.float32),
            )

    def _of_neighbours(self, users: NDArray[np.int64], profile: NDArray[np.float32], domain: str) -> NDArray[np.float32]:
        cosine = profile @ self.profiles.T
        if domain == "target":  # nobody is the own neighbour
            place = np.searchsorted(self.a, users).clip(max=len(self.a) - 1)
            own = np.flatnonzero(self.a[place] == users)
            cosine[own, place[own]] = -np.inf
        top = np.argpartition(-cosine, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
        weight = np.exp(np.take_along_axis(cosine, top, 1) / SHARPNESS)
        from scipy import sparse

        shape = len(users), len(self.a)
        of_users = sparse.csr_matrix((weight.ravel(), (np.repeat(np.arange(len(users)), NEIGHBOURS), top.ravel())), shape=shape)
        share = np.asarray((of_users @ self.chosen).todense())
        share /= share.sum(1, keepdims=True).clip(1e-12)
        return np.log((share + self.popularity) / (2 * self.popularity))


def _unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-9)


def _centred(rows: NDArray[np.float32], item: NDArray[np.int32]) -> NDArray[np.float32]:
    """Titles less the mean of the events' titles, of length 1."""
    titled = np.abs(rows).sum(1) > 0
    of_events = item[titled[item]]
    return np.where(titled[:, None], _unit(rows - rows[of_events].mean(0)), np.float32(0))


def _whitened(rows: NDArray[np.float32], item: NDArray[np.int32]) -> NDArray[np.float32]:
    of_events = rows[item[np.abs(rows[item]).sum(1) > 0]]
    values, vectors = np.linalg.eigh(of_events.T @ of_events / len(of_events))
    return _unit(rows @ (vectors / np.sqrt(values.clip(0) + values.mean())) @ vectors.T)


def _nearest(rows: NDArray[np.float32], candidates: NDArray[np.float32], own: NDArray[np.int64] | None) -> Any:
    """The candidates with the nearest titles: scipy CSR [rows, N], rows sum to 1; none for rows without a title, never the own one."""
    from scipy import sparse

    titled, known = np.flatnonzero(np.abs(rows).sum(1) > 0), np.flatnonzero(np.abs(candidates).sum(1) > 0)
    place = np.full(len(rows), -1)
    if own is not None:
        place[own[known]] = np.arange(len(known))
    tops, weights = [], []
    for start in range(0, len(titled), 1024):
        block = titled[start : start + 1024]
        cosine = rows[block] @ candidates[known].T
        mine = np.flatnonzero(place[block] >= 0)
        cosine[mine, place[block][mine]] = -np.inf
        top = np.argpartition(-cosine, NEAREST - 1, axis=1)[:, :NEAREST]
        weight = np.exp(np.take_along_axis(cosine, top, 1) / SHARPNESS)
        tops.append(known[top])
        weights.append(weight / weight.sum(1, keepdims=True))
    entries = np.concatenate(weights).ravel(), (np.repeat(titled, NEAREST), np.concatenate(tops).ravel())
    return sparse.csr_matrix(entries, shape=(len(rows), len(candidates)))


def _profiles(titles: NDArray[np.float32], history: NDArray[np.int32]) -> NDArray[np.float32]:
    row, column = np.nonzero(history >= 0)
    return _unit(binary_matrix(row, history[row, column], (len(history), len(titles))) @ titles)


def _learned(titles: NDArray[np.float32], history: NDArray[np.int32]) -> NDArray[np.float32]:
    """Ridge regression from the mean title of all events but the last one to the last one's."""
    usable = np.flatnonzero((history[:, -1] >= 0) & (history[:, -2] >= 0))
    asked, answer = _profiles(titles, history[usable, :-1]), titles[history[usable, -1]]
    return np.linalg.solve(asked.T @ asked + PENALTY * np.eye(asked.shape[1], dtype=np.float32), asked.T @ answer)


def _factors(chosen: Any, scale: NDArray[np.float64]) -> NDArray[np.float32]:
    """Right singular vectors of users' choices, each divided by the item's scale and of length 1: float32 [N, f]."""
    from scipy import sparse

    matrix = (chosen @ sparse.diags(1 / scale)).tocsr()
    length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(1)).ravel()).clip(1e-9)
    matrix = (sparse.diags(1 / length) @ matrix).astype(np.float32)
    basis = np.random.default_rng(SEED).standard_normal((matrix.shape[1], FACTORS + 10)).astype(np.float32)
    for _ in range(4):
        basis = matrix.T @ np.linalg.qr(matrix @ basis)[0]
    left = np.linalg.qr(matrix @ basis)[0]
    return np.linalg.svd(left.T @ matrix, full_matrices=False)[2][:FACTORS].T.astype(np.float32)


@dataclass(frozen=True)
class Popularity:
    """log P of items from decayed counts; ``weights`` of each half-life and of all time."""

    weights: NDArray[np.float64]

    @staticmethod
    def features(target: Events, items: NDArray[np.int64], until: int) -> NDArray[np.float32]:
        """Logs of decayed counts, less their mean: float32 [N, half-lives + 1]."""
        events = target.before(until)
        age, column = (until - events.time) / _DAY_US, np.searchsorted(items, events.item)
        counts = [np.bincount(column, np.exp2(-np.minimum(age / life, 200)), len(items)) for life in (*HALF_LIVES, np.inf)]
        logs = np.log(np.stack(counts, axis=1) + SMOOTHING)
        return (logs - logs.mean(0)).astype(np.float32)

    def log(self, target: Events, items: NDArray[np.int64], until: int) -> NDArray[np.float32]:
        return (self.features(target, items, until) @ self.weights).astype(np.float32)


@dataclass(frozen=True)
class Fits:
    """Weights of popularity, and of the tastes by name of the arm; and the tests of information.

    Attributes:
        popularity: By A's events before the cutoff.
        weights: Arm → float64 [tastes].
        tests: Arm → nats of own over others' histories, 99 %, and the users.
    """

    popularity: Popularity
    weights: dict[str, NDArray[np.float32]]
    tests: dict[str, tuple[MeanCI, int]]

    @classmethod
    def fit(cls, half: Half, cuts: Cuts, encoder: str, arms: tuple[str, ...] = ARMS) -> Fits:
        """Fit some arms; the tests are made where all are."""
        bridge, window = Bridge.fit(half, cuts.fit, encoder), (cuts.fit, cuts.test)
        own = Rows.of_users(half, bridge, half.a, "target", window)
        own = own.take(_sample(len(own.users), FIT_USERS, 1))
        features = Popularity.features(half.target, bridge.items, cuts.fit)
        by_item = np.broadcast_to(features, (len(own.users), *features.shape))
        popularity = Popularity(fit_weights(own, by_item, np.zeros(len(bridge.items), np.float32)))
        offset = popularity.log(half.target, bridge.items, cuts.fit)
        clustered = own.without_own_cluster(clusters_of(bridge.titles["target"]))
        clustered = clustered.take(_sample(len(clustered.users), FIT_USERS, 2))
        true = Rows.of_users(half, bridge, half.a, "source", window)
        true = true.take(_sample(len(true.users), FIT_USERS, 3))
        earlier = Bridge.fit(half, cuts.few, encoder) if "few" in arms else bridge
        few = Rows.of_users(half, earlier, half.few, "source", (cuts.few, cuts.test))
        earlier_offset = popularity.log(half.target, earlier.items, cuts.few)
        weights, tests = {}, {}
        for name, rows, of, log in (
            ("bridge", clustered, bridge, offset),
            ("next item", own, bridge, offset),
            ("few", few, earlier, earlier_offset),
            ("all", true, bridge, offset),
        ):
            if name not in arms:
                continue
            x = of.features(rows)
            weights[name] = fit_weights(rows, x, log).astype(np.float32)
            if arms == ARMS and name in ("bridge", "few"):
                tests[name] = information(rows, x, of.features(rows.with_histories_of_others()), log)
        return cls(popularity, weights, tests)

    def describe(self) -> dict[str, Any]:
        return {
            "weights": {
                name: dict(zip(TASTES, (round(float(one), 3) for one in weights), strict=True))
                for name, weights in self.weights.items()
            },
            "information": {name: {**found.to_json(), "users": users} for name, (found, users) in self.tests.items()},
        }


def clusters_of(titles: NDArray[np.float32]) -> NDArray[np.int64]:
    """Cluster of each title by spherical k-means; -1 without one."""
    titled = np.flatnonzero(np.abs(titles).sum(1) > 0)
    rows, rng = titles[titled], np.random.default_rng(SEED)
    centres = rows[rng.permutation(len(rows))[:CLUSTERS]]
    for _ in range(20):
        nearest = (rows @ centres.T).argmax(1)
        centres = _unit(np.stack([rows[nearest == number].sum(0) for number in range(CLUSTERS)]))
    found = np.full(len(titles), -1)
    found[titled] = nearest
    return found


def fit_weights(rows: Rows, x: NDArray[np.float32], offset: NDArray[np.float32]) -> NDArray[np.float64]:
    """Maximise the likelihood of the chosen items, less half of the squared weights (Newton)."""
    weights = np.zeros(x.shape[2])
    found = _likelihood(rows, x, offset, weights)
    for _ in range(_STEPS):
        step = np.linalg.solve(found.hessian, found.gradient)
        gain, size = step @ found.gradient, 1.0
        tried = _likelihood(rows, x, offset, weights + step)
        while tried.value < found.value + 0.1 * size * gain and size > 1e-3:
            size /= 2
            tried = _likelihood(rows, x, offset, weights + size * step)
        if gain < 0.02 or tried.value < found.value:
            break
        weights, found = weights + size * step, tried
    return weights


class _Likelihood(NamedTuple):
    value: float
    gradient: NDArray[np.float64]
    hessian: NDArray[np.float64]


def _likelihood(rows: Rows, x: NDArray[np.float32], offset: NDArray[np.float32], weights: NDArray[np.float64]) -> _Likelihood:
    value, gradient, hessian = -0.5 * weights @ weights, -weights, np.eye(len(weights))
    for start in range(0, len(x), _ROWS):
        block = np.s_[start : start + _ROWS]
        relevant, here = rows.relevant[block], np.ascontiguousarray(x[block])
        logs = log_probabilities(offset + here @ weights.astype(np.float32), rows.seen[block])
        p, count = np.exp(logs), relevant.sum(1)
        mean = np.einsum("rn,rnf->rf", p, here).astype(np.float64)
        value += float(logs[relevant].sum())
        gradient = gradient + here[relevant].sum(0) - count @ mean
        flat = here.reshape(-1, here.shape[2])
        hessian = hessian + (flat * (p * count[:, None]).reshape(-1, 1)).T @ flat - (mean * count[:, None]).T @ mean
    return _Likelihood(float(value), gradient, hessian)


def log_probabilities(logits: NDArray[np.float32], seen: NDArray[np.bool_]) -> NDArray[np.float32]:
    """log P of each row's items, -inf for those that are not ranked."""
    logits = np.where(seen, np.float32(-np.inf), logits)
    logits = logits - logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def information(
    rows: Rows, own: NDArray[np.float32], others: NDArray[np.float32], offset: NDArray[np.float32]
) -> tuple[MeanCI, int]:
    """Nats an event of own histories over others', each half of the users with weights of the other half; and the users."""
    rng = np.random.default_rng(SEED)
    users = np.unique(rows.users)
    first = np.isin(rows.users, rng.permutation(users)[: len(users) // 2])
    gain, user = [], []
    for tested in (first, ~first):
        fitted, asked = np.flatnonzero(~tested), np.flatnonzero(tested)
        weights, part = fit_weights(rows.take(fitted), own[fitted], offset).astype(np.float32), rows.take(asked)
        logs = [log_probabilities(offset + x[asked] @ weights, part.seen) for x in (own, others)]
        row = np.nonzero(part.relevant)[0]
        gain.append((logs[0][part.relevant] - logs[1][part.relevant]).astype(np.float64))
        user.append(part.users[row])
    return bootstrap_mean(np.concatenate(gain), np.concatenate(user).astype(np.int32), rng), len(users)


class Collected:
    """Contributions of every arm in both halves."""

    def __init__(self, n_items: int) -> None:
        self.n_items = n_items
        self.user: list[NDArray[np.int64]] = []
        self.parts: dict[str, dict[str, list[MetricContributions]]] = {}

    def add(self, tested: Rows, logits: dict[str, NDArray[np.float32]]) -> None:
        """Measure arms by logits [R, N]."""
        begin = sum(map(len, self.user))
        self.user.append(tested.users)
        cases = Cases(np.arange(len(tested.users)), tested.items, tested.relevant, tested.seen)
        for arm, values in logits.items():
            by_metric = self.parts.setdefault(arm, {"ndcg": [], "nats": []})
            for start in range(0, len(values), _ROWS):
                found = cases.measure(values[start : start + _ROWS], slice(start, start + _ROWS))
                for metric, parts in by_metric.items():
                    one = found[metric]
                    parts.append(MetricContributions(one.case + begin + start, one.item, one.gain))

    def compare(self) -> dict[str, Any]:
        """Every arm's metrics, the pairs of `COMPARED`, and the share of the translator's gain that content recovers."""
        user = np.concatenate(self.user)
        clusters = TwoWayClusters(user, self.n_items)
        found = {
            arm: {metric: MetricContributions.concat(parts) for metric, parts in metrics.items()}
            for arm, metrics in self.parts.items()
        }
        arms = {
            arm: {metric: round(float(one.gain.sum()) / len(user), 5) for metric, one in metrics.items()}
            for arm, metrics in found.items()
        }
        compared = {
            f"{arm} / {base}": {
                metric: _described(clusters.compare(one, found[base][metric]), metric) for metric, one in found[arm].items()
            }
            for arm, base in COMPARED
        }
        shares = {
            arm: {metric: self._share(found, user, arm, metric) for metric in ("ndcg", "nats")}
            for arm in ("bridge", "third", "next item", "few", "all")
        }
        return {"users": len(user), "arms": arms, "compared": compared, "share_of_translator": shares}

    def _share(
        self, found: dict[str, dict[str, MetricContributions]], user: NDArray[np.int64], arm: str, metric: str
    ) -> dict[str, Any]:
        """(arm - popularity) / (translator - popularity), with a bootstrap over users."""
        of_case = {name: found[name][metric].sum_by_case(len(user)) for name in (arm, "popularity", "translator")}
        gains = np.stack([of_case[arm] - of_case["popularity"], of_case["translator"] - of_case["popularity"]])
        users, row = np.unique(user, return_inverse=True)
        by_user = np.stack([np.bincount(row, gain, len(users)) for gain in gains])
        rng = np.random.default_rng(SEED)
        resampled = np.stack([by_user[:, rng.integers(0, len(users), len(users))].sum(1) for _ in range(_RESAMPLES)])
        if np.percentile(resampled[:, 1], 2.5) <= 0:  # no gain to take a share of
            return {"share": None, "ci95": None}
        low, high = np.percentile(resampled[:, 0] / resampled[:, 1], [2.5, 97.5])
        gain, whole = by_user.sum(1)
        return {"share": round(float(gain / whole), 3), "ci95": [round(float(low), 3), round(float(high), 3)]}


def _described(one: Any, metric: str) -> dict[str, Any]:
    found = {
        "difference": round(one.difference, 5),
        "difference_ci95": [round(bound, 5) for bound in one.difference_ci95],
    }
    if metric == "ndcg":
        found |= {"lift_pct": round(one.lift_pct, 1), "ci95": [round(bound, 1) for bound in one.ci95]}
    return found
