# SPDX-License-Identifier: Apache-2.0
"""What a downstream model is to the evaluation: three methods, or two.

A model of your own is a class with ``fit`` and ``score``; one that also gives probabilities is judged on them too. See
docs/evaluation.md for a whole one in under twenty lines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["DownstreamModel", "Interactions", "Probabilistic", "Scorer"]

#: Microseconds.
_DAY: Final = 86_400_000_000


@dataclass(frozen=True)
class Interactions:
    """Weighted training events of users and items that are numbered from 0.

    Attributes:
        user: int32 [M].
        item: int32 [M].
        time: int64 [M]. Microseconds since the epoch.
        weight: float32 [M]. 1 for a real event; λ times its confidence for a synthetic one.
        n_users: Users that may be asked about; some may have no event.
        n_items: Items to rank.
        until: The instant that training ends and scores are asked for, microseconds.
        observed: bool [M]. False for a synthetic event: it is a term of the loss and never part of a user's history. None: all
            events are observed.
        source: Observed events of the source domain up to `until`, users numbered alike, for a model that knows both domains; None
            where there are none.
        catalogue: Items from this number on are no target items: they are learned from, and neither ranked nor judged. None: all are.
        before: What the same arm trained on as of an earlier instant, users and items numbered alike, for a model that says so in
            ``knows_before``: it learns from this model's events after that instant how far scores of then can be trusted. Users whose
            target events were hidden there are cold in it.

    Raises:
        ValueError: Columns of unlike length, or a number out of range.
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
            raise ValueError("user, item, time, weight and observed are of unlike length")
        for name, numbers, limit in (("user", self.user, self.n_users), ("item", self.item, self.n_items)):
            if len(numbers) and (numbers.min() < 0 or numbers.max() >= limit):
                raise ValueError(f"{name} holds a number outside of 0 … {limit - 1}")

    def __len__(self) -> int:
        return len(self.user)

    def in_history(self) -> NDArray[np.bool_]:
        """bool [M]: which events may stand in a user's history when a model scores."""
        return np.ones(len(self.user), dtype=bool) if self.observed is None else self.observed

    def synthetic(self) -> Self:
        """The same events as terms of the loss alone."""
        return replace(self, observed=np.zeros(len(self), dtype=bool))

    def take(self, rows: NDArray[Any]) -> Self:
        """The named rows (numbers or a mask).

        Args:
            rows: Positions (int [R]) or a mask (bool [M]).

        Returns:
            Those rows; users and items keep their numbers.
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
        """Each observed event's weight halved for every ``half_life_days`` before `until`; synthetic weights stay as they are.

        Args:
            half_life_days: Days after which an event counts half; more than 0.

        Returns:
            The same rows with other weights.
        """
        age = (self.until - self.time) / _DAY
        factor = np.where(self.in_history(), np.exp2(-age / half_life_days), 1.0)
        return replace(self, weight=(self.weight * factor).astype(np.float32))

    def weighted(self, factor: NDArray[np.float32] | float) -> Self:
        """Every weight times a factor; rows that come to 0 are left out.

        Args:
            factor: By which every weight is multiplied, 0 or more.

        Returns:
            The rows that still weigh something.
        """
        weight = (self.weight * factor).astype(np.float32)
        return replace(self, weight=weight).take(weight > 0)

    def joined(self, others: Sequence[Interactions]) -> Self:
        """These events and the others', in that order; users and items are numbered alike.

        Args:
            others: Events of the same users and items.

        Returns:
            All rows of both.
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
        """scipy CSR float32 [n_users, n_items]: the sum of the weights of each (user, item)."""
        from scipy import sparse

        cells = (self.weight, (self.user, self.item))
        return sparse.csr_matrix(cells, shape=(self.n_users, self.n_items), dtype=np.float32)

    def popularity(self) -> NDArray[np.float64]:
        """float64 [n_items]: the sum of the weights of each item."""
        return np.bincount(self.item, weights=self.weight, minlength=self.n_items).astype(np.float64)


class Scorer(Protocol):
    """What can rank."""

    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores of all items for users [B], the higher the better: [B, n_items]. Users without events get some score too."""


class DownstreamModel(Scorer, Protocol):
    """A model under test."""

    def fit(self, events: Interactions, *, seed: int) -> None:
        """Learn from weighted events; the same events and seed give the same model.

        Args:
            events: Users, items, times and weights.
            seed: Of everything random.
        """


@runtime_checkable
class Probabilistic(Protocol):
    """A model that also says how likely a pair is, beside as many negatives as it was trained with."""

    #: Negatives for each positive, drawn uniformly, that its probabilities are calibrated for.
    negatives: int

    def probability(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.float32]:
        """P(positive) of pairs [P]."""
