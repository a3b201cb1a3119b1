# SPDX-License-Identifier: Apache-2.0
"""Quality gate of a run: audit every candidate row, validate with Great Expectations, keep the rows that passed."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from scalr_prod.core.atomic_io import read_json, write_json
from scalr_prod.core.hashing import file_sha256
from scalr_prod.core.progress import track
from scalr_prod.errors import GenerationError, LedgerError, QualityGateFailed
from scalr_prod.generation import candidate_schema
from scalr_prod.lake import Lake, open_project_lake
from scalr_prod.ledger import Ledger, RunState, run_folder
from scalr_prod.quality import calibration, information, privacy_rules
from scalr_prod.quality.audit import open_audit
from scalr_prod.quality.calibration import calibration_figures
from scalr_prod.quality.candidate_files import FILE, ROW
from scalr_prod.quality.drift import measure_drift, rows_in_view, select_reference, warn_on_drift
from scalr_prod.quality.gate_report import GateReport, describe_failures
from scalr_prod.quality.gx_engine import open_gx_session
from scalr_prod.quality.gx_inspections import validate_columns, validate_figures, validate_rows
from scalr_prod.quality.information import information_figures
from scalr_prod.quality.loop_drift import LoopStart, measure_loop_drift, warn_on_loop_drift
from scalr_prod.quality.outputs import move_accepted, write_quarantine
from scalr_prod.quality.pooling import pool_small_run
from scalr_prod.quality.privacy_rules import attack_figures, privacy_card
from scalr_prod.quality.rule_protocol import AuditedRun
from scalr_prod.quality.rule_set import RuleSet
from scalr_prod.quality.rules import EVENT_COLUMNS
from scalr_prod.schemas import Table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scalr_prod.config import Settings
    from scalr_prod.ledger import ModelVersion, Publication, Run, RunSpec


logger = logging.getLogger(__name__)

_SUITE: Final = "synthetic_events"
#: Columns of the judged rows beside those of the rules.
_RESERVED: Final = (*EVENT_COLUMNS, "accepted", "reason", FILE, ROW)
_AUDITABLE: Final = frozenset({RunState.GENERATED, RunState.VALIDATED, RunState.REJECTED})
_FINAL: Final = frozenset({RunState.PUBLISHED, RunState.ROLLED_BACK})


def validate_run(settings: Settings, run_id: str, *, progress: bool = False) -> GateReport:
    """Audit a generated run; write accepted rows to ``<run>/accepted``, the verdict to ``<run>/gate.json`` and the ledger.

    With unchanged candidates, settings and rules, the stored verdict is returned: ``gate.json`` has the version of each gate rule.
    A published run keeps its verdict; its accepted files are rebuilt if they are damaged or missing.

    Args:
        settings: The project's settings, ``[quality]`` above all.
        run_id: A generated run.
        progress: Show progress on stderr.

    Raises:
        QualityGateFailed: The gate rejected the run. Names the expectations, the counts and the data docs.
        QualityError: Another audit of the project did not finish in time, or a gate rule of the settings is unusable.
        RunNotFound: No such run.
        LedgerError: The run is not generated yet, or it was published and its verdict is missing, or another driver holds its lease.
        GenerationError: The run's candidates are missing.
    """
    with Ledger.open(settings) as ledger, ledger.leases.hold(run_id):
        run, publications = ledger.runs.get(run_id), ledger.publications.find()
        record = _translator_record(ledger, run.spec)
        loop = _loop_start(ledger, publications)
        report = _verdict(settings, run, record, publications, loop, progress=progress)
        if run.state in _AUDITABLE:
            state = RunState.VALIDATED if report.passed else RunState.REJECTED
            ledger.runs.set_state(run_id, state, cause=_summary(report))
    if not report.passed:
        raise _refusal(report, run_id)
    return report


def _translator_record(ledger: Ledger, spec: RunSpec) -> ModelVersion | None:
    return next((model for model in ledger.models.find() if model.version == spec.translator_version), None)


def _loop_start(ledger: Ledger, publications: Sequence[Publication]) -> LoopStart | None:
    """Return when synthetic events were first published, with the translator that drew them; None: not yet."""
    published = {one.published_at: one.run_id for one in publications if one.published_at is not None}
    if not published:
        return None
    first = min(published)
    return LoopStart(first, _translator_record(ledger, ledger.runs.get(published[first]).spec))


def _verdict(
    settings: Settings,
    run: Run,
    record: ModelVersion | None,
    publications: Sequence[Publication],
    loop: LoopStart | None,
    *,
    progress: bool,
) -> GateReport:
    folder = run_folder(settings.home, run.run_id)
    stored, auditable = _read(folder / "gate.json"), run.state in _AUDITABLE
    if run.state in _FINAL:
        if stored is None:
            raise LedgerError(
                f"the run is {run.state.value} and is not audited again, but its verdict is missing",
                where=str(folder / "gate.json"),
                next_step="restore the run's folder from a backup of the project's home",
            )
        kept = GateReport.from_json(stored["report"], repeated=True)
        if _is_intact(folder, kept) or not (folder / "candidates").is_dir():
            return kept
        logger.info("accepted files of %s are damaged or missing; rebuilding them", run.run_id)
    elif not auditable:
        raise LedgerError(
            f"the run is {run.state.value}: there is nothing to audit yet",
            where=str(folder),
            next_step=f"generate it: scalr runs resume {run.run_id}",
        )
    if not (folder / "candidates").is_dir():
        raise GenerationError(
            "the run's candidates are missing", where=str(folder / "candidates"), next_step=f"scalr runs resume {run.run_id}"
        )
    files = sorted((folder / "candidates").glob("*.parquet"))
    rule_set = RuleSet(settings.quality)
    reference = select_reference(
        publications, run.spec, rows=_rows(files), count_rows=partial(rows_in_view, Lake.open(settings))
    )
    inputs = _inputs(settings, run.spec, record, files, rule_set, reference)
    if stored is not None and stored["inputs"] == inputs:
        report = GateReport.from_json(stored["report"], repeated=True)
        if _is_intact(folder, report):
            return report
    with track("audit", show=progress) as count:
        report = _audit(settings, run.spec, record, folder, files, rule_set, reference)
        if loop is not None and settings.quality.max_loop_drift_warn:
            figures = measure_loop_drift(Lake.open(settings), run.spec, loop, record)
            warn_on_loop_drift(figures, settings.quality)
            report = replace(report, figures={**report.figures, **figures})
        count(report.rows)
    if auditable or report.passed:  # a published run keeps the verdict that it was published with
        write_json(folder / "gate.json", {"inputs": inputs, "report": report.to_json()})
    return report


def _is_intact(folder: Path, report: GateReport) -> bool:
    """Whether each accepted file exists with the verdict's checksum."""
    files = [(folder / file["path"], file["sha256"]) for file in report.files]
    return all(path.exists() and file_sha256(path) == known for path, known in files)


def _inputs(
    settings: Settings,
    spec: RunSpec,
    record: ModelVersion | None,
    files: Sequence[Path],
    rule_set: RuleSet,
    reference: Publication | None,
) -> dict[str, Any]:
    """Return everything that the verdict depends on."""
    return {
        "rules": rule_set.versions(),
        "run": json.loads(spec.canonical_json()),
        "candidates": {path.name: file_sha256(path) for path in files},
        "sources": list(settings.domains.source_names),
        "quality": settings.quality.model_dump(mode="json", exclude={"rules"}),
        "translator": None if record is None else [record.sha256, record.trained_until.isoformat()],
        "information": information_figures(record),
        "calibration": calibration_figures(record, settings.quality),
        "reference": None if reference is None else reference.key,
        "published": Lake.open(settings).version(Table.SYNTHETIC_TARGET_EVENTS),
    }


def _differing(spec: RunSpec, record: ModelVersion | None) -> int:
    """Count the translator facts in which the run's spec differs from the ledger's record of the training."""
    claimed = (spec.translator_sha256, spec.translator_trained_until)
    if record is None:
        return len(claimed)
    return sum(claim != recorded for claim, recorded in zip(claimed, (record.sha256, record.trained_until), strict=True))


def _audit(
    settings: Settings,
    spec: RunSpec,
    record: ModelVersion | None,
    folder: Path,
    files: Sequence[Path],
    rule_set: RuleSet,
    reference: Publication | None,
) -> GateReport:
    quality = settings.quality
    generation = settings.generation.model_dump() | dict(spec.settings.get("generation", {}))  # those of the run
    lake = open_project_lake(settings)
    schema = candidate_schema(lake)
    with open_gx_session(settings) as inspector:
        shape = validate_columns(
            inspector,
            _SUITE,
            spec.run_id,
            files,
            {column.name: str(column.type) for column in schema},
            description="columns, order and types are those of generated events",
        )
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
                rule_set=rule_set.versions(),
            )
        run = AuditedRun(
            spec,
            quality,
            settings.domains.source_names,
            exclude_consumed=generation["exclude_consumed"],
            events_per_source_event=generation["events_per_source_event"],
            translator=record,
            popularity_buckets=generation["align_buckets"],
            reference=None if reference is None else reference.run_id,
        )
        rules, bounds = rule_set.rules(run, _RESERVED)
        buckets = generation["align_buckets"]
        with open_audit(settings, spec, files, rules, popularity_buckets=buckets, reference=reference) as audit:
            severity: Literal["warning", "critical"] = "warning" if quality.policy == "quarantine" else "critical"
            by_row = validate_rows(inspector, _SUITE, spec.run_id, audit.verdicts, severity=severity)
            figures: dict[str, Any] = audit.figures(quality.max_quarantine_share) | {
                "translator_facts_differing": _differing(spec, record)
            }
            figures |= information_figures(record) | calibration_figures(record, quality)
            figures |= attack_figures(settings, spec, files)
            if reference is not None:
                figures |= measure_drift(*zip(*audit.rows.values, strict=True))
                warn_on_drift(figures, quality, reference)
            figures |= audit.query_figures(bounds, figures)
            pooled = pool_small_run(audit, spec, Lake.open(settings), bounds, figures)
            figures |= pooled.figures
            by_run = validate_figures(inspector, _SUITE, spec.run_id, figures, pooled.rules)
            inspector.annotate(f"{_SUITE}_figures", privacy_card(figures))
            figures |= {"pooled_since": pooled.since} if pooled.since else {}
            figures["by_source"] = audit.counts_by_source()
            if reference is not None:
                figures["drift_reference"] = reference.run_id
            rows, good = audit.verdicts.counts()
            if not good and figures["contexts"]:
                logger.warning("%s: none of its %d contexts gave an accepted event", spec.run_id, figures["contexts"])
            passed = all(rule.success is not False for rule in by_run) and (quality.policy == "quarantine" or good == rows)
            quarantined = rows - good if quality.policy == "quarantine" else 0
            write_quarantine(settings, spec, audit.rejected() if quarantined else None)
            accepted = move_accepted(folder, audit.rows.accepted if passed else None)
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
        rule_set=rule_set.versions(),
    )


def _rows(files: Sequence[Path]) -> int:
    import pyarrow.parquet as pq

    return sum(pq.ParquetFile(path).metadata.num_rows for path in files)


def _read(path: Path) -> dict[str, Any] | None:
    content = read_json(path)
    return content if {"inputs", "report"} <= content.keys() else None


def _summary(report: GateReport) -> str:
    if report.passed:
        return f"gate: {report.accepted} of {report.rows} rows accepted, {report.quarantined} quarantined"
    return f"gate: {', '.join(rule.rule for rule in report.failures)}"


def _refusal(report: GateReport, run_id: str) -> QualityGateFailed:
    next_step = "read the report, then fix the data or [quality] and [generation] in scalr.toml"
    if report.policy == "strict":
        next_step += '; [quality] policy = "quarantine" sets bad rows aside'
    if not report.rows:
        found = "the run has no candidate events: no context gave an event with these settings"
        next_step = "lower [generation] min_lift, or widen its window; then run: scalr generate"
    else:
        found = describe_failures(report)
        for rules in (information, calibration, privacy_rules):
            next_step = rules.extend_next_step(report, next_step)
        if since := [
            report.figures["pooled_since"][rule.rule]
            for rule in report.failures
            if rule.rule in report.figures.get("pooled_since", {})
        ]:
            next_step += f"; if the events published since {min(since)} are at fault, roll them back: scalr runs rollback"
    error = QualityGateFailed(found, where=report.docs, next_step=next_step)
    error.add_context(run_id=run_id)
    return error
