# SPDX-License-Identifier: Apache-2.0
"""Co-occurrence estimator of the SCALR paper: how often users of a source item also had a target item, smoothed towards popularity.

``P(i | j) = (n(j, i) + α P(i)) / (n(j) + α)``, where n(j, i) is the number of users who had both. A context is the translated item
and the few items before it; each step back multiplies the weight by `DECAY`: ``P(i | context) = Σ_h w_h P(i | j_h)``. The score is its
logarithm.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from scalr_prod.translator.estimators.dot_products import UNIT_ROUNDOFF

if TYPE_CHECKING:
    from scalr_prod.translator.context_batch import ContextBatch
    from scalr_prod.translator.data.training_pairs import Parameters, TrainingSlice


version: Final = 1
#: α: pseudo-users who follow popularity.
SMOOTHING: Final = 20.0
#: Most frequent target items kept for each source item.
MAX_ENTRIES: Final = 256
#: Items of the history that count, and the weight of each relative to the next more recent one.
DEPTH: Final = 8
DECAY: Final = 0.7


def share(pairs: TrainingSlice) -> Parameters:
    """Return no tensors: every parameter depends on target events."""
    del pairs
    return {}


def fit(pairs: TrainingSlice, shared: Parameters) -> Parameters:
    """Count co-occurrences over the training users of a parameter set.

    Returns:
        ``start`` int64 [n_source + 2], where each source item's entries begin (item 0 has none); ``item`` int32 [M] and
        ``share`` float32 [M]: n(j, i) / (n(j) + α); ``rest`` float32 [n_source + 1]: α / (n(j) + α).
    """
    import numpy as np
    from scipy import sparse

    del shared
    all_targets = pairs.target_matrix()
    users, sums = np.zeros(pairs.n_source + 1, dtype=np.float32), _PairwiseSum()
    for batch in pairs.iter_user_batches():
        source, target = pairs.source_matrix(batch), all_targets[batch]
        is_common = np.asarray(target.sum(axis=1)).ravel() > 0
        source, target = source[is_common], target[is_common]
        sums.add(source.T.tocsr() @ target)
        # A user counts as much as the heaviest event, so as 1 if events have no weights.
        users += np.asarray(source.sum(axis=0)).ravel() if pairs.log.target.weight is None else source.T @ _row_maxima(target)
    counts = sparse.csr_matrix(sums.total())
    start, item, share = _largest_entries(counts, MAX_ENTRIES)
    total = users + SMOOTHING
    share = share / np.repeat(total, np.diff(start))
    return {
        "start": torch.from_numpy(start.astype(np.int64)),
        "item": torch.from_numpy(item.astype(np.int32)),
        "share": torch.from_numpy(share.astype(np.float32)),
        "rest": torch.from_numpy((SMOOTHING / total).astype(np.float32)),
    }


def score(parameters: Parameters, batch: ContextBatch, log_prior: torch.Tensor) -> torch.Tensor:
    """Compute log P(i | context): [B, N] in the dtype of ``log_prior``."""
    dtype = log_prior.dtype
    history, weight, rest = history_weights(parameters, batch, dtype)
    start = parameters["start"]
    begin, count = start[history], start[history + 1] - start[history]
    flat = count.reshape(-1)
    entry = torch.repeat_interleave(begin.reshape(-1) - (flat.cumsum(0) - flat), flat) + torch.arange(
        int(flat.sum()), device=history.device
    )
    row = torch.arange(len(history), device=history.device)[:, None].expand_as(history).reshape(-1)
    cell = torch.repeat_interleave(row * len(log_prior), flat) + parameters["item"][entry]
    mass = parameters["share"][entry].to(dtype) * torch.repeat_interleave(weight.reshape(-1), flat)
    probability = torch.zeros(len(history) * len(log_prior), dtype=dtype, device=history.device).index_add_(0, cell, mass)
    return probability.view(len(history), -1).add_(rest * log_prior.exp()).log_()


class HistoryWeights(NamedTuple):
    """How much each item of B histories counts.

    Attributes:
        items: int64 [B, H]. The last items of each history; 0 is padding.
        weight: [B, H]. Their weights; 0 for padding.
        rest: [B, 1]. Weight of popularity.
    """

    items: torch.Tensor
    weight: torch.Tensor
    rest: torch.Tensor


def history_weights(parameters: Parameters, batch: ContextBatch, dtype: Any) -> HistoryWeights:
    """Weight the last items of each history, the latest most."""
    history = batch.items[:, -DEPTH:]
    steps = torch.arange(history.shape[1] - 1, -1, -1, dtype=dtype, device=history.device)
    weight = torch.where(history > 0, DECAY**steps, 0.0)
    total = weight.sum(1, keepdim=True)
    weight = weight / total.clamp(min=torch.finfo(dtype).tiny)
    rest = (weight * parameters["rest"][history].to(dtype)).sum(1, keepdim=True) + (total == 0)
    return HistoryWeights(history, weight, rest)


def largest(parameters: Parameters, log_prior: torch.Tensor) -> torch.Tensor:
    """Return an upper bound of the absolute score of each item: float32 [N]."""
    least_rest = min(1.0, float(parameters["rest"].min()))
    return (-log_prior - math.log(least_rest)) * (1 + 8 * UNIT_ROUNDOFF)


class _PairwiseSum:
    """Pairwise sum of sparse matrices: each entry is copied O(log n) times for n matrices."""

    def __init__(self) -> None:
        self._partial_sums: list[tuple[int, Any]] = []

    def add(self, matrix: Any) -> None:
        """Add a matrix."""
        rank = 0
        while self._partial_sums and self._partial_sums[-1][0] == rank:
            matrix, rank = self._partial_sums.pop()[1] + matrix, rank + 1
        self._partial_sums.append((rank, matrix))

    def total(self) -> Any:
        """Return the sum."""
        return functools.reduce(operator.add, (matrix for _, matrix in reversed(self._partial_sums)))


def _row_maxima(target: Any) -> Any:
    """Return the largest entry of each row of a CSR matrix without empty rows: float32 [rows]."""
    import numpy as np

    return np.maximum.reduceat(target.data, target.indptr[:-1])


def _largest_entries(counts: Any, max_entries: int) -> tuple[Any, Any, Any]:
    """Return the ``max_entries`` largest entries of each row, ties by column: (row starts [rows + 1], columns, values)."""
    import numpy as np

    counts.sort_indices()
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    order = np.lexsort((-counts.data, rows))
    rank = np.arange(len(order)) - counts.indptr[rows]  # rows stay together and in order
    order = order[rank < max_entries]
    start = np.concatenate([[0], np.cumsum(np.minimum(np.diff(counts.indptr), max_entries))])
    return start, counts.indices[order], counts.data[order]
