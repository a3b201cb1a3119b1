# SPDX-License-Identifier: Apache-2.0
"""The estimators: each is fitted (training data → tensors) and scores (tensors, contexts → a score for every target item).

Scoring needs torch alone, so that it also runs in the serving environment. Ours are modules, those of other packages mostly
classes; both are plug-ins (`scalr_prod.plugins.ESTIMATORS`) with the parts that `protocol` names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import TranslatorError
from scalr_prod.plugins import ESTIMATORS
from scalr_prod.translator.estimators.products import products
from scalr_prod.translator.estimators.protocol import Estimator, ProductEstimator

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from scalr_prod.translator.batch import Batch

__all__ = [
    "SCORED",
    "as_estimator",
    "exact_scores",
    "is_logarithm",
    "is_product",
    "scored_of",
    "scores",
]

#: Ours that have a score; popularity is the prior that every one of them is smoothed towards.
SCORED: Final = tuple(ESTIMATORS.own)


def scored_of(named: Iterable[str]) -> tuple[str, ...]:
    """Those of the named estimators that have a score: ours in the order of `SCORED`, then others as they are named."""
    named = tuple(named)
    others = (name for name in named if name not in SCORED and name != "popularity")
    return (*(name for name in SCORED if name in named), *others)


def as_estimator(found: Any, name: str) -> Any:
    """A plug-in as an estimator: an instance, where it is a class.

    Raises:
        TranslatorError: It lacks a part of `Estimator` and of `ProductEstimator`.
    """
    ESTIMATORS.require(found, name, ProductEstimator if is_product(found) else Estimator)
    return found() if isinstance(found, type) else found


def is_product(estimator: Any) -> bool:
    """Whether the score is the product of a user's vector and the items', see `ProductEstimator`; or its logarithm."""
    return hasattr(estimator, "user") or hasattr(estimator, "vectors")


def is_logarithm(estimator: Any) -> bool:
    """Whether the score is the logarithm of a sum of positive terms, see `LogarithmEstimator`."""
    return hasattr(estimator, "largest")


def exact_scores(
    name: str, estimator: Any, parameters: dict[str, torch.Tensor], batch: Batch, log_prior: torch.Tensor
) -> torch.Tensor:
    """Scores of an `Estimator` that is no more than that: float64 [B, N], of ``log_prior`` [N].

    Raises:
        TranslatorError: It gave something else than finite scores of that shape and dtype.
    """
    log_prior = log_prior.double()
    found: torch.Tensor = estimator.score(parameters, batch, log_prior)
    shape = (len(batch.time), len(log_prior))
    if tuple(found.shape) != shape or found.dtype != log_prior.dtype or not found.isfinite().all():
        raise TranslatorError(
            f"the estimator {name} gave {found.dtype} {list(found.shape)}, or scores that are not finite; "
            f"wanted is {log_prior.dtype} {list(shape)}",
            where=ESTIMATORS.setting,
            next_step="correct its score: see scalr_prod.translator.Estimator",
        )
    return found


def scores(
    estimator: Any,
    parameters: dict[str, torch.Tensor],
    batch: Batch,
    log_prior: torch.Tensor,
    *,
    user: torch.Tensor | None = None,
    items: torch.Tensor | None = None,
) -> torch.Tensor:
    """Score of every target item by a product or a logarithm: [B, N], in the dtype of ``log_prior`` [N].

    Args:
        estimator: It.
        parameters: Its tensors.
        batch: Of B contexts.
        log_prior: float32 or float64 [N].
        user: float64 [B, d], of a product, where it is known.
        items: int64 [B, C]. Score these alone, [B, C].
    """
    result: torch.Tensor
    if is_product(estimator):
        user = estimator.user(parameters, batch) if user is None else user
        result = products(user, estimator.vectors(parameters), log_prior.dtype, items)
        result = result.log_() if is_logarithm(estimator) else result
    else:
        result = estimator.score(parameters, batch, log_prior)
        result = result if items is None else result.gather(1, items)
    return result
