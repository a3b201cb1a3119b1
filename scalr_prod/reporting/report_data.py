# SPDX-License-Identifier: Apache-2.0
"""Data of a run's report, read from the ledger, the run's folder and the lake; nothing that the run did not know."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import FeatureStoreError, InputError, LakeError, ProvenanceNotFound, ReportError, TranslatorError
from scalr_prod.generation import LIFT_SQL, SOURCE_TIMESTAMP, describe_harmed_segments, why_not_generated
from scalr_prod.operations import explain_rows, read_published_events
from scalr_prod.pipeline import read_timings
from scalr_prod.privacy import privacy_file
from scalr_prod.quality import rows_in_view
from scalr_prod.reporting.samples import TranslationSample, sample_translations
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from duckdb import DuckDBPyConnection

    from scalr_prod.config import Settings
    from scalr_prod.lake import Lake
    from scalr_prod.ledger import Ledger, Run
    from scalr_prod.operations import Explanation


#: Shares of the catalogue, most popular items first, for which the share of events is shown.
_TOP_ITEM_SHARES: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
#: Upper edges of the bins of events per user.
_EVENTS_PER_USER_EDGES: Final = (1, 2, 5, 10, 20, 50, 100)
#: Number of sampled events that are explained.
_EXPLAINED_EVENTS: Final = 3
#: Bins of the chart over time.
_TIME_BINS: Final = 30
#: Edges between the bins of lift over popularity.
_LIFT_EDGES: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


@dataclass(frozen=True)
class Distributions:
    """Distributions of real and synthetic target events; every row has a ``kind`` (``real`` or ``synthetic``) and a ``share``.

    Attributes:
        popularity: ``head`` (share of the catalogue, most popular items first) and the share of the events that falls on it.
        time: ``period`` (its start, ISO 8601 UTC) and the share of the events in it.
        per_user: ``events`` (label of a bin), ``place`` (its number), and the share of the users in it.
        lift: ``lift`` (label of a bin), ``place`` (its number), and the share of the synthetic events in it.
    """

    popularity: Sequence[Mapping[str, Any]]
    time: Sequence[Mapping[str, Any]]
    per_user: Sequence[Mapping[str, Any]]
    lift: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class RunReportData:
    """Everything that a run's page shows.

    Attributes:
        run: The run's record in the ledger.
        events_of: Which synthetic events were read: ``published``, ``accepted``, ``staged``, or ``none`` if none are left.
        funnel: Steps from source events to published rows, each with a ``step``, a ``rows`` count and a ``note``.
        generation: The generation report; empty if there is none yet.
        gate: The quality gate's report; empty if there is none yet.
        published: Rows committed by the run's last publication; None if the run is not published.
        canary: Share of users that it was published for; None: all users.
        held: How many of these rows are still in the feature view; others were replaced by later runs, or erased.
        is_hidden: Whether publication is disabled, so that the feature view shows no rows.
        replaced_by: Runs published later over the same window.
        distributions: None if there are no synthetic events.
        sample: Example translations, one per user.
        explained: Explanations of the first examples.
        not_explained: Why they cannot be explained; None if they are, or if there are no examples.
        spent: ``seconds`` and ``memory_mb`` by stage; empty for a run of an earlier package version.
        translator: The manifest of the translator version; empty if the version was removed.
        privacy: The last `PrivacyReport` of the run as JSON; empty if it was not measured.
        not_generated: Why runs generate no event under the current settings and policy, or None if they do.
        harmed_segments: One sentence for each segment of users whom synthetic events harm by the current experiment.
        history: The run's state changes in the ledger.
    """

    run: Run
    events_of: str
    funnel: Sequence[Mapping[str, Any]]
    generation: Mapping[str, Any]
    gate: Mapping[str, Any]
    published: int | None
    canary: float | None
    held: int
    is_hidden: bool
    replaced_by: Sequence[str]
    distributions: Distributions | None
    sample: Sequence[TranslationSample]
    explained: Sequence[Explanation]
    not_explained: str | None
    spent: Mapping[str, Mapping[str, Any]]
    translator: Mapping[str, Any]
    privacy: Mapping[str, Any]
    not_generated: str | None
    harmed_segments: Sequence[str]
    history: Sequence[Mapping[str, Any]]


def collect_run_data(settings: Settings, ledger: Ledger, run_id: str) -> RunReportData:
    """Collect the data of a run's page.

    Raises:
        RunNotFound: The project has no such run.
        LakeError: A table cannot be read.
        ReportError: A file of the run cannot be read.
    """
    from scalr_prod.lake import open_project_lake
    from scalr_prod.ledger import run_folder
    from scalr_prod.workspace import open_duckdb, staging_folder

    run = ledger.runs.get(run_id)
    folder = run_folder(settings.home, run_id)
    generation = _read_json(folder / "generation.json").get("report", {})
    gate = _read_json(folder / "gate.json").get("report", {})
    publication = ledger.publications.last(run_id)
    live = publication if publication is not None and run.state == "published" else None
    lake = open_project_lake(settings)
    published = live.rows if live is not None else None
    held = rows_in_view(lake, [live])[run_id] if live is not None else 0
    with staging_folder(settings, "report") as scratch, open_duckdb(settings, scratch) as connection:
        events_of = _create_views(connection, lake, folder, run, held=held)
        distributions = _compute_distributions(connection) if events_of != "none" else None
        sample = sample_translations(connection, lake) if events_of != "none" else ()
        explained, not_explained = _explain_sample(settings, connection, lake, run, sample) if sample else ((), None)
    return RunReportData(
        run=run,
        events_of=events_of,
        funnel=_funnel_steps(generation, gate, published),
        generation=generation,
        gate=gate,
        published=published,
        canary=live.canary["share"] if live is not None and live.canary else None,
        held=held,
        is_hidden=lake.hidden_version(Table.SYNTHETIC_TARGET_EVENTS) is not None,
        replaced_by=list(dict.fromkeys(later.run_id for later in ledger.publications.superseding(live)))
        if live is not None
        else [],
        distributions=distributions,
        sample=sample,
        explained=explained,
        not_explained=not_explained,
        spent=read_timings(settings, run_id),
        translator=_read_json(settings.home / "models" / "translator" / str(run.spec.translator_version) / "manifest.json"),
        privacy=_read_json(privacy_file(settings, run_id)),
        not_generated=why_not_generated(settings),
        harmed_segments=describe_harmed_segments(settings),
        history=[change.to_json() for change in ledger.changes.find(run_id)],
    )


def _explain_sample(
    settings: Settings, connection: DuckDBPyConnection, lake: Lake, run: Run, sample: Sequence[TranslationSample]
) -> tuple[Sequence[Explanation], str | None]:
    """Explain the first events of the sample, or return why they cannot be explained."""
    import pyarrow.compute as pc

    event_ids = [event.event_id for event in sample[:_EXPLAINED_EVENTS]]
    query = "SELECT * FROM rows WHERE event_id IN (SELECT unnest($ids)) AND run_id = $run ORDER BY event_id"
    rows = connection.sql(query, params={"ids": event_ids, "run": run.run_id}).to_arrow_table()
    if SOURCE_TIMESTAMP not in rows.column_names:  # published
        rows = read_published_events(connection, lake, event_ids)
        rows = rows.filter(pc.equal(rows["run_id"], run.run_id)).sort_by("event_id")
    try:
        return explain_rows(settings, run.spec, rows), None
    # An input of the run is not kept.
    except (FeatureStoreError, InputError, LakeError, ProvenanceNotFound, TranslatorError) as error:
        return (), error.found


def _read_json(path: Path) -> dict[str, Any]:
    """Return a file's content; empty if the file does not exist yet."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ReportError(
            f"cannot be read: {error}", where=str(path), next_step="write the file again with scalr runs resume RUN"
        ) from error
    return found


def _funnel_steps(generation: Mapping[str, Any], gate: Mapping[str, Any], published: int | None) -> list[dict[str, Any]]:
    if not generation:
        return []
    dropped = {reason: count for reason, count in generation["dropped"].items() if count}
    reasons = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in dropped.items())
    without_consent = generation.get("without_consent")
    left_out = "" if without_consent is None else f"; {without_consent:,} users without consent were left out"
    steps = [
        {"step": "contexts", "rows": generation["contexts"], "note": f"source events or users that were translated{left_out}"},
        {"step": "draws", "rows": generation["drawn"], "note": "requested from the translator"},
        {"step": "staged", "rows": generation["events"], "note": f"dropped: {reasons}" if reasons else "nothing was dropped"},
    ]
    if gate:
        note = f"{gate['quarantined']:,} quarantined" if gate["quarantined"] else "by the quality gate"
        steps.append({"step": "accepted", "rows": gate["accepted"], "note": note})
    if published is not None:
        steps.append({"step": "published", "rows": published, "note": "rows of the feature view"})
    return steps


def _create_views(connection: DuckDBPyConnection, lake: Lake, folder: Path, run: Run, *, held: int) -> str:
    """Create the tables ``synthetic`` and ``real``; return where the synthetic rows come from."""
    import pyarrow.dataset as ds

    as_of = {"as_of": run.spec.as_of}
    connection.register("target_events", lake.dataset(Table.TARGET_EVENTS))
    connection.execute(
        f"CREATE TEMP TABLE real AS SELECT {USER_ID}, {ITEM_ID}, {EVENT_TIMESTAMP} FROM target_events "
        f"WHERE {CREATED_TIMESTAMP} <= $as_of",
        as_of,
    )
    folders = {"accepted": folder / "accepted", "staged": folder / "parts"}
    if held:
        connection.register("rows", lake.dataset(Table.SYNTHETIC_TARGET_EVENTS))
        origin = "published"
    else:
        origin = next((name for name, place in folders.items() if any(place.glob("*.parquet"))), "none")
        if origin != "none":
            connection.register("rows", ds.dataset(sorted(map(str, folders[origin].glob("*.parquet")))))
    if origin != "none":
        columns = f"event_id, {USER_ID}, {ITEM_ID}, {EVENT_TIMESTAMP}, probability, weight, source_domain"
        connection.execute(
            f"CREATE TEMP TABLE synthetic AS SELECT {columns} FROM rows WHERE run_id = $run", {"run": run.run_id}
        )
        if not connection.execute("SELECT count(*) FROM synthetic").fetchall()[0][0]:
            return "none"
    return origin


def _compute_distributions(connection: DuckDBPyConnection) -> Distributions:
    connection.execute(
        "CREATE TEMP VIEW both_kinds AS SELECT 'real' AS kind, * FROM real UNION ALL "
        f"SELECT 'synthetic', {USER_ID}, {ITEM_ID}, {EVENT_TIMESTAMP} FROM synthetic"
    )
    return Distributions(
        popularity=_popularity_shares(connection),
        time=_time_shares(connection),
        per_user=_events_per_user_shares(connection),
        lift=_lift_shares(connection),
    )


def _popularity_shares(connection: DuckDBPyConnection) -> list[dict[str, Any]]:
    connection.execute(
        f"""CREATE TEMP TABLE counts AS
            SELECT *, row_number() OVER (PARTITION BY kind ORDER BY n DESC) AS place
            FROM (SELECT kind, {ITEM_ID}, count(*) AS n FROM both_kinds GROUP BY kind, {ITEM_ID})"""
    )
    catalogue = connection.execute(f"SELECT count(DISTINCT {ITEM_ID}) FROM counts").fetchall()[0][0]
    found = []
    for head in _TOP_ITEM_SHARES:
        items = max(1, round(head * catalogue))
        rows = connection.execute(
            "SELECT kind, sum(n) FILTER (place <= $items) / sum(n) FROM counts GROUP BY kind ORDER BY kind", {"items": items}
        ).fetchall()
        found += [{"kind": kind, "head": head, "items": items, "share": float(share)} for kind, share in rows]
    return found


def _time_shares(connection: DuckDBPyConnection) -> list[dict[str, Any]]:
    rows = connection.execute(
        f"""WITH ends AS (SELECT epoch_us(min({EVENT_TIMESTAMP})) AS low, epoch_us(max({EVENT_TIMESTAMP})) + 1 AS high FROM synthetic),
                 placed AS (SELECT kind, (epoch_us({EVENT_TIMESTAMP}) - low) * {_TIME_BINS} // (high - low) AS period, low, high
                            FROM both_kinds, ends WHERE epoch_us({EVENT_TIMESTAMP}) >= low AND epoch_us({EVENT_TIMESTAMP}) < high)
            SELECT kind, make_timestamp(start), n / sum(n) OVER (PARTITION BY kind)
            FROM (SELECT kind, low + period * (high - low) // {_TIME_BINS} AS start, count(*) AS n FROM placed GROUP BY ALL)
            ORDER BY kind, start"""
    ).fetchall()
    return [{"kind": kind, "period": period.isoformat() + "Z", "share": float(share)} for kind, period, share in rows]


def _events_per_user_shares(connection: DuckDBPyConnection) -> list[dict[str, Any]]:
    rows = connection.execute(
        f"""WITH users AS (SELECT kind, {USER_ID}, count(*) AS n FROM both_kinds GROUP BY kind, {USER_ID}),
                 placed AS (SELECT kind, {_bin_number_sql("n", ">", _EVENTS_PER_USER_EDGES)} AS place FROM users),
                 counted AS (SELECT kind, place, count(*) AS n FROM placed GROUP BY kind, place)
            SELECT kind, place, n / sum(n) OVER (PARTITION BY kind) FROM counted ORDER BY kind, place"""
    ).fetchall()
    return [
        {"kind": kind, "place": place, "events": _count_bin_label(place, _EVENTS_PER_USER_EDGES), "share": float(share)}
        for kind, place, share in rows
    ]


def _bin_number_sql(value: str, comparison: str, edges: Sequence[float]) -> str:
    """SQL expression for the number of a value's bin: 1, plus 1 for each edge below it."""
    return " + ".join(["1", *(f"({value} {comparison} {border})::INT" for border in edges)])


def _count_bin_label(bin_number: int, edges: Sequence[int]) -> str:
    if bin_number > len(edges):
        return f"over {edges[-1]}"
    low = edges[bin_number - 2] + 1 if bin_number > 1 else 1
    return str(low) if low == edges[bin_number - 1] else f"{low} to {edges[bin_number - 1]}"


def _lift_shares(connection: DuckDBPyConnection) -> list[dict[str, Any]]:
    rows = connection.execute(
        f"""WITH placed AS (SELECT {_bin_number_sql(LIFT_SQL, ">=", _LIFT_EDGES)} AS place FROM synthetic),
                 counted AS (SELECT place, count(*) AS n FROM placed GROUP BY place)
            SELECT place, n / sum(n) OVER () FROM counted ORDER BY place"""
    ).fetchall()
    return [
        {"kind": "synthetic", "place": place, "lift": _lift_bin_label(place), "share": float(share)} for place, share in rows
    ]


def _lift_bin_label(bin_number: int) -> str:
    if bin_number > len(_LIFT_EDGES):
        return f"over {_LIFT_EDGES[-1]:g} ×"
    return (
        f"under {_LIFT_EDGES[0]:g} ×"
        if bin_number == 1
        else f"{_LIFT_EDGES[bin_number - 2]:g} to {_LIFT_EDGES[bin_number - 1]:g} ×"
    )
