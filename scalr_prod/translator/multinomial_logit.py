# SPDX-License-Identifier: Apache-2.0
"""Penalised multinomial logits, fitted by Newton's method.

A weight that must be positive and would not be is left out. The penalty of the traits' weights is chosen by two-fold cross-validation
over the halves of the rows, in time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from scalr_prod.translator.estimators.compiled_kernels import load_kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ChoiceData", "LogitColumns", "fit_logit"]

#: Maximum number of Newton steps, and the step length below which they stop.
MAX_NEWTON_STEPS: Final = 20
_SMALL_STEP: Final = 3e-3
#: Strength of the ridge penalty, in events, so that a slice of a few events gives no extreme weights.
L2_PENALTY: Final = 2.0
#: Candidate penalties of the weights that a trait tilts by; infinity leaves the traits out.
TILT_PENALTIES: Final = (8.0, 64.0, math.inf)
#: Rows that are processed at a time.
_CHUNK_ROWS: Final = 128


@dataclass(frozen=True)
class ChoiceData:
    """Choices among items, rows in order of time: the label (first) and M sampled items.

    Attributes:
        values: [N, E + F, 1 + M]. Standardised scores, and features.
        traits: [N, T], standardised.
        log_q: [N, 1 + M]. Logarithms of the expected numbers of draws.
        weight: [N, 1]. Number of choices that each row stands for; None: 1 each.
        rows: int64 [R]. The rows in use; tables share the tensors of all N, which take a quarter of a GB.
    """

    values: torch.Tensor
    traits: torch.Tensor
    log_q: torch.Tensor
    weight: torch.Tensor | None
    rows: torch.Tensor

    @classmethod
    def from_tensors(
        cls, values: torch.Tensor, traits: torch.Tensor, log_q: torch.Tensor, weight: torch.Tensor | None = None
    ) -> ChoiceData:
        """Use all rows."""
        return cls(values, traits, log_q, weight, torch.arange(len(values)))

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: torch.Tensor) -> ChoiceData:
        """Select rows in use by position: int64 [r]."""
        return replace(self, rows=self.rows[places])

    def design_matrix(self, rows: torch.Tensor, width: int) -> torch.Tensor:
        """Return a column of 1 and the traits of some of the N rows, cut to ``many`` columns: [r, many]."""
        tastes_ = self.traits[rows]
        return torch.cat([tastes_.new_ones(len(rows), 1), tastes_], 1)[:, :width]

    def row_weights(self) -> torch.Tensor:
        """Return the number of choices of each row in use: float32 [R]."""
        return torch.ones(len(self)) if self.weight is None else self.weight[self.rows, 0]


@dataclass(frozen=True)
class LogitColumns:
    """Columns that a component weighs.

    Attributes:
        plain: Columns of the evidence.
        tilted: Those of them that traits tilt.
        nonnegative: Whether each of ``plain`` needs a weight of at least 0.
    """

    plain: list[int]
    tilted: list[int]
    nonnegative: list[bool]


def fit_logit(data: ChoiceData, columns: LogitColumns) -> torch.Tensor:
    """Return the weights that maximise Σ log P(label): [1 + T, columns], or [1, columns] where nothing is tilted."""
    return _fit(data, columns, _tilt_penalty(data, columns))


def _tilt_penalty(evidence: ChoiceData, columns: LogitColumns) -> float:
    """Choose the one of `TILT_PENALTIES` with the smallest loss of either half of the rows under the weights of the other."""
    if not columns.tilted:
        return math.inf
    earlier, later = torch.arange(len(evidence)).chunk(2) if len(evidence) > 1 else [torch.arange(0)] * 2
    halves = evidence.take(earlier), evidence.take(later)

    def loss(penalty: float) -> float:
        return sum(_loss(asked, columns.plain, _fit(learnt, columns, penalty)) for asked, learnt in (halves, halves[::-1]))

    return min(reversed(TILT_PENALTIES), key=loss)  # of equals the one that tilts least


def _loss(evidence: ChoiceData, plain: list[int], weights: torch.Tensor) -> float:
    """Return -Σ log P(label)."""
    compiled = load_kernels()
    if compiled is not None:
        arguments, found = _kernel_arguments(evidence, plain, len(weights)), np.empty(len(evidence))
        compiled.log_losses(*arguments, weights.numpy(), found)
        return float((found if evidence.weight is None else found * evidence.row_weights().numpy()).sum())
    total = 0.0
    for rows in evidence.rows.split(_CHUNK_ROWS):
        logits = ((evidence.design_matrix(rows, len(weights)) @ weights)[:, None] @ evidence.values[rows][:, plain])[:, 0]
        said = (logits - evidence.log_q[rows]).log_softmax(1)[:, 0]
        total -= float((said if evidence.weight is None else said * evidence.weight[rows][:, 0]).sum())
    return total


def _fit(evidence: ChoiceData, columns: LogitColumns, tilt_penalty: float) -> torch.Tensor:
    """Fit the weights that maximise Σ log P(label): [1 + T, columns], or [1, columns] where nothing is tilted.

    Weights that must be positive and would not be are left out, one fit after the other.
    """
    plain, tilted = columns.plain, columns.tilted if math.isfinite(tilt_penalty) else []
    used = list(range(len(plain)))
    while True:
        found = _maximise(evidence, [plain[place] for place in used], tilted, tilt_penalty)
        kept = [
            place
            for place, weight in zip(used, found[0].tolist(), strict=True)
            if weight >= 0 or not columns.nonnegative[place]
        ]
        if kept == used:
            weights = found.new_zeros(len(found), len(plain))
            weights[:, used] = found
            return weights
        used = kept


def _maximise(evidence: ChoiceData, plain: list[int], tilted: list[int], tilt_penalty: float) -> torch.Tensor:
    """Maximise the penalised likelihood, which is concave, by Newton's method.

    A row of the data weighs column c by Σ_a D[a, c] z_a, with z_0 = 1 followed by its traits; D is 0 where no trait tilts. So the
    curvature is the sum over the rows of z zᵀ (Kronecker) the columns' covariance.
    """
    many = 1 + evidence.traits.shape[1] if tilted else 1
    free = torch.tensor([[not a or column in tilted for column in plain] for a in range(many)])
    penalty = torch.full(free.shape, tilt_penalty if tilted else 0.0, dtype=torch.float64)
    penalty[0] = L2_PENALTY
    weights = torch.zeros(free.shape, dtype=torch.float64)
    weights[0] = 1.0 / len(plain)
    for _ in range(MAX_NEWTON_STEPS if len(evidence) else 0):
        gradient, curvature = -2 * penalty * weights, (2 * penalty).flatten().diag()
        of_rows, of_pairs = _sums(evidence, plain, weights.float())
        gradient += of_rows
        curvature += of_pairs.transpose(1, 2).reshape(curvature.shape)
        kept = free.flatten()
        step = torch.zeros_like(weights)
        step[free] = torch.linalg.solve(curvature[kept][:, kept], gradient[free])
        weights += step / max(1.0, float(step.norm()))
        if float(step.norm()) < _SMALL_STEP:
            break
    return weights.float()


def _kernel_arguments(evidence: ChoiceData, plain: list[int], many: int) -> tuple[NDArray[Any], ...]:
    """Return the arrays that the compiled sums take: see `kernels.logit`."""
    z = evidence.design_matrix(evidence.rows, many)
    parts = (evidence.values, evidence.rows, torch.tensor(plain, dtype=torch.int64), z, evidence.log_q)
    return tuple(part.contiguous().numpy() for part in parts)


def _sums(evidence: ChoiceData, plain: list[int], weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum gradients and negated second derivatives over the rows, at weights [A, C]: float64 [A, C], [A, A, C, C]."""
    many, columns = weights.shape
    gradient, curvature = torch.zeros(many, columns).double(), torch.zeros(many, many, columns, columns).double()
    compiled = load_kernels()
    if compiled is not None:
        arguments = _kernel_arguments(evidence, plain, many)
        compiled.add_derivatives(
            *arguments, evidence.row_weights().numpy(), weights.contiguous().numpy(), gradient.numpy(), curvature.numpy()
        )
        return gradient, curvature
    for rows in evidence.rows.split(_CHUNK_ROWS):
        x = evidence.values[rows][:, plain]
        z = evidence.design_matrix(rows, many)
        p = (((z @ weights)[:, None] @ x)[:, 0] - evidence.log_q[rows]).softmax(1)
        mean = (x @ p[:, :, None])[:, :, 0]
        covariance = (x * p[:, None]) @ x.mT - mean[:, :, None] * mean[:, None]
        counted = z if evidence.weight is None else z * evidence.weight[rows]
        gradient += (counted.T @ (x[:, :, 0] - mean)).double()
        of_pairs = (counted[:, :, None] * z[:, None]).flatten(1).T @ covariance.flatten(1)
        curvature += of_pairs.view(many, many, columns, columns).double()
    return gradient, curvature
