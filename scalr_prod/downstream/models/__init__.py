"""The reference recommenders, unlike one another: a factorisation, a sequential model, and two rankers with probabilities.

The two-tower ranker learns vectors of users and items, the feature ranker boosts trees over what is known of both.
"""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.downstream.search import Knob
from scalr_prod.errors import EvaluationError

if TYPE_CHECKING:
    from scalr_prod.downstream.protocol import Recommender

__all__ = ["FAMILIES", "KNOBS", "knobs_of", "knows_source", "make_model", "measure_of"]

_HOMES: Final = {
    "als": "scalr_prod.downstream.models.als:ImplicitAls",
    "sasrec": "scalr_prod.downstream.models.sasrec:SasRec",
    "two_tower": "scalr_prod.downstream.models.two_tower:TwoTower",
    "feature_ranker": "scalr_prod.downstream.models.feature_ranker:FeatureRanker",
}
FAMILIES: Final = tuple(_HOMES)
#: Beside every family's own settings: observed events may lose weight with age (days; inf: they do not).
_HALF_LIFE: Final = Knob("half_life", (math.inf, 365.0, 90.0), low=1.0)
#: What is tried on validation for real events alone, one setting after the other; the first value of each is the start.
KNOBS: Final[dict[str, tuple[Knob, ...]]] = {
    "als": (
        Knob("alpha", (10.0, 40.0, 2.5), step=4.0),
        Knob("regularization", (10.0, 1.0, 100.0), step=10.0),
        _HALF_LIFE,
        Knob("factors", (64, 128), step=2.0, low=16, high=256, whole=True),
    ),
    "sasrec": (Knob("epochs", (8, 16), step=2.0, low=2, high=64, whole=True), _HALF_LIFE),
    "two_tower": (Knob("decay", (1.0, 0.3, 3.0)), Knob("epochs", (8, 16), step=2.0, low=2, high=64, whole=True), _HALF_LIFE),
    "feature_ranker": (
        Knob("smallest", (100.0, 300.0), low=1.0),
        Knob("leaves", (31, 15), step=2.0, low=4, high=255, whole=True),
        Knob("trees", (200, 100), step=2.0, low=10, high=800, whole=True),
        _HALF_LIFE,
    ),
}


def knobs_of(family: str) -> tuple[Knob, ...]:
    """What is tried of a family; of a class of your own, how fast its events lose weight."""
    return KNOBS.get(family, (_HALF_LIFE,))


def make_model(name: str, options: dict[str, Any], *, threads: int) -> Recommender:
    """A fresh model: one of `FAMILIES`, or a class of your own as ``package.module:Class``, which gets the options alone.

    Raises:
        EvaluationError: There is no such family or class, or it lacks ``fit`` or ``score``.
    """
    found = _class_of(name)
    model: Recommender = found(**options) if ":" in name else found(**options, threads=threads)
    return model


def measure_of(name: str) -> str:
    """What a family's choices are made by: ``information`` where its class says so in ``chosen_by``, or ``ndcg``.

    Raises:
        EvaluationError: As `make_model`.
    """
    return str(getattr(_class_of(name), "chosen_by", "ndcg"))


def knows_source(name: str) -> bool:
    """Whether a family has features of the source domain as it is: its class says so in ``knows_source``. It has no rival to be."""
    return bool(getattr(_class_of(name), "knows_source", False))


def _class_of(name: str) -> Any:
    module, _, attribute = (name if ":" in name else _HOMES.get(name, "")).partition(":")
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
    return found
