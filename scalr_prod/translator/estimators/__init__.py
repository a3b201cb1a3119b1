"""The estimators: each a ``fit`` (training data → tensors) and a ``score`` (tensors, contexts → a score for every target item).

``score`` needs torch alone, so that it also runs in the serving environment.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

    from scalr_prod.translator.batch import Batch

__all__ = ["SCORED", "module_of", "scores"]

#: The estimators that have a score; popularity is the prior that every one of them is smoothed towards.
SCORED: Final = ("frequency", "topics", "linear", "factorisation", "sequential")


def module_of(name: str) -> Any:
    """The module of an estimator."""
    return importlib.import_module(f"{__name__}.{name}")


def scores(name: str, parameters: dict[str, torch.Tensor], batch: Batch, log_prior: torch.Tensor) -> torch.Tensor:
    """An estimator's score of every target item: [B, N], in the dtype of ``log_prior`` [N]."""
    result: torch.Tensor = module_of(name).score(parameters, batch, log_prior)
    return result
