# SPDX-License-Identifier: Apache-2.0
"""Stacked ranker: boosted trees over the feature ranker's logit and an implicit ALS score, as a probability.

It follows the common design in which a collaborative score is a feature of a ranker. Both parts are fitted twice: on all events, for
scoring, and on those before an earlier time. The stacking trees learn from the earlier fit's scores, labelled by later events, how far to
trust each part for which users. So no row's scores come from events at or after its time.

Synthetic events enter only the factorisation's loss. The ranker's rows and features come from real events only.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from scalr_prod.evaluation.interactions import Interactions
from scalr_prod.evaluation.models.als import AlsHyperparameters, ImplicitAls
from scalr_prod.evaluation.models.feature_ranker import (
    FeatureRanker,
    FeatureRankerHyperparameters,
    boosting_options,
    load_lightgbm,
)
from scalr_prod.evaluation.models.feature_rows import FeatureLog, Shortlist, cached_value, canonical_order, events_digest
from scalr_prod.evaluation.models.snapshot import iter_user_batches
from scalr_prod.evaluation.search import Hyperparameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.evaluation.models.feature_rows import FeatureRows


_USER_BATCH: Final = 512
#: Number of cached rankers and row sets, which all arms share.
_MAX_CACHED: Final = 12


@dataclass(frozen=True)
class StackedRankerHyperparameters:
    """Hyperparameters of `StackedRanker`.

    Attributes:
        min_sum_hessian: Option of the feature ranker (see `FeatureRanker`).
        factors: Option of the factorisation (see `ImplicitAls`).
        alpha: Option of the factorisation.
        regularization: Option of the factorisation.
        stacking_trees: Boosting rounds on top of the feature ranker's logits; 0 is the feature ranker alone.
        stacking_leaves: Leaves per stacking tree.
        stacking_rate: Learning rate of the stacking trees.
        stacking_min_sum_hessian: Minimum sum of weight × p (1 - p) in a leaf of a stacking tree.
        negatives: Negatives per positive; probabilities are calibrated for this ratio.
        threads: Threads of both libraries.
    """

    min_sum_hessian: float = 100.0
    factors: int = 64
    alpha: float = 40.0
    regularization: float = 1.0
    stacking_trees: int = 100
    stacking_leaves: int = 8
    stacking_rate: float = 0.05
    stacking_min_sum_hessian: float = 100.0
    negatives: int = 10
    threads: int = 1

    @property
    def ranker(self) -> FeatureRankerHyperparameters:
        """Hyperparameters of the feature ranker."""
        return FeatureRankerHyperparameters(
            min_sum_hessian=self.min_sum_hessian, negatives=self.negatives, threads=self.threads
        )

    @property
    def als(self) -> AlsHyperparameters:
        """Hyperparameters of the factorisation."""
        return AlsHyperparameters(self.factors, self.alpha, self.regularization, threads=self.threads)


class StackedRanker:
    """The stacked ranker.

    Args:
        hyperparameters: Those of both parts and of the stacking trees.
    """

    Hyperparameters: Final = StackedRankerHyperparameters
    #: Hyperparameters tuned on validation for real events only, one after the other.
    search_space: Final = (
        Hyperparameter("min_sum_hessian", (100.0, 300.0), low=1.0),
        Hyperparameter("stacking_min_sum_hessian", (100.0, 300.0), low=1.0),
        *ImplicitAls.search_space,
        Hyperparameter("stacking_trees", (100, 0), step=2.0, high=400, is_integer=True),
    )

    #: Tuned by its probabilities rather than its rankings.
    selection_metric: Final = "information"
    #: Uses `Interactions.before`.
    uses_earlier_events: Final = True

    _ranker_cache: ClassVar[OrderedDict[bytes, FeatureRanker]] = OrderedDict()
    _row_cache: ClassVar[OrderedDict[bytes, FeatureRows]] = OrderedDict()

    def __init__(self, hyperparameters: StackedRankerHyperparameters) -> None:
        self.hyperparameters, self.negatives = hyperparameters, hyperparameters.negatives
        self._options = boosting_options(
            num_leaves=hyperparameters.stacking_leaves,
            learning_rate=hyperparameters.stacking_rate,
            min_sum_hessian=hyperparameters.stacking_min_sum_hessian,
            threads=hyperparameters.threads,
        )

    def fit(self, events: Interactions, *, seed: int) -> None:
        """Train the model; without earlier events, or without labels after them, the feature ranker alone scores.

        Args:
            events: Training events with `Interactions.before`.
            seed: Seed of all randomness.
        """
        lightgbm = load_lightgbm()
        real = _observed_target_events(events)
        self._n_items = real.n_items
        self._ranker = self._fit_ranker(real, seed)
        self._als = self._fit_als(events, seed)
        self._trees = None
        if events.before is None or not self.hyperparameters.stacking_trees:
            return
        before = _observed_target_events(events.before)
        rows = self._labelled_rows(real, before)
        if not rows.label.any() or rows.label.all():
            return
        ranker, als = self._fit_ranker(before, seed), self._fit_als(events.before, seed)
        logit = ranker.logits(rows.features)
        users, user_index = np.unique(rows.user, return_inverse=True)
        scores = self._pair_scores(als, users, user_index, rows.item)
        data = lightgbm.Dataset(np.column_stack([rows.features, logit, scores]), rows.label, init_score=logit)
        self._trees = lightgbm.train(self._options | {"seed": seed}, data, self.hyperparameters.stacking_trees)

    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return logits of each user's shortlist, with all other items below by popularity: [B, n_items]."""
        shortlist = self._ranker.shortlist(users)
        logit = self._stacked_logits(users, shortlist, self._ranker.shortlist_logits(users))
        return self._ranker.scatter_logits(len(users), shortlist, logit)

    def probability(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return P(positive) of pairs [P], at ``negatives`` uniform negatives per positive."""
        from scipy import special

        unique_users, user_index = np.unique(users, return_inverse=True)
        pairs = Shortlist(user_index, items, self._ranker.features(users, items))
        logit = self._stacked_logits(unique_users, pairs, self._ranker.logits(pairs.features))
        probability: NDArray[np.float32] = special.expit(logit)
        return probability

    def _stacked_logits(self, users: NDArray[np.int64], pairs: Shortlist, logit: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits of pairs of users, given the feature ranker's logits: float32 [R]."""
        if self._trees is None:
            return logit
        scores = self._pair_scores(self._als, users, pairs.row, pairs.item)
        stacked = np.column_stack([pairs.features, logit, scores])
        return logit + np.asarray(self._trees.predict(stacked, raw_score=True), np.float32)

    def _pair_scores(
        self, als: ImplicitAls, users: NDArray[np.int64], user_index: NDArray[np.int64], item: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the factorisation's scores of pairs ``(users[user_index], item)``, standardised per user: float32 [P]."""
        pair_scores = np.empty(len(user_index), np.float32)
        for start, rows in iter_user_batches(user_index, len(users), _USER_BATCH):
            scores = als.score(users[start : start + _USER_BATCH])[:, : self._n_items]
            spread = scores.std(1, keepdims=True)
            standardised = (scores - scores.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1)
            pair_scores[rows] = standardised[user_index[rows] - start, item[rows]]
        return pair_scores

    def _fit_als(self, events: Interactions, seed: int) -> ImplicitAls:
        als = ImplicitAls(self.hyperparameters.als)
        als.fit(events, seed=seed)
        return als

    def _fit_ranker(self, real: Interactions, seed: int) -> FeatureRanker:
        """Return the feature ranker fitted on real events, cached since all arms share it."""
        hyperparameters = self.hyperparameters.ranker

        def fit() -> FeatureRanker:
            ranker = FeatureRanker(hyperparameters)
            ranker.fit(real, seed=seed)
            return ranker

        return cached_value(self._ranker_cache, _cache_key(hyperparameters, seed, real), fit, max_entries=_MAX_CACHED)

    def _labelled_rows(self, real: Interactions, before: Interactions) -> FeatureRows:
        """Return events after the earlier time with sampled negatives, and features as of that time."""
        after = real.take(real.time >= before.until)
        after = after.take(canonical_order(after))

        def build() -> FeatureRows:
            rows = FeatureLog.from_events(before).build_rows(after, self.negatives, salt=2)
            pairs = np.unique(real.user.astype(np.int64) * real.n_items + real.item)
            return rows.take(rows.label | ~np.isin(rows.user * real.n_items + rows.item, pairs))

        return cached_value(self._row_cache, _cache_key(self.negatives, real, before), build, max_entries=_MAX_CACHED)


def _observed_target_events(events: Interactions) -> Interactions:
    """Return the observed events of target items only."""
    count = events.n_items if events.catalogue is None else events.catalogue
    observed = events.take(events.in_history() & (events.item < count))
    return replace(observed, n_items=count, catalogue=None, before=None)


def _cache_key(*parts: Any) -> bytes:
    """Return a cache key of options and of events with their weights and source events."""
    digest = hashlib.blake2b()
    for part in parts:
        if not isinstance(part, Interactions):
            digest.update(repr(part).encode())
            continue
        for events in (part, part.source):
            if events is not None:
                digest.update(events_digest(events) + events.weight.tobytes())
    return digest.digest()
