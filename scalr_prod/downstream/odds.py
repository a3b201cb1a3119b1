# SPDX-License-Identifier: Apache-2.0
"""Probabilities on test rows: positives beside sampled negatives, calibrated on real validation rows, and what they lose.

The rows are those of the test users: every item that a user met, and for each so many items drawn uniformly that the user had not
and did not meet. They are the same for every arm. A model's probabilities go through a logit map of two parameters (Platt 1999) for
each segment of users, fitted on the rows of the validation windows by a model of the same arm and choice. So an arm cannot gain by
being scaled better, and real events alone cannot lose by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from scalr_prod.policy import SEGMENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scalr_prod.downstream.protocol import Probabilistic
    from scalr_prod.downstream.scene import Scene

__all__ = ["LabelledRows", "LogitMap", "Odds"]

_LEAST: Final = 1e-7
_STEPS: Final = 50
#: Pulls slope to 1 and offset to 0, as so many rows would; it matters where a segment has hardly any.
_RIDGE: Final = 1.0


@dataclass(frozen=True)
class LabelledRows:
    """Labelled pairs of a scene.

    Attributes:
        case: int64 [P]. Place of the user among the scene's test users.
        user: int64 [P].
        item: int64 [P].
        label: bool [P]. Whether the user met the item.
        segment: int8 [P]. 0 cold, 1 sparse, 2 dense.
    """

    case: NDArray[np.int64]
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    label: NDArray[np.bool_]
    segment: NDArray[np.int8]

    @classmethod
    def of(cls, scene: Scene, negatives: int) -> Self:
        """Every test pair, and for each so many drawn items that the user met neither in the visible history nor hidden from it."""
        user, item = scene.relevant.nonzero()
        others = np.random.default_rng(0).integers(0, scene.real.n_items, len(user) * negatives)
        owner = np.repeat(user, negatives)
        met = np.asarray(scene.held_out[owner, others]).ravel() + np.asarray(scene.seen()[owner, others]).ravel()
        apart = met == 0
        users = np.concatenate([user, owner[apart]]).astype(np.int64)
        return cls(
            case=np.searchsorted(scene.users, users),
            user=users,
            item=np.concatenate([item, others[apart]]).astype(np.int64),
            label=np.concatenate([np.ones(len(user), dtype=bool), np.zeros(int(apart.sum()), dtype=bool)]),
            segment=scene.segments()[users],
        )

    def predicted(self, model: Probabilistic) -> NDArray[np.float64]:
        """float64 [P]: a model's probabilities, away from 0 and 1."""
        found: NDArray[np.float64] = np.asarray(model.probability(self.user, self.item), np.float64).clip(_LEAST, 1 - _LEAST)
        return found


@dataclass(frozen=True)
class LogitMap:
    """logit p → slope × logit p + offset, for each segment.

    Attributes:
        slope: For cold, sparse and dense users.
        offset: Likewise.
    """

    slope: tuple[float, ...]
    offset: tuple[float, ...]

    @classmethod
    def fit(cls, rows: Sequence[LabelledRows], predicted: Sequence[NDArray[np.float64]]) -> Self:
        """By maximum likelihood on the rows of some scenes; a segment without rows keeps its probabilities.

        Args:
            rows: Of each scene.
            predicted: float64 [P] of each scene, strictly between 0 and 1.
        """
        logit = _logit(np.concatenate(predicted))
        label = np.concatenate([one.label for one in rows])
        segment = np.concatenate([one.segment for one in rows])
        fitted = [_platt(logit[segment == number], label[segment == number]) for number in range(len(SEGMENTS))]
        slope, offset = zip(*fitted, strict=True)
        return cls(slope, offset)

    def __call__(self, predicted: NDArray[np.float64], segment: NDArray[np.int8]) -> NDArray[np.float64]:
        """float64 [P]: calibrated probabilities, strictly between 0 and 1."""
        logit = np.asarray(self.slope)[segment] * _logit(predicted) + np.asarray(self.offset)[segment]
        found: NDArray[np.float64] = _sigmoid(logit).clip(_LEAST, 1 - _LEAST)
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"slope": list(self.slope), "offset": list(self.offset)}


@dataclass(frozen=True)
class Odds:
    """One fitted model's calibrated probabilities on a scene's test rows.

    Attributes:
        rows: The rows.
        probability: float64 [P].
    """

    rows: LabelledRows
    probability: NDArray[np.float64]

    @property
    def loss(self) -> NDArray[np.float64]:
        """float64 [P]: -log of the probability of what happened, nats."""
        found: NDArray[np.float64] = -np.log(np.where(self.rows.label, self.probability, 1 - self.probability))
        return found

    def information(self) -> NDArray[np.float64]:
        """float64 [V]: nats over the base rate by test user, of whom each counts by the number of rows.

        The mean is (1 - NE) times the entropy of the base rate: what a row's probability tells on average.
        """
        base = self.rows.label.mean()
        entropy = -(base * np.log(base) + (1 - base) * np.log1p(-base))
        told = np.bincount(self.rows.case, weights=entropy - self.loss)
        found: NDArray[np.float64] = told * len(told) / len(self.rows.case)
        return found


def _platt(logit: NDArray[np.float64], label: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and offset of a logistic regression on one column, by Newton's method; (1, 0) where there is nothing to fit."""
    if not label.any() or label.all():
        return 1.0, 0.0
    design = np.stack([logit, np.ones_like(logit)], axis=1)
    start = np.array([1.0, 0.0])
    found = start.copy()
    for _ in range(_STEPS):
        p = _sigmoid(design @ found)
        gradient = design.T @ (p - label) + _RIDGE * (found - start)
        curvature = (design * (p * (1 - p))[:, None]).T @ design + _RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        found -= step.clip(-1, 1)
        if np.abs(step).max() < 1e-10:  # noqa: PLR2004 - of a parameter near 1
            break
    return float(found[0]), float(found[1])


def _logit(p: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.log(p) - np.log1p(-p)
    return found


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = 1 / (1 + np.exp(-x.clip(-40, 40)))
    return found
