# SPDX-License-Identifier: Apache-2.0
"""Penalised multinomial logits, fitted by Newton's method.

Nonnegative weights whose maximum-likelihood value is negative are set to 0. The
penalty of the traits' weights is chosen by two-fold cross-validation
over the halves of the rows, in time; rows of one time are in order of
their users.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from scalr_prod.translator.estimators.compiled_kernels import load_kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray


#: Maximum number of Newton steps, and the step length below which they stop.
MAX_NEWTON_STEPS: Final = 20
_SMALL_STEP: Final = 3e-3
#: Strength of the ridge penalty, in events, so that a slice of a few events gives no extreme weights.
L2_PENALTY: Final = 2.0
#: Candidate penalties of the traits' weights; infinity excludes the traits.
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
        weight: [N, 1]. Number of choices that each row counts as; None: 1 each.
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

    def take(self, positions: torch.Tensor) -> ChoiceData:
        """Select rows in use by position: int64 [r]."""
        return replace(self, rows=self.rows[positions])

    def design_matrix(self, rows: torch.Tensor, width: int) -> torch.Tensor:
        """Return a column of 1 and the traits of some of the N rows, cut to ``width`` columns: [r, width]."""
        traits = self.traits[rows]
        return torch.cat([traits.new_ones(len(rows), 1), traits], 1)[:, :width]

    def row_weights(self) -> torch.Tensor:
        """Return the number of choices of each row in use: float32 [R]."""
        return torch.ones(len(self)) if self.weight is None else self.weight[self.rows, 0]


@dataclass(frozen=True)
class LogitColumns:
    """Columns of the data that have a weight.

    Attributes:
        plain: Columns with a weight.
        tilted: Columns among them whose weight the traits modify.
        nonnegative: Whether the weight of each of ``plain`` must be at least 0.
    """

    plain: list[int]
    tilted: list[int]
    nonnegative: list[bool]


def fit_logit(data: ChoiceData, columns: LogitColumns) -> torch.Tensor:
    """Return the weights that maximise Σ log P(label): [1 + T, columns], or [1, columns] if no trait modifies a weight."""
    if not columns.tilted or len(data) < 2:  # noqa: PLR2004 - there are no halves
        return _fit(data, columns, math.inf)
    return _fit(data, columns, *_tilt_penalty(data, columns))


def _tilt_penalty(data: ChoiceData, columns: LogitColumns) -> tuple[float, torch.Tensor]:
    """Choose one of `TILT_PENALTIES` by two-fold cross-validation over the earlier and the later half of the rows.

    Returns:
        The penalty, the largest of equally good ones, and the weights fitted with it on the later half.
    """
    halves = [data.take(positions) for positions in torch.arange(len(data)).chunk(2)]
    weights: list[torch.Tensor | None] = [None, None]
    fits = []
    for penalty in reversed(TILT_PENALTIES):
        fitted = [_fit(half, columns, penalty, start) for half, start in zip(halves, weights, strict=True)]
        loss = sum(_loss(half, columns.plain, other) for half, other in zip(halves, reversed(fitted), strict=True))
        fits.append((loss, penalty, fitted[1]))
        weights = [*fitted]
    _, penalty, later = min(fits, key=operator.itemgetter(0))
    return penalty, later


def _loss(data: ChoiceData, plain: list[int], weights: torch.Tensor) -> float:
    """Return -Σ log P(label)."""
    compiled = load_kernels()
    if compiled is not None:
        arguments, losses = _kernel_arguments(data, plain, len(weights)), np.empty(len(data))
        compiled.log_losses(*arguments, weights.numpy(), losses)
        return float((losses if data.weight is None else losses * data.row_weights().numpy()).sum())
    total = 0.0
    for rows in data.rows.split(_CHUNK_ROWS):
        logits = ((data.design_matrix(rows, len(weights)) @ weights)[:, None] @ data.values[rows][:, plain])[:, 0]
        log_p = (logits - data.log_q[rows]).log_softmax(1)[:, 0]
        total -= float((log_p if data.weight is None else log_p * data.weight[rows][:, 0]).sum())
    return total


def _fit(data: ChoiceData, columns: LogitColumns, tilt_penalty: float, start: torch.Tensor | None = None) -> torch.Tensor:
    """Fit the weights that maximise Σ log P(label): [1 + T, columns], or [1, columns] if no trait modifies a weight.

    Weights that must not be negative but are in the solution are set to 0, and the others are fitted again.

    Args:
        data: The choices.
        columns: Columns with a weight.
        tilt_penalty: Penalty of the traits' weights.
        start: [1 or 1 + T, columns]. Weights to begin with, such as those of similar choices, for fewer steps to the same maximum.
    """
    plain, tilted = columns.plain, columns.tilted if math.isfinite(tilt_penalty) else []
    weights = torch.full((1, len(plain)), 1 / len(plain)) if start is None else start
    used = list(range(len(plain)))
    while True:
        solution = _maximise(data, [plain[index] for index in used], tilted, tilt_penalty, weights[:, used])
        weights = solution.new_zeros(len(solution), len(plain))
        weights[:, used] = solution
        remaining = [index for index in used if weights[0, index] >= 0 or not columns.nonnegative[index]]
        if remaining == used:
            return weights
        used = remaining


def _maximise(data: ChoiceData, plain: list[int], tilted: list[int], tilt_penalty: float, start: torch.Tensor) -> torch.Tensor:
    """Maximise the penalised likelihood, which is concave, by Newton's method; rows that ``start`` lacks begin at 0.

    A row of the data weighs column c by Σ_a D[a, c] z_a, with z_0 = 1 followed by its traits; D is 0 where no trait tilts. So the
    curvature is the sum over the rows of z zᵀ (Kronecker) the columns' covariance.
    """
    n_traits = 1 + data.traits.shape[1] if tilted else 1
    free = torch.tensor([[not a or column in tilted for column in plain] for a in range(n_traits)])
    penalty = torch.full(free.shape, tilt_penalty if tilted else 0.0, dtype=torch.float64)
    penalty[0] = L2_PENALTY
    weights = torch.zeros(free.shape, dtype=torch.float64)
    weights[: len(start)] = start[:n_traits]
    for _ in range(MAX_NEWTON_STEPS if len(data) else 0):
        gradient, curvature = -2 * penalty * weights, (2 * penalty).flatten().diag()
        row_gradient, row_curvature = _derivatives(data, plain, weights.float())
        gradient += row_gradient
        curvature += row_curvature.transpose(1, 2).reshape(curvature.shape)
        is_free = free.flatten()
        step = torch.zeros_like(weights)
        step[free] = torch.linalg.solve(curvature[is_free][:, is_free], gradient[free])
        weights += step / max(1.0, float(step.norm()))
        if float(step.norm()) < _SMALL_STEP:
            break
    return weights.float()


def _kernel_arguments(data: ChoiceData, plain: list[int], n_traits: int) -> tuple[NDArray[Any], ...]:
    """Return the arrays that the compiled sums take: see `kernels.logit`."""
    z = data.design_matrix(data.rows, n_traits)
    tensors = (data.values, data.rows, torch.tensor(plain, dtype=torch.int64), z, data.log_q)
    return tuple(tensor.contiguous().numpy() for tensor in tensors)


def _derivatives(data: ChoiceData, plain: list[int], weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum gradients and negated second derivatives over the rows, at weights [A, C]: float64 [A, C], [A, A, C, C]."""
    n_traits, columns = weights.shape
    gradient, curvature = torch.zeros(n_traits, columns).double(), torch.zeros(n_traits, n_traits, columns, columns).double()
    compiled = load_kernels()
    if compiled is not None:
        arguments = _kernel_arguments(data, plain, n_traits)
        compiled.add_derivatives(
            *arguments, data.row_weights().numpy(), weights.contiguous().numpy(), gradient.numpy(), curvature.numpy()
        )
        return gradient, curvature
    for rows in data.rows.split(_CHUNK_ROWS):
        x = data.values[rows][:, plain]
        z = data.design_matrix(rows, n_traits)
        p = (((z @ weights)[:, None] @ x)[:, 0] - data.log_q[rows]).softmax(1)
        mean = (x @ p[:, :, None])[:, :, 0]
        covariance = (x * p[:, None]) @ x.mT - mean[:, :, None] * mean[:, None]
        weighted_z = z if data.weight is None else z * data.weight[rows]
        gradient += (weighted_z.T @ (x[:, :, 0] - mean)).double()
        pair_sums = (weighted_z[:, :, None] * z[:, None]).flatten(1).T @ covariance.flatten(1)
        curvature += pair_sums.view(n_traits, n_traits, columns, columns).double()
    return gradient, curvature
