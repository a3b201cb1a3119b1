# SPDX-License-Identifier: Apache-2.0
"""Feature ranker: gradient-boosted trees (LightGBM) over point-in-time features of a user and an item, as a probability.

It is trained by log loss on every event and negatives sampled uniformly from the items known at that time, all with the event's weight. A
synthetic event is such a row, with weight λ times its confidence. It changes no feature of any row (see `feature_rows`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.errors import EvaluationError
from scalr_prod.evaluation.models.feature_rows import FeatureLog, WeightedRows, canonical_order
from scalr_prod.evaluation.models.snapshot import FEATURES
from scalr_prod.evaluation.search import HALF_LIFE, Hyperparameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.evaluation.interactions import Interactions
    from scalr_prod.evaluation.models.feature_rows import Shortlist


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureRankerHyperparameters:
    """Hyperparameters of `FeatureRanker`.

    Attributes:
        num_trees: Boosting rounds.
        num_leaves: Leaves per tree.
        learning_rate: Learning rate.
        negatives: Negatives per positive that the probabilities are calibrated for.
        sampled_negatives: Negatives that are sampled per observed positive, weighted to count as ``negatives``. For a synthetic event,
            of which there are many, one is sampled.
        min_sum_hessian: Minimum sum of weight × p (1 - p) in a leaf; so rows count by their weight, synthetic rows by λ.
        threads: Threads of LightGBM.
    """

    num_trees: int = 200
    num_leaves: int = 31
    learning_rate: float = 0.05
    negatives: int = 10
    sampled_negatives: int = 4
    min_sum_hessian: float = 100.0
    threads: int = 1


class FeatureRanker:
    """The feature ranker.

    Args:
        hyperparameters: Trees and negative sampling.
    """

    Hyperparameters: Final = FeatureRankerHyperparameters
    #: Hyperparameters tuned on validation for real events only, one after the other.
    search_space: Final = (
        Hyperparameter("min_sum_hessian", (100.0, 300.0), low=1.0),
        Hyperparameter("num_leaves", (31, 15), step=2.0, low=4, high=255, is_integer=True),
        Hyperparameter("num_trees", (200, 100), step=2.0, low=10, high=800, is_integer=True),
        HALF_LIFE,
    )

    #: Tuned by its probabilities rather than its rankings.
    selection_metric: Final = "information"
    #: Source events are already features, so there is no separate joint training.
    uses_source_events: Final = True

    def __init__(self, hyperparameters: FeatureRankerHyperparameters) -> None:
        self.hyperparameters, self.negatives = hyperparameters, hyperparameters.negatives
        self._options = boosting_options(
            num_leaves=hyperparameters.num_leaves,
            learning_rate=hyperparameters.learning_rate,
            min_sum_hessian=hyperparameters.min_sum_hessian,
            threads=hyperparameters.threads,
        )
        self._options |= {"feature_fraction": 0.8, "bagging_fraction": 0.8, "bagging_freq": 1}

    def fit(self, events: Interactions, *, seed: int) -> None:
        """Train; without rows to train on, such as without observed events, every pair gets the base rate."""
        lightgbm = load_lightgbm()
        n_sampled = self.hyperparameters.sampled_negatives
        self._trees = None
        self._shortlist_logits: dict[bytes, NDArray[np.float32]] = {}
        self._log = FeatureLog.from_events(events)
        observed = events.in_history()
        real = events.take(observed)
        observed_rows = self._log.observed_rows(n_sampled)
        parts = [observed_rows.with_weights(real.weight[canonical_order(real)], self.negatives / n_sampled)]
        if not observed.all():
            synthetic = events.take(~observed)
            parts.append(self._log.synthetic_rows(synthetic).with_weights(synthetic.weight, self.negatives))
        rows = WeightedRows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
        used = rows.weight > 0
        if not used.any():
            logger.warning(
                "the feature ranker has no training rows: no event is of an item that was observed in an earlier period"
            )
            return
        data = lightgbm.Dataset(rows.features[used], rows.label[used], weight=rows.weight[used], feature_name=list(FEATURES))
        self._trees = lightgbm.train(self._options | {"seed": seed}, data, self.hyperparameters.num_trees)

    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return logits of each user's shortlist, with all other items below by popularity: [B, n_items]."""
        shortlist = self.shortlist(users)
        return self.scatter_logits(len(users), shortlist, self.shortlist_logits(users))

    def shortlist(self, users: NDArray[np.int64]) -> Shortlist:
        """Return the items that the trees rank for each user, with their features; see `FeatureLog.shortlist`."""
        return self._log.shortlist(users)

    def shortlist_logits(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the logits of the users' shortlist, computed once per batch of users: float32 [R]."""
        key = users.tobytes()
        if key not in self._shortlist_logits:
            self._shortlist_logits[key] = self.logits(self.shortlist(users).features)
        return self._shortlist_logits[key]

    def scatter_logits(self, n_users: int, shortlist: Shortlist, logit: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return scores [n_users, n_items]: the shortlist's logits [R], with all other items below by popularity."""
        lowest = np.full(n_users, np.inf, np.float32)
        np.minimum.at(lowest, shortlist.row, logit)
        scores = lowest[:, None] - self._log.popularity_ranks()
        scores[shortlist.row, shortlist.item] = logit
        return scores

    def probability(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return P(positive) of pairs [P], at ``negatives`` uniform negatives per positive."""
        from scipy import special

        probability: NDArray[np.float32] = special.expit(self.logits(self.features(users, items)))
        return probability

    def features(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return features of pairs as of the end of training: float32 [P, F]."""
        return self._log.latest_snapshot().features(users, items)

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits of rows of features: float32 [R]."""
        if self._trees is None:
            return np.full(len(features), -np.log(self.negatives), np.float32)
        return np.asarray(self._trees.predict(features, raw_score=True), np.float32)


def boosting_options(*, num_leaves: int, learning_rate: float, min_sum_hessian: float, threads: int) -> dict[str, Any]:
    """Return LightGBM options for weighted log loss and deterministic trees."""
    return {
        "objective": "binary",
        "num_leaves": num_leaves,
        "learning_rate": learning_rate,
        "min_data_in_leaf": 1,
        "min_sum_hessian_in_leaf": min_sum_hessian,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": threads,
        "verbosity": -1,
    }


def load_lightgbm() -> Any:
    """Import and return LightGBM.

    Raises:
        EvaluationError: It cannot be loaded.
    """
    try:
        import lightgbm
    except (ImportError, OSError) as error:  # OSError: OpenMP's libgomp is missing
        raise EvaluationError(
            f"the library 'lightgbm' cannot be loaded ({error})",
            where="[downstream] models = feature_ranker or stacked_ranker",
            next_step="pip install 'scalr-prod[downstream]' (and libgomp1 of the system), or leave both out of the models",
        ) from error
    return lightgbm
