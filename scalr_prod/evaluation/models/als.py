# SPDX-License-Identifier: Apache-2.0
"""Implicit ALS (Hu, Koren, Volinsky 2008), by the library `implicit`.

An observed cell has preference 1 and confidence 1 + α × weight; an unobserved one has preference 0 and confidence 1. The library takes a
cell's value times its own ``alpha`` as the whole confidence, so it is given 1 + α × weight and an ``alpha`` of 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.errors import EvaluationError
from scalr_prod.evaluation.search import HALF_LIFE, Hyperparameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.evaluation.interactions import Interactions

__all__ = ["ImplicitAls"]


class ImplicitAls:
    """Factorises users × items. A user without events is given the most popular items.

    Args:
        factors: Dimension.
        alpha: α: how much the confidence in a cell grows with its weight.
        regularization: λ of the factors.
        iterations: Sweeps.
        threads: Of the solver.
    """

    #: Tried on validation for real events alone, one after the other.
    knobs: Final = (
        Hyperparameter("alpha", (10.0, 40.0, 2.5), step=4.0),
        Hyperparameter("regularization", (10.0, 1.0, 100.0), step=10.0),
        HALF_LIFE,
        Hyperparameter("factors", (64, 128), step=2.0, low=16, high=256, is_integer=True),
    )

    def __init__(
        self,
        *,
        factors: int = 64,
        alpha: float = 40.0,
        regularization: float = 1.0,
        iterations: int = 15,
        threads: int = 1,
    ) -> None:
        self.alpha = alpha
        self.options: dict[str, Any] = {
            "factors": factors,
            "alpha": 1.0,
            "regularization": regularization,
            "iterations": iterations,
            "num_threads": threads,
        }

    def fit(self, events: Interactions, *, seed: int) -> None:
        """Factorise the summed weights.

        Args:
            events: What is learned from.
            seed: Of the first factors.

        Raises:
            EvaluationError: The library is not installed.
        """
        try:
            from implicit.cpu.als import AlternatingLeastSquares
        except ImportError as error:
            raise EvaluationError(
                "the library 'implicit' is not installed",
                where="[downstream] models = als",
                next_step="pip install 'scalr-prod[downstream]', or leave 'als' out of [downstream] models",
            ) from error
        from threadpoolctl import threadpool_limits

        matrix = events.matrix()
        # Decay can let a weight underflow to 0: such a cell is unobserved.
        matrix.eliminate_zeros()
        matrix.data = 1 + self.alpha * matrix.data
        # The solver has threads of its own; BLAS threads below them only fight for the same cores.
        with threadpool_limits(1, "blas"):
            model = AlternatingLeastSquares(**self.options, random_state=seed)
            model.fit(matrix, show_progress=False)
        self._users, self._items = np.asarray(model.user_factors), np.asarray(model.item_factors)
        observed = events.take(events.in_history())
        # Of somebody without any event nothing is known but what others really chose.
        self._popular = (observed if len(observed) else events).popularity().astype(np.float32)
        self._empty = np.diff(matrix.indptr) == 0

    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """[B, n_items]."""
        scores: NDArray[np.float32] = self._users[users] @ self._items.T
        scores[self._empty[users]] = self._popular
        return scores
