# SPDX-License-Identifier: Apache-2.0
"""How far a run's events are from those that were published before it: the population stability index (PSI) of three figures.

PSI = Σ (q − p) ln(q / p) over bins that hold about a tenth of the former run's events each (p: its shares, q: the run's).
Both runs are looked at with what the lake knew by the later one's ``as_of``.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.contracts import EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table
from scalr_prod.ledger import PublicationStatus
from scalr_prod.quality.protocol import FigureRule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from scalr_prod.lake import Lake
    from scalr_prod.ledger import Publication, RunSpec
    from scalr_prod.quality.protocol import AuditedRun
    from scalr_prod.sections import QualitySettings

__all__ = ["FEWEST_EVENTS", "DriftRules", "drift_of", "held_in", "measure_drift", "psi", "reference_of", "say_drift"]

logger = logging.getLogger(__name__)

#: What is compared, of each event: real target events of its item, source events of its user up to its source event (at most as
#: many as a history holds), and its probability.
FIGURES: Final = ("item_popularity", "history_length", "probability")
#: Chance alone gives a PSI of about (bins − 1) (1/n + 1/m): below so many events on either side it says nothing.
FEWEST_EVENTS: Final = 1000
_BINS: Final = 10
#: What a history can hold at most.
_LONGEST: Final = 1000
#: A share of zero would make PSI infinite.
_LEAST_SHARE: Final = 1e-4


class DriftRules:
    """Bounds on the distance from the run that was published before, where ``[quality] max_drift`` is set and there is such a run."""

    version = 1

    def rules(self, run: AuditedRun) -> list[FigureRule]:
        """The rules; see `scalr_prod.quality.GateRule`."""
        if run.reference is None or not run.quality.max_drift:
            return []
        return [
            FigureRule(
                f"drift_of_{name}",
                f"the PSI of {name} from {run.reference}, published before, is at most {run.quality.max_drift:g}",
                f"drift_{name}",
                high=run.quality.max_drift,
            )
            for name in FIGURES
        ]


def reference_of(
    publications: Iterable[Publication],
    spec: RunSpec,
    *,
    rows: int,
    held: Callable[[Sequence[Publication]], Mapping[str, int]],
) -> Publication | None:
    """The publication to compare a run with: of the latest window that ends no later than the run's; of several, the last one.

    Args:
        publications: The project's, the oldest first.
        spec: The run.
        rows: How many rows it has.
        held: How many rows of some publications are in the view now, by run: later ones may have taken their place. Called for those
            of the latest window first, and at most once more.

    Returns:
        None where the run has fewer than `FEWEST_EVENTS` rows, or no publication has as many.
    """
    if rows < FEWEST_EVENTS:
        return None
    before = [
        one
        for one in publications
        if one.status is PublicationStatus.PUBLISHED
        and one.run_id != spec.run_id
        and one.end <= spec.end
        and one.rows >= FEWEST_EVENTS
    ]
    latest_first = sorted(before, key=lambda one: one.end)[::-1]  # of one end, the last one is first
    # One of the latest window nearly always has its rows: what lies before it is then not read.
    latest = sum(one.end == latest_first[0].end for one in latest_first)
    for some in (latest_first[:latest], latest_first[latest:]):
        there = held(some) if some else {}
        for one in some:
            if there.get(one.run_id, 0) >= FEWEST_EVENTS:
                return one
    return None


def held_in(lake: Lake, publications: Sequence[Publication]) -> dict[str, int]:
    """How many rows of some publications are in the feature view's table now, by run: one scan of what lies between their windows' ends.

    Args:
        lake: Where they are published.
        publications: One or more.
    """
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    moment = ds.field(EVENT_TIMESTAMP)
    between = (moment >= min(one.start for one in publications)) & (moment < max(one.end for one in publications))
    held = dict.fromkeys((one.run_id for one in publications), 0)
    scanner = lake.dataset(Table.SYNTHETIC_TARGET_EVENTS).scanner(columns=["run_id"], filter=between, batch_readahead=2)
    for batch in scanner.to_batches():
        for counted in pc.value_counts(batch.column(0)).to_pylist():
            if counted["values"] in held:
                held[counted["values"]] += counted["counts"]
    return held


def measure_drift(connection: Any, lake: Lake, spec: RunSpec, reference: Publication) -> dict[str, float]:
    """``drift_<figure>`` by figure, of a run's accepted rows.

    Args:
        connection: With the views ``judged``, ``source_events`` and ``target_events`` of the audit.
        lake: Where the reference is published.
        spec: The run.
        reference: From `reference_of`.
    """
    connection.register("published", lake.dataset(Table.SYNTHETIC_TARGET_EVENTS))
    window = f"{EVENT_TIMESTAMP} >= $start AND {EVENT_TIMESTAMP} < $end AND run_id = $run_id"
    asked = {"start": reference.start, "end": reference.end, "run_id": reference.run_id}
    length = int(spec.settings.get("histories", {}).get("length", _LONGEST))
    former = _counted(connection, f"SELECT * FROM published WHERE {window}", length, asked)
    current = _counted(connection, "SELECT * FROM judged WHERE accepted", length, {})
    connection.unregister("published")
    return {f"drift_{name}": value for name, value in drift_of(former, current).items()}


def drift_of(reference: pa.Table, current: pa.Table) -> dict[str, float]:
    """The PSI of each figure.

    Args:
        reference: ``figure`` string, ``value`` float64, ``events`` int64: how many events have the value of the figure.
        current: The same of the later run.

    Returns:
        By figure, 0 or more; 0 where either has no event.
    """
    import pyarrow.compute as pc

    def of(table: pa.Table, figure: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        rows = table.filter(pc.equal(table["figure"], figure))
        return rows["value"].to_numpy().astype(np.float64), rows["events"].to_numpy().astype(np.float64)

    return {figure: psi(*of(reference, figure), *of(current, figure)) for figure in FIGURES}


def psi(
    values: NDArray[np.float64],
    events: NDArray[np.float64],
    later_values: NDArray[np.float64],
    later_events: NDArray[np.float64],
    *,
    bins: int = _BINS,
) -> float:
    """The population stability index of a figure.

    Args:
        values: Different values that the former run's events have, in any order: float64 [V].
        events: How many events have each: float64 [V].
        later_values: The same of the later run: float64 [W].
        later_events: float64 [W].
        bins: Bins of about equal mass of the former run's events. Events of one value share a bin; a value that is new falls in the
            bin of the next higher one that was there, or in the last.

    Returns:
        0 or more; 0 where either has no event.
    """
    if not events.sum() or not later_events.sum():
        return 0.0
    order = np.argsort(values)
    values, events = values[order], events[order]
    middle = (np.cumsum(events) - events / 2) / events.sum()
    _, last = np.unique(np.floor(bins * middle)[::-1], return_index=True)
    highest = values[::-1][last]  # of each bin that holds something
    place = np.minimum(np.searchsorted(highest, later_values), len(highest) - 1)
    p, q = (
        np.maximum(np.bincount(where, weights=mass, minlength=len(highest)) / mass.sum(), _LEAST_SHARE)
        for where, mass in ((np.searchsorted(highest, values), events), (place, later_events))
    )
    return float(((q - p) * np.log(q / p)).sum())


def say_drift(figures: dict[str, Any], quality: QualitySettings, reference: Publication) -> None:
    """Warn of figures over ``[quality] max_drift_warn``."""
    over = {name: figures[f"drift_{name}"] for name in FIGURES if figures[f"drift_{name}"] > quality.max_drift_warn}
    if over and quality.max_drift_warn:
        found = ", ".join(f"{name} {value:.3f}" for name, value in over.items())
        logger.warning(
            "the events are unlike those of %s, published before: PSI of %s, over [quality] max_drift_warn = %g; "
            "look for a change in the logs, the settings or the translator",
            reference.run_id,
            found,
            quality.max_drift_warn,
        )


def _counted(connection: Any, rows: str, length: int, asked: dict[str, Any]) -> pa.Table:
    """``figure``, ``value``, ``events`` of rows; probabilities to the hundredth of their logarithm, so that there are few."""
    each = " UNION ALL ".join(
        f"SELECT '{name}' AS figure, CAST({name} AS DOUBLE) AS value, count(*) AS events FROM seen GROUP BY {name}"
        for name in FIGURES
    )
    return connection.sql(
        f"""WITH made AS ({rows}),
        popularity AS (SELECT {ITEM_ID}, count(*) AS events FROM target_events GROUP BY {ITEM_ID}),
        histories AS (
            SELECT {USER_ID}, {EVENT_TIMESTAMP}, max(number) AS number FROM (
                SELECT {USER_ID}, {EVENT_TIMESTAMP},
                    row_number() OVER (PARTITION BY {USER_ID} ORDER BY {EVENT_TIMESTAMP}) AS number
                FROM source_events SEMI JOIN made USING ({USER_ID}))
            GROUP BY ALL),
        seen AS (
            SELECT coalesce(p.events, 0) AS item_popularity, least(coalesce(h.number, 0), {length}) AS history_length,
                round(ln(greatest(m.probability, 1e-30)), 2) AS probability
            FROM made m LEFT JOIN popularity p USING ({ITEM_ID})
            ASOF LEFT JOIN histories h ON m.{USER_ID} = h.{USER_ID} AND m.source_event_timestamp >= h.{EVENT_TIMESTAMP})
        {each}
        ORDER BY figure, value""",
        params=asked,
    ).to_arrow_table()
