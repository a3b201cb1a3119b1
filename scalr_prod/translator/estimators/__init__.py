# SPDX-License-Identifier: Apache-2.0
"""Estimators: fitting turns training data into tensors; scoring turns tensors and contexts into a score for every target item.

Scoring needs only torch, so it also runs in the serving environment. Built-in estimators are modules; those of other packages are
mostly classes. Both are plug-ins (`scalr_prod.plugins.ESTIMATORS`) that implement a protocol of `protocol`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import TranslatorError
from scalr_prod.plugins import ESTIMATORS
from scalr_prod.translator.estimators.dot_products import dot_product_scores
from scalr_prod.translator.estimators.protocol import Estimator, ProductEstimator

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from scalr_prod.translator.context_batch import ContextBatch

__all__ = [
    "BUILTIN_ESTIMATORS",
    "has_log_score",
    "has_product_score",
    "scored_estimators",
    "scores",
    "validated_scores",
]

#: Names of the built-in estimators that have a score. Popularity has none: it is the prior of the mixture.
BUILTIN_ESTIMATORS: Final = tuple(ESTIMATORS.builtin)


def scored_estimators(names: Iterable[str]) -> tuple[str, ...]:
    """Return the estimators that have a score: built-in ones in the order of `BUILTIN_ESTIMATORS`, then others as given."""
    names = tuple(names)
    others = (name for name in names if name not in BUILTIN_ESTIMATORS and name != "popularity")
    return (*(name for name in BUILTIN_ESTIMATORS if name in names), *others)


def as_estimator(plugin: Any, name: str) -> Any:
    """Check a plug-in against the estimator protocols, and instantiate it if it is a class.

    Raises:
        TranslatorError: It implements neither `Estimator` nor `ProductEstimator`.
    """
    ESTIMATORS.check_protocol(plugin, name, ProductEstimator if has_product_score(plugin) else Estimator)
    return plugin() if isinstance(plugin, type) else plugin


def has_product_score(estimator: Any) -> bool:
    """Return whether the score is a dot product of user and item vectors (see `ProductEstimator`), or the logarithm of one."""
    return hasattr(estimator, "user") or hasattr(estimator, "vectors")


def has_log_score(estimator: Any) -> bool:
    """Return whether the score is the logarithm of a sum of positive terms, or of a dot product of positive vectors.

    Such an estimator has ``largest(parameters, log_prior)``: an upper bound of the absolute score of each item, float32 [N].
    """
    return hasattr(estimator, "largest")


def validated_scores(
    name: str, estimator: Any, parameters: dict[str, torch.Tensor], batch: ContextBatch, log_prior: torch.Tensor
) -> torch.Tensor:
    """Score all items by a plain `Estimator` and check the result: float64 [B, N], given ``log_prior`` [N].

    Raises:
        TranslatorError: The scores are not finite, or have another shape or dtype.
    """
    log_prior = log_prior.double()
    result: torch.Tensor = estimator.score(parameters, batch, log_prior)
    shape = (len(batch.time), len(log_prior))
    if tuple(result.shape) != shape or result.dtype != log_prior.dtype or not result.isfinite().all():
        raise TranslatorError(
            f"the estimator {name} returned {result.dtype} {list(result.shape)}, or scores that are not finite; "
            f"expected {log_prior.dtype} {list(shape)}",
            where=ESTIMATORS.setting,
            next_step="correct its score method: see scalr_prod.translator.Estimator",
        )
    return result


def scores(
    estimator: Any,
    parameters: dict[str, torch.Tensor],
    batch: ContextBatch,
    log_prior: torch.Tensor,
    *,
    user: torch.Tensor | None = None,
    items: torch.Tensor | None = None,
) -> torch.Tensor:
    """Score every target item by a dot product or its logarithm: [B, N], in the dtype of ``log_prior`` [N].

    Args:
        estimator: A product or logarithm estimator.
        parameters: Its tensors.
        batch: B contexts.
        log_prior: float32 or float64 [N].
        user: float64 [B, d]. Precomputed user vectors of a product estimator; None: compute them.
        items: int64 [B, C]. Score only these items: [B, C]. None: all.
    """
    result: torch.Tensor
    if has_product_score(estimator):
        user = estimator.user(parameters, batch) if user is None else user
        result = dot_product_scores(user, estimator.vectors(parameters), log_prior.dtype, items)
        result = result.log_() if has_log_score(estimator) else result
    else:
        result = estimator.score(parameters, batch, log_prior)
        result = result if items is None else result.gather(1, items)
    return result
