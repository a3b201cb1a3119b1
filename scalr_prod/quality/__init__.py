# SPDX-License-Identifier: Apache-2.0
"""Quality gate of generated events, and checks of any training set, both with Great Expectations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.import_hook import before_import
from scalr_prod.core.lazy_exports import lazy_exports
from scalr_prod.quality.gx_import import prepare_gx_import

if TYPE_CHECKING:
    from scalr_prod.quality.contract_export import ContractExport, export_contract
    from scalr_prod.quality.contract_import import ContractImport, import_contract, write_contract_suite
    from scalr_prod.quality.dataset_check import check_dataset
    from scalr_prod.quality.drift import rows_in_view
    from scalr_prod.quality.gate import validate_run
    from scalr_prod.quality.gate_report import GateReport, RuleOutcome
    from scalr_prod.quality.information import MIN_USERS
    from scalr_prod.quality.range_audit import ValidatedPart
    from scalr_prod.quality.rule_protocol import AuditedRun, FigureRule, GateRule, RowRule
    from scalr_prod.quality.suites import write_suite
    from scalr_prod.quality.training_set import row_rules_digest, validate_training_set
    from scalr_prod.quality.verdict import Verdict

__all__ = [
    "MIN_USERS",
    "AuditedRun",
    "ContractExport",
    "ContractImport",
    "FigureRule",
    "GateReport",
    "GateRule",
    "RowRule",
    "RuleOutcome",
    "ValidatedPart",
    "Verdict",
    "check_dataset",
    "export_contract",
    "import_contract",
    "row_rules_digest",
    "rows_in_view",
    "validate_run",
    "validate_training_set",
    "write_contract_suite",
    "write_suite",
]

before_import("great_expectations", prepare_gx_import)

__getattr__ = lazy_exports(
    __name__,
    {
        "AuditedRun": "rule_protocol",
        "ContractExport": "contract_export",
        "ContractImport": "contract_import",
        "FigureRule": "rule_protocol",
        "GateReport": "gate_report",
        "GateRule": "rule_protocol",
        "MIN_USERS": "information",
        "RowRule": "rule_protocol",
        "RuleOutcome": "gate_report",
        "ValidatedPart": "range_audit",
        "Verdict": "verdict",
        "check_dataset": "dataset_check",
        "export_contract": "contract_export",
        "import_contract": "contract_import",
        "row_rules_digest": "training_set",
        "rows_in_view": "drift",
        "validate_run": "gate",
        "validate_training_set": "training_set",
        "write_contract_suite": "contract_import",
        "write_suite": "suites",
    },
)
