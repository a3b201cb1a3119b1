"""The gate over a run: audit every candidate, let Great Expectations decide, keep what passed."""

from __future__ import annotations

import json
import logging
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.contracts import Table
from scalr_prod.errors import GenerationError, LedgerError, QualityGateFailed
from scalr_prod.generation.parts import sha256_of, write_json
from scalr_prod.lake import Lake
from scalr_prod.ledger import Ledger, RunState, run_folder
from scalr_prod.progress import counting
from scalr_prod.quality.accept import write_accepted, write_quarantine
from scalr_prod.quality.audit import Audit, auditing
from scalr_prod.quality.expectations import Check, Inspector, inspecting
from scalr_prod.quality.report import GateReport, RuleOutcome
from scalr_prod.quality.rules import RowRule, RunRule, row_rules, run_rules

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa

    from scalr_prod.ledger import Run, RunSpec
    from scalr_prod.settings import Settings

__all__ = ["validate_run"]

logger = logging.getLogger(__name__)

_AUDITABLE: Final = frozenset({RunState.GENERATED, RunState.VALIDATED, RunState.REJECTED})
_OUT_OF_OUR_HANDS: Final = frozenset({RunState.PUBLISHED, RunState.ROLLED_BACK})


def validate_run(settings: Settings, run_id: str, *, progress: bool = False) -> GateReport:
    """Audit a generated run; what passes goes to ``<run>/accepted``, the verdict to ``<run>/gate.json`` and the ledger.

    Repeating it on unchanged candidates and settings finds the same verdict without work. A published run keeps its verdict.

    Args:
        settings: The project's settings; ``[quality]`` decides.
        run_id: A generated run.
        progress: Show progress on stderr.

    Raises:
        QualityGateFailed: The gate said no; the run is rejected. Names the expectations, the counts and the data docs.
        RunNotFound: No such run.
        LedgerError: The run is not generated yet, or another driver works on it.
        GenerationError: The run's candidates are gone.
    """
    with Ledger.open(settings) as ledger, ledger.lease(run_id):
        run = ledger.run(run_id)
        report = _verdict(settings, run, progress=progress)
        if run.state in _AUDITABLE:
            state = RunState.VALIDATED if report.passed else RunState.REJECTED
            ledger.set_stage(run_id, state, cause=_summary(report))
    if not report.passed:
        raise _refusal(report, run_id)
    return report


def _verdict(settings: Settings, run: Run, *, progress: bool) -> GateReport:
    folder = run_folder(settings, run.run_id)
    stored = _read(folder / "gate.json")
    if run.state in _OUT_OF_OUR_HANDS and stored is not None:
        return GateReport.from_json(stored["report"], repeated=True)
    if run.state not in _AUDITABLE:
        raise LedgerError(
            f"the run is {run.state.value}: there is nothing to audit yet",
            where=str(folder),
            next_step=f"generate it: scalr runs resume {run.run_id}",
        )
    files = sorted((folder / "candidates").glob("*.parquet"))
    inputs = _inputs(settings, run.spec, folder, files)
    if stored is not None and stored["inputs"] == inputs:
        report = GateReport.from_json(stored["report"], repeated=True)
        if all(
            (folder / file["path"]).exists() and sha256_of(folder / file["path"]) == file["sha256"] for file in report.files
        ):
            return report
    with counting("audit", show=progress) as count:
        report = _audit(settings, run.spec, folder, files)
        count(report.rows)
    write_json(folder / "gate.json", {"inputs": inputs, "report": report.to_json()})
    return report


def _inputs(settings: Settings, spec: RunSpec, folder: Path, files: Sequence[Path]) -> dict[str, Any]:
    """All that the verdict follows from."""
    if not files:
        raise GenerationError(
            "the run's candidates are not there", where=str(folder / "candidates"), next_step=f"scalr runs resume {spec.run_id}"
        )
    return {
        "run": json.loads(spec.canonical()),
        "candidates": {path.name: sha256_of(path) for path in files},
        "quality": settings.quality.model_dump(mode="json"),
    }


def _audit(settings: Settings, spec: RunSpec, folder: Path, files: Sequence[Path]) -> GateReport:
    quality = settings.quality
    asked = _generation_settings(settings, spec)
    schema = Lake.open(settings).schema(Table.SYNTHETIC_TARGET_EVENTS)
    with inspecting(settings) as inspector:
        shape = _inspect_schema(inspector, spec, files, schema)
        if not all(rule.success for rule in shape):
            return GateReport(
                spec.run_id,
                passed=False,
                policy=quality.policy,
                rows=_rows(files),
                accepted=0,
                quarantined=0,
                rules=shape,
                docs=inspector.docs,
            )
        rules = row_rules(spec, exclude_consumed=asked["exclude_consumed"])
        with auditing(settings, spec, files, rules, popularity_buckets=asked["align_buckets"]) as audit:
            by_row = _inspect_rows(inspector, spec, audit, rules, policy=quality.policy)
            figures = audit.figures()
            bounds = run_rules(spec, quality, events_per_source_event=asked["events_per_source_event"])
            by_run = _inspect_run(inspector, spec, figures, bounds)
            rows, good = audit.counts()
            passed = all(rule.success for rule in by_run) and (quality.policy == "quarantine" or good == rows)
            quarantined = rows - good if quality.policy == "quarantine" else 0
            write_quarantine(settings, spec, audit.refused() if quarantined else None)
            accepted = write_accepted(folder, audit.accepted(), schema) if passed else write_accepted(folder, None, schema)
    return GateReport(
        spec.run_id,
        passed,
        quality.policy,
        rows,
        good if passed else 0,
        quarantined,
        [*shape, *by_row, *by_run],
        figures,
        accepted,
        inspector.docs,
    )


def _inspect_schema(inspector: Inspector, spec: RunSpec, files: Sequence[Path], schema: pa.Schema) -> list[RuleOutcome]:
    """Names, order and types of every file's columns: without them, no row can be looked at."""
    import pandas as pd
    import pyarrow.parquet as pq

    wanted = [f"{field.name}: {field.type}" for field in schema]
    rows = [
        {"file": path.name, "column": found or "none", "expected": expected or "none"}
        for path in files
        for found, expected in zip_longest([f"{field.name}: {field.type}" for field in pq.read_schema(path)], wanted)
    ]
    says = "columns, order and types are those of synthetic_target_events"
    arguments = {"column_A": "column", "column_B": "expected"}
    checks = [Check("columns_are_the_contracts", says, "ExpectColumnPairValuesToBeEqual", arguments)]
    (finding,) = inspector.inspect("synthetic_schema", spec.run_id, pd.DataFrame(rows), checks)
    examples = [row for row in rows if row["column"] != row["expected"]][:5]
    return [RuleOutcome(finding.rule, says, "schema", finding.success, finding.checked, finding.failed, examples=examples)]


def _inspect_rows(
    inspector: Inspector, spec: RunSpec, audit: Audit, rules: Sequence[RowRule], *, policy: str
) -> list[RuleOutcome]:
    checks = [Check.all_true(r.name, r.says, severity="warning" if policy == "quarantine" else "critical") for r in rules]
    failed, checked = dict.fromkeys((rule.name for rule in rules), 0), 0
    for frame in audit.frames():
        checked += len(frame)
        for finding in inspector.inspect("synthetic_rows", spec.run_id, frame, checks):
            failed[finding.rule] += finding.failed
    return [
        RuleOutcome(
            rule.name,
            rule.says,
            "row",
            not failed[rule.name],
            checked,
            failed[rule.name],
            examples=audit.examples(rule) if failed[rule.name] else (),
        )
        for rule in rules
    ]


def _inspect_run(
    inspector: Inspector, spec: RunSpec, figures: Mapping[str, Any], rules: Sequence[RunRule]
) -> list[RuleOutcome]:
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
    findings = inspector.inspect("synthetic_run", spec.run_id, pd.DataFrame([dict(figures)]), checks)
    return [
        RuleOutcome(rule.name, rule.says, "run", finding.success, 1, finding.failed, observed=figures[rule.figure])
        for rule, finding in zip(rules, findings, strict=True)
    ]


def _generation_settings(settings: Settings, spec: RunSpec) -> dict[str, Any]:
    """What the run was asked to do: its own record of it, not today's settings."""
    return settings.generation.model_dump() | dict(spec.settings.get("generation", {}))


def _rows(files: Sequence[Path]) -> int:
    import pyarrow.parquet as pq

    return sum(pq.ParquetFile(path).metadata.num_rows for path in files)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if {"inputs", "report"} <= content.keys() else None


def _summary(report: GateReport) -> str:
    if report.passed:
        return f"gate: {report.accepted} of {report.rows} rows accepted, {report.quarantined} quarantined"
    return f"gate: {', '.join(rule.rule for rule in report.failures)}"


def _refusal(report: GateReport, run_id: str) -> QualityGateFailed:
    if not report.rows:
        found = "the run holds no candidate event: nothing could be translated with these settings"
    else:
        found = "; ".join(
            f"{rule.rule} ({rule.says}): "
            + (f"found {rule.observed}" if rule.scope == "run" else f"{rule.failed} of {rule.checked} rows break it")
            for rule in report.failures
        )
    error = QualityGateFailed(
        found,
        where=str(report.docs),
        next_step="read the report, then mend the data or [quality] and [generation] in scalr.toml; "
        '[quality] policy = "quarantine" puts bad rows aside',
    )
    error.at(run_id=run_id)
    return error
