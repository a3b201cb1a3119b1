# SPDX-License-Identifier: Apache-2.0
"""Both domains factorised at once: implicit ALS (Hu, Koren, Volinsky 2008) on users x [target items | source items].

An observed cell has preference 1 and confidence 1 + α (target) or 1 + wα (source), any other cell 0 and 1. A target cell of weight v is
a mixture of both, observed with share v. A context's
user vector comes from its source items alone, by the same least squares over the source items; the score is its product with the
target items' vectors. Each half step is a few conjugate-gradient steps for all rows at once (Takács et al. 2011).
"""

from __future__ import annotations

import functools
import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from scalr_prod.translator.batch import distinct
from scalr_prod.translator.estimators.kernels import kernels
from scalr_prod.translator.estimators.products import products
from scalr_prod.translator.threads import heed_stop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scalr_prod.translator.batch import Batch
    from scalr_prod.translator.pairs import Pairs, Parameters

__all__ = ["fit", "score", "share", "user", "vectors", "version"]

version: Final = 1

CONFIDENCE: Final = 40.0
SOURCE_WEIGHT: Final = 0.1
REGULARISATION: Final = 1.0
ITERATIONS: Final = 8
_CG_STEPS: Final = 3
#: Observed cells that are worked on at a time: few enough that their rows' vectors stay in the processor's cache.
_CELLS: Final = 20_000
#: Numbers that the processor's cache holds beside the rest.
_CACHED: Final = 262_144
_warning: Final = threading.Lock()


def share(pairs: Pairs) -> Parameters:
    """Nothing: every parameter depends on target events."""
    del pairs
    return {}


def fit(pairs: Pairs, shared: Parameters) -> Parameters:
    """``source`` float32 [n_source + 1, d], ``target`` float32 [n_target, d], ``gram`` float64 [d, d] of the source vectors with λ."""
    from scipy import sparse

    del shared
    target, source = pairs.target_matrix(), pairs.source_matrix()
    right = None
    if pairs.log.target.weight is not None:
        right = sparse.hstack([(1 + CONFIDENCE) * target, (1 + CONFIDENCE * SOURCE_WEIGHT) * source], format="csr")
    target.data *= CONFIDENCE
    source.data *= CONFIDENCE * SOURCE_WEIGHT
    cells = sparse.hstack([target, source], format="csr")
    del target, source
    generator = torch.Generator().manual_seed(pairs.settings.seed)
    items = 0.01 * torch.randn(cells.shape[1], pairs.settings.dim, generator=generator)
    users = torch.zeros(cells.shape[0], pairs.settings.dim)
    by_user = _Cells(cells, right)
    by_item = _Cells(sparse.csr_matrix(cells.T), None if right is None else sparse.csr_matrix(right.T))
    for _ in range(ITERATIONS):
        heed_stop(1 / ITERATIONS)
        _half_step(by_user, users, items)
        _half_step(by_item, items, users)
    vectors = items[pairs.n_target :].double()
    return {
        "source": items[pairs.n_target :].clone(),
        "target": items[: pairs.n_target].clone(),
        "gram": vectors.T @ vectors + REGULARISATION * torch.eye(vectors.shape[1], dtype=torch.float64),
    }


def user(parameters: Parameters, batch: Batch) -> torch.Tensor:
    """A user's vector, the least-squares solution for its source items: float64 [B, d]."""
    items = distinct(batch.items)
    source = parameters["source"][items].double() * (items > 0)[:, :, None]
    extra = CONFIDENCE * SOURCE_WEIGHT
    system = torch.baddbmm(parameters["gram"].expand(len(items), -1, -1), source.mT, source, alpha=extra)
    right = (1 + extra) * source.sum(1)[:, :, None]
    return torch.cholesky_solve(right, torch.linalg.cholesky(system))[:, :, 0]


def vectors(parameters: Parameters) -> torch.Tensor:
    """Each target item's vector: float32 [N, d]."""
    return parameters["target"]


def score(parameters: Parameters, batch: Batch, log_prior: torch.Tensor) -> torch.Tensor:
    """[B, N] in the dtype of ``log_prior``."""
    return products(user(parameters, batch), vectors(parameters), log_prior.dtype)


def _half_step(cells: _Cells, x: torch.Tensor, y: torch.Tensor) -> None:
    """Move every row of x, in place, towards its least-squares solution given y."""
    gram = y.T @ y + REGULARISATION * torch.eye(y.shape[1])
    for start, stop, *block in cells.blocks():
        x[start:stop] = _solve(x[start:stop], y, gram, *block)


def _solve(
    x: torch.Tensor,
    y: torch.Tensor,
    gram: torch.Tensor,
    extra: torch.Tensor,
    row: torch.Tensor,
    column: torch.Tensor,
    right: torch.Tensor | None,
) -> torch.Tensor:
    values = extra.values()
    compiled = kernels()

    def times(v: torch.Tensor) -> torch.Tensor:
        if compiled is None:
            return v @ gram + _like(extra, values * _products(v, row, y, column)) @ y
        of_cells = torch.empty_like(v)
        compiled.weighted_sums(*(x.numpy() for x in (extra.crow_indices(), column, values, v, y, of_cells)))
        return v @ gram + of_cells

    residual = _like(extra, values + 1 if right is None else right) @ y - times(x)
    direction = residual.clone()
    size = (residual**2).sum(1, keepdim=True)
    for _ in range(_CG_STEPS):
        image = times(direction)
        step = size / (direction * image).sum(1, keepdim=True).clamp(min=1e-20)
        x = x + step * direction
        residual = residual - step * image
        new = (residual**2).sum(1, keepdim=True)
        direction = residual + new / size.clamp(min=1e-20) * direction
        size = new
    return x


def _products(v: torch.Tensor, row: torch.Tensor, y: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """v[row] · y[column] of each cell, in parts that stay in the cache: the same to the bit, in a third of the time."""
    size = max(1, _CACHED // v.shape[1])
    parts = zip(row.split(size), column.split(size), strict=True)
    return torch.cat([v[rows].mul_(y[columns]).sum(1) for rows, columns in parts])


@dataclass(frozen=True)
class _Cells:
    """Observed cells, eight bytes each; a block of them becomes tensors when it is worked on.

    Attributes:
        matrix: scipy CSR. What each cell's confidence has over 1.
        right: Confidence times preference, in the same cells; None: confidence.
    """

    matrix: Any
    right: Any = None

    def blocks(self) -> Iterator[tuple[Any, ...]]:
        """(first row, row after the last, CSR tensor, each cell's row, column and ``right``), a bounded number of cells each."""
        stop = 0
        while stop < self.matrix.shape[0]:
            start, most = stop, self.matrix.indptr[stop] + _CELLS
            stop = min(max(int(np.searchsorted(self.matrix.indptr, most, side="right")) - 1, start + 1), self.matrix.shape[0])
            right = None if self.right is None else _csr(self.right[start:stop])[0].values()
            yield start, stop, *_csr(self.matrix[start:stop]), right


def _csr(matrix: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    start = torch.from_numpy(matrix.indptr.astype(np.int64))
    column = torch.from_numpy(matrix.indices.astype(np.int64))
    values = torch.from_numpy(matrix.data.astype(np.float32))
    row = torch.repeat_interleave(torch.arange(matrix.shape[0]), start.diff())
    return _sparse(start, column, values, matrix.shape), row, column


def _like(matrix: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return _sparse(matrix.crow_indices(), matrix.col_indices(), values, matrix.shape)


def _sparse(start: torch.Tensor, column: torch.Tensor, values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    with _warning:
        _hear_warning()
    return torch.sparse_csr_tensor(start, column, values, size=shape, check_invariants=False)


@functools.cache
def _hear_warning() -> None:
    """Let torch say, once in a process, that this format is in beta: products with dense matrices, all that is used, are tested here.

    Filters of warnings belong to the whole process, so that one thread alone may change them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        nothing = torch.zeros(1, dtype=torch.int64)
        torch.sparse_csr_tensor(nothing, nothing[:0], torch.zeros(0), size=(0, 1), check_invariants=False)
