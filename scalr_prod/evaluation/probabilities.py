# SPDX-License-Identifier: Apache-2.0
"""Calibrated probabilities of models on test rows, and their log loss.

A test row is a pair of a test user and an item: every item that the user interacted with in the test period, and for each of them a
number of uniformly drawn items that the user never interacted with. All arms share the rows. Probabilities pass through Platt scaling
(Platt 1999) with one slope and offset per user segment, fitted on the validation windows' rows by a model of the same arm and choice.
So differences in scale neither help nor harm an arm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from scalr_prod.core.jsonable import Jsonable
from scalr_prod.generation import SEGMENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scalr_prod.evaluation.interactions import ProbabilisticModel
    from scalr_prod.evaluation.split import EvaluationSplit


_MIN_PROBABILITY: Final = 1e-7
_MAX_NEWTON_STEPS: Final = 50
#: Regularises slope to 1 and offset to 0; it matters only in segments with few rows.
_RIDGE: Final = 1.0


@dataclass(frozen=True)
class LabelledRows:
    """Labelled pairs of users and items of one evaluation split.

    Attributes:
        case: int64 [P]. Position of the user among the test users.
        user: int64 [P].
        item: int64 [P].
        label: bool [P]. Whether the user interacted with the item.
        segment: int8 [P]. 0 cold, 1 sparse, 2 dense.
    """

    case: NDArray[np.int64]
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    label: NDArray[np.bool_]
    segment: NDArray[np.int8]

    @classmethod
    def from_split(cls, split: EvaluationSplit, negatives: int) -> Self:
        """Return the test users' pairs, and for each ``negatives`` drawn items that are not in the user's history, visible or hidden.

        ``split.relevant`` has pairs of users who are not tested as well.
        """
        case, item = split.relevant[split.users].nonzero()
        user = split.users[case]
        negative_item = np.random.default_rng(0).integers(0, split.real.n_items, len(user) * negatives)
        negative_case, negative_user = np.repeat(case, negatives), np.repeat(user, negatives)
        interacted = split.held_out + split.seen()
        is_negative = np.asarray(interacted[negative_user, negative_item]).ravel() == 0
        users = np.concatenate([user, negative_user[is_negative]]).astype(np.int64)
        return cls(
            case=np.concatenate([case, negative_case[is_negative]]).astype(np.int64),
            user=users,
            item=np.concatenate([item, negative_item[is_negative]]).astype(np.int64),
            label=np.concatenate([np.ones(len(user), dtype=bool), np.zeros(int(is_negative.sum()), dtype=bool)]),
            segment=split.segments()[users],
        )

    def predict(self, model: ProbabilisticModel) -> NDArray[np.float64]:
        """Return a model's probabilities, clipped away from 0 and 1: float64 [P]."""
        probability: NDArray[np.float64] = np.asarray(model.probability(self.user, self.item), np.float64)
        return probability.clip(_MIN_PROBABILITY, 1 - _MIN_PROBABILITY)


@dataclass(frozen=True)
class PlattCalibrator(Jsonable):
    """Platt scaling per user segment: logit p → slope × logit p + offset.

    Attributes:
        slope: Slopes for cold, sparse and dense users.
        offset: Offsets, in the same order.
    """

    slope: tuple[float, ...]
    offset: tuple[float, ...]

    @classmethod
    def fit(cls, rows: Sequence[LabelledRows], probabilities: Sequence[NDArray[np.float64]]) -> Self:
        """Fit by maximum likelihood on the rows of several splits; a segment without rows keeps its probabilities.

        Args:
            rows: Labelled rows, by split.
            probabilities: Probabilities of those rows, float64 [P] by split, strictly between 0 and 1.
        """
        logit = _logit(np.concatenate(probabilities))
        label = np.concatenate([part.label for part in rows])
        segment = np.concatenate([part.segment for part in rows])
        fitted = [_fit_platt(logit[segment == number], label[segment == number]) for number in range(len(SEGMENTS))]
        slope, offset = zip(*fitted, strict=True)
        return cls(slope, offset)

    def __call__(self, probability: NDArray[np.float64], segment: NDArray[np.int8]) -> NDArray[np.float64]:
        """Return calibrated probabilities, strictly between 0 and 1: float64 [P]."""
        logit = np.asarray(self.slope)[segment] * _logit(probability) + np.asarray(self.offset)[segment]
        return _sigmoid(logit).clip(_MIN_PROBABILITY, 1 - _MIN_PROBABILITY)


@dataclass(frozen=True)
class CalibratedPredictions:
    """One fitted model's calibrated probabilities on the test rows.

    Attributes:
        rows: Labelled test rows.
        probability: float64 [P].
    """

    rows: LabelledRows
    probability: NDArray[np.float64]

    @property
    def log_loss(self) -> NDArray[np.float64]:
        """Log loss of each row in nats: float64 [P]."""
        loss: NDArray[np.float64] = -np.log(np.where(self.rows.label, self.probability, 1 - self.probability))
        return loss

    def information_gain(self) -> NDArray[np.float64]:
        """Return nats gained over the base rate by test user, weighted by the user's number of rows: float64 [V].

        The mean is (1 - NE) times the entropy of the base rate.
        """
        base = self.rows.label.mean()
        entropy = -(base * np.log(base) + (1 - base) * np.log1p(-base))
        gain = np.bincount(self.rows.case, weights=entropy - self.log_loss)  # every test user has a row
        weighted: NDArray[np.float64] = gain * len(gain) / len(self.rows.case)
        return weighted


def _fit_platt(logit: NDArray[np.float64], label: NDArray[np.bool_]) -> tuple[float, float]:
    """Return slope and offset of a logistic regression on one column, by Newton's method; (1, 0) if all labels are alike."""
    if not label.any() or label.all():
        return 1.0, 0.0
    design = np.stack([logit, np.ones_like(logit)], axis=1)
    start = np.array([1.0, 0.0])
    parameters = start.copy()
    for _ in range(_MAX_NEWTON_STEPS):
        p = _sigmoid(design @ parameters)
        gradient = design.T @ (p - label) + _RIDGE * (parameters - start)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + _RIDGE * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        parameters -= step.clip(-1, 1)
        if np.abs(step).max() < 1e-10:  # noqa: PLR2004 - of a parameter near 1
            break
    return float(parameters[0]), float(parameters[1])


def _logit(p: NDArray[np.float64]) -> NDArray[np.float64]:
    logit: NDArray[np.float64] = np.log(p) - np.log1p(-p)
    return logit


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    probability: NDArray[np.float64] = 1 / (1 + np.exp(-x.clip(-40, 40)))
    return probability
