# SPDX-License-Identifier: Apache-2.0
"""Estimator protocols: what an estimator learns, and how it scores target items.

Your own estimator is a class with the members of `Estimator` or of `ProductEstimator`, in one file. At module level that file may import
only the standard library, torch, numpy and `scalr_prod.translator`; import other libraries inside ``share`` and ``fit``.
The file is bundled with every version trained with it. Name the class in ``[translator] estimators``. Example: docs/guides/plugins.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from scalr_prod.translator.context_batch import ContextBatch
    from scalr_prod.translator.data.training_pairs import Parameters, TrainingSlice


class FittableEstimator(Protocol):
    """The part of an estimator that learns; constructed without arguments."""

    #: Increase it when the same data and settings would give different tensors or scores: the translator is then retrained.
    version: int

    def share(self, pairs: TrainingSlice) -> Parameters:
        """Fit the tensors that all parameter sets share, on source events only: no target event may influence them.

        Args:
            pairs: All users' events before a point in time. Its ``settings`` are ``[translator]``.

        Returns:
            Tensors by name; empty if everything depends on target events.
        """

    def fit(self, pairs: TrainingSlice, shared: Parameters) -> Parameters:
        """Fit one parameter set. Must be deterministic: the same pairs and settings give bit-identical tensors.

        Args:
            pairs: The same events; ``target_rows`` and ``target_matrix`` leave out those that must not influence the set.
            shared: What `share` returned; a tensor of the same name replaces it.

        Returns:
            Tensors by name, on the CPU.
        """


class Estimator(FittableEstimator, Protocol):
    """An estimator with an arbitrary score, computed in float64."""

    def score(self, parameters: Parameters, batch: ContextBatch, log_prior: torch.Tensor) -> torch.Tensor:
        """Score every target item: the higher, the more likely. A weighted sum of scores goes into the mixture's softmax.

        Called under `torch.inference_mode`, from several threads, on the device of the parameters. Rows must be independent.

        Args:
            parameters: What `share` and `fit` returned.
            batch: B contexts.
            log_prior: float64 [N]. log P(i), the items' popularity.

        Returns:
            Finite, [B, N] in the dtype of ``log_prior``.
        """


class ProductEstimator(FittableEstimator, Protocol):
    """An estimator whose score is the dot product of user and item vectors. Faster: sampling runs in float32."""

    def user(self, parameters: Parameters, batch: ContextBatch) -> torch.Tensor:
        """Encode each context's history as a vector: float64 [B, d].

        Args:
            parameters: What `share` and `fit` returned.
            batch: B contexts.

        Returns:
            float64 [B, d], on the device of the parameters; rows must be independent.
        """

    def vectors(self, parameters: Parameters) -> torch.Tensor:
        """Return each target item's vector: float32 [N, d].

        Args:
            parameters: What `share` and `fit` returned.

        Returns:
            float32 [N, d].
        """
