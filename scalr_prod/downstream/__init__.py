# SPDX-License-Identifier: Apache-2.0
"""Does it help? Reference recommenders, arms and controls, and their comparison on a global timeline."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalr_prod.downstream.evaluation import evaluate
    from scalr_prod.downstream.protocol import DownstreamModel, Interactions
    from scalr_prod.downstream.report import EvaluationReport

__all__ = ["DownstreamModel", "EvaluationReport", "Interactions", "evaluate"]

_HOMES = {
    "EvaluationReport": "report",
    "Interactions": "protocol",
    "DownstreamModel": "protocol",
    "evaluate": "evaluation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
