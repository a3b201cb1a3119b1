# SPDX-License-Identifier: Apache-2.0
"""Requests to a translator, and their validation before values become tensors.

An index outside a table raises IndexError on a CPU, but ends the process on a GPU, and with it every waiting request. The same checks run
in-process and inside Triton. Only numpy is imported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.errors import InvalidRequest
from scalr_prod.translator.data.contexts import COLD_USERS, NO_ITEM, PADDING

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.translator.data.contexts import Contexts


#: Times lie within this many microseconds of the epoch (146 000 years): larger values come from a NaT or an infinity, and
#: their differences overflow.
MAX_ABS_TIME_US: Final = 2**62
_NEXT_STEP: Final = "correct the request: indices are those of this version's vocabulary (its two Parquet files)"


@dataclass(frozen=True)
class SampleRequest:
    """Parameters of a draw; see `TranslatorModule.sample`.

    Attributes:
        k: Draws per context.
        temperature: Items are drawn in proportion to P^(1 / temperature).
        min_lift: Minimum ratio of P(i | context) to the prior P(i) of a draw.
        component: ``mixture``, or the name of one estimator.
        shortlist: Number of items to score per context; None: all.
    """

    k: int
    temperature: float
    min_lift: float
    component: str
    shortlist: int | None = None

    @property
    def components(self) -> tuple[str, ...]:
        """Return the components whose distributions the draw needs: the prior and ``component``."""
        return tuple(dict.fromkeys(("popularity", self.component)))


@dataclass(frozen=True)
class RequestBounds:
    """Sizes of a translator's tables.

    Attributes:
        n_source: Source items: ``history_items`` holds 0 (padding) to ``n_source``.
        n_target: Target items: ``exclude`` and ``candidates`` hold -1 (none) to ``n_target - 1``.
        folds: ``fold`` holds -2 (`COLD_USERS`), -1 (`ALL_USERS`) or 0 to ``folds - 1``.
    """

    n_source: int
    n_target: int
    folds: int

    def check_contexts(self, contexts: Contexts) -> None:
        """Check every value of the contexts.

        Raises:
            InvalidRequest: A value is out of range; names the array, the value and its limits.
        """
        if not contexts.history_items.shape[1]:
            raise _invalid("history_items is empty: its last event is the one to translate")
        _check_range("history_items", contexts.history_items, PADDING, self.n_source)
        _check_range("exclude", contexts.exclude_matrix(), NO_ITEM, self.n_target - 1)
        for name in ("history_end", "event_time"):
            _check_range(name, getattr(contexts, name), -MAX_ABS_TIME_US, MAX_ABS_TIME_US)
        unknown = (contexts.fold < COLD_USERS) | (contexts.fold >= self.folds)
        if unknown.any():
            raise _invalid(f"a context has fold {contexts.fold[unknown][0]}; this translator has {self.folds} folds")
        ages = contexts.history_ages
        if not np.isfinite(ages).all():
            raise _invalid("history_ages holds a value that is not finite")
        if ages.size and ages.min() < 0:
            raise _invalid("history_ages holds a negative value: the event to translate is the last of a history")

    def check_candidates(self, candidates: NDArray[Any], rows: int) -> None:
        """Check that the candidates are int32 [rows, C], each a target item or `NO_ITEM`.

        Raises:
            InvalidRequest: The shape, the dtype or a value is invalid.
        """
        if candidates.dtype != np.int32 or candidates.ndim != 2 or len(candidates) != rows:  # noqa: PLR2004 - rows, candidates
            raise _invalid(f"candidates is {candidates.dtype} {candidates.shape}, expected int32 ({rows}, C)")
        _check_range("candidates", candidates, NO_ITEM, self.n_target - 1)


def check_sampling(k: float, temperature: float, min_lift: float, shortlist: float | None = None) -> None:
    """Check the parameters of a draw.

    Raises:
        InvalidRequest: A parameter is out of range.
    """
    if not (k >= 1 and 0 < temperature < math.inf and 0 <= min_lift < math.inf):  # NaN fails every comparison
        raise _invalid(f"k = {k}, temperature = {temperature}, min_lift = {min_lift}: must be ≥ 1, > 0, ≥ 0, and finite")
    if shortlist is not None and shortlist < 1:
        raise _invalid(f"a shortlist of {shortlist:g} items: must be ≥ 1")


def _check_range(name: str, array: NDArray[Any], minimum: int, maximum: int) -> None:
    if not array.size:
        return
    low, high = int(array.min()), int(array.max())
    if low < minimum or high > maximum:
        raise _invalid(f"{name} contains {low if low < minimum else high}, expected {minimum} to {maximum}")


def _invalid(problem: str) -> InvalidRequest:
    return InvalidRequest(problem, where="the request", next_step=_NEXT_STEP)
