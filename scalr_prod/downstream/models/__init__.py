# SPDX-License-Identifier: Apache-2.0
"""The reference recommenders, unlike one another: a factorisation, a sequential model, and two rankers with probabilities.

The two-tower ranker learns vectors of users and items, the feature ranker boosts trees over what is known of both, and the stacked ranker
adds the score of a factorisation to that. They are plug-ins
(`scalr_prod.plugins.MODELS`) like a model of your own, see `scalr_prod.downstream.DownstreamModel`.
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

#: Ours.
FAMILIES: Final = tuple(MODELS.own)


def knobs_of(family: str) -> tuple[Knob, ...]:
    """What is tried of a family: its class's ``knobs``, or how fast its events lose weight.

    Raises:
        EvaluationError: As `make_model`.
    """
    return tuple(getattr(_class_of(family), "knobs", (HALF_LIFE,)))


def make_model(name: str, options: dict[str, Any], *, threads: int) -> DownstreamModel:
    """A fresh model.

    Args:
        name: One of `FAMILIES`, of another package's entry points, or a class as ``package.module:Class``.
        options: Given to its class.
        threads: Given to its class, where it takes ``threads``.

    Raises:
        EvaluationError: There is no such model, or it lacks ``fit`` or ``score``.
    """
    found = _class_of(name)
    model: DownstreamModel = found(**options, **({"threads": threads} if _takes(found, "threads") else {}))
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


def knows_before(name: str) -> bool:
    """Whether a family learns from what an earlier model scored: its class says so in ``knows_before`` (see `Interactions.before`).

    Raises:
        EvaluationError: As `make_model`.
    """
    return bool(getattr(_class_of(name), "knows_before", False))


def _class_of(name: str) -> Any:
    return MODELS.load(name, DownstreamModel)


def _takes(found: Any, argument: str) -> bool:
    try:
        return argument in inspect.signature(found).parameters
    except (TypeError, ValueError):  # a class of C, which does not say
        return False
