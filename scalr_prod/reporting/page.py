# SPDX-License-Identifier: Apache-2.0
"""HTML pages of the report: one run, and the list of all runs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.lake import Lake
from scalr_prod.ledger import PublicationStatus
from scalr_prod.privacy import describe_privacy
from scalr_prod.quality import MIN_USERS, rows_in_view
from scalr_prod.reporting import charts
from scalr_prod.reporting.evaluation_verdict import verdict_section
from scalr_prod.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jinja2 import Environment

    from scalr_prod.config import Settings
    from scalr_prod.ledger import Ledger
    from scalr_prod.reporting.report_data import Distributions, RunReportData


_MAX_RUNS: Final = 200
#: Least expected number of events of a point of the calibration curve, and the columns summed when bins are merged.
_MIN_EXPECTED_EVENTS: Final = 5
_SUMMED_COLUMNS: Final = ("pairs", "expected", "events")
_LEADING_ROWS: Final = ("mixture", "popularity")


def template_environment(*packages: str) -> Environment:
    """Return the Jinja environment of the report's templates and those of other packages. All values are escaped.

    Args:
        packages: Packages with their own templates, such as ``scalr_prod.reporting.ui``.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=ChoiceLoader([PackageLoader(room) for room in ("scalr_prod.reporting", *packages)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"moment": _format_minute, "day": lambda at: at.strftime("%Y-%m-%d"), "figure": _format_value}
    made.globals["colours"] = charts.COLOURS
    return made


def _format_minute(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _format_value(value: Any, name: str) -> str:
    if name in {"share", "head"}:
        return f"{value:.1%}"
    if name in {"period", "at"}:
        return str(value)[:16].replace("T", " ")
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def run_page(settings: Settings, data: RunReportData, templates: Environment, *, index: str, docs: str | None) -> str:
    """Render a run's page.

    Args:
        settings: The project's settings.
        data: The run's data.
        templates: From `template_environment`.
        index: Address of the page that lists all runs.
        docs: Address of the run's data docs; None without them.
    """
    rules = data.gate.get("rules", [])
    broken = [rule for rule in rules if rule["success"] is False]
    return templates.get_template("run.html.j2").render(
        facts=data,
        run=data.run,
        domains=describe_domains(settings),
        source=" and ".join(settings.domains.source_names),
        target=settings.domains.target.name,
        state=_describe_state(data, len(broken)),
        helps=verdict_section(settings),
        charts=_distribution_charts(data.distributions),
        read=data.held or data.gate.get("accepted") or data.generation.get("events") or 0,
        translator=_translator_metrics(data.translator),
        curve=_calibration_section(data.translator.get("calibration_curve", [])),
        reliability=data.translator.get("metrics", {}).get("reliability", []),
        privacy=describe_privacy(data.privacy) if data.privacy else None,
        curve_kept="calibration_curve" in data.translator,
        passed=sum(rule["success"] is True for rule in rules),
        not_judged=sum(rule["success"] is None for rule in rules),
        broken=broken,
        index=index,
        docs=docs,
        version=__version__,
        settings=json.dumps(data.run.spec.settings, indent=2),
        written=datetime.now(UTC),
    )


def describe_domains(settings: Settings) -> str:
    """Return a short text that names the project's domains."""
    return f"{', '.join(settings.domains.source_names)} → {settings.domains.target.name}"


def _describe_state(data: RunReportData, broken: int) -> dict[str, str]:
    match str(data.run.state):
        case "published":
            return _describe_publication(data)
        case "rejected":
            rules = "rule is" if broken == 1 else "rules are"
            return {
                "tone": "bad",
                "head": "Refused by the quality gate.",
                "text": f"{broken} {rules} broken; nothing was published.",
            }
        case "rolled_back":
            return {
                "tone": "bad",
                "head": "Rolled back.",
                "text": "Its events were published and later removed from the feature view.",
            }
        case state:
            return {"tone": "", "head": f"{state.capitalize()}.", "text": "Nothing of this run is in the feature view yet."}


def _describe_publication(data: RunReportData) -> dict[str, str]:
    if data.held == data.published and data.canary is not None:
        text = (
            f"{data.held:,} synthetic events are in the feature view, for {100 * data.canary:.3g} % of users; "
            "scalr publication widen publishes the rest."
        )
        return {"tone": "", "head": "Published for a share of users.", "text": text}
    if data.held == data.published:
        return {"tone": "good", "head": "Published.", "text": f"{data.held:,} synthetic events are in the feature view."}
    held = f"{data.held:,} of its {data.published:,} events are in the feature view"
    if data.is_hidden:
        return {"tone": "", "head": "Published, and disabled.", "text": f"{held}; scalr publication enable restores them."}
    if not data.replaced_by:
        return {"tone": "good", "head": "Published.", "text": f"{held}; the others were of erased users or items."}
    text = f"{held}; {', '.join(data.replaced_by)} was published over its window."
    return {"tone": "", "head": "Published, then replaced.", "text": text}


def _distribution_charts(distributions: Distributions | None) -> list[dict[str, Any]]:
    if distributions is None:
        return []
    shares = {"kind": "Events", "share": "Share"}
    head = {(row["kind"], row["head"]): row["share"] for row in distributions.popularity}
    tenth = " and ".join(f"{head[kind, 0.1]:.0%} of the {kind} events" for kind in ("real", "synthetic") if (kind, 0.1) in head)
    above = sum(row["share"] for row in distributions.lift if row["place"] > 2)  # noqa: PLR2004 - bins from 1 × on
    return [
        {
            "title": "Popularity of the items",
            "summary": f"The most popular tenth of the items has {tenth}.",
            "svg": charts.popularity_chart(distributions),
            "rows": distributions.popularity,
            "columns": {"head": "Most popular items", "items": "Items", **shares},
        },
        {
            "title": "Lift over popularity",
            "summary": f"{above:.0%} of the synthetic events name an item that is at least as probable for this user as by popularity.",
            "svg": charts.lift_chart(distributions),
            "rows": distributions.lift,
            "columns": {"lift": "Lift over popularity", "share": "Share"},
        },
        {
            "title": "Events over time",
            "summary": "Share of the events in each of 30 equal intervals from the first synthetic event to the last.",
            "svg": charts.events_over_time_chart(distributions),
            "rows": distributions.time,
            "columns": {"period": "From (UTC)", **shares},
        },
        {
            "title": "Events per user",
            "summary": "Share of the users by number of events, among users with at least one. Real: since the beginning of the log; "
            "synthetic: of this run.",
            "svg": charts.events_per_user_chart(distributions),
            "rows": distributions.per_user,
            "columns": {"events": "Events per user", **shares},
        },
    ]


def _translator_metrics(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the metrics measured in training: the mixture, popularity, then each estimator alone."""
    measured = manifest.get("metrics", {})
    everybody, cold = measured.get("all", {}), measured.get("cold", {})
    if not everybody:
        return None
    names = [*_LEADING_ROWS, *(name for name in everybody if name not in _LEADING_ROWS)]
    rows = [
        {
            "name": name,
            "nll": f"{everybody[name]['nll']:.3f}",
            "ndcg": f"{everybody[name]['ndcg@20']:.4f}",
            "cold": f"{cold[name]['ndcg@20']:.4f}" if cold.get(name, {}).get("events") else "",
        }
        for name in names
        if name in everybody
    ]
    found = measured.get("information", {})
    own, information = found.get("own_over_others"), None
    if own is not None and found.get("users", MIN_USERS) >= MIN_USERS:
        low, high = own["ci99"]
        information = f"{own['nats']:.2f} nats per event over another user's (99 %: {low:.2f} to {high:.2f})"
    left_out = [
        f"{counts['items'] - counts['kept']:,} of {counts['items']:,} {domain} items, with"
        f" {1 - counts['events_kept'] / counts['events']:.2%} of the events"
        for domain, counts in manifest.get("vocabulary", {}).items()
        if counts["kept"] < counts["items"]
    ]
    events = everybody["mixture"]["events"]
    alone = min((everybody[name]["events"] for name in names if name in everybody), default=events)
    sampled = alone if alone < events else None  # earlier versions measured all on the same events
    return {"rows": rows, "events": events, "sampled": sampled, "information": information, "left_out": left_out}


def _calibration_section(bins: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the calibration chart with its rows; None if there are too few events for two points."""
    points = _merge_sparse_bins(bins)
    if len(points) < 2:  # noqa: PLR2004 - one point is no curve
        return None
    events = sum(row["events"] for row in bins)
    expected = sum(row["expected"] for row in points if not row["events"])
    not_drawn = f" Not drawn: probabilities at which no event occurred, where {expected:.0f} were expected." if expected else ""
    wrong = sum(abs(row["expected"] - row["events"]) for row in bins) / 2 / max(events, 1)  # each counts in two bins
    return {
        "title": "Are its probabilities calibrated?",
        "summary": f"Of {events:,} target events of users that it was not fitted on, {wrong:.1%} fell into another bin of "
        "probability than predicted. On the dashed line, predicted probability equals observed frequency." + not_drawn,
        "svg": charts.calibration_chart(points),
        "rows": points,
        "columns": {
            "predicted": "Predicted probability",
            "observed": "Observed frequency",
            "expected": "Events expected",
            "events": "Events",
        },
    }


def _merge_sparse_bins(bins: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Merge neighbouring bins of probability until each expects enough events."""
    sums: list[dict[str, Any]] = []
    for row in bins:
        if not sums or sums[-1]["expected"] >= _MIN_EXPECTED_EVENTS:
            sums.append(dict.fromkeys(_SUMMED_COLUMNS, 0))
        sums[-1] = {name: sums[-1][name] + row[name] for name in _SUMMED_COLUMNS}
    if len(sums) > 1 and sums[-1]["expected"] < _MIN_EXPECTED_EVENTS:
        last = sums.pop()
        sums[-1] = {name: sums[-1][name] + last[name] for name in _SUMMED_COLUMNS}
    return [{**row, "predicted": row["expected"] / row["pairs"], "observed": row["events"] / row["pairs"]} for row in sums]


def recent_runs(settings: Settings, ledger: Ledger, page_url: Callable[[str], str | None]) -> list[dict[str, Any]]:
    """Return the latest runs as rows of a list, last changed first.

    Args:
        settings: The project's settings.
        ledger: Its ledger.
        page_url: Returns the address of a run's page by the run's id, or None if it has no page.
    """
    published = [attempt for attempt in ledger.publications.find() if attempt.status is PublicationStatus.PUBLISHED]
    held = rows_in_view(Lake.open(settings), published) if published else {}
    runs = sorted(ledger.runs.find(), key=lambda run: run.updated_at, reverse=True)[:_MAX_RUNS]
    return [
        {
            "run_id": run.run_id,
            "state": run.state,
            "start": run.spec.start,
            "end": run.spec.end,
            "translator": run.spec.translator_version,
            "rows": held.get(run.run_id) if run.state == "published" else None,
            "updated": run.updated_at,
            "page": page_url(run.run_id),
        }
        for run in runs
    ]


def index_page(settings: Settings, rows: Sequence[Mapping[str, Any]], templates: Environment) -> str:
    """Render the page that lists all runs; ``rows`` come from `recent_runs`."""
    return templates.get_template("index.html.j2").render(
        project=settings.project_name,
        domains=describe_domains(settings),
        runs=rows,
        helps=verdict_section(settings, details=False),
        charts=_trend_charts(rows),
        written=datetime.now(UTC),
    )


def _trend_charts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    held = sorted((row for row in rows if row["rows"]), key=lambda row: row["end"])
    points = [{"at": row["end"].isoformat(), "rows": row["rows"]} for row in held]
    if len(points) < 2:  # noqa: PLR2004 - one point is no trend
        return []
    return [
        {
            "title": "Published rows by the end of their window",
            "summary": f"From {points[0]['rows']:,} to {points[-1]['rows']:,} rows.",
            "svg": charts.trend_chart(points, "rows", "rows"),
            "rows": points,
            "columns": {"at": "Window's end (UTC)", "rows": "Rows"},
        }
    ]
