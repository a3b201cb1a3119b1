# SPDX-License-Identifier: Apache-2.0
"""A feature ranker that also knows a collaborative score: implicit ALS, stacked into boosted trees, as a probability.

What is run where a candidate's collaborative score is one more feature of a ranker. Both parts are fitted twice: on all events, to
score, and on those before an earlier instant, whose scores stand beside what users did after it. From these rows the last trees learn
how far each part can be trusted, for whom; nothing that a row's scores were fitted on is at or after its time.

Synthetic events are terms of the factorisation's loss. The ranker's rows and features are of real events alone.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from scalr_prod.downstream.models.als import ImplicitAls
from scalr_prod.downstream.models.feature_ranker import FeatureRanker, boosting_options, lightgbm_library
from scalr_prod.downstream.models.rows import Log, digest_of, in_order, once
from scalr_prod.downstream.models.snapshot import in_groups
from scalr_prod.downstream.protocol import Interactions
from scalr_prod.downstream.search import Knob

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.downstream.models.rows import Rows

__all__ = ["StackedRanker"]

_USERS_AT_ONCE: Final = 512
#: Rankers and rows that are kept, since all arms share them.
_KEPT: Final = 12


class StackedRanker:
    """The model.

    Args:
        smallest: Of the feature ranker (see `FeatureRanker`).
        factors: Of the factorisation, as its other options (see `ImplicitAls`).
        alpha: Likewise.
        regularization: Likewise.
        trees: Rounds of boosting on top of the feature ranker's logits; 0 is the feature ranker alone.
        leaves: Of such a tree.
        rate: Learning rate of these.
        least: Of a leaf of theirs: sum of weight × p (1 - p), at least.
        negatives: For each positive; its probabilities are calibrated for as many.
        threads: Of both libraries.
    """

    #: Tried on validation for real events alone, one after the other.
    knobs: Final = (
        Knob("smallest", (100.0, 300.0), low=1.0),
        Knob("least", (100.0, 300.0), low=1.0),
        *ImplicitAls.knobs,
        Knob("trees", (100, 0), step=2.0, high=400, whole=True),
    )

    #: Its probabilities are what it is for.
    chosen_by: Final = "information"
    #: It learns from `Interactions.before`.
    knows_before: Final = True

    _rankers: ClassVar[OrderedDict[bytes, FeatureRanker]] = OrderedDict()
    _rows: ClassVar[OrderedDict[bytes, Rows]] = OrderedDict()

    def __init__(
        self,
        *,
        smallest: float = 100.0,
        factors: int = 64,
        alpha: float = 40.0,
        regularization: float = 1.0,
        trees: int = 100,
        leaves: int = 8,
        rate: float = 0.05,
        least: float = 100.0,
        negatives: int = 10,
        threads: int = 1,
    ) -> None:
        self.negatives, self.trees = negatives, trees
        self._ranker_options: dict[str, Any] = {"smallest": smallest, "negatives": negatives, "threads": threads}
        self._als_options: dict[str, Any] = {
            "factors": factors,
            "alpha": alpha,
            "regularization": regularization,
            "threads": threads,
        }
        self._options = boosting_options(leaves=leaves, rate=rate, smallest=least, threads=threads)

    def fit(self, events: Interactions, *, seed: int) -> None:
        """Train; where nothing is known of an earlier instant, or nothing happened after it, the feature ranker alone scores.

        Args:
            events: With `Interactions.before`.
            seed: Of everything random.
        """
        lightgbm = lightgbm_library()
        real = _real(events)
        self._catalogue = real.n_items
        self._ranker = self._fitted_ranker(real, seed)
        self._als = self._factorised(events, seed)
        self._trees = None
        if events.before is None or not self.trees:
            return
        before = _real(events.before)
        rows = self._labelled(real, before)
        if not rows.label.any() or rows.label.all():
            return
        ranker, als = self._fitted_ranker(before, seed), self._factorised(events.before, seed)
        logit = ranker.logits(rows.features)
        users, place = np.unique(rows.user, return_inverse=True)
        data = lightgbm.Dataset(
            _stacked(rows.features, logit, self._of_pairs(als, users, place, rows.item)), rows.label, init_score=logit
        )
        self._trees = lightgbm.train(self._options | {"seed": seed}, data, self.trees)

    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """[B, n_items]: logits of each user's shortlist; below them the other items, by popularity."""
        row, item, features, logit = self._ranker.shortlist(users)
        return self._ranker.placed(len(users), row, item, self._logits(users, row, item, features, logit))

    def probability(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.float32]:
        """P(positive) of pairs [P], beside ``negatives`` uniform negatives for each positive."""
        from scipy import special

        people, place = np.unique(users, return_inverse=True)
        features = self._ranker.features(users, items)
        logit = self._ranker.logits(features)
        found: NDArray[np.float32] = special.expit(self._logits(people, place, items, features, logit))
        return found

    def _logits(
        self,
        users: NDArray[np.int64],
        place: NDArray[np.int64],
        item: NDArray[np.int64],
        features: NDArray[np.float32],
        logit: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """float32 [P]: of pairs of ``users[place]`` and ``item``, given the feature ranker's."""
        if self._trees is None:
            return logit
        stacked = _stacked(features, logit, self._of_pairs(self._als, users, place, item))
        return logit + np.asarray(self._trees.predict(stacked, raw_score=True), np.float32)

    def _of_pairs(
        self, als: ImplicitAls, users: NDArray[np.int64], place: NDArray[np.int64], item: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """float32 [P]: the factorisation's score, by how many standard deviations it is above the mean of the user's items."""
        found = np.empty(len(place), np.float32)
        for start, rows in in_groups(place, len(users), _USERS_AT_ONCE):
            scores = als.score(users[start : start + _USERS_AT_ONCE])[:, : self._catalogue]
            spread = scores.std(1, keepdims=True)
            standard = (scores - scores.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1)
            found[rows] = standard[place[rows] - start, item[rows]]
        return found

    def _factorised(self, events: Interactions, seed: int) -> ImplicitAls:
        als = ImplicitAls(**self._als_options)
        als.fit(events, seed=seed)
        return als

    def _fitted_ranker(self, real: Interactions, seed: int) -> FeatureRanker:
        """The feature ranker on real events, which are those of every arm."""

        def fit() -> FeatureRanker:
            ranker = FeatureRanker(**self._ranker_options)
            ranker.fit(real, seed=seed)
            return ranker

        return once(self._rankers, _key(self._ranker_options, seed, real), fit, most=_KEPT)

    def _labelled(self, real: Interactions, before: Interactions) -> Rows:
        """What users did after the earlier instant, each beside so many others that they did not, under the features of that instant."""
        after = real.take(real.time >= before.until)
        after = after.take(in_order(after))

        def make() -> Rows:
            rows = Log.of(before).rows(after, self.negatives, salt=2)
            pairs = np.unique(real.user.astype(np.int64) * real.n_items + real.item)
            return rows.take(rows.label | ~np.isin(rows.user * real.n_items + rows.item, pairs))

        return once(self._rows, _key(self.negatives, real, before), make, most=_KEPT)


def _real(events: Interactions) -> Interactions:
    """The observed events of target items, without what else there is."""
    count = events.n_items if events.catalogue is None else events.catalogue
    kept = events.take(events.in_history() & (events.item < count))
    return replace(kept, n_items=count, catalogue=None, before=None)


def _stacked(features: NDArray[np.float32], logit: NDArray[np.float32], score: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.column_stack([features, logit, score])


def _key(*parts: Any) -> bytes:
    """Of options, and of events with their weights and their source."""
    found = hashlib.blake2b()
    for part in parts:
        if not isinstance(part, Interactions):
            found.update(repr(part).encode())
            continue
        for events in (part, part.source):
            if events is not None:
                found.update(digest_of(events) + events.weight.tobytes())
    return found.digest()
