# SPDX-License-Identifier: Apache-2.0
"""Gate rule on the reliability of probabilities measured when the translator was trained, see `scalr_prod.translator.reliability`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from scalr_prod.quality.rule_protocol import FigureRule
from scalr_prod.translator import ReliabilityClass

if TYPE_CHECKING:
    from scalr_prod.config import QualitySettings
    from scalr_prod.ledger import ModelVersion
    from scalr_prod.quality.gate_report import GateReport
    from scalr_prod.quality.rule_protocol import AuditedRun


_RULE: Final = "probabilities_are_calibrated"


def calibration_figures(record: ModelVersion | None, quality: QualitySettings) -> dict[str, Any]:
    """Return the number of classes of probability whose observed rate differs too much; 0 if nothing was measured."""
    return {"probability_classes_off": len(_classes_off(record, quality))}


class CalibrationRules:
    """Rule on the measured reliability of the translator's probabilities."""

    version = 2

    def rules(self, run: AuditedRun) -> list[FigureRule]:
        """Return the rule; none if ``max_probability_factor`` is 0, or if the translator's training did not measure reliability."""
        if not run.quality.max_probability_factor or not _recorded(run.translator):
            return []
        off = "; ".join(
            f"of {class_.pairs} with a probability of {class_.low:g} to {class_.high:g}, mean {class_.predicted:.3g}, "
            f"{class_.events} came true"
            for class_ in _classes_off(run.translator, run.quality)
        )
        return [
            FigureRule(
                _RULE,
                "in no class of probability with at least 50 outcomes does the mean probability differ from the observed rate by more "
                f"than its 99.9 % interval and a factor of {run.quality.max_probability_factor:g}"
                + (f"; {off}" if off else ""),
                "probability_classes_off",
                high=0,
            )
        ]


def extend_next_step(report: GateReport, default: str) -> str:
    """Add what to do if the rule was broken."""
    if all(rule.rule != _RULE for rule in report.failures):
        return default
    return (
        f"{default}; for {_RULE}: look for a change in the target domain near the end of its log, ingest more events, and train again: "
        "scalr translator train. To publish all the same, set [quality] max_probability_factor = 0"
    )


def _recorded(record: ModelVersion | None) -> list[ReliabilityClass]:
    found = [] if record is None else record.metrics.get("reliability") or []
    return [ReliabilityClass.from_json(values) for values in found]


def _classes_off(record: ModelVersion | None, quality: QualitySettings) -> list[ReliabilityClass]:
    factor = quality.max_probability_factor
    return [class_ for class_ in _recorded(record) if factor and class_.is_off(factor)]
