# SPDX-License-Identifier: Apache-2.0
"""Quality gate of generated events, and checks of any training set, both with Great Expectations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports
from scalr_prod.quality.gate_report import GateReport, RuleOutcome
from scalr_prod.quality.rule_protocol import AuditedRun, FigureRule, GateRule, RowRule
from scalr_prod.quality.verdict import RuleResult, Verdict

if TYPE_CHECKING:
    from scalr_prod.quality.dataset_check import check_dataset
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

__getattr__ = lazy_exports(
    __name__,
    {
        "check_dataset": "check",
        "row_rules_digest": "training_set",
        "validate_run": "gate",
        "validate_training_set": "training_set",
    },
)
