# SPDX-License-Identifier: Apache-2.0
"""A feature ranker: gradient-boosted trees (LightGBM) over features of a user and an item as of a time, as a probability.

Every event stands beside negatives drawn uniformly from the items known by then, all with the event's weight, under log loss. A
synthetic event is such a row, with weight λ times its confidence. It changes no feature of any row (see `rows`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.errors import EvaluationError
from scalr_prod.evaluation.models.feature_rows import FeatureLog, canonical_order
from scalr_prod.evaluation.models.snapshot import FEATURES
from scalr_prod.evaluation.search import HALF_LIFE, Hyperparameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.evaluation.interactions import Interactions

__all__ = ["FeatureRanker", "boosting_options", "load_lightgbm"]

logger = logging.getLogger(__name__)


class FeatureRanker:
    """The model.

    Args:
        trees: Rounds of boosting.
        leaves: Of a tree.
        rate: Learning rate.
        negatives: For each positive; its probabilities are calibrated for as many.
        drawn: Negatives that are really drawn for each positive; they weigh as many as ``negatives``. For a synthetic event, of which
            there are many, one is drawn.
        smallest: Of a leaf: sum of weight × p (1 - p), at least; so a row counts as its weight does, a synthetic one as λ does.
        threads: Of LightGBM.
    """

    #: Tried on validation for real events alone, one after the other.
    knobs: Final = (
        Hyperparameter("smallest", (100.0, 300.0), low=1.0),
        Hyperparameter("leaves", (31, 15), step=2.0, low=4, high=255, is_integer=True),
        Hyperparameter("trees", (200, 100), step=2.0, low=10, high=800, is_integer=True),
        HALF_LIFE,
    )

    #: Its probabilities are what it is for.
    chosen_by: Final = "information"
    #: Source events are features already, so that fitting it on both domains' events is no rival of its own.
    knows_source: Final = True

    def __init__(
        self,
        *,
        trees: int = 200,
        leaves: int = 31,
        rate: float = 0.05,
        negatives: int = 10,
        drawn: int = 4,
        smallest: float = 100.0,
        threads: int = 1,
    ) -> None:
        self.trees, self.negatives, self.drawn = trees, negatives, drawn
        self._options = boosting_options(leaves=leaves, rate=rate, smallest=smallest, threads=threads)
        self._options |= {"feature_fraction": 0.8, "bagging_fraction": 0.8, "bagging_freq": 1}

    def fit(self, events: Interactions, *, seed: int) -> None:
        """Train; without a row to train on, as where no event is observed, every pair is as likely as the base rate."""
        lightgbm = load_lightgbm()
        self._trees = None
        self._ranked: dict[bytes, NDArray[np.float32]] = {}
        self._log = FeatureLog.from_events(events)
        observed = events.in_history()
        real = events.take(observed)
        parts = [
            self._log.observed_rows(self.drawn).with_weights(real.weight[canonical_order(real)], self.negatives / self.drawn)
        ]
        if not observed.all():
            extra = events.take(~observed)
            parts.append(self._log.synthetic_rows(extra).with_weights(extra.weight, self.negatives))
        features, label, weight = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        used = weight > 0
        if not used.any():
            logger.warning(
                "the feature ranker learns nothing: no event is of an item that observed events of an earlier period know"
            )
            return
        data = lightgbm.Dataset(features[used], label[used], weight=weight[used], feature_name=list(FEATURES))
        self._trees = lightgbm.train(self._options | {"seed": seed}, data, self.trees)

    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """[B, n_items]: logits of each user's shortlist; below them the other items, by popularity."""
        row, item, _, logit = self.shortlist(users)
        return self.scatter_logits(len(users), row, item, logit)

    def shortlist(
        self, users: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        """Rows (places in ``users``), items, features and logits of what is ranked for users; see `FeatureLog.shortlist`."""
        row, item, features = self._log.shortlist(users)
        key = users.tobytes()
        if key not in self._ranked:
            self._ranked[key] = self.logits(features)
        return row, item, features, self._ranked[key]

    def scatter_logits(
        self, count: int, row: NDArray[np.int64], item: NDArray[np.int64], logit: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """[B, n_items]: a shortlist's logits in their places, and below them the other items, by popularity."""
        least = np.full(count, np.inf, np.float32)
        np.minimum.at(least, row, logit)
        found = least[:, None] - self._log.popularity_ranks()
        found[row, item] = logit
        return found

    def probability(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.float32]:
        """P(positive) of pairs [P], beside ``negatives`` uniform negatives for each positive."""
        from scipy import special

        found: NDArray[np.float32] = special.expit(self.logits(self.features(users, items)))
        return found

    def features(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32 [P, F]: of pairs, as of the end of training."""
        return self._log.latest_snapshot().features(users, items)

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [R]: of rows of features, as `probability` has them."""
        if self._trees is None:
            return np.full(len(features), -np.log(self.negatives), np.float32)
        return np.asarray(self._trees.predict(features, raw_score=True), np.float32)


def boosting_options(*, leaves: int, rate: float, smallest: float, threads: int) -> dict[str, Any]:
    """LightGBM's options for log loss, where a row counts as its weight does, and the same rows give the same trees."""
    return {
        "objective": "binary",
        "num_leaves": leaves,
        "learning_rate": rate,
        "min_data_in_leaf": 1,
        "min_sum_hessian_in_leaf": smallest,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": threads,
        "verbosity": -1,
    }


def load_lightgbm() -> Any:
    """The module.

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
