# SPDX-License-Identifier: Apache-2.0
"""HTML pages of the report: one run, and the list of all runs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.lake import Lake
from scalr_prod.ledger import PublicationStatus
from scalr_prod.quality.drift import held_in
from scalr_prod.report import charts
from scalr_prod.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jinja2 import Environment

    from scalr_prod.ledger import Ledger
    from scalr_prod.report.facts import Distributions, RunFacts
    from scalr_prod.settings import Settings

__all__ = ["domains_of", "environment", "index_page", "listed_runs", "run_page"]

_LISTED: Final = 200
#: Least expected number of events of a point of the calibration curve, and the columns summed when bins are merged.
_FEWEST_EXPECTED: Final = 5
_COUNTED: Final = ("pairs", "expected", "events")
_TRANSLATOR_ROWS: Final = ("mixture", "popularity")


def environment(*rooms: str) -> Environment:
    """Return the Jinja environment of the report's templates and those of other packages. All values are escaped.

    Args:
        rooms: Packages with their own templates, such as ``scalr_prod.ui``.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=ChoiceLoader([PackageLoader(room) for room in ("scalr_prod.report", *rooms)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"moment": _moment, "day": lambda at: at.strftime("%Y-%m-%d"), "figure": _figure}
    made.globals["colours"] = charts.COLOURS
    return made


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _figure(value: Any, name: str) -> str:
    if name in {"share", "head"}:
        return f"{value:.1%}"
    if name in {"period", "at"}:
        return str(value)[:16].replace("T", " ")
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def run_page(settings: Settings, facts: RunFacts, made: Environment, *, index: str, docs: str | None) -> str:
    """Render a run's page.

    Args:
        settings: The project's settings.
        facts: The run's data.
        made: From `environment`.
        index: Address of the page that lists all runs.
        docs: Address of the run's data docs; None without them.
    """
    rules = facts.gate.get("rules", [])
    broken = [rule for rule in rules if not rule["success"]]
    return made.get_template("run.html.j2").render(
        facts=facts,
        run=facts.run,
        domains=domains_of(settings),
        source=" and ".join(settings.domains.source_names),
        target=settings.domains.target.name,
        verdict=_verdict(facts, len(broken)),
        charts=_charts(facts.distributions),
        read=facts.held or facts.gate.get("accepted") or facts.generation.get("events") or 0,
        translator=_translator(facts.translator),
        curve=_curve(facts.translator.get("calibration_curve", [])),
        curve_kept="calibration_curve" in facts.translator,
        passed=len(rules) - len(broken),
        broken=broken,
        index=index,
        docs=docs,
        version=__version__,
        settings=json.dumps(facts.run.spec.settings, indent=2),
        written=datetime.now(UTC),
    )


def domains_of(settings: Settings) -> str:
    """Return a short text that names the project's domains."""
    return f"{', '.join(settings.domains.source_names)} → {settings.domains.target.name}"


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
            return {
                "tone": "bad",
                "head": "Rolled back.",
                "text": "Its events were published and later removed from the feature view.",
            }
        case state:
            return {"tone": "", "head": f"{state.capitalize()}.", "text": "Nothing of this run is in the feature view yet."}


def _published(facts: RunFacts) -> dict[str, str]:
    if facts.held == facts.published and facts.canary is not None:
        text = (
            f"{facts.held:,} synthetic events are in the feature view, for {100 * facts.canary:.3g} % of users; "
            "scalr publication widen publishes the rest."
        )
        return {"tone": "", "head": "Published for a share of users.", "text": text}
    if facts.held == facts.published:
        return {"tone": "good", "head": "Published.", "text": f"{facts.held:,} synthetic events are in the feature view."}
    later_runs = ", ".join(facts.replaced_by) or "another run"
    text = (
        f"{facts.held:,} of its {facts.published:,} events are in the feature view; {later_runs} was published over its window."
    )
    return {"tone": "", "head": "Published, then replaced.", "text": text}


def _charts(found: Distributions | None) -> list[dict[str, Any]]:
    if found is None:
        return []
    shares = {"kind": "Events", "share": "Share"}
    head = {(row["kind"], row["head"]): row["share"] for row in found.popularity}
    tenth = " and ".join(f"{head[kind, 0.1]:.0%} of the {kind} events" for kind in ("real", "synthetic") if (kind, 0.1) in head)
    above = sum(row["share"] for row in found.lift if row["place"] > 2)  # noqa: PLR2004 - bins from 1 × on
    return [
        {
            "title": "Popularity of the items",
            "summary": f"The most popular tenth of the items has {tenth}.",
            "svg": charts.by_popularity(found),
            "rows": found.popularity,
            "columns": {"head": "Most popular items", "items": "Items", **shares},
        },
        {
            "title": "Lift over popularity",
            "summary": f"{above:.0%} of the synthetic events name an item that is more probable for this user than for an average user.",
            "svg": charts.by_lift(found),
            "rows": found.lift,
            "columns": {"lift": "Probability over popularity", "share": "Share"},
        },
        {
            "title": "Events over time",
            "summary": "Share of the events in each of 30 equal intervals from the first synthetic event to the last.",
            "svg": charts.by_time(found),
            "rows": found.time,
            "columns": {"period": "From (UTC)", **shares},
        },
        {
            "title": "Events per user",
            "summary": "Share of the users by number of events, among users with at least one.",
            "svg": charts.by_user(found),
            "rows": found.per_user,
            "columns": {"events": "Events per user", **shares},
        },
    ]


def _translator(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the metrics measured in training: the mixture, popularity, then each estimator alone."""
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
    left_out = [
        f"{counts['items'] - counts['kept']:,} of {counts['items']:,} {domain} items, with"
        f" {1 - counts['events_kept'] / counts['events']:.2%} of the events"
        for domain, counts in manifest.get("vocabulary", {}).items()
        if counts["kept"] < counts["items"]
    ]
    return {"rows": rows, "events": everybody["mixture"]["events"], "information": information, "left_out": left_out}


def _curve(classes: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the calibration chart with its rows; None if there are too few events for two points."""
    points = _merged(classes)
    if len(points) < 2:  # noqa: PLR2004 - one point is no curve
        return None
    events = sum(row["events"] for row in classes)
    wrong = sum(abs(row["expected"] - row["events"]) for row in classes) / max(events, 1)
    return {
        "title": "Are its probabilities calibrated?",
        "summary": f"Of {events:,} target events of users that it was not fitted on, {wrong:.1%} fell into another bin of "
        "probability than predicted. On the dashed line, predicted probability equals observed frequency.",
        "svg": charts.calibration(points),
        "rows": points,
        "columns": {
            "predicted": "Predicted probability",
            "observed": "Observed frequency",
            "expected": "Events expected",
            "events": "Events",
        },
    }


def _merged(classes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Merge neighbouring bins of probability until each expects enough events."""
    sums: list[dict[str, Any]] = []
    for row in classes:
        if not sums or sums[-1]["expected"] >= _FEWEST_EXPECTED:
            sums.append(dict.fromkeys(_COUNTED, 0))
        sums[-1] = {name: sums[-1][name] + row[name] for name in _COUNTED}
    if len(sums) > 1 and sums[-1]["expected"] < _FEWEST_EXPECTED:
        last = sums.pop()
        sums[-1] = {name: sums[-1][name] + last[name] for name in _COUNTED}
    return [{**row, "predicted": row["expected"] / row["pairs"], "observed": row["events"] / row["pairs"]} for row in sums]


def listed_runs(settings: Settings, ledger: Ledger, page_of: Callable[[str], str | None]) -> list[dict[str, Any]]:
    """Return the latest runs as rows of a list, last changed first.

    Args:
        settings: The project's settings.
        ledger: Its ledger.
        page_of: Returns the address of a run's page by the run's id, or None if it has no page.
    """
    published = [attempt for attempt in ledger.publications() if attempt.status is PublicationStatus.PUBLISHED]
    rows_in_view = held_in(Lake.open(settings), published) if published else {}
    runs = sorted(ledger.runs(), key=lambda run: run.updated_at, reverse=True)[:_LISTED]
    return [
        {
            "run_id": run.run_id,
            "state": run.state,
            "start": run.spec.start,
            "end": run.spec.end,
            "translator": run.spec.translator_version,
            "rows": rows_in_view.get(run.run_id) if run.state == "published" else None,
            "updated": run.updated_at,
            "page": page_of(run.run_id),
        }
        for run in runs
    ]


def index_page(settings: Settings, rows: Sequence[Mapping[str, Any]], made: Environment) -> str:
    """Render the page that lists all runs; ``rows`` come from `listed_runs`."""
    return made.get_template("index.html.j2").render(
        project=settings.project_name,
        domains=domains_of(settings),
        runs=rows,
        charts=_trends(rows),
        written=datetime.now(UTC),
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
