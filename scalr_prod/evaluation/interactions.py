# SPDX-License-Identifier: Apache-2.0
"""Interface of downstream models, and the weighted interactions on which they train.

A custom model is a class with ``fit`` and ``score``. With a ``probability`` method it is evaluated on probabilities as well. See
docs/guides/evaluation.md for a complete example in under twenty lines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import numpy as np

from scalr_prod.core.timestamps import DAY_US

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Interactions:
    """Weighted training events; users and items are numbered from 0.

    Attributes:
        user: int32 [M].
        item: int32 [M].
        time: int64 [M]. Microseconds since the epoch.
        weight: float32 [M]. 1 for a real event; λ times its confidence for a synthetic one.
        n_users: Number of users to score; some may have no event.
        n_items: Number of items.
        until: End of training and time of scoring, microseconds since the epoch.
        observed: bool [M]. False for a synthetic event: it enters the loss but never a user's history. None: all events are observed.
        source: Observed events of the source domain up to `until`, with the same user numbers, for models that use both domains; None
            if there are none.
        catalogue: Number of target items. Higher item numbers are source items: they are learned from, but neither ranked nor
            evaluated. None: all items are target items.
        before: The same arm's training events as of an earlier instant, with the same user and item numbers, for models that set
            ``uses_earlier_events``. Such a model fits scores on them, and learns from the events after that instant how far to trust those
            scores. Users whose target events were hidden there are cold in it.

    Raises:
        ValueError: Columns differ in length, or a number is out of range.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    time: NDArray[np.int64]
    weight: NDArray[np.float32]
    n_users: int
    n_items: int
    until: int
    observed: NDArray[np.bool_] | None = None
    source: Interactions | None = None
    catalogue: int | None = None
    before: Interactions | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.user), len(self.item), len(self.time), len(self.weight), len(self.in_history())}
        if len(lengths) != 1:
            raise ValueError("user, item, time, weight and observed differ in length")
        for name, numbers, limit in (("user", self.user, self.n_users), ("item", self.item, self.n_items)):
            if len(numbers) and (numbers.min() < 0 or numbers.max() >= limit):
                raise ValueError(f"{name} contains a number outside 0 … {limit - 1}")

    def __len__(self) -> int:
        return len(self.user)

    def in_history(self) -> NDArray[np.bool_]:
        """Return which events belong to users' histories when a model scores: bool [M]."""
        return np.ones(len(self.user), dtype=bool) if self.observed is None else self.observed

    def synthetic(self) -> Self:
        """Return the same events marked as synthetic: terms of the loss alone."""
        return replace(self, observed=np.zeros(len(self), dtype=bool))

    def take(self, rows: NDArray[Any]) -> Self:
        """Select rows.

        Args:
            rows: Positions (int [R]) or a mask (bool [M]).

        Returns:
            The selected rows; users and items keep their numbers.
        """
        return replace(
            self,
            user=self.user[rows],
            item=self.item[rows],
            time=self.time[rows],
            weight=self.weight[rows],
            observed=None if self.observed is None else self.observed[rows],
        )

    def decayed(self, half_life_days: float) -> Self:
        """Decay observed weights by half for every ``half_life_days`` before `until`; synthetic weights stay unchanged.

        Args:
            half_life_days: Half-life in days; more than 0.

        Returns:
            The same rows with decayed weights.
        """
        age = (self.until - self.time) / DAY_US
        factor = np.where(self.in_history(), np.exp2(-age / half_life_days), 1.0)
        return replace(self, weight=(self.weight * factor).astype(np.float32))

    def weighted(self, factor: NDArray[np.float32] | float) -> Self:
        """Multiply weights by a factor and drop rows of weight 0.

        Args:
            factor: 0 or more; one number, or one per row.

        Returns:
            The rows of positive weight.
        """
        weight = (self.weight * factor).astype(np.float32)
        return replace(self, weight=weight).take(weight > 0)

    def joined(self, others: Sequence[Interactions]) -> Self:
        """Concatenate these events and others that share user and item numbers.

        Args:
            others: Events of the same users and items.

        Returns:
            All rows, these first.
        """
        parts: list[Interactions] = [self, *others]
        return replace(
            self,
            user=np.concatenate([part.user for part in parts]),
            item=np.concatenate([part.item for part in parts]),
            time=np.concatenate([part.time for part in parts]),
            weight=np.concatenate([part.weight for part in parts]),
            observed=None
            if all(part.observed is None for part in parts)
            else np.concatenate([part.in_history() for part in parts]),
        )

    def matrix(self) -> Any:
        """Return the summed weight of each (user, item): scipy CSR float32 [n_users, n_items]."""
        from scipy import sparse

        cells = (self.weight, (self.user, self.item))
        return sparse.csr_matrix(cells, shape=(self.n_users, self.n_items), dtype=np.float32)

    def popularity(self) -> NDArray[np.float64]:
        """Return the summed weight of each item: float64 [n_items]."""
        return np.bincount(self.item, weights=self.weight, minlength=self.n_items).astype(np.float64)


@dataclass(frozen=True)
class TrainingSetEvents:
    """Events of a training set.

    Attributes:
        real: Real events.
        synthetic: Synthetic events, weighted by confidence without λ.
    """

    real: Interactions
    synthetic: Interactions


class ItemScorer(Protocol):
    """Anything that scores items for users."""

    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return scores of all items for users [B], higher is better: [B, n_items]. Users without events get scores too."""


class DownstreamModel(ItemScorer, Protocol):
    """A recommender that can be trained and evaluated."""

    def fit(self, events: Interactions, *, seed: int) -> None:
        """Train on weighted events; the same events and seed give the same model.

        Args:
            events: Users, items, times and weights.
            seed: Seed of all randomness.
        """


@runtime_checkable
class ProbabilisticModel(Protocol):
    """A model that also gives the probability of a pair, at the ratio of negatives with which it was trained."""

    #: Uniformly drawn negatives per positive that its probabilities are calibrated for.
    negatives: int

    def probability(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return P(positive) of pairs [P]."""
