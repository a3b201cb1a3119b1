# SPDX-License-Identifier: Apache-2.0
"""Drift of a run's events from previously published ones: the population stability index (PSI) of three figures.

PSI = Σ (q − p) ln(q / p) over bins with about a tenth of the previous run's events each (p: its shares, q: the new run's).
Both runs are measured against the lake as of the later run's ``as_of``.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.ledger import PublicationStatus
from scalr_prod.quality.rule_protocol import FigureRule
from scalr_prod.quality.sample_size import min_events_for_drift
from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from scalr_prod.config import QualitySettings
    from scalr_prod.lake import Lake
    from scalr_prod.ledger import Publication, RunSpec
    from scalr_prod.quality.rule_protocol import AuditedRun


logger = logging.getLogger(__name__)

#: Compared per event: number of real target events of its item, number of its user's source events up to its source event (capped at
#: the history length), and its probability.
FIGURES: Final = ("item_popularity", "history_length", "probability")
#: Sampling noise alone gives a PSI of about (bins − 1) (1/n + 1/m); with fewer events on either side it is meaningless.
MIN_EVENTS: Final = 1000
_BINS: Final = 10
#: Upper limit of the history length.
_LONGEST: Final = 1000
#: Floor of shares: zero would make PSI infinite.
_LEAST_SHARE: Final = 1e-4


class DriftRules:
    """Bounds on drift from the previously published run, if ``[quality] max_drift`` is set and there is such a run."""

    version = 2

    def rules(self, run: AuditedRun) -> list[FigureRule]:
        """Return the rules; see `scalr_prod.quality.GateRule`."""
        if run.reference is None or not run.quality.max_drift:
            return []
        return [
            FigureRule(
                f"drift_of_{name}",
                f"the PSI of {name} from {run.reference}, published before, is at most {run.quality.max_drift:g}",
                f"drift_{name}",
                high=run.quality.max_drift,
                sample="psi_sample",
                min_sample=min_events_for_drift(_BINS, run.quality.max_drift),
            )
            for name in FIGURES
        ]


def select_reference(
    publications: Iterable[Publication],
    spec: RunSpec,
    *,
    rows: int,
    count_rows: Callable[[Sequence[Publication]], Mapping[str, int]],
) -> Publication | None:
    """Select the publication to compare a run with: the last one of the latest window that ends no later than the run's.

    Args:
        publications: The project's publications, oldest first.
        spec: The run.
        rows: The run's number of rows.
        count_rows: Counts the rows of publications that are still in the view, by run: later ones may have replaced them. Called for the
            latest window first, and at most once more.

    Returns:
        None if the run or every publication has fewer than `MIN_EVENTS` rows.
    """
    if rows < MIN_EVENTS:
        return None
    before = [
        publication
        for publication in publications
        if publication.status is PublicationStatus.PUBLISHED
        and publication.run_id != spec.run_id
        and publication.end <= spec.end
        and publication.rows >= MIN_EVENTS
    ]
    latest_first = sorted(before, key=lambda publication: publication.end)[::-1]  # with equal ends, the last one is first
    # A publication of the latest window nearly always still has its rows, so older windows are rarely read.
    latest = sum(publication.end == latest_first[0].end for publication in latest_first)
    for candidates in (latest_first[:latest], latest_first[latest:]):
        counts = count_rows(candidates) if candidates else {}
        for publication in candidates:
            if counts.get(publication.run_id, 0) >= MIN_EVENTS:
                return publication
    return None


def rows_in_view(lake: Lake, publications: Sequence[Publication]) -> dict[str, int]:
    """Count the rows of publications that are still in the feature view's table, by run, in one scan of their windows.

    Args:
        lake: The lake with their rows.
        publications: One or more.
    """
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    moment = ds.field(EVENT_TIMESTAMP)
    start, end = min(publication.start for publication in publications), max(publication.end for publication in publications)
    between = (moment >= start) & (moment < end)
    counts = dict.fromkeys((publication.run_id for publication in publications), 0)
    scanner = lake.dataset(Table.SYNTHETIC_TARGET_EVENTS).scanner(columns=["run_id"], filter=between, batch_readahead=2)
    for batch in scanner.to_batches():
        for counted in pc.value_counts(batch.column(0)).to_pylist():
            if counted["values"] in counts:
                counts[counted["values"]] += counted["counts"]
    return counts


def history_length(spec: RunSpec) -> int:
    """Return the upper limit of the history length of a run's events."""
    return int(spec.settings.get("histories", {}).get("length", _LONGEST))


def measure_drift(published: Iterable[pa.Table], accepted: Iterable[pa.Table]) -> dict[str, float]:
    """Compute ``drift_<figure>`` of a run's accepted rows for each figure, and ``psi_sample``: 1/(1/n + 1/m) of the n and m events.

    Args:
        published: `count_values` of the reference's events, of one or more partitions.
        accepted: The same of the run's.
    """
    previous, current = map(_sum_values, (published, accepted))
    n, m = (sum(table["events"].to_pylist()) / len(FIGURES) for table in (previous, current))
    sample = {"psi_sample": n * m / (n + m) if n and m else 0.0}
    return {f"drift_{name}": value for name, value in compute_drift(previous, current).items()} | sample


def _sum_values(tables: Iterable[pa.Table]) -> pa.Table:
    import pyarrow as pa

    summed = pa.concat_tables(tables).group_by(["figure", "value"]).aggregate([("events", "sum")])
    return summed.rename_columns(["figure", "value", "events"])


def compute_drift(reference: pa.Table, current: pa.Table) -> dict[str, float]:
    """Compute the PSI of each figure.

    Args:
        reference: ``figure`` string, ``value`` float64, ``events`` int64: number of events with this value of the figure.
        current: The same for the later run.

    Returns:
        Figure → PSI, 0 or more; 0 if either run has no event.
    """
    import pyarrow.compute as pc

    def distribution(table: pa.Table, figure: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        rows = table.filter(pc.equal(table["figure"], figure))
        return rows["value"].to_numpy().astype(np.float64), rows["events"].to_numpy().astype(np.float64)

    return {figure: psi(*distribution(reference, figure), *distribution(current, figure)) for figure in FIGURES}


def psi(
    values: NDArray[np.float64],
    events: NDArray[np.float64],
    later_values: NDArray[np.float64],
    later_events: NDArray[np.float64],
    *,
    bins: int = _BINS,
) -> float:
    """Compute the population stability index of a figure.

    Args:
        values: Distinct values of the previous run's events, in any order: float64 [V].
        events: Number of events with each: float64 [V].
        later_values: Distinct values of the later run's events: float64 [W].
        later_events: float64 [W].
        bins: Number of bins of about equal mass of the previous run's events. Events with one value share a bin; a new value falls in
            the bin of the next higher known value, or in the last bin.

    Returns:
        0 or more; 0 if either run has no event.
    """
    if not events.sum() or not later_events.sum():
        return 0.0
    order = np.argsort(values)
    values, events = values[order], events[order]
    middle = (np.cumsum(events) - events / 2) / events.sum()
    _, last = np.unique(np.floor(bins * middle)[::-1], return_index=True)
    highest = values[::-1][last]  # per non-empty bin
    place = np.minimum(np.searchsorted(highest, later_values), len(highest) - 1)
    p, q = (
        np.maximum(np.bincount(where, weights=mass, minlength=len(highest)) / mass.sum(), _LEAST_SHARE)
        for where, mass in ((np.searchsorted(highest, values), events), (place, later_events))
    )
    return float(((q - p) * np.log(q / p)).sum())


def warn_on_drift(figures: dict[str, Any], quality: QualitySettings, reference: Publication) -> None:
    """Log a warning for figures above ``[quality] max_drift_warn``."""
    limit = quality.max_drift_warn
    if not limit or figures["psi_sample"] < min_events_for_drift(_BINS, limit):
        return
    over = {name: figures[f"drift_{name}"] for name in FIGURES if figures[f"drift_{name}"] > limit}
    if over:
        found = ", ".join(f"{name} {value:.3f}" for name, value in over.items())
        logger.warning(
            "the distribution drifted from that of %s, published before: PSI of %s, above [quality] max_drift_warn = %g; "
            "look for a change in the logs, the settings or the translator",
            reference.run_id,
            found,
            limit,
        )


def count_values(connection: Any, rows: str, length: int) -> pa.Table:
    """Count events by ``figure`` and ``value``; log probabilities are rounded to 0.01 to limit the number of values.

    Args:
        connection: DuckDB connection, with ``source``, all source events of the events' users, and ``items``, each item's ``events``.
        rows: Query of the events.
        length: Upper limit of the history length.
    """
    each = " UNION ALL ".join(
        f"SELECT '{name}' AS figure, CAST({name} AS DOUBLE) AS value, count(*) AS events FROM seen GROUP BY {name}"
        for name in FIGURES
    )
    return connection.sql(
        f"""WITH made AS ({rows}),
        histories AS (
            SELECT {USER_ID}, {EVENT_TIMESTAMP}, max(number) AS number FROM (
                SELECT {USER_ID}, {EVENT_TIMESTAMP},
                    row_number() OVER (PARTITION BY {USER_ID} ORDER BY {EVENT_TIMESTAMP}) AS number
                FROM source SEMI JOIN made USING ({USER_ID}))
            GROUP BY ALL),
        seen AS (
            SELECT coalesce(i.events, 0) AS item_popularity, least(coalesce(h.number, 0), {length}) AS history_length,
                round(ln(greatest(m.probability, 1e-30)), 2) AS probability
            FROM made m LEFT JOIN items i USING ({ITEM_ID})
            ASOF LEFT JOIN histories h ON m.{USER_ID} = h.{USER_ID} AND m.{EVENT_TIMESTAMP} >= h.{EVENT_TIMESTAMP})
        {each}"""
    ).to_arrow_table()
