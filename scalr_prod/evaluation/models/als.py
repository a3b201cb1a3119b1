# SPDX-License-Identifier: Apache-2.0
"""Matrix factorisation for implicit feedback: ALS (Hu, Koren, Volinsky 2008) of the library `implicit`.

An observed (user, item) pair has preference 1 and confidence 1 + α × weight; an unobserved one has preference 0 and confidence 1. The
library multiplies a matrix value by its own ``alpha`` to get the whole confidence, so it is given 1 + α × weight and an ``alpha`` of 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from scalr_prod.errors import EvaluationError
from scalr_prod.evaluation.search import HALF_LIFE, Hyperparameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.evaluation.interactions import Interactions


@dataclass(frozen=True)
class AlsHyperparameters:
    """Hyperparameters of `ImplicitAls`.

    Attributes:
        factors: Dimension of the user and item vectors.
        alpha: α: how much the confidence in a pair grows with its weight.
        regularization: L2 regularisation of the vectors.
        iterations: Alternating sweeps over users and items.
        threads: Threads of the solver.
    """

    factors: int = 64
    alpha: float = 40.0
    regularization: float = 1.0
    iterations: int = 15
    threads: int = 1


class ImplicitAls:
    """Factorises the user-item matrix. A user without events has the zero vector, so all items score 0, as in the library.

    Args:
        hyperparameters: Model size, confidence, regularisation and training.
    """

    Hyperparameters: Final = AlsHyperparameters
    #: The solver releases the GIL, and its result does not depend on the number of threads.
    fits_in_parallel: Final = True
    #: Hyperparameters tuned on validation, one after the other, the number of factors last: a fit with 256 takes 5 times as long as one
    #: with 64. At a small α a synthetic event counts nearly as much as a real one,
    #: whatever their weights (docs/adr/0019).
    search_space: Final = (
        Hyperparameter("alpha", (10.0, 40.0, 2.5), step=4.0, with_synthetic=40.0),
        Hyperparameter("regularization", (10.0, 1.0, 100.0), step=10.0),
        HALF_LIFE,
        Hyperparameter("factors", (64, 128), step=2.0, low=16, high=256, is_integer=True, multiplies_cost=True),
    )

    def __init__(self, hyperparameters: AlsHyperparameters) -> None:
        self.hyperparameters = hyperparameters

    def fit(self, events: Interactions, *, seed: int) -> None:
        """Factorise the matrix of summed weights.

        Args:
            events: Training events.
            seed: Seed of the initial vectors.

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
        # Decay can make a weight underflow to 0: such a pair is unobserved.
        matrix.eliminate_zeros()
        matrix.data = 1 + self.hyperparameters.alpha * matrix.data
        # The solver has its own threads; BLAS threads below them would only compete for the same cores.
        with threadpool_limits(1, "blas"):
            model = AlternatingLeastSquares(
                factors=self.hyperparameters.factors,
                alpha=1.0,
                regularization=self.hyperparameters.regularization,
                iterations=self.hyperparameters.iterations,
                num_threads=self.hyperparameters.threads,
                random_state=seed,
            )
            model.fit(matrix, show_progress=False)
        self._users, self._items = np.asarray(model.user_factors), np.asarray(model.item_factors)

    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return scores [B, n_items]."""
        scores: NDArray[np.float32] = self._users[users] @ self._items.T
        return scores
