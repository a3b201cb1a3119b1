# SPDX-License-Identifier: Apache-2.0
"""The section "Does it help?" of the pages: verdict, chart and table of the latest evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import ReportError
from scalr_prod.evaluation import summarize_verdict
from scalr_prod.generation import Policy, policy_path, policy_status
from scalr_prod.reporting import charts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scalr_prod.config import Settings


_TONES: Final = {"helps": "good", "behind": "bad", "harms": "bad", "unsure": "", "refused": ""}


def verdict_section(settings: Settings, *, details: bool = True) -> dict[str, Any] | None:
    """Return what the template ``helps.html.j2`` shows; None if nothing was evaluated.

    Args:
        settings: The project's settings.
        details: Add the chart and the table of arms.

    Raises:
        ReportError: The evaluation's report cannot be read.
    """
    path = _latest_report(settings)
    if path is None:
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        summary = summarize_verdict(report)
    except (OSError, ValueError, KeyError) as error:
        raise ReportError(
            f"the evaluation's report cannot be read: {type(error).__name__}: {error}",
            where=str(path),
            next_step="run scalr evaluate again, or remove the file",
        ) from error
    section: dict[str, Any] = {
        "tone": _TONES[summary.effect],
        "answer": summary.answer,
        "by_group": summary.by_group,
        "tested_on": summary.tested_on,
        "model_settings": summary.model_settings,
        "next_step": summary.next_step,
        "notes": _notes(settings, report),
        "path": str(path.parent),
        "table": summary.table if details else (),
        "chart": None,
    }
    if details and summary.lifts:
        section["chart"] = {
            "title": "Lift over the best method without synthetic events",
            "summary": "NDCG with synthetic events over that of the best method without them, with 95 % intervals. Right of the dashed "
            "line, synthetic events help.",
            "svg": charts.lift_interval_chart(summary.lifts),
            "rows": summary.lifts,
            "columns": {"users": "Users", "lift_pct": "Lift, %", "low": "From (95 %)", "high": "To (95 %)"},
        }
    return section


def _latest_report(settings: Settings) -> Path | None:
    """Return the report that the policy comes from, else that of the latest quick verdict."""
    policy, folder = policy_path(settings), policy_path(settings).parent
    if policy.exists():
        found = folder / Path(Policy.read(policy).report).name / "report.json"  # the home may have been moved
        if found.exists():
            return found
    quick = folder.glob("quick-*/report.json")
    return max(quick, key=lambda path: path.stat().st_mtime, default=None)


def _notes(settings: Settings, report: Mapping[str, Any]) -> list[str]:
    notes = []
    if report["verdict"]["quick"]:
        notes.append("This is a quick verdict on a run's default settings.")
    status = policy_status(settings)
    if status is not None and not status.is_applied:
        notes.append(f"Runs do not apply it: {status.reason}.")
    elif status is not None and status.reason != "as measured":
        notes.append(f"Runs apply it, though {status.reason}.")
    return notes
