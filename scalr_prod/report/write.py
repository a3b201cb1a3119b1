# SPDX-License-Identifier: Apache-2.0
"""Facts → files: one page a run, and an index over all runs beside it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import ReportError
from scalr_prod.lake import Lake
from scalr_prod.ledger import PublicationStatus
from scalr_prod.quality.drift import held_in
from scalr_prod.report import charts
from scalr_prod.report.facts import collect
from scalr_prod.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jinja2 import Environment

    from scalr_prod.ledger import Ledger
    from scalr_prod.report.facts import Distributions, RunFacts
    from scalr_prod.settings import Settings

__all__ = ["ReportWritten", "write_report"]

_LISTED: Final = 200
_TRANSLATOR_ROWS: Final = ("mixture", "popularity")


@dataclass(frozen=True)
class ReportWritten:
    """Where a report is.

    Attributes:
        run_id: The run.
        path: The page.
        index: The page that lists all runs; None where the page was asked for at a place of its own.
    """

    run_id: str
    path: str
    index: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def write_report(settings: Settings, run_id: str | None = None, *, output: Path | None = None) -> ReportWritten:
    """Write a run's page; by default under ``<home>/reports``, and the index over all runs with it.

    Args:
        settings: The project's settings.
        run_id: Default: the run that was changed last.
        output: The page's path; then no index is written.

    Raises:
        RunNotFound: The project has no such run, or none at all.
        ReportError: The page cannot be written, or the library that draws is not installed.
    """
    from scalr_prod.ledger import Ledger

    charts.require_charts()
    folder = settings.home / "reports"
    with Ledger.open(settings) as ledger:
        run_id = run_id or _latest(ledger)
        facts = collect(settings, ledger, run_id)
        path = Path(output) if output is not None else folder / f"{run_id}.html"
        _write(path, _page(settings, facts, path.parent))
        index = None
        if output is None:
            index = folder / "index.html"
            _write(index, _index(settings, ledger, folder))
    return ReportWritten(run_id, str(path.absolute()), str(index) if index else None)


def _latest(ledger: Ledger) -> str:
    runs = ledger.runs()
    if not runs:
        raise ReportError("there is no run yet", where="the ledger", next_step="scalr run")
    return max(runs, key=lambda run: run.updated_at).run_id


def _write(path: Path, text: str) -> None:
    from scalr_prod.duck import disk_errors

    if path.is_dir():
        raise ReportError("is a folder", where=str(path), next_step="name a file, such as page.html")
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            draft.write_text(text, encoding="utf-8")
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("scalr_prod.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"moment": _moment, "day": lambda at: at.strftime("%Y-%m-%d"), "figure": _figure}
    environment.globals["colours"] = charts.COLOURS
    return environment


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _figure(value: Any, name: str) -> str:
    if name in {"share", "head"}:
        return f"{value:.1%}"
    if name in {"period", "at"}:
        return str(value)[:16].replace("T", " ")
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _page(settings: Settings, facts: RunFacts, folder: Path) -> str:
    rules = facts.gate.get("rules", [])
    broken = [rule for rule in rules if not rule["success"]]
    return (
        _environment()
        .get_template("run.html.j2")
        .render(
            facts=facts,
            run=facts.run,
            domains=_domains(settings),
            source=" and ".join(settings.domains.source_names),
            target=settings.domains.target.name,
            verdict=_verdict(facts, len(broken)),
            charts=_charts(facts.distributions),
            read=facts.held or facts.gate.get("accepted") or facts.generation.get("events") or 0,
            translator=_translator(facts.translator),
            passed=len(rules) - len(broken),
            broken=broken,
            docs=_docs(facts.gate.get("docs"), folder),
            version=__version__,
            settings=json.dumps(facts.run.spec.settings, indent=2),
            written=datetime.now(UTC),
        )
    )


def _domains(settings: Settings) -> str:
    return f"{', '.join(settings.domains.source_names)} → {settings.domains.target.name}"


def _docs(index: str | None, folder: Path) -> str | None:
    """The data docs' address relative to the page, so that both can be moved together."""
    return None if index is None or not Path(index).exists() else Path(os.path.relpath(index, folder)).as_posix()


def _verdict(facts: RunFacts, broken: int) -> dict[str, str]:
    match str(facts.run.state):
        case "published":
            return _published(facts)
        case "rejected":
            rules = "rule is" if broken == 1 else "rules are"
            return {
                "tone": "bad",
                "head": "Refused by the quality gate.",
                "text": f"{broken} {rules} broken; nothing was published.",
            }
        case "rolled_back":
            return {"tone": "bad", "head": "Rolled back.", "text": "Its events were published, and were taken out again."}
        case state:
            return {"tone": "", "head": f"{state.capitalize()}.", "text": "Nothing of this run is in the feature view yet."}


def _published(facts: RunFacts) -> dict[str, str]:
    if facts.held == facts.published:
        return {"tone": "good", "head": "Published.", "text": f"{facts.held:,} synthetic events are in the feature view."}
    others = ", ".join(facts.replaced_by) or "another run"
    text = f"{facts.held:,} of its {facts.published:,} events are in the feature view; {others} has been published over its window."
    return {"tone": "", "head": "Published, then replaced.", "text": text}


def _charts(found: Distributions | None) -> list[dict[str, Any]]:
    if found is None:
        return []
    shares = {"kind": "Events", "share": "Share"}
    head = {(row["kind"], row["head"]): row["share"] for row in found.popularity}
    tenth = " and ".join(f"{head[kind, 0.1]:.0%} of the {kind} events" for kind in ("real", "synthetic") if (kind, 0.1) in head)
    above = sum(row["share"] for row in found.lift if row["place"] > 2)  # noqa: PLR2004 - classes from 1 × on
    return [
        {
            "title": "How popular the items are",
            "summary": f"The most popular tenth of the items has {tenth}.",
            "svg": charts.by_popularity(found),
            "rows": found.popularity,
            "columns": {"head": "Most popular items", "items": "Items", **shares},
        },
        {
            "title": "Over popularity",
            "summary": f"{above:.0%} of the synthetic events name an item that was more probable for this user than for everybody.",
            "svg": charts.by_lift(found),
            "rows": found.lift,
            "columns": {"lift": "Probability over popularity", "share": "Share"},
        },
        {
            "title": "When they happened",
            "summary": "Share of the events in each thirtieth of the window.",
            "svg": charts.by_time(found),
            "rows": found.time,
            "columns": {"period": "From (UTC)", **shares},
        },
        {
            "title": "Events of a user",
            "summary": "Share of the users by how many events they have, among users with at least one.",
            "svg": charts.by_user(found),
            "rows": found.per_user,
            "columns": {"events": "Events of a user", **shares},
        },
    ]


def _translator(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """What training measured, as rows: the mixture, popularity, then each estimator by itself."""
    measured = manifest.get("metrics", {})
    everybody, cold = measured.get("all", {}), measured.get("cold", {})
    if not everybody:
        return None
    names = [*_TRANSLATOR_ROWS, *(name for name in everybody if name not in _TRANSLATOR_ROWS)]
    rows = [
        {
            "name": name,
            "nll": f"{everybody[name]['nll']:.3f}",
            "ndcg": f"{everybody[name]['ndcg@20']:.4f}",
            "cold": f"{cold[name]['ndcg@20']:.4f}" if name in cold else "",
        }
        for name in names
        if name in everybody
    ]
    own = measured.get("information", {}).get("own_over_others")
    information = None
    if own is not None:
        low, high = own["ci99"]
        information = f"{own['nats']:.2f} nats an event over another user's (99 %: {low:.2f} to {high:.2f})"
    return {"rows": rows, "events": everybody["mixture"]["events"], "information": information}


def _index(settings: Settings, ledger: Ledger, folder: Path) -> str:
    there = [attempt for attempt in ledger.publications() if attempt.status is PublicationStatus.PUBLISHED]
    held = held_in(Lake.open(settings), there) if there else {}
    runs = sorted(ledger.runs(), key=lambda run: run.updated_at, reverse=True)[:_LISTED]
    rows = [
        {
            "run_id": run.run_id,
            "state": run.state,
            "start": run.spec.start,
            "end": run.spec.end,
            "translator": run.spec.translator_version,
            "rows": held.get(run.run_id) if run.state == "published" else None,
            "updated": run.updated_at,
            "page": f"{run.run_id}.html" if (folder / f"{run.run_id}.html").exists() else None,
        }
        for run in runs
    ]
    return (
        _environment()
        .get_template("index.html.j2")
        .render(
            project=settings.project_name,
            domains=_domains(settings),
            runs=rows,
            charts=_trends(rows),
            written=datetime.now(UTC),
        )
    )


def _trends(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    points = [{"at": row["end"].isoformat(), "rows": row["rows"]} for row in reversed(rows) if row["rows"]]
    if len(points) < 2:  # noqa: PLR2004 - one point is no trend
        return []
    return [
        {
            "title": "Published rows by the end of their window",
            "summary": f"From {points[0]['rows']:,} to {points[-1]['rows']:,} rows.",
            "svg": charts.trend(points, "rows", "rows"),
            "rows": points,
            "columns": {"at": "Window's end (UTC)", "rows": "Rows"},
        }
    ]
