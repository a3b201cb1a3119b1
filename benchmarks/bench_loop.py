"""What synthetic events do to the logs that come back: ten rounds of users who act on a model trained on real and synthetic rows.

In a world whose translation is known (`worlds`), every user has organic target events. In each round, the translator is trained on the
target log so far and draws events, and ALS is trained on real and synthetic rows. In the round's window, each organic event is replaced,
with probability `REACH`, by a choice among the 20 items that ALS shows to the user: by the user's own organic probabilities, and less often
further down the list. The log that comes back trains the next round. Arms differ in the synthetic rows and in the guards; organic events
and random numbers are the same in all arms.

``SCALR_BENCH_ARMS=marked,capped`` runs these arms only, and keeps the results file's figures of the others.

Figures of a round are expectations under the world's own probabilities, so that chance of single events is not in them:

- ``tail_share`` of the round's events on items outside of the fifth of items that are organically most popular;
- ``effective_items``, exp(entropy) of the round's events;
- ``calibration``: probability that the translator gives its draws, as a share of their organic probability; 1 is calibrated;
- ``value``: organic probability of the 20 items shown to a user, and ``lift_pct`` of it over the same model without synthetic rows.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.bench_worlds import SMALL
from benchmarks.worlds import DAY_US, DAYS, START_US, Events, WorldLogs
from scalr_prod.config import SegmentWeights
from scalr_prod.config.sections import ComputeSettings, GenerationSettings, HistorySettings, TranslatorSettings
from scalr_prod.generation import confidence_weight
from scalr_prod.generation.popularity_matching import bucket_shares, keep_counts, popularity_buckets
from scalr_prod.training_set.row_weights import confidence_multipliers
from scalr_prod.translator.data.contexts import ALL_USERS, COLD_USERS, NO_ITEM
from scalr_prod.translator.data.training_pairs import TrainingSlice, contexts_and_labels
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
    from numpy.typing import NDArray

WORLD = replace(SMALL, target_events=24)
ROUNDS, SHOWN, DRAWS = 10, 20, 20
#: Share of the year before the first round.
BEFORE = 1 / 3
#: Share of events that come from the list shown.
REACH = 0.5
HEAD = 0.2
RESULT = Path(__file__).parent / "results" / "loop.json"
TRANSLATOR: dict[str, Any] = {"dim": 16, "epochs": 1, "threads": 1, "folds": 2}


@dataclass(frozen=True)
class Arm:
    """One way to run the loop.

    Attributes:
        share: λ, the synthetic rows' share of weight; 0: no synthetic row.
        draws: Most synthetic events for each user.
        ratio: ``[generation] max_synthetic_ratio``; 0: no limit.
        recommended_weight: Weight of an event from the list in the translator's training, 0 to 1.
        exploration: Share of the draws that are by popularity to the power of a half, whatever the user's history.
        is_aligned: ``[generation] align``: drop draws until their popularity is distributed as that of the real events.
        discount: Weights of synthetic rows are divided by their item's popularity to the power of this.
    """

    share: float
    draws: int = DRAWS
    ratio: float = 10.0
    recommended_weight: float = 1.0
    exploration: float = 0.0
    is_aligned: bool = False
    discount: float = 0.0


ARMS = {
    "no_synthetic": Arm(0.0),
    "no_synthetic_marked": Arm(0.0, recommended_weight=0.0),
    "equal_weight": Arm(1.0, ratio=0.0),
    "default": Arm(0.1),
    "down_weighted": Arm(0.1, recommended_weight=0.3),
    "marked": Arm(0.1, recommended_weight=0.0),
    "capped": Arm(0.1, ratio=0.25),
    "marked_explored": Arm(0.1, recommended_weight=0.0, exploration=0.2),
    "marked_aligned": Arm(0.1, recommended_weight=0.0, is_aligned=True),
    "marked_discounted": Arm(0.1, recommended_weight=0.0, discount=0.5),
}
#: Arms that are run in a second world, too.
REPEATED = ("no_synthetic", "no_synthetic_marked", "default", "marked", "marked_aligned", "marked_discounted")


class Loop:
    """The world's organic events, and the random numbers that all arms share."""

    def __init__(self, seed: int = 0) -> None:
        self.world = replace(WORLD, seed=seed)
        self.logs = self.world.make()
        organic = self.logs.target
        order = np.lexsort((organic.time, organic.user))
        self.organic = Events(organic.user[order], organic.item[order], organic.time[order])
        rng = np.random.default_rng([seed, 1])
        self.listed = rng.random(len(order)) < REACH
        self.choice = rng.random(len(order))
        edges = BEFORE + (1 - BEFORE) * np.arange(ROUNDS + 1) / ROUNDS
        self.edges = START_US + (edges * DAYS * DAY_US).astype(np.int64)
        popularity = self.probabilities(self.organic.user, self.organic.time).mean(0)
        self.tail = np.ones(self.world.target_items, dtype=bool)
        self.tail[np.argsort(-popularity)[: int(HEAD * len(popularity))]] = False

    def probabilities(self, user: NDArray[np.int64], at: NDArray[np.int64]) -> NDArray[np.float64]:
        """Organic probability of every target item at a user's event: [R, items]."""
        asked = WorldLogs(self.world, self.logs.source, Events(user, np.zeros_like(user), at), self.logs.own)
        topics = asked.laws(np.arange(len(user)))[1]
        shares = self.world.popularity(self.world.target_items, of_target=True)[0]  # [topics, places]
        return (topics[:, :, None] * shares).transpose(0, 2, 1).reshape(len(user), -1)

    def undisturbed(self) -> list[dict[str, float]]:
        """Tail share and effective number of items of every round without any list."""
        found = []
        for begin, end in itertools.pairwise(self.edges):
            now = (self.organic.time >= begin) & (self.organic.time < end)
            found.append(self._spread(self.probabilities(self.organic.user[now], self.organic.time[now]).mean(0)))
        return found

    def _spread(self, shares: NDArray[np.float64]) -> dict[str, float]:
        entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum()
        return {"tail_share": float(shares[self.tail].sum()), "effective_items": float(np.exp(entropy))}

    def run(self, arm: Arm) -> list[dict[str, float]]:
        """The figures of every round."""
        item, recommended = self.organic.item.copy(), np.zeros(len(self.organic.item), dtype=bool)
        return [self._round(arm, number, item, recommended) for number in range(ROUNDS)]

    def _round(self, arm: Arm, number: int, item: NDArray[np.int64], recommended: NDArray[np.bool_]) -> dict[str, float]:
        """Train on what happened before the round, and write what happens in it to ``item`` and ``recommended``."""
        begin, end = self.edges[number : number + 2]
        before = self.organic.time < begin
        users = np.arange(self.world.users)
        truth = self.probabilities(users, np.full(len(users), begin))
        seen = np.zeros(truth.shape, dtype=np.float64)
        np.add.at(seen, (self.organic.user[before], item[before]), 1.0)
        truth = np.where(seen > 0, 0, truth)
        truth /= truth.sum(1, keepdims=True)

        drawn, probability, prior = self._draws(arm, item, np.where(recommended, arm.recommended_weight, 1.0), begin)
        real_only = _als(seen)
        shown = _top(real_only, seen)
        value = base = float(truth[users[:, None], shown].sum(1).mean())
        real = drawn != NO_ITEM
        if arm.share:
            confidence = np.where(real, confidence_weight(probability, prior), 0)
            if arm.is_aligned:
                confidence = np.where(_kept_by_alignment(drawn, seen.sum(0).astype(np.int64)), confidence, 0)
            confidence *= np.maximum(prior, np.finfo(np.float32).tiny) ** -arm.discount
            ratio = seen.sum() / confidence.sum()
            weight = confidence * confidence_multipliers(SegmentWeights(*[arm.share] * 3), ratio).cold
            rows = seen.copy()
            np.add.at(rows, (np.repeat(users, real.sum(1)), drawn[real]), weight[real])
            shown = _top(_als(rows), seen)
            value = float(truth[users[:, None], shown].sum(1).mean())

        now = np.flatnonzero((self.organic.time >= begin) & (self.organic.time < end))
        organic = self.probabilities(self.organic.user[now], self.organic.time[now])
        offered = shown[self.organic.user[now]]
        chance = organic[np.arange(len(now))[:, None], offered] / np.log2(2 + np.arange(SHOWN))
        mass = chance.sum(1, keepdims=True)  # 0: nothing in the list is for this event
        chance /= np.where(mass, mass, 1)
        expected = (organic * np.where(mass, 1 - REACH, 1)).mean(0)
        np.add.at(expected, offered, REACH * chance / len(now))
        place = (self.choice[now][:, None] > chance.cumsum(1)).sum(1).clip(max=SHOWN - 1)
        listed = self.listed[now] & (mass[:, 0] > 0)
        item[now[listed]] = offered[np.arange(len(now)), place][listed]
        recommended[now[listed]] = True

        chosen = np.where(real, drawn, 0)
        return {
            **self._spread(expected),
            "calibration": float(probability[real].sum() / truth[users[:, None], chosen][real].sum()),
            "tail_of_draws": float(self.tail[drawn[real]].mean()),
            "value": value,
            "lift_pct": 100 * (value / base - 1),
        }

    def _draws(
        self, arm: Arm, item: NDArray[np.int64], weight: NDArray[np.float64], begin: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Train the translator on the events before a time, and draw for every user at it: items, P and prior, [users, draws] each."""
        settings: Any = SimpleNamespace(
            translator=TranslatorSettings(**TRANSLATOR), histories=HistorySettings(), compute=ComputeSettings()
        )
        before, users = self.organic.time < begin, np.arange(self.world.users)
        # One more event for each user at the time of the draw, which training does not see, gives the draw's context.
        user, item_, at, weight = (
            np.concatenate(pair)
            for pair in (
                (self.organic.user[before], users),
                (item[before], np.zeros_like(users)),
                (self.organic.time[before], np.full(len(users), begin)),
                (weight[before], np.ones(len(users))),
            )
        )
        order = np.lexsort((at, user))
        logs = WorldLogs(self.world, self.logs.source, Events(user[order], item_[order], at[order]), self.logs.own)
        log = logs.log(length=settings.histories.length, folds=settings.translator.folds)
        if (weight != 1).any():
            log = replace(log, target=replace(log.target, weight=weight[order].astype(np.float32)))
        first = time_quantile(log.label_times()[log.label_times() < begin], 1 - settings.translator.validation_fraction)
        pairs = TrainingSlice.from_log(log, begin, settings.translator)
        shared_before, shared = fit_shared([calibration_slice(settings, log, first, begin), pairs])
        calibrated = fit_calibration(settings, shared_before, log.sample_users(settings.translator.folds), lambda _: None)
        tensors = fit_parameter_sets(pairs, {-1: np.zeros(len(users), dtype=bool)}, lambda _: None, shared=shared)
        module = TrainingModule(tensors | calibrated.tables, weights_metadata(settings, pairs, 0))
        rows = np.flatnonzero(log.target.time == begin)
        known = np.isin(users, self.organic.user[before])
        contexts, _ = contexts_and_labels(
            log,
            rows,
            source_index=pairs.source_index,
            target_index=pairs.target_index,
            fold=np.where(known, ALL_USERS, COLD_USERS).astype(np.int32),
        )
        limit = int(arm.ratio * before.sum() / len(users)) if arm.ratio else arm.draws
        count = min(arm.draws, max(limit, 1))
        explored = round(arm.exploration * count)
        samples = module.sample(contexts, count - explored, temperature=0.5)
        ids = np.zeros(pairs.n_target, dtype=np.int64)
        ids[pairs.target_index[pairs.target_index >= 0]] = np.flatnonzero(pairs.target_index >= 0)
        answers = [samples]
        if explored:
            answers.append(module.sample(contexts, explored, temperature=2.0, component="popularity"))
        drawn, probability, prior = (
            np.concatenate(columns, axis=1)
            for columns in zip(*((one.items, one.probabilities, one.prior) for one in answers), strict=True)
        )
        return np.where(drawn >= 0, ids[drawn], NO_ITEM), probability.astype(np.float64), prior.astype(np.float64)


def _kept_by_alignment(drawn: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which draws stay once their popularity is as that of real events: [users, draws]; ``counts`` are each item's real events."""
    buckets = GenerationSettings().align_buckets
    bucket = popularity_buckets(counts, buckets)
    of_draw = bucket[np.where(drawn != NO_ITEM, drawn, 0)]
    found = np.bincount(of_draw[drawn != NO_ITEM], minlength=buckets)
    kept = keep_counts(found, bucket_shares(counts, bucket, buckets)) / np.maximum(found, 1)
    is_kept: NDArray[np.bool_] = np.random.default_rng(0).random(drawn.shape) < kept[of_draw]
    return is_kept


def _als(weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """Scores of ALS trained on summed weights: [users, items]."""
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy import sparse

    matrix = sparse.csr_matrix(weights, dtype=np.float32)
    matrix.data = 1 + 40 * matrix.data
    model = AlternatingLeastSquares(factors=32, alpha=1.0, regularization=1.0, iterations=10, num_threads=1, random_state=0)
    model.fit(matrix, show_progress=False)
    scores: NDArray[np.float32] = np.asarray(model.user_factors) @ np.asarray(model.item_factors).T
    return scores


def _top(scores: NDArray[np.float32], seen: NDArray[np.float64]) -> NDArray[np.int64]:
    """The items of the highest scores that a user has not had, best first: [users, SHOWN]."""
    found: NDArray[np.int64] = np.argsort(-np.where(seen > 0, -np.inf, scores), axis=1, kind="stable")[:, :SHOWN]
    return found


def main() -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    named = set(filter(None, os.environ.get("SCALR_BENCH_ARMS", "").split(",")))
    found: dict[str, Any] = json.loads(RESULT.read_text())["figures"] if named else {}
    for seed, names in enumerate((tuple(ARMS), REPEATED)):
        measured = _measured(seed, tuple(name for name in names if not named or name in named))
        found[f"world {seed}"] = found.get(f"world {seed}", {}) | measured
    return found


def _measured(seed: int, names: tuple[str, ...]) -> dict[str, Any]:
    loop = Loop(seed)
    found = {"undisturbed": _by_figure(loop.undisturbed())}
    for name in names:
        started = time.process_time()
        found[name] = _by_figure(loop.run(ARMS[name]))
        print(f"  world {seed}, {name}: {found[name]} ({time.process_time() - started:.0f} s)", file=sys.stderr, flush=True)
    return found


def _by_figure(rounds: list[dict[str, float]]) -> dict[str, list[float]]:
    return {key: [round(one[key], 4) for one in rounds] for key in rounds[0]}
