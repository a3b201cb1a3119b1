# SPDX-License-Identifier: Apache-2.0
"""The three Great Expectations suites: columns of the files, rules per row, and figures of the whole."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal

from scalr_prod.quality.gate_report import RuleOutcome
from scalr_prod.quality.gx_engine import ExpectationSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from scalr_prod.quality.gx_engine import GxSession
    from scalr_prod.quality.row_verdicts import RowVerdicts
    from scalr_prod.quality.rule_protocol import FigureRule

__all__ = ["validate_columns", "validate_figures", "validate_rows"]


def validate_columns(
    session: GxSession, suite: str, subject: str, files: Sequence[Path], expected_types: Mapping[str, str], *, says: str
) -> list[RuleOutcome]:
    """Validate names, order and types of every file's columns; rows can be validated only if these match."""
    import pandas as pd
    import pyarrow.parquet as pq

    expected = [f"{name}: {kind}" for name, kind in expected_types.items()]
    rows = [
        {"file": path.name, "column": actual or "none", "expected": wanted_column or "none"}
        for path in files
        for actual, wanted_column in zip_longest([f"{field.name}: {field.type}" for field in pq.read_schema(path)], expected)
    ]
    arguments = {"column_A": "column", "column_B": "expected"}
    checks = [ExpectationSpec("columns_are_the_contracts", says, "ExpectColumnPairValuesToBeEqual", arguments)]
    frame = pd.DataFrame(rows, columns=["file", "column", "expected"])
    (finding,) = session.validate(f"{suite}_columns", subject, frame, checks)
    examples = [row for row in rows if row["column"] != row["expected"]][:5]
    return [RuleOutcome(finding.rule, says, "schema", finding.success, finding.checked, finding.failed, examples=examples)]


def validate_rows(
    session: GxSession,
    suite: str,
    subject: str,
    verdicts: RowVerdicts,
    *,
    severity: Literal["critical", "warning"] = "critical",
) -> list[RuleOutcome]:
    """Validate every rule over every row, batch by batch."""
    rules = verdicts.rules
    checks = [ExpectationSpec.all_true(rule.name, rule.says, severity=severity) for rule in rules]
    failed, checked = dict.fromkeys((rule.name for rule in rules), 0), 0
    for frame in verdicts.iter_frames():
        checked += len(frame)
        for finding in session.validate(f"{suite}_rows", subject, frame, checks):
            failed[finding.rule] += finding.failed
    return [
        RuleOutcome(
            rule.name,
            rule.says,
            "row",
            success=not failed[rule.name],
            checked=checked,
            failed=failed[rule.name],
            examples=verdicts.examples(rule) if failed[rule.name] else (),
        )
        for rule in rules
    ]


def validate_figures(
    session: GxSession, suite: str, subject: str, figures: Mapping[str, Any], rules: Sequence[FigureRule]
) -> list[RuleOutcome]:
    """Validate every bound on the figures, as one row."""
    import pandas as pd

    checks = [
        ExpectationSpec(
            rule.name,
            rule.says,
            "ExpectColumnValuesToBeBetween",
            {"column": rule.figure, "min_value": rule.low, "max_value": rule.high},
        )
        for rule in rules
    ]
    findings = session.validate(f"{suite}_figures", subject, pd.DataFrame([dict(figures)]), checks)
    return [
        RuleOutcome(rule.name, rule.says, "run", finding.success, 1, finding.failed, observed=figures[rule.figure])
        for rule, finding in zip(rules, findings, strict=True)
    ]
