# SPDX-License-Identifier: Apache-2.0
"""Reference recommenders: a matrix factorisation, a sequential model, and three probabilistic rankers.

The two-tower ranker learns user and item vectors, the feature ranker boosts trees over features of both, and the stacked ranker adds a
factorisation's score to those. They are registered as plug-ins (`scalr_prod.plugins.MODELS`), as custom models are; see
`scalr_prod.evaluation.DownstreamModel`.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import EvaluationError
from scalr_prod.evaluation.interactions import DownstreamModel
from scalr_prod.evaluation.search import HALF_LIFE
from scalr_prod.plugins import MODELS

if TYPE_CHECKING:
    from scalr_prod.evaluation.search import Hyperparameter

__all__ = [
    "family_hyperparameters",
    "fits_in_parallel",
    "make_model",
    "selection_metric",
    "uses_earlier_events",
    "uses_source_events",
]


#: Former names of a model class's attributes, and the current ones.
_RENAMED: Final = {
    "knobs": "search_space",
    "chosen_by": "selection_metric",
    "knows_before": "uses_earlier_events",
    "knows_source": "uses_source_events",
}


def family_hyperparameters(family: str) -> tuple[Hyperparameter, ...]:
    """Return the hyperparameters of a family: its class's ``search_space``, or else the half-life of event weights.

    Raises:
        EvaluationError: As in `make_model`.
    """
    return tuple(getattr(_load_class(family), "search_space", (HALF_LIFE,)))


def make_model(name: str, options: dict[str, Any], *, threads: int) -> DownstreamModel:
    """Create an unfitted model.

    A class with an attribute ``Hyperparameters``, as all built-in ones have, is given one instance of it. Any other class is given the
    options as keyword arguments.

    Args:
        name: A built-in family, an entry point of another package, or a class as ``package.module:Class``.
        options: Hyperparameters by name; those left out keep their defaults.
        threads: Passed as ``threads`` to a class that takes it.

    Raises:
        EvaluationError: There is no such model, or it lacks ``fit`` or ``score``.
    """
    model_class = _load_class(name)
    hyperparameters = getattr(model_class, "Hyperparameters", None)
    if _accepts_argument(hyperparameters or model_class, "threads"):
        options = options | {"threads": threads}
    model: DownstreamModel = model_class(hyperparameters(**options)) if hyperparameters else model_class(**options)
    return model


def selection_metric(name: str) -> str:
    """Return the selection metric of a family: its class's ``selection_metric``, or else ``ndcg``.

    Raises:
        EvaluationError: As in `make_model`.
    """
    return str(getattr(_load_class(name), "selection_metric", "ndcg"))


def uses_source_events(name: str) -> bool:
    """Return whether a family uses source events by itself (an attribute of its class); joint training would add nothing to it."""
    return bool(getattr(_load_class(name), "uses_source_events", False))


def uses_earlier_events(name: str) -> bool:
    """Return whether a family uses `Interactions.before` (an attribute of its class).

    Raises:
        EvaluationError: As in `make_model`.
    """
    return bool(getattr(_load_class(name), "uses_earlier_events", False))


def fits_in_parallel(name: str) -> bool:
    """Return whether several models of a family may be fitted at once in threads (an attribute of its class).

    Raises:
        EvaluationError: As in `make_model`.
    """
    return bool(getattr(_load_class(name), "fits_in_parallel", False))


def _load_class(name: str) -> Any:
    model_class = MODELS.load(name, DownstreamModel)
    for former, attribute in _RENAMED.items():
        if hasattr(model_class, former):
            raise EvaluationError(
                f"the model {name} has an attribute {former}, which is called {attribute} now",
                where=MODELS.setting,
                next_step=f"rename {former} to {attribute} in the model's class",
            )
    return model_class


def _accepts_argument(factory: Any, argument: str) -> bool:
    try:
        return argument in inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a C extension class without a signature
        return False
