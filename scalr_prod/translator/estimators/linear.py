# SPDX-License-Identifier: Apache-2.0
"""Linear estimator: ridge regression from a user's source items to target items, on the source domain's principal components.

With X the users' source items (rows scaled to unit norm, columns damped by popularity) and Q [n_source, r] the first right singular
vectors of X, users have coordinates ``z = x Q`` and the score is ``z C`` with ``C = (Z'Z + λI)⁻¹ Z'Y`` over the training users. Q depends
on source events alone, so all parameter sets share it, and each set solves one r x r system.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from scalr_prod.translator.context_batch import distinct_per_row
from scalr_prod.translator.estimators.dot_products import dot_product_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from scalr_prod.translator.context_batch import ContextBatch
    from scalr_prod.translator.data.training_pairs import Parameters, TrainingSlice


version: Final = 1
#: Principal components per unit of ``[translator] dim``.
COMPONENTS_PER_DIM: Final = 4
#: λ in units of a training user's mean squared norm.
RIDGE: Final = 3.0
#: How much popular source items are damped: columns are divided by (users + 1)^DAMPING.
DAMPING: Final = 0.25
_POWER_ITERATIONS: Final = 4
#: Cells of X that the components are computed from.
MAX_CELLS: Final = 5_000_000
#: Smallest ratio of the diagonal of the Cholesky factor at which columns are independent enough for Cholesky orthonormalisation.
_MIN_PIVOT_RATIO: Final = 1e-5


def share(pairs: TrainingSlice) -> Parameters:
    """Fit ``basis`` float32 [n_source + 1, r]: Q with the columns' damping folded in."""
    return {"basis": torch.from_numpy(source_basis(pairs, COMPONENTS_PER_DIM * pairs.settings.dim))}


def source_basis(pairs: TrainingSlice, components: int) -> Any:
    """Compute Q by randomised subspace iteration (Halko et al. 2011), damping folded in: numpy float32 [n_source + 1, r].

    At most about `MAX_CELLS` cells of X are used, those of users chosen at random.
    """
    counts = pairs.source_user_counts()
    damping = (counts + 1) ** -DAMPING
    random = np.random.default_rng(pairs.settings.seed)
    shape = len(pairs.log.users), pairs.n_source + 1
    components = min(components, *shape)
    q = random.standard_normal((shape[1], min(components + 32, *shape)), dtype=np.float32)
    matrices: Callable[[], Iterable[Any]] = partial(user_matrices, pairs, damping)
    share = MAX_CELLS / max(counts.sum(dtype=np.float64), 1)
    if share < 1:
        sample = list(user_matrices(pairs, damping, random.random(shape[0]) < share))
        matrices = partial(iter, sample)
    for _ in range(_POWER_ITERATIONS):
        q = orthonormalise(sum(x.T @ (x @ q) for x in matrices()))
    products_ = sum(projected.T @ projected for projected in (x @ q for x in matrices()))
    _, vectors = np.linalg.eigh(products_.astype(np.float64))
    basis = q @ vectors[:, ::-1][:, :components].astype(np.float32)
    return (damping[:, None] * basis).astype(np.float32)


def user_matrices(pairs: TrainingSlice, damping: NDArray[np.float32], chosen: NDArray[np.bool_] | None = None) -> Iterator[Any]:
    """Yield X [users, n_source + 1] of consecutive users, or of the chosen ones among them, bool [U]."""
    for users in pairs.iter_user_batches():
        x = pairs.source_matrix(users)
        if chosen is not None:
            x = x[chosen[users]]
        norm = np.maximum(np.asarray(x.sum(axis=1)).ravel(), 1) ** -0.5
        x.data *= np.repeat(norm, np.diff(x.indptr))  # rounds like products with diagonal matrices
        x.data *= damping[x.indices]
        yield x


def orthonormalise(columns: Any) -> Any:
    """Return an orthonormal basis of the span of some columns.

    Uses a Cholesky factorisation of the Gram matrix in float64, ten times faster than Householder reflections. Falls back to those
    if the columns are nearly dependent.

    Args:
        columns: numpy float32 [n, r], n >= r.

    Returns:
        numpy float32 [n, r].
    """
    exact = columns.astype(np.float64)
    try:
        factor = np.linalg.cholesky(exact.T @ exact)
    except np.linalg.LinAlgError:  # the columns are dependent
        factor = np.zeros((1, 1))
    if factor.diagonal().min() <= _MIN_PIVOT_RATIO * factor.diagonal().max():
        return np.linalg.qr(columns)[0]
    # numpy's routines, which use one thread in training.
    return (exact @ np.linalg.inv(factor).T).astype(np.float32)


def fit(pairs: TrainingSlice, shared: Parameters) -> Parameters:
    """Fit ``coefficients`` float32 [r, n_target]: C."""
    basis, all_targets = shared["basis"].numpy(), pairs.target_matrix()
    gram, sums = np.zeros((len(basis[0]), len(basis[0]))), np.zeros((all_targets.shape[1], len(basis[0])))
    user_count = 0
    for users in pairs.iter_user_batches():
        source, target = pairs.source_matrix(users), all_targets[users]
        both = (np.asarray(target.sum(axis=1)).ravel() > 0) & (np.asarray(source.sum(axis=1)).ravel() > 0)
        source, target = source[both], target[both]
        norm = np.asarray(source.sum(axis=1)).ravel() ** -0.5
        z = (norm[:, None] * (source @ basis)).astype(np.float64)
        gram += z.T @ z
        sums += target.T @ z
        user_count += len(z)
    gram[np.diag_indices_from(gram)] += RIDGE * max(np.trace(gram), 1e-12) / max(user_count, 1)
    coefficients = np.linalg.solve(gram, sums.T)
    return {"coefficients": torch.from_numpy(coefficients.astype(np.float32))}


def user(parameters: Parameters, batch: ContextBatch) -> torch.Tensor:
    """Compute the users' coordinates z: float64 [B, r]."""
    items = distinct_per_row(batch.items)
    norm = (items > 0).sum(1, keepdim=True).clamp(min=1).double().sqrt()
    return parameters["basis"][items].sum(1, dtype=torch.float64) / norm


def vectors(parameters: Parameters) -> torch.Tensor:
    """Return each target item's coefficients: float32 [N, r]."""
    return parameters["coefficients"].T


def score(parameters: Parameters, batch: ContextBatch, log_prior: torch.Tensor) -> torch.Tensor:
    """Score all target items: [B, N] in the dtype of ``log_prior``."""
    return dot_product_scores(user(parameters, batch), vectors(parameters), log_prior.dtype)
