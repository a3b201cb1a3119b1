# SPDX-License-Identifier: Apache-2.0
"""Joint factorisation of both domains: implicit ALS (Hu, Koren, Volinsky 2008) on users x [target items | source items].

An observed cell has preference 1 and confidence 1 + α (target) or 1 + wα (source), any other cell preference 0 and confidence 1. A target
cell of weight v interpolates between the two: observed with weight v, unobserved with 1 - v. A context's user vector comes from its source
items alone, by the same least squares over the source items; the score is its dot product with the target items' vectors. Each half step
takes a few conjugate-gradient steps for all rows at once (Takács et al. 2011). Cells and user vectors are on disk and streamed in the order
of users: only 8 bytes per user and the item vectors stay in memory.
"""

from __future__ import annotations

import functools
import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from scalr_prod.core.memmap import DiskMatrix, drop_pages, spill_arrays
from scalr_prod.translator.context_batch import distinct_per_row
from scalr_prod.translator.estimators.compiled_kernels import load_kernels
from scalr_prod.translator.estimators.dot_products import dot_product_scores
from scalr_prod.translator.worker_pool import check_cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from scalr_prod.translator.context_batch import ContextBatch
    from scalr_prod.translator.data.training_pairs import Parameters, TrainingSlice


version: Final = 1

CONFIDENCE: Final = 40.0
SOURCE_WEIGHT: Final = 0.1
REGULARISATION: Final = 1.0
ITERATIONS: Final = 8
_CG_STEPS: Final = 3
#: Observed cells per block: few enough that their rows' vectors fit the processor's cache.
_CELLS: Final = 20_000
#: Numbers per chunk of `_products`: as many as fit the processor's cache beside the rest.
_CACHED_NUMBERS: Final = 262_144
#: Observed cells after which the pages read so far are dropped.
_CELLS_BEFORE_DROP: Final = 1_000_000
#: Items updated at a time.
_ITEMS: Final = 262_144
_warning_lock: Final = threading.Lock()


def share(pairs: TrainingSlice) -> Parameters:
    """Return no tensors: every parameter depends on target events."""
    del pairs
    return {}


def fit(pairs: TrainingSlice, shared: Parameters) -> Parameters:
    """Fit ``source`` float32 [n_source + 1, d], ``target`` float32 [n_target, d], and ``gram`` float64 [d, d]: S'S + λI."""
    del shared
    cells = _Cells.from_pairs(pairs)
    generator = torch.Generator().manual_seed(pairs.settings.seed)
    items = 0.01 * torch.randn(pairs.n_target + pairs.n_source + 1, pairs.settings.dim, generator=generator)
    with DiskMatrix(len(pairs.log.users), pairs.settings.dim, np.float32, pairs.log.scratch_dir) as users:
        for _ in range(ITERATIONS):
            check_cancelled(1 / ITERATIONS)
            _move_items(cells, users, items, _move_users(cells, users, items))
    vectors = items[pairs.n_target :].double()
    return {
        "source": items[pairs.n_target :].clone(),
        "target": items[: pairs.n_target].clone(),
        "gram": vectors.T @ vectors + REGULARISATION * torch.eye(vectors.shape[1], dtype=torch.float64),
    }


def user(parameters: Parameters, batch: ContextBatch) -> torch.Tensor:
    """Solve the least squares of each history's source items for the user vector: float64 [B, d]."""
    items = distinct_per_row(batch.items)
    source = parameters["source"][items].double() * (items > 0)[:, :, None]
    extra = CONFIDENCE * SOURCE_WEIGHT
    system = torch.baddbmm(parameters["gram"].expand(len(items), -1, -1), source.mT, source, alpha=extra)
    right = (1 + extra) * source.sum(1)[:, :, None]
    return torch.cholesky_solve(right, torch.linalg.cholesky(system))[:, :, 0]


def vectors(parameters: Parameters) -> torch.Tensor:
    """Return each target item's vector: float32 [N, d]."""
    return parameters["target"]


def score(parameters: Parameters, batch: ContextBatch, log_prior: torch.Tensor) -> torch.Tensor:
    """Score all target items: [B, N] in the dtype of ``log_prior``."""
    return dot_product_scores(user(parameters, batch), vectors(parameters), log_prior.dtype)


def _move_users(cells: _Cells, users: DiskMatrix, items: torch.Tensor) -> torch.Tensor:
    """Move every user vector towards its least-squares solution, given the item vectors.

    Returns:
        float32 [d, d]: the Gram matrix of the updated user vectors, plus λI.
    """
    gram = items.T @ items + REGULARISATION * torch.eye(items.shape[1])
    products = REGULARISATION * torch.eye(items.shape[1], dtype=torch.float64)
    compiled = load_kernels()
    for start, stop, block in cells.blocks():

        def times(v: torch.Tensor, block: _Block = block) -> torch.Tensor:
            if compiled is None:
                observed = block.matrix(block.extra * _products(v, block.row(), items, block.column), len(items)) @ items
            else:
                observed = torch.empty_like(v)
                compiled.sum_by_row(*_arrays(block.start, block.column, block.extra, v, items, observed))
            return v @ gram + observed

        x = torch.from_numpy(users.read(start, stop))
        residual = block.matrix(block.right, len(items)) @ items - times(x)
        x = _conjugate_gradient(x, residual, times)
        users.write(start, x.numpy())
        products += x.T @ x
    return products.float()


def _move_items(cells: _Cells, users: DiskMatrix, items: torch.Tensor, gram: torch.Tensor) -> None:
    """Move every item vector, in place, towards its least-squares solution, given the user vectors.

    User vectors are streamed once for each product with all of them, so that only one block of them is in memory.

    Args:
        cells: The observed cells.
        users: float32 [U, d].
        items: float32 [items, d].
        gram: The result of `_move_users`.
    """
    for first in range(0, len(items), _ITEMS):
        chunk = items[first : first + _ITEMS]

        def times(v: torch.Tensor, first: int = first) -> torch.Tensor:
            return v @ gram + _sum_by_item(cells, users, v, first)

        residual = _sum_by_item(cells, users, chunk, first, residual=True) - chunk @ gram
        items[first : first + _ITEMS] = _conjugate_gradient(chunk, residual, times)


def _sum_by_item(cells: _Cells, users: DiskMatrix, v: torch.Tensor, first: int, *, residual: bool = False) -> torch.Tensor:
    """Sum the contribution of observed cells to a product with ``v`` or to the residual, for items from ``first`` on: shaped as ``v``."""
    total, compiled = torch.zeros_like(v), load_kernels()
    for start, stop, block in cells.blocks():
        x = torch.from_numpy(users.read(start, stop))
        offset, values = (block.right, -block.extra) if residual else (torch.zeros_like(block.extra), block.extra)
        if compiled is not None:
            arrays = _arrays(block.start, block.column, offset, values, x, v)
            compiled.add_by_column(*arrays, first, total.numpy())
            continue
        mask = (block.column >= first) & (block.column < first + len(v))
        row, column = block.row()[mask], block.column[mask] - first
        weight = offset[mask] + values[mask] * _products(x, row, v, column)
        total.index_add_(0, column, weight[:, None] * x[row])
    return total


def _conjugate_gradient(x: torch.Tensor, residual: torch.Tensor, times: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Take a few conjugate-gradient steps for all rows at once."""
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


def _arrays(*tensors: torch.Tensor) -> list[Any]:
    return [tensor.numpy() for tensor in tensors]


def _products(v: torch.Tensor, row: torch.Tensor, y: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """Compute v[row] · y[column] of each cell, in chunks that fit the cache: bit-identical, in a third of the time."""
    size = max(1, _CACHED_NUMBERS // v.shape[1])
    chunks = zip(row.split(size), column.split(size), strict=True)
    return torch.cat([v[rows].mul_(y[columns]).sum(1) for rows, columns in chunks])


@dataclass(frozen=True)
class _Block:
    """The observed cells of a block of users, as tensors.

    Attributes:
        start: int64 [R + 1]. Where each user's cells begin.
        column: int64 [C].
        extra: float32 [C]. Each cell's confidence - 1.
        right: float32 [C]. Confidence times preference.
    """

    start: torch.Tensor
    column: torch.Tensor
    extra: torch.Tensor
    right: torch.Tensor

    def row(self) -> torch.Tensor:
        """Return the row of each cell: int64 [C]."""
        return torch.repeat_interleave(torch.arange(len(self.start) - 1), self.start.diff())

    def matrix(self, values: torch.Tensor, columns: int) -> torch.Tensor:
        """Return the cells as a CSR tensor with these values."""
        return _sparse(self.start, self.column, values, (len(self.start) - 1, columns))


@dataclass(frozen=True)
class _Cells:
    """All observed cells in the order of users; everything but ``start`` is on disk.

    Attributes:
        start: int64 [U + 1]. Where each user's cells begin.
        column: int32 [C]. Target items, then source items.
        extra: float32 [C]. As in `_Block`.
        right: float32 [C]. As in `_Block`, if events have different weights; None: the confidence.
    """

    start: NDArray[np.int64]
    column: NDArray[np.int32]
    extra: NDArray[np.float32]
    right: NDArray[np.float32] | None = None

    @classmethod
    def from_pairs(cls, pairs: TrainingSlice) -> _Cells:
        """Write the cells of a training slice to disk."""
        from scipy import sparse

        targets, has_weights = pairs.target_matrix(), pairs.log.target.weight is not None
        counts = np.zeros(len(pairs.log.users) + 1, dtype=np.int64)

        def parts() -> Iterator[list[NDArray[Any]]]:
            for users in pairs.iter_user_batches():
                target, source = targets[users], pairs.source_matrix(users)
                extra = sparse.hstack([CONFIDENCE * target, CONFIDENCE * SOURCE_WEIGHT * source], format="csr")
                counts[users.start + 1 : users.stop + 1] = np.diff(extra.indptr)
                right = []
                if has_weights:
                    right = [
                        sparse.hstack([(1 + CONFIDENCE) * target, (1 + CONFIDENCE * SOURCE_WEIGHT) * source], format="csr").data
                    ]
                yield [extra.indices, extra.data, *right]

        dtypes = [np.int32, np.float32, *([np.float32] if has_weights else [])]
        column, extra, *right = spill_arrays(parts(), dtypes, pairs.log.scratch_dir)
        return cls(np.cumsum(counts), column, extra, right[0] if right else None)

    def blocks(self) -> Iterator[tuple[int, int, _Block]]:
        """Yield (first user, end user, their cells), with a bounded number of cells each."""
        stop, dropped_at = 0, 0
        while stop < len(self.start) - 1:
            start, max_cells = stop, self.start[stop] + _CELLS
            stop = min(max(int(np.searchsorted(self.start, max_cells, side="right")) - 1, start + 1), len(self.start) - 1)
            cells = slice(self.start[start], self.start[stop])
            extra = torch.from_numpy(self.extra[cells].copy())
            right = extra + 1 if self.right is None else torch.from_numpy(self.right[cells].copy())
            column = torch.from_numpy(self.column[cells].astype(np.int64))
            yield start, stop, _Block(torch.from_numpy(self.start[start : stop + 1] - self.start[start]), column, extra, right)
            if self.start[stop] - dropped_at >= _CELLS_BEFORE_DROP:
                dropped_at = self.start[stop]
                drop_pages()


def _sparse(start: torch.Tensor, column: torch.Tensor, values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    with _warning_lock:
        _silence_beta_warning()
    return torch.sparse_csr_tensor(start, column, values, size=shape, check_invariants=False)


@functools.cache
def _silence_beta_warning() -> None:
    """Trigger and silence torch's one-time warning that this format is in beta: products with dense matrices, all we use, are tested here.

    Warning filters are process-wide, so only one thread at a time may change them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        start = torch.zeros(1, dtype=torch.int64)
        torch.sparse_csr_tensor(start, start[:0], torch.zeros(0), size=(0, 1), check_invariants=False)
