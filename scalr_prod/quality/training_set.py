# SPDX-License-Identifier: Apache-2.0
"""Quality gate of a training set: labels, timestamps, histories, and no provenance among the features."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.timestamps import to_micros
from scalr_prod.errors import QualityGateFailed
from scalr_prod.quality.gate_report import GateReport, describe_failures
from scalr_prod.quality.gx_engine import open_gx_session
from scalr_prod.quality.gx_inspections import validate_columns, validate_figures, validate_row_counts
from scalr_prod.quality.range_audit import KEYS, RangeJob, judge_range, plan_ranges
from scalr_prod.quality.rule_protocol import FigureRule, RowRule
from scalr_prod.schemas import EVENT_TIMESTAMP, PROVENANCE_COLUMNS, SPLIT, TRAIN
from scalr_prod.workspace import timestamp_literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from scalr_prod.compute import Executor, SharedFiles
    from scalr_prod.config import Settings
    from scalr_prod.quality.range_audit import JudgedRange, ValidatedPart


_SUITE: Final = "training_set"
_HISTORIES: Final = ("source_user_history", "target_user_history")
_WINDOW_RULES: Final = ("label_is_before_the_cutoff", "label_is_in_the_window")


def validate_training_set(
    settings: Settings,
    files: Sequence[Path],
    shared: SharedFiles,
    manifest: Mapping[str, Any],
    executor: Executor,
    *,
    validated: Sequence[ValidatedPart] = (),
) -> GateReport:
    """Audit every row of a training set before it is published, in tasks.

    Rules that compare rows compare rows of one label time only. So parts that a previous version's gate passed, with all rows of their
    times, are not judged again: of these, only the times and counts are looked at.

    Args:
        settings: The project's settings.
        files: The set's Parquet files, but those of validated parts; only their metadata is read on this machine.
        shared: Where tasks read them.
        manifest: Has ``name``, ``cutoff`` and (optional) ``start`` (ISO 8601), ``columns`` (name → Arrow type), ``features``,
            ``rows`` and ``synthetic``.
        executor: Runs the tasks.
        validated: Parts that a previous version's gate passed, with the same columns and rules; see `row_rules_digest`.

    Raises:
        QualityGateFailed: A rule is broken; the error names the expectations, the counts and the data docs.
        ComputeError: A task failed.
    """
    subject = f"{manifest.get('name', 'training_set')}"
    with open_gx_session(settings) as inspector:
        description = "columns, order and types are those of the manifest"
        outcomes = (
            validate_columns(inspector, _SUITE, subject, files, manifest["columns"], description=description) if files else []
        )
        rows = good = 0
        figures: dict[str, Any] = {}
        if all(outcome.success for outcome in outcomes):
            job = RangeJob(_row_rules(manifest), _outside_sql(manifest), shared.folder)
            ranges = plan_ranges(files, shared, validated)
            judged = list(executor.map(judge_range, ((job, part) for part in ranges)))
            if judged:
                outcomes += validate_row_counts(inspector, _SUITE, subject, job.rules, judged)
            figures = _figures(manifest, judged, validated)
            outcomes += validate_figures(inspector, _SUITE, subject, figures, _figure_rules(manifest))
            rows = figures["rows"]
            good = rows - sum(part.rows - part.accepted for part in judged)
        report = GateReport(
            subject,
            passed=bool(rows) and all(rule.success for rule in outcomes),
            policy="strict",
            rows=rows,
            accepted=good,
            quarantined=0,
            rules=outcomes,
            figures=figures,
            docs=inspector.docs,
        )
    if not report.passed:
        raise QualityGateFailed(
            describe_failures(report) or "the training set has no rows",
            where=report.docs,
            next_step="read the report; nothing was kept. Fix the cause, then run: scalr dataset build",
        )
    return report


def row_rules_digest(manifest: Mapping[str, Any]) -> str:
    """Hash the columns and the row rules, except rules that depend on the window: those are checked on every row each time."""
    rules = [(rule.name, rule.holds) for rule in _row_rules(manifest) if rule.name not in _WINDOW_RULES]
    return hashlib.sha256(json.dumps([manifest["columns"], rules]).encode()).hexdigest()


def _figures(manifest: Mapping[str, Any], judged: Sequence[JudgedRange], validated: Sequence[ValidatedPart]) -> dict[str, Any]:
    """Compute the figures of the whole set. A validated part that reaches outside of the window counts with all of its rows."""
    start, cutoff = (to_micros(datetime.fromisoformat(moment)) if moment else None for moment in _window(manifest))
    outside = [part.rows for part in validated if part.last >= (cutoff or 0) or (start is not None and part.first < start)]
    offered = [name for name in manifest["features"] if name.rsplit("__", 1)[-1] in PROVENANCE_COLUMNS]
    return {
        "rows": sum(part.rows for part in judged) + sum(part.rows for part in validated),
        "synthetic": sum(part.synthetic for part in judged) + sum(part.synthetic for part in validated),
        "labels_outside": sum(outside) + sum(part.outside for part in judged),
        "labels_shared": sum(part.shared for part in judged),
        "provenance_among_features": len(offered),
        "features_without_column": len(set(manifest["features"]) - set(manifest["columns"])),
    }


def _window(manifest: Mapping[str, Any]) -> tuple[str | None, str]:
    return manifest.get("start"), manifest["cutoff"]


def _outside_sql(manifest: Mapping[str, Any]) -> str:
    start, cutoff = (_at(moment) if moment else "NULL" for moment in _window(manifest))
    return f"{EVENT_TIMESTAMP} >= {cutoff} OR {EVENT_TIMESTAMP} < {start}"


def _row_rules(manifest: Mapping[str, Any]) -> list[RowRule]:
    columns = manifest["columns"]
    instant = f"r.{EVENT_TIMESTAMP}"
    rules = [RowRule(f"{column}_is_present", f"{column} is not null", f"r.{column} IS NOT NULL") for column in KEYS]
    rules += [
        RowRule("label_is_0_or_1", "label is 0 or 1", "r.label IN (0, 1)"),
        RowRule("weight_is_finite", "weight is finite and not negative", "isfinite(r.weight) AND r.weight >= 0"),
        RowRule(
            "label_is_before_the_cutoff", f"{EVENT_TIMESTAMP} < {manifest['cutoff']}", f"{instant} < {_at(manifest['cutoff'])}"
        ),
        RowRule(
            "provenance_is_on_synthetic_rows_only",
            "run_id is set on synthetic rows only",
            "r.is_synthetic IS NOT NULL AND (r.run_id IS NOT NULL) = r.is_synthetic",
        ),
        RowRule("synthetic_rows_are_positive", "a synthetic row has label 1", "NOT r.is_synthetic OR r.label = 1"),
        RowRule("synthetic_rows_are_unique", "no other synthetic row has this user, item and time", "r.copy = 1"),
        RowRule("label_is_not_contradicted", "no row of this user, item and time has the other label", "b.found IS NULL"),
    ]
    if "source_domain" in columns:  # null on synthetic rows that an old version published
        description = "source_domain is null on real rows"
        rules.append(RowRule("source_domain_is_on_no_real_row", description, "r.is_synthetic OR r.source_domain IS NULL"))
    if SPLIT in columns:
        description = f"a synthetic row is in the split {TRAIN}"
        rules.append(RowRule("synthetic_rows_are_in_train", description, f"NOT r.is_synthetic OR r.{SPLIT} = '{TRAIN}'"))
    if manifest.get("start"):
        start = manifest["start"]
        rules.append(RowRule("label_is_in_the_window", f"{EVENT_TIMESTAMP} >= {start}", f"{instant} >= {_at(start)}"))
    for view in _HISTORIES:
        stamps = f"{view}__event_timestamps"
        if stamps in columns:
            rules.append(
                RowRule(
                    f"{view}_is_before_the_label",
                    f"every event of {view} is strictly before the label",
                    f"coalesce(list_max(r.{stamps}) < {instant}, true)",
                )
            )
    if "target_item_stats__first_seen" in columns:
        rules.append(
            RowRule(
                "item_stats_are_before_the_label",
                "target_item_stats first saw the item strictly before the label, or not at all",
                f"coalesce(r.target_item_stats__first_seen < {instant}, true)",
            )
        )
    return rules


def _figure_rules(manifest: Mapping[str, Any]) -> list[FigureRule]:
    rows, synthetic = int(manifest["rows"]), int(manifest["synthetic"])
    return [
        FigureRule("row_count_matches_manifest", f"there are {rows} rows", "rows", low=rows, high=rows),
        FigureRule(
            "synthetic_row_count_matches_manifest", f"{synthetic} are synthetic", "synthetic", low=synthetic, high=synthetic
        ),
        FigureRule(
            "labels_are_in_the_window", "no label is from before the start or after the cutoff", "labels_outside", high=0
        ),
        FigureRule(
            "parts_share_no_time",
            "no new label is between the first and the last label of a kept partition",
            "labels_shared",
            high=0,
        ),
        FigureRule(
            "no_provenance_in_features", "no provenance column is offered as a feature", "provenance_among_features", high=0
        ),
        FigureRule("features_exist", "every feature is a column", "features_without_column", high=0),
    ]


def _at(moment: str) -> str:
    return timestamp_literal(datetime.fromisoformat(moment))
