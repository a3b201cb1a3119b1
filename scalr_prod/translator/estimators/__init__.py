"""The estimators: each a ``fit`` (training data → tensors) and a ``score`` (tensors, contexts → a score for every target item).

``score`` needs torch alone, so that it also runs in the serving environment.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.translator.estimators.products import products

if TYPE_CHECKING:
    import torch

    from scalr_prod.translator.batch import Batch

__all__ = ["LOGARITHMS", "PRODUCTS", "SCORED", "module_of", "scores"]

#: The estimators that have a score; popularity is the prior that every one of them is smoothed towards.
SCORED: Final = ("frequency", "topics", "linear", "factorisation", "sequential")
#: Those whose score is the product of a user's vector (their ``user``) and the items' (their ``vectors``) …
PRODUCTS: Final = ("topics", "linear", "factorisation", "sequential")
#: … and those of them whose score is the logarithm of that product, of positive numbers.
LOGARITHMS: Final = ("topics",)


def module_of(name: str) -> Any:
    """The module of an estimator."""
    return importlib.import_module(f"{__name__}.{name}")


def scores(
    name: str,
    parameters: dict[str, torch.Tensor],
    batch: Batch,
    log_prior: torch.Tensor,
    *,
    user: torch.Tensor | None = None,
    items: torch.Tensor | None = None,
) -> torch.Tensor:
    """An estimator's score of every target item: [B, N], in the dtype of ``log_prior`` [N].

    Args:
        name: Of the estimator.
        parameters: Its tensors.
        batch: Of B contexts.
        log_prior: float32 or float64 [N].
        user: float64 [B, d], of one of `PRODUCTS`, where it is known.
        items: int64 [B, C]. Score these alone, [B, C].
    """
    estimator = module_of(name)
    result: torch.Tensor
    if name in PRODUCTS:
        user = estimator.user(parameters, batch) if user is None else user
        result = products(user, estimator.vectors(parameters), log_prior.dtype, items)
        result = result.log_() if name in LOGARITHMS else result
    else:
        result = estimator.score(parameters, batch, log_prior)
        result = result if items is None else result.gather(1, items)
    return result
