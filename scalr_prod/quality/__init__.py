"""The gate between what was generated and what may be read: Great Expectations over a run, and over a training set."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from scalr_prod.quality.protocol import AuditedRun, FigureRule, GateRule, RowRule
from scalr_prod.quality.report import GateReport, RuleOutcome

if TYPE_CHECKING:
    from scalr_prod.quality.gate import validate_run
    from scalr_prod.quality.training_set import validate_training_set

__all__ = [
    "AuditedRun",
    "FigureRule",
    "GateReport",
    "GateRule",
    "RowRule",
    "RuleOutcome",
    "validate_run",
    "validate_training_set",
]

_HOMES = {"validate_run": "gate", "validate_training_set": "training_set"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
