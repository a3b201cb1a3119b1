# SPDX-License-Identifier: Apache-2.0
"""The three Great Expectations suites: columns of the files, rules per row, and figures of the whole."""

from __future__ import annotations

import math
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal

from scalr_prod.quality.gate_report import RuleOutcome, format_value
from scalr_prod.quality.gx_engine import ExpectationSpec
from scalr_prod.quality.range_audit import first_examples

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from scalr_prod.quality.gx_engine import GxSession
    from scalr_prod.quality.range_audit import JudgedRange
    from scalr_prod.quality.row_verdicts import RowVerdicts
    from scalr_prod.quality.rule_protocol import FigureRule, RowRule


def validate_columns(
    session: GxSession, suite: str, subject: str, files: Sequence[Path], expected_types: Mapping[str, str], *, description: str
) -> list[RuleOutcome]:
    """Validate names, order and types of every file's columns; rows can be validated only if these match."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    expected = [f"{name}: {kind}" for name, kind in expected_types.items()]
    rows = [
        {"file": path.name, "column": actual or "none", "expected": wanted_column or "none"}
        for path in files
        for actual, wanted_column in zip_longest([f"{field.name}: {field.type}" for field in pq.read_schema(path)], expected)
    ]
    arguments = {"column_A": "column", "column_B": "expected"}
    checks = [ExpectationSpec("columns_match_schema", description, "ExpectColumnPairValuesToBeEqual", arguments)]
    table = pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in ("file", "column", "expected")]))
    (finding,) = session.validate(f"{suite}_columns", subject, table, checks)
    examples = [row for row in rows if row["column"] != row["expected"]][:5]
    return [
        RuleOutcome(finding.rule, description, "schema", finding.success, finding.checked, finding.failed, examples=examples)
    ]


def validate_rows(
    session: GxSession,
    suite: str,
    subject: str,
    verdicts: RowVerdicts,
    *,
    severity: Literal["critical", "warning"] = "critical",
) -> list[RuleOutcome]:
    """Validate every rule over every row."""
    rules = verdicts.rules
    checks = [ExpectationSpec.all_true(rule.name, rule.description, severity=severity) for rule in rules]
    findings = session.validate(f"{suite}_rows", subject, verdicts.query, checks)
    return [
        RuleOutcome(
            rule.name,
            rule.description,
            "row",
            success=not finding.failed,
            checked=finding.checked,
            failed=finding.failed,
            examples=verdicts.examples(rule) if finding.failed else (),
        )
        for rule, finding in zip(rules, findings, strict=True)
    ]


def validate_row_counts(
    session: GxSession, suite: str, subject: str, rules: Sequence[RowRule], ranges: Sequence[JudgedRange]
) -> list[RuleOutcome]:
    """Validate every rule over every row of some ranges, of which there is at least one, from the number of rows that break it."""
    import pyarrow as pa

    checks = [
        ExpectationSpec(rule.name, rule.description, "ExpectColumnValuesToBeBetween", {"column": rule.name, "max_value": 0})
        for rule in rules
    ]
    broken = pa.table({rule.name: [judged.broken[rule.name] for judged in ranges] for rule in rules})
    findings = session.validate(f"{suite}_rows", subject, broken, checks)
    session.annotate(f"{suite}_rows", "A value is the number of rows in a range of label times that break the rule.")
    return [
        RuleOutcome(
            rule.name,
            rule.description,
            "row",
            success=finding.success,
            checked=sum(judged.rows for judged in ranges),
            failed=sum(judged.broken[rule.name] for judged in ranges),
            examples=first_examples(rule.name, ranges),
        )
        for rule, finding in zip(rules, findings, strict=True)
    ]


def validate_figures(
    session: GxSession, suite: str, subject: str, figures: Mapping[str, Any], rules: Sequence[FigureRule]
) -> list[RuleOutcome]:
    """Validate every bound on the figures, as one row; bounds on samples that are too small are not judged."""
    import pyarrow as pa

    not_judged = {
        rule.name: RuleOutcome(
            rule.name,
            rule.description,
            "run",
            success=None,
            checked=0,
            failed=0,
            observed=figures[rule.figure],
            reason=f"{rule.sample} is {format_value(figures[rule.sample])}: judged from {math.ceil(rule.min_sample)} on",
        )
        for rule in rules
        if rule.sample is not None and not rule.is_judged(figures)
    }
    judged = [rule for rule in rules if rule.name not in not_judged]
    checks = [
        ExpectationSpec(
            rule.name,
            rule.description,
            "ExpectColumnValuesToBeBetween",
            {"column": rule.figure, "min_value": rule.low, "max_value": rule.high},
        )
        for rule in judged
    ]
    # from_pandas: NaN becomes null, which fails. To DuckDB it is the largest number, and would pass a lower bound.
    row = pa.table({name: pa.array([value], from_pandas=True) for name, value in figures.items()})
    findings = session.validate(f"{suite}_figures", subject, row, checks)
    outcomes = not_judged | {
        rule.name: RuleOutcome(
            rule.name, rule.description, "run", finding.success, 1, finding.failed, observed=figures[rule.figure]
        )
        for rule, finding in zip(judged, findings, strict=True)
    }
    return [outcomes[rule.name] for rule in rules]
