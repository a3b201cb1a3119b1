# SPDX-License-Identifier: Apache-2.0
"""The three Great Expectations suites: columns of the files, rules per row, and figures of the whole."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal

from scalr_prod.quality.expectations import Check
from scalr_prod.quality.report import RuleOutcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from scalr_prod.quality.expectations import Inspector
    from scalr_prod.quality.judged import Judged
    from scalr_prod.quality.protocol import FigureRule

__all__ = ["inspect_columns", "inspect_figures", "inspect_rows"]


def inspect_columns(
    inspector: Inspector, suite: str, subject: str, files: Sequence[Path], wanted: Mapping[str, str], *, says: str
) -> list[RuleOutcome]:
    """Validate names, order and types of every file's columns; rows can be validated only if these match."""
    import pandas as pd
    import pyarrow.parquet as pq

    expected = [f"{name}: {kind}" for name, kind in wanted.items()]
    rows = [
        {"file": path.name, "column": actual or "none", "expected": wanted_column or "none"}
        for path in files
        for actual, wanted_column in zip_longest([f"{field.name}: {field.type}" for field in pq.read_schema(path)], expected)
    ]
    arguments = {"column_A": "column", "column_B": "expected"}
    checks = [Check("columns_are_the_contracts", says, "ExpectColumnPairValuesToBeEqual", arguments)]
    frame = pd.DataFrame(rows, columns=["file", "column", "expected"])
    (finding,) = inspector.inspect(f"{suite}_columns", subject, frame, checks)
    examples = [row for row in rows if row["column"] != row["expected"]][:5]
    return [RuleOutcome(finding.rule, says, "schema", finding.success, finding.checked, finding.failed, examples=examples)]


def inspect_rows(
    inspector: Inspector, suite: str, subject: str, judged: Judged, *, severity: Literal["critical", "warning"] = "critical"
) -> list[RuleOutcome]:
    """Validate every rule over every row, batch by batch."""
    rules = judged.rules
    checks = [Check.all_true(rule.name, rule.says, severity=severity) for rule in rules]
    failed, checked = dict.fromkeys((rule.name for rule in rules), 0), 0
    for frame in judged.frames():
        checked += len(frame)
        for finding in inspector.inspect(f"{suite}_rows", subject, frame, checks):
            failed[finding.rule] += finding.failed
    return [
        RuleOutcome(
            rule.name,
            rule.says,
            "row",
            success=not failed[rule.name],
            checked=checked,
            failed=failed[rule.name],
            examples=judged.examples(rule) if failed[rule.name] else (),
        )
        for rule in rules
    ]


def inspect_figures(
    inspector: Inspector, suite: str, subject: str, figures: Mapping[str, Any], rules: Sequence[FigureRule]
) -> list[RuleOutcome]:
    """Validate every bound on the figures, as one row."""
    import pandas as pd

    checks = [
        Check(
            rule.name,
            rule.says,
            "ExpectColumnValuesToBeBetween",
            {"column": rule.figure, "min_value": rule.low, "max_value": rule.high},
        )
        for rule in rules
    ]
    findings = inspector.inspect(f"{suite}_figures", subject, pd.DataFrame([dict(figures)]), checks)
    return [
        RuleOutcome(rule.name, rule.says, "run", finding.success, 1, finding.failed, observed=figures[rule.figure])
        for rule, finding in zip(rules, findings, strict=True)
    ]
