# SPDX-License-Identifier: Apache-2.0
"""Reference recommenders: a matrix factorisation, a sequential model, and three rankers that give probabilities.

The two-tower ranker learns user and item vectors, the feature ranker boosts trees over features of both, and the stacked ranker adds a
factorisation's score to those. They are registered as plug-ins (`scalr_prod.plugins.MODELS`), as custom models are; see
`scalr_prod.downstream.DownstreamModel`.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.downstream.protocol import DownstreamModel
from scalr_prod.downstream.search import HALF_LIFE
from scalr_prod.plugins import MODELS

if TYPE_CHECKING:
    from scalr_prod.downstream.search import Knob

__all__ = ["FAMILIES", "knobs_of", "knows_before", "knows_source", "make_model", "measure_of"]

#: Built-in families.
FAMILIES: Final = tuple(MODELS.own)


def knobs_of(family: str) -> tuple[Knob, ...]:
    """Return the hyperparameters of a family: its class's ``knobs``, or else the half-life of event weights.

    Raises:
        EvaluationError: As in `make_model`.
    """
    return tuple(getattr(_class_of(family), "knobs", (HALF_LIFE,)))


def make_model(name: str, options: dict[str, Any], *, threads: int) -> DownstreamModel:
    """Create an unfitted model.

    Args:
        name: A built-in family, an entry point of another package, or a class as ``package.module:Class``.
        options: Constructor arguments.
        threads: Passed to the constructor if it takes ``threads``.

    Raises:
        EvaluationError: There is no such model, or it lacks ``fit`` or ``score``.
    """
    found = _class_of(name)
    model: DownstreamModel = found(**options, **({"threads": threads} if _takes(found, "threads") else {}))
    return model


def measure_of(name: str) -> str:
    """Return the selection metric of a family: its class's ``chosen_by``, or else ``ndcg``.

    Raises:
        EvaluationError: As in `make_model`.
    """
    return str(getattr(_class_of(name), "chosen_by", "ndcg"))


def knows_source(name: str) -> bool:
    """Return whether a family uses source events by itself (``knows_source`` of its class); joint training would add nothing to it."""
    return bool(getattr(_class_of(name), "knows_source", False))


def knows_before(name: str) -> bool:
    """Return whether a family uses `Interactions.before` (``knows_before`` of its class).

    Raises:
        EvaluationError: As in `make_model`.
    """
    return bool(getattr(_class_of(name), "knows_before", False))


def _class_of(name: str) -> Any:
    return MODELS.load(name, DownstreamModel)


def _takes(found: Any, argument: str) -> bool:
    try:
        return argument in inspect.signature(found).parameters
    except (TypeError, ValueError):  # a C extension class without a signature
        return False
