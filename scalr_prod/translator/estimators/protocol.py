# SPDX-License-Identifier: Apache-2.0
"""What an estimator is to the translator: what it learns, and the score that it gives every target item.

An estimator of your own is a class with the parts of `Estimator` or of `ProductEstimator`, in one file that imports nothing but the
standard library, torch, numpy and `scalr_prod.translator` where it is loaded; other libraries are imported inside ``share`` and ``fit``.
That file travels with every version that is trained with it. Name it in ``[translator] estimators``. See docs/plugins.md for a whole one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from scalr_prod.translator.batch import Batch
    from scalr_prod.translator.pairs import Pairs, Parameters

__all__ = ["Estimator", "Fitted", "LogarithmEstimator", "ProductEstimator"]


class Fitted(Protocol):
    """What every estimator learns; made without arguments."""

    #: Raise it when the same data and settings would give other tensors or scores: the translator is then trained anew.
    version: int

    def share(self, pairs: Pairs) -> Parameters:
        """Tensors that all parameter sets have in common: fitted on source events, for no target event may shape them.

        Args:
            pairs: All users' events before an instant. Its ``settings`` are ``[translator]``.

        Returns:
            Tensors by name; none where everything depends on target events.
        """

    def fit(self, pairs: Pairs, shared: Parameters) -> Parameters:
        """Tensors of one parameter set, by name; the same pairs and settings give the same tensors, to the last bit.

        Args:
            pairs: The same events; ``target_rows`` and ``target_matrix`` leave out those that must not shape the set.
            shared: What `share` gave; a tensor of the same name takes its place.

        Returns:
            Tensors by name, on the CPU.
        """


class Estimator(Fitted, Protocol):
    """An estimator that scores any way it likes. Its scores are worked out in float64."""

    def score(self, parameters: Parameters, batch: Batch, log_prior: torch.Tensor) -> torch.Tensor:
        """A score of every target item, the more likely the higher; what the mixture's softmax adds up.

        Called under `torch.inference_mode`, in several threads, on the device of the parameters. A row must not depend on the others.

        Args:
            parameters: What `share` and `fit` gave.
            batch: B contexts.
            log_prior: float64 [N]. log P(i), the items' popularity.

        Returns:
            Finite, [B, N] in the dtype of ``log_prior``.
        """


class ProductEstimator(Fitted, Protocol):
    """An estimator whose score is the product of a user's vector and the items': faster, since the race runs in float32."""

    def user(self, parameters: Parameters, batch: Batch) -> torch.Tensor:
        """A vector of each context's history: float64 [B, d].

        Args:
            parameters: What `share` and `fit` gave.
            batch: B contexts.

        Returns:
            float64 [B, d], on the device of the parameters; a row must not depend on the others.
        """

    def vectors(self, parameters: Parameters) -> torch.Tensor:
        """Each target item's vector: float32 [N, d].

        Args:
            parameters: What `share` and `fit` gave.

        Returns:
            float32 [N, d].
        """


class LogarithmEstimator(Fitted, Protocol):
    """What has `largest` too scores by the logarithm of a sum of positive terms: of `score`'s, or of a product of positive vectors."""

    def largest(self, parameters: Parameters, log_prior: torch.Tensor) -> torch.Tensor:
        """No score of an item is larger, its sign aside, than: float32 [N], of ``log_prior`` float32 [N].

        Args:
            parameters: What `share` and `fit` gave.
            log_prior: float32 [N]. log P(i), the items' popularity.

        Returns:
            float32 [N].
        """
