# SPDX-License-Identifier: Apache-2.0
"""Quality gate of a training set: labels, timestamps, histories, and no provenance among the features."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import QualityGateFailed
from scalr_prod.quality.gate_report import GateReport, describe_failures
from scalr_prod.quality.gx_engine import open_gx_session
from scalr_prod.quality.gx_inspections import validate_columns, validate_figures, validate_rows
from scalr_prod.quality.row_verdicts import write_verdicts
from scalr_prod.quality.rule_protocol import FigureRule, RowRule
from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID, PROVENANCE_COLUMNS, SPLIT, TRAIN, USER_ID
from scalr_prod.workspace import escape_glob, open_duckdb, staging_folder, timestamp_literal

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from scalr_prod.config import Settings
    from scalr_prod.quality.gate_report import RuleOutcome


_SUITE: Final = "training_set"
_HISTORIES: Final = ("source_user_history", "target_user_history")
_KEYS: Final = (USER_ID, ITEM_ID, EVENT_TIMESTAMP)
_SHOWN: Final = (*_KEYS, "label")
#: Rows whose hashes are counted at once, about 50 bytes each.
_COUNTED_ROWS: Final = 500_000
_WINDOW_RULES: Final = ("label_is_before_the_cutoff", "label_is_in_the_window")


def validate_training_set(
    settings: Settings, folder: Path, manifest: Mapping[str, Any], *, validated_files: Collection[str] = ()
) -> GateReport:
    """Audit every row of a training set before it is published.

    Rules that compare rows compare rows of one label time only. So files that a previous version's gate passed, with all rows of their
    times, are not judged again: only their times and counts are read.

    Args:
        settings: The project's settings.
        folder: Folder of the set's Parquet files, at any depth.
        manifest: Has ``name``, ``cutoff`` and (optional) ``start`` (ISO 8601), ``columns`` (name → Arrow type), ``features``,
            ``rows`` and ``synthetic``.
        validated_files: Names of files that a previous version's gate passed, with the same columns and rules; see `row_rules_digest`.

    Raises:
        QualityGateFailed: A rule is broken; the error names the expectations, the counts and the data docs.
    """
    files = sorted(folder.rglob("*.parquet"))
    subject = f"{manifest.get('name', 'training_set')}"
    with open_gx_session(settings) as inspector:
        description = "columns, order and types are those of the manifest"
        unjudged = [path for path in files if path.name not in validated_files]
        outcomes = validate_columns(
            inspector, _SUITE, subject, unjudged or files[:1], manifest["columns"], description=description
        )
        rows = good = 0
        figures: dict[str, Any] = {}
        if outcomes[0].success and files:
            more, figures, (rows, good) = _inspect(settings, inspector, subject, files, manifest, validated_files)
            outcomes += more
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


def _inspect(
    settings: Settings,
    inspector: Any,
    subject: str,
    files: Sequence[Path],
    manifest: Mapping[str, Any],
    judged_before: Collection[str],
) -> tuple[list[RuleOutcome], dict[str, Any], tuple[int, int]]:
    unjudged, kept = ([path for path in files if (path.name in judged_before) is before] for before in (False, True))
    outcomes: list[RuleOutcome] = []
    broken = 0
    with staging_folder(settings, "gate") as scratch, open_duckdb(settings, scratch) as connection:
        read = {name: [escape_glob(path) for path in paths] for name, paths in (("rows", unjudged), ("kept", kept)) if paths}
        for name, paths in read.items():
            connection.read_parquet(paths, filename=True, file_row_number=True).create_view(name)
        if unjudged:
            _find_repeated(connection)
            select = """
                SELECT {columns} FROM (
                    SELECT rows.*, coalesce(copies.copy, 1) AS copy FROM rows LEFT JOIN copies USING (filename, file_row_number)) r
                LEFT JOIN contradicted b USING (filename, file_row_number)"""
            shown = [f"r.{name}" for name in _SHOWN]
            rules = _row_rules(manifest)
            judged = write_verdicts(connection, select, rules, columns=shown, shown=_SHOWN, path=scratch / "judged.parquet")
            outcomes += validate_rows(inspector, _SUITE, subject, judged)
            checked, good = judged.counts()
            broken = checked - good
        start, cutoff = (_at(moment) if moment else "NULL" for moment in (manifest.get("start"), manifest["cutoff"]))
        shares_time = f"{EVENT_TIMESTAMP} IN (SELECT {EVENT_TIMESTAMP} FROM rows)" if unjudged and kept else "false"
        shared_sql = {"rows": "false", "kept": shares_time}
        all_rows = " UNION ALL ".join(
            f"SELECT {EVENT_TIMESTAMP}, is_synthetic, {shared_sql[name]} AS shared FROM {name}" for name in read
        )
        rows, synthetic, outside, shared = connection.execute(f"""
            SELECT count(*), count(*) FILTER (is_synthetic),
                count(*) FILTER ({EVENT_TIMESTAMP} >= {cutoff} OR {EVENT_TIMESTAMP} < {start}), count(*) FILTER (shared)
            FROM ({all_rows})""").fetchall()[0]
    offered = [name for name in manifest["features"] if name.rsplit("__", 1)[-1] in PROVENANCE_COLUMNS]
    figures = {
        "rows": int(rows),
        "synthetic": int(synthetic),
        "labels_outside": int(outside),
        "labels_shared": int(shared),
        "provenance_among_features": len(offered),
        "features_without_column": len(set(manifest["features"]) - set(manifest["columns"])),
    }
    outcomes += validate_figures(inspector, _SUITE, subject, figures, _figure_rules(manifest))
    return outcomes, figures, (int(rows), int(rows) - broken)


def _find_repeated(connection: Any) -> None:
    """Create the tables ``copies`` and ``contradicted``, which are mostly empty.

    ``copies`` has the rank of each synthetic row after the first of its user, item and time. ``contradicted`` has the rows whose user, item
    and time occur with the other label, too. Hashes of the keys are counted per time range, and only rows with a shared hash are sorted;
    rows with an equal key have an equal time.
    """
    keys = ", ".join(_KEYS)
    known = " AND ".join(f"{key} IS NOT NULL" for key in _KEYS)
    connection.execute("CREATE TEMP TABLE copies (filename VARCHAR, file_row_number BIGINT, copy BIGINT)")
    connection.execute("CREATE TEMP TABLE contradicted (filename VARCHAR, file_row_number BIGINT, found BOOLEAN)")
    for within in _time_ranges(connection):
        connection.execute(
            f"""CREATE OR REPLACE TEMP TABLE repeated AS
            WITH shared AS (SELECT hash({keys}) AS digest FROM rows WHERE {within} GROUP BY digest HAVING count(*) > 1)
            SELECT filename, file_row_number, {keys}, label, is_synthetic
            FROM rows WHERE {within} AND hash({keys}) IN (FROM shared)"""
        )
        connection.execute(
            f"""INSERT INTO copies SELECT filename, file_row_number,
                row_number() OVER (PARTITION BY {keys} ORDER BY filename, file_row_number) AS copy
            FROM repeated WHERE is_synthetic QUALIFY copy > 1"""
        )
        connection.execute(
            f"""INSERT INTO contradicted SELECT filename, file_row_number, true
            FROM repeated WHERE {known} QUALIFY min(label) OVER (PARTITION BY {keys}) <> max(label) OVER (PARTITION BY {keys})"""
        )


def _time_ranges(connection: Any) -> list[str]:
    """Return SQL conditions that split the rows by time into ranges of about `_COUNTED_ROWS`; one is for rows without a time."""
    (rows,) = connection.execute("SELECT count(*) FROM rows").fetchall()[0]
    number = 1 + rows // _COUNTED_ROWS
    if number == 1:
        return ["true"]
    shares = [place / number for place in range(1, number)]
    (found,) = connection.execute(f"SELECT approx_quantile(epoch_us({EVENT_TIMESTAMP}), {shares}) FROM rows").fetchall()[0]
    edges = [f"make_timestamptz({edge})" for edge in sorted(set(found or ()))]
    inner = [f"{EVENT_TIMESTAMP} >= {since} AND {EVENT_TIMESTAMP} < {until}" for since, until in pairwise(edges)]
    ends = [f"{EVENT_TIMESTAMP} < {edges[0]}", *inner, f"{EVENT_TIMESTAMP} >= {edges[-1]}"] if edges else []
    return [*ends, f"{EVENT_TIMESTAMP} IS NULL"]


def _row_rules(manifest: Mapping[str, Any]) -> list[RowRule]:
    columns = manifest["columns"]
    instant = f"r.{EVENT_TIMESTAMP}"
    rules = [RowRule(f"{column}_is_present", f"{column} is not null", f"r.{column} IS NOT NULL") for column in _KEYS]
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
            "no label of a kept partition has the time of a label in a new one",
            "labels_shared",
            high=0,
        ),
        FigureRule(
            "no_provenance_in_features", "no provenance column is offered as a feature", "provenance_among_features", high=0
        ),
        FigureRule("features_exist", "every feature is a column", "features_without_column", high=0),
    ]


def _at(moment: str) -> str:
    from datetime import datetime

    return timestamp_literal(datetime.fromisoformat(moment))
