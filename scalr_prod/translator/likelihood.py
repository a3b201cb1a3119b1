# SPDX-License-Identifier: Apache-2.0
"""Weights that make choices among items most likely: penalised multinomial logits, by Newton's method.

A weight that must be positive and would not be is left out. How far tastes may tilt is what makes each half of the rows, in time, most
likely by the weights of the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from scalr_prod.translator.estimators.kernels import kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Columns", "Evidence", "fitted"]

#: Newton steps, and the length of one that is small enough to stop.
MOST_STEPS: Final = 20
_SMALL_STEP: Final = 3e-3
#: Pulls a weight towards 0 by so many events' worth, so that a slice of a few events gives no wild weights.
PENALTY: Final = 2.0
#: The same for weights that a taste tilts by: which of these is chosen; infinity tilts nothing.
TILT_PENALTIES: Final = (8.0, 64.0, math.inf)
#: Rows that are worked on at a time.
_CHUNK_ROWS: Final = 128


@dataclass(frozen=True)
class Evidence:
    """Rows, in order of time, with a choice among items: the label (first) and M that were drawn.

    Attributes:
        values: [N, E + F, 1 + M]. Standardised scores, and features.
        tastes: [N, T], standardised.
        log_q: [N, 1 + M]. Logarithms of the expected numbers of draws.
        weight: [N, 1]. How many choices each is; None: one.
        rows: int64 [R]. Those of the N that are looked at; tables share the rest, which takes a quarter of a GB.
    """

    values: torch.Tensor
    tastes: torch.Tensor
    log_q: torch.Tensor
    weight: torch.Tensor | None
    rows: torch.Tensor

    @classmethod
    def of(
        cls, values: torch.Tensor, tastes: torch.Tensor, log_q: torch.Tensor, weight: torch.Tensor | None = None
    ) -> Evidence:
        """All rows."""
        return cls(values, tastes, log_q, weight, torch.arange(len(values)))

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: torch.Tensor) -> Evidence:
        """Of the rows that are looked at, those in these places: int64 [r]."""
        return replace(self, rows=self.rows[places])

    def with_one(self, rows: torch.Tensor, many: int) -> torch.Tensor:
        """The first of 1 and the tastes, of some of the N rows: [r, many]."""
        tastes_ = self.tastes[rows]
        return torch.cat([tastes_.new_ones(len(rows), 1), tastes_], 1)[:, :many]

    def counted(self) -> torch.Tensor:
        """How many choices each row is: float32 [R]."""
        return torch.ones(len(self)) if self.weight is None else self.weight[self.rows, 0]


@dataclass(frozen=True)
class Columns:
    """What a member weighs.

    Attributes:
        plain: Columns of the evidence.
        tilted: Those of them that tastes tilt.
        positive: Whether the weight of each of ``plain`` must be.
    """

    plain: list[int]
    tilted: list[int]
    positive: list[bool]


def fitted(evidence: Evidence, columns: Columns) -> torch.Tensor:
    """Weights that maximise Σ log P(label): [1 + T, columns], or [1, columns] where nothing is tilted."""
    return _fit(evidence, columns, _tilt_penalty(evidence, columns))


def _tilt_penalty(evidence: Evidence, columns: Columns) -> float:
    """The one of `TILT_PENALTIES` by which either half of the rows is most likely with the weights of the other."""
    if not columns.tilted:
        return math.inf
    earlier, later = torch.arange(len(evidence)).chunk(2) if len(evidence) > 1 else [torch.arange(0)] * 2
    halves = evidence.take(earlier), evidence.take(later)

    def loss(penalty: float) -> float:
        return sum(_loss(asked, columns.plain, _fit(learnt, columns, penalty)) for asked, learnt in (halves, halves[::-1]))

    return min(reversed(TILT_PENALTIES), key=loss)  # of equals the one that tilts least


def _loss(evidence: Evidence, plain: list[int], weights: torch.Tensor) -> float:
    """-Σ log P(label)."""
    compiled = kernels()
    if compiled is not None:
        told, found = _told(evidence, plain, len(weights)), np.empty(len(evidence))
        compiled.losses(*told, weights.numpy(), found)
        return float((found if evidence.weight is None else found * evidence.counted().numpy()).sum())
    total = 0.0
    for rows in evidence.rows.split(_CHUNK_ROWS):
        logits = ((evidence.with_one(rows, len(weights)) @ weights)[:, None] @ evidence.values[rows][:, plain])[:, 0]
        said = (logits - evidence.log_q[rows]).log_softmax(1)[:, 0]
        total -= float((said if evidence.weight is None else said * evidence.weight[rows][:, 0]).sum())
    return total


def _fit(evidence: Evidence, columns: Columns, tilt_penalty: float) -> torch.Tensor:
    """Weights that maximise Σ log P(label): [1 + T, columns], or [1, columns] where nothing is tilted.

    Weights that must be positive and would not be are left out, one fit after the other.
    """
    plain, tilted = columns.plain, columns.tilted if math.isfinite(tilt_penalty) else []
    used = list(range(len(plain)))
    while True:
        found = _maximise(evidence, [plain[place] for place in used], tilted, tilt_penalty)
        kept = [
            place for place, weight in zip(used, found[0].tolist(), strict=True) if weight >= 0 or not columns.positive[place]
        ]
        if kept == used:
            weights = found.new_zeros(len(found), len(plain))
            weights[:, used] = found
            return weights
        used = kept


def _maximise(evidence: Evidence, plain: list[int], tilted: list[int], tilt_penalty: float) -> torch.Tensor:
    """The weights, by Newton's method: what they maximise is concave.

    A row of the evidence weighs column c by Σ_a D[a, c] z_a, with z_0 = 1 and its tastes behind; D is 0 where no taste tilts. So the
    curvature is the sum over the rows of z zᵀ (Kronecker) the columns' covariance.
    """
    many = 1 + evidence.tastes.shape[1] if tilted else 1
    free = torch.tensor([[not a or column in tilted for column in plain] for a in range(many)])
    penalty = torch.full(free.shape, tilt_penalty if tilted else 0.0, dtype=torch.float64)
    penalty[0] = PENALTY
    weights = torch.zeros(free.shape, dtype=torch.float64)
    weights[0] = 1.0 / len(plain)
    for _ in range(MOST_STEPS if len(evidence) else 0):
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


def _told(evidence: Evidence, plain: list[int], many: int) -> tuple[NDArray[Any], ...]:
    """What compiled sums are taken over: see `fused.newton`."""
    z = evidence.with_one(evidence.rows, many)
    parts = (evidence.values, evidence.rows, torch.tensor(plain, dtype=torch.int64), z, evidence.log_q)
    return tuple(part.contiguous().numpy() for part in parts)


def _sums(evidence: Evidence, plain: list[int], weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ over the rows, at weights [A, C], of gradients and of minus second derivatives: float64 [A, C], [A, A, C, C]."""
    many, columns = weights.shape
    gradient, curvature = torch.zeros(many, columns).double(), torch.zeros(many, many, columns, columns).double()
    compiled = kernels()
    if compiled is not None:
        told = _told(evidence, plain, many)
        compiled.sums(*told, evidence.counted().numpy(), weights.contiguous().numpy(), gradient.numpy(), curvature.numpy())
        return gradient, curvature
    for rows in evidence.rows.split(_CHUNK_ROWS):
        x = evidence.values[rows][:, plain]
        z = evidence.with_one(rows, many)
        p = (((z @ weights)[:, None] @ x)[:, 0] - evidence.log_q[rows]).softmax(1)
        mean = (x @ p[:, :, None])[:, :, 0]
        covariance = (x * p[:, None]) @ x.mT - mean[:, :, None] * mean[:, None]
        counted = z if evidence.weight is None else z * evidence.weight[rows]
        gradient += (counted.T @ (x[:, :, 0] - mean)).double()
        of_pairs = (counted[:, :, None] * z[:, None]).flatten(1).T @ covariance.flatten(1)
        curvature += of_pairs.view(many, many, columns, columns).double()
    return gradient, curvature
