# SPDX-License-Identifier: Apache-2.0
"""Requests to a scorer and its answers: arrays that travel unchanged from Dask through gRPC into the module.

A *context* is one source event to translate, with the history that leads up to it. Only numpy is imported, since this file also
runs in the serving environment.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


#: Source vocabulary index of padding, and of items that training did not know.
PADDING: Final = 0
#: Target vocabulary index of "no item".
NO_ITEM: Final = -1
#: ``Contexts.fold`` of the parameters trained on every user, with the weights for users whose target events they have seen.
ALL_USERS: Final = -1
#: The same parameters with the weights for users without target events, none of which they were trained on.
COLD_USERS: Final = -2

_RowIndex: TypeAlias = "slice | NDArray[Any]"


class _Rows:
    """Row-wise behaviour of a frozen dataclass of arrays whose first axis is the batch."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))  # type: ignore[arg-type]  # every subclass is a dataclass

    def slice(self, start: int, stop: int) -> Self:
        """Return rows ``start`` to ``stop`` (half-open) as views."""
        return self.take(np.s_[start:stop])

    def take(self, rows: _RowIndex) -> Self:
        """Return the given rows, in that order."""
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]  # as above
        return type(self)(**{name: getattr(self, name)[rows] for name in names})


@dataclass(frozen=True)
class ConsumedItems:
    """Items that each of B contexts must not propose, as ranges of one array: a user's items are stored once for all contexts.

    Attributes:
        items: int32 [N]. Target indices; ``NO_ITEM`` for an item that the translator does not know.
        begin: int64 [B]. Position of each context's first item in ``items``.
        count: int64 [B]. Number of each context's items.
    """

    items: NDArray[np.int32]
    begin: NDArray[np.int64]
    count: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.begin)

    def __getitem__(self, rows: _RowIndex) -> ConsumedItems:
        return ConsumedItems(self.items, self.begin[rows], self.count[rows])

    def to_matrix(self) -> NDArray[np.int32]:
        """Return each context's items, padded on the right with ``NO_ITEM`` to the widest: int32 [B, E]."""
        exclude = np.full((len(self), int(self.count.max(initial=0))), NO_ITEM, dtype=np.int32)
        row = np.repeat(np.arange(len(self)), self.count)
        column = np.arange(len(row)) - np.repeat(np.cumsum(self.count) - self.count, self.count)
        exclude[row, column] = self.items[self.begin[row] + column]
        return exclude


@dataclass(frozen=True)
class Contexts(_Rows):
    """A batch of B source events to translate; L is the length of histories, E the width of the exclusion list (may be 0).

    Attributes:
        history_items: int32 [B, L]. Source vocabulary indices from 1, ``PADDING`` on the left; the event to translate is last.
        history_ages: float32 [B, L]. Days from each event to the event to translate; 0 for that event and for padding.
        history_end: int64 [B]. Time of the event to translate, microseconds since the epoch; ``event_time`` or earlier.
        event_time: int64 [B]. Microseconds since the epoch; a target item is eligible iff it was first seen strictly before.
        fold: int32 [B]. Selects the parameters that never saw the target events of this fold's users; or `ALL_USERS`, or `COLD_USERS`.
        noise_key: int64 [B]. Sampling noise is a pure function of this key and the target item's index.
        exclude: Target indices never to propose: int32 [B, E], ``NO_ITEM`` as padding; or `ConsumedItems`, where a matrix would be too
            large.

    Raises:
        ValueError: A wrong shape or dtype.
    """

    history_items: NDArray[np.int32]
    history_ages: NDArray[np.float32]
    history_end: NDArray[np.int64]
    event_time: NDArray[np.int64]
    fold: NDArray[np.int32]
    noise_key: NDArray[np.int64]
    exclude: NDArray[np.int32] | ConsumedItems

    def __post_init__(self) -> None:
        rows = len(self.history_items)
        _check("history_items", self.history_items, np.int32, (rows, None))
        _check("history_ages", self.history_ages, np.float32, self.history_items.shape)
        _check("history_end", self.history_end, np.int64, (rows,))
        _check("event_time", self.event_time, np.int64, (rows,))
        _check("fold", self.fold, np.int32, (rows,))
        _check("noise_key", self.noise_key, np.int64, (rows,))
        if isinstance(self.exclude, ConsumedItems):
            _check("exclude", self.exclude.begin, np.int64, (rows,))
        else:
            _check("exclude", self.exclude, np.int32, (rows, None))

    def has_known_items(self) -> NDArray[np.bool_]:
        """Return whether each history holds an item known in training: bool [B]."""
        return np.asarray((self.history_items > PADDING).any(axis=1))

    def exclude_matrix(self) -> NDArray[np.int32]:
        """Return ``exclude`` as a matrix: int32 [B, E]."""
        return self.exclude.to_matrix() if isinstance(self.exclude, ConsumedItems) else self.exclude

    @classmethod
    def concat(cls, batches: Sequence[Contexts]) -> Contexts:
        """Concatenate the rows; histories are padded on the left, exclusions on the right, to the widest batch."""
        length = max(batch.history_items.shape[1] for batch in batches)
        excluded = [batch.exclude_matrix() for batch in batches]
        width = max(matrix.shape[1] for matrix in excluded)
        return cls(
            history_items=np.concatenate([_pad(batch.history_items, length, PADDING, left=True) for batch in batches]),
            history_ages=np.concatenate([_pad(batch.history_ages, length, 0, left=True) for batch in batches]),
            history_end=np.concatenate([batch.history_end for batch in batches]),
            event_time=np.concatenate([batch.event_time for batch in batches]),
            fold=np.concatenate([batch.fold for batch in batches]),
            noise_key=np.concatenate([batch.noise_key for batch in batches]),
            exclude=np.concatenate([_pad(matrix, width, NO_ITEM, left=False) for matrix in excluded]),
        )


@dataclass(frozen=True)
class Samples(_Rows):
    """K items drawn without replacement for each of B contexts, in order of their perturbed log-probabilities.

    Attributes:
        items: int32 [B, K]. Target indices; ``NO_ITEM`` where the draw fell below ``min_lift`` (its probability is kept) or
            where no eligible item was left (probability 0).
        probabilities: float32 [B, K]. Calibrated P(item | context) over the items that may be proposed, before the temperature.
        prior: float32 [B, K]. Popularity's P(item) over the same items.

    Raises:
        ValueError: A wrong shape or dtype.
    """

    items: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    prior: NDArray[np.float32]

    def __post_init__(self) -> None:
        _check("items", self.items, np.int32, (len(self.items), None))
        _check("probabilities", self.probabilities, np.float32, self.items.shape)
        _check("prior", self.prior, np.float32, self.items.shape)

    @classmethod
    def concat(cls, batches: Sequence[Samples]) -> Samples:
        """Concatenate the rows; all batches must have the same number of draws."""
        return cls(
            items=np.concatenate([batch.items for batch in batches]),
            probabilities=np.concatenate([batch.probabilities for batch in batches]),
            prior=np.concatenate([batch.prior for batch in batches]),
        )

    def padded(self, k: int) -> Samples:
        """Return K draws per context, the additional ones with no item left."""
        if k == self.items.shape[1]:
            return self
        fillers = {"items": NO_ITEM, "probabilities": 0, "prior": 0}
        return Samples(**{name: _pad(getattr(self, name), k, filler, left=False) for name, filler in fillers.items()})


def _check(name: str, array: NDArray[Any], dtype: type[np.generic], shape: tuple[int | None, ...]) -> None:
    if array.dtype != dtype:
        raise ValueError(f"{name} contains {array.dtype}, expected {np.dtype(dtype)}")
    if array.ndim != len(shape) or any(want not in {None, got} for want, got in zip(shape, array.shape, strict=True)):
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")


def _pad(array: NDArray[Any], width: int, filler: int, *, left: bool) -> NDArray[Any]:
    missing = width - array.shape[1]
    sides = (missing, 0) if left else (0, missing)
    return np.pad(array, ((0, 0), sides), constant_values=filler)
