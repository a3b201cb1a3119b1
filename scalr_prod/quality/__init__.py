# SPDX-License-Identifier: Apache-2.0
"""The gate between what was generated and what may be read, and checks of anybody's training set: Great Expectations over each."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from scalr_prod.quality.protocol import AuditedRun, FigureRule, GateRule, RowRule
from scalr_prod.quality.report import GateReport, RuleOutcome
from scalr_prod.quality.verdict import RuleResult, Verdict

if TYPE_CHECKING:
    from scalr_prod.quality.check import check_dataset
    from scalr_prod.quality.gate import validate_run
    from scalr_prod.quality.training_set import row_rules_digest, validate_training_set

__all__ = [
    "AuditedRun",
    "FigureRule",
    "GateReport",
    "GateRule",
    "RowRule",
    "RuleOutcome",
    "RuleResult",
    "Verdict",
    "check_dataset",
    "row_rules_digest",
    "validate_run",
    "validate_training_set",
]

_HOMES = {
    "check_dataset": "check",
    "row_rules_digest": "training_set",
    "validate_run": "gate",
    "validate_training_set": "training_set",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
