"""The reference recommenders, unlike one another: a factorisation, a sequential model, a two-tower ranker with probabilities."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import EvaluationError

if TYPE_CHECKING:
    from scalr_prod.downstream.protocol import Recommender

__all__ = ["FAMILIES", "GRIDS", "make_model"]

_HOMES: Final = {
    "als": "scalr_prod.downstream.models.als:ImplicitAls",
    "sasrec": "scalr_prod.downstream.models.sasrec:SasRec",
    "two_tower": "scalr_prod.downstream.models.two_tower:TwoTower",
}
FAMILIES: Final = tuple(_HOMES)
#: What is tried on the validation slice, for the arm of real events alone.
GRIDS: Final[dict[str, tuple[dict[str, Any], ...]]] = {
    "als": tuple({"alpha": alpha, "regularization": reg} for alpha in (10.0, 40.0) for reg in (1.0, 30.0)),
    "sasrec": ({"epochs": 8}, {"epochs": 12}),
    "two_tower": ({"epochs": 8, "decay": 0.3}, {"epochs": 16, "decay": 1.0}, {"epochs": 16, "decay": 3.0}),
}


def make_model(name: str, options: dict[str, Any], *, threads: int) -> Recommender:
    """A fresh model: one of `FAMILIES`, or a class of your own as ``package.module:Class``, which gets the options alone.

    Raises:
        EvaluationError: There is no such family or class, or it lacks ``fit`` or ``score``.
    """
    own = ":" in name
    module, _, attribute = (name if own else _HOMES.get(name, "")).partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise EvaluationError(
            f"there is no model {name!r} ({error}); the families are: {', '.join(FAMILIES)}",
            where="[downstream] models",
            next_step="name a family, or a class of your own as package.module:Class",
        ) from error
    if not all(callable(getattr(found, method, None)) for method in ("fit", "score")):
        raise EvaluationError(
            f"{name} has no method fit(events, seed=…) or score(users)",
            where="[downstream] models",
            next_step="see docs/evaluation.md, 'Your own model'",
        )
    model: Recommender = found(**options) if own else found(**options, threads=threads)
    return model
