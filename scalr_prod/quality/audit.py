# SPDX-License-Identifier: Apache-2.0
"""Audit of a run: every rule over every candidate row, out of core in DuckDB, against the lake as of the run."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from scalr_prod.generation import has_one_context_per_user
from scalr_prod.quality.audit_tasks import ITEM_EVENTS, audit_candidates
from scalr_prod.quality.row_verdicts import RowVerdicts
from scalr_prod.quality.rule_set import unusable_rule_error
from scalr_prod.quality.rules import EVENT_COLUMNS
from scalr_prod.quality.sample_size import ROWS_PER_USER, max_bad_rows_by_chance
from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID, USER_ID
from scalr_prod.workspace import open_duckdb, staging_folder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa

    from scalr_prod.config import Settings
    from scalr_prod.ledger import Publication, RunSpec
    from scalr_prod.quality.audit_tasks import AuditedRows
    from scalr_prod.quality.rule_protocol import FigureRule, RowRule


#: View of user and item of the accepted rows.
ACCEPTED_EVENTS: Final = "accepted_events"
_SHOWN: Final = ("event_id", USER_ID, ITEM_ID, EVENT_TIMESTAMP)


@contextmanager
def open_audit(
    settings: Settings,
    spec: RunSpec,
    files: Sequence[Path],
    rules: Sequence[RowRule],
    *,
    popularity_buckets: int,
    reference: Publication | None = None,
) -> Iterator[Audit]:
    """Apply the rules to every row of the candidate files; spill to the project's home.

    Args:
        settings: The project's settings.
        spec: The run.
        files: Its candidate files, in one folder.
        rules: Rules for every row.
        popularity_buckets: Number of buckets of `Audit.distribution_figures`.
        reference: The publication that drift is measured from.

    Raises:
        QualityError: A rule's expression cannot be computed.
        ComputeError: A task failed.
    """
    with staging_folder(settings, "gate") as folder, open_duckdb(settings, folder) as connection:
        rows = audit_candidates(settings, spec, files, rules, connection, folder, reference=reference)
        verdicts = RowVerdicts(connection, rules, _SHOWN, rows.to_sql(rules))
        connection.execute(f"CREATE TEMP VIEW {ACCEPTED_EVENTS} AS SELECT {USER_ID}, {ITEM_ID} FROM judged WHERE accepted")
        yield Audit(verdicts, rows, spec, popularity_buckets, settings.domains.source_names)


class Audit:
    """The rule verdicts on a run's rows, and the figures computed from them."""

    def __init__(
        self, verdicts: RowVerdicts, rows: AuditedRows, spec: RunSpec, popularity_buckets: int, sources: Sequence[str]
    ) -> None:
        self.verdicts, self.rows = verdicts, rows
        self._connection = verdicts.connection
        self._spec = spec
        self._buckets = popularity_buckets
        self._sources = sources

    def rejected(self) -> pa.RecordBatchReader:
        """Read the rejected rows, with the names of the broken rules in ``reason``; ``run_id`` is that of the audited run."""
        columns = ", ".join(f"'{self._spec.run_id}' AS run_id" if name == "run_id" else name for name in EVENT_COLUMNS)
        broken = ", ".join(f"CASE WHEN NOT {rule.name} THEN '{rule.name}' END" for rule in self.verdicts.rules)
        order = f"{USER_ID}, {EVENT_TIMESTAMP}, {ITEM_ID}, event_id, reason"
        query = f"SELECT {columns}, concat_ws(', ', {broken}) AS reason FROM judged WHERE NOT accepted ORDER BY {order}"
        return self._connection.sql(query).to_arrow_reader(100_000)

    def figures(self, max_bad_share: float) -> dict[str, float]:
        """Compute the figures that the run rules bound; see `rules.RunRules`.

        Args:
            max_bad_share: The largest allowed share of bad rows.
        """
        counts = self.rows.counts
        rows, good = counts.candidates.total(), counts.accepted.total()
        translated, contexts = counts.contexts, counts.source_events.total()
        if has_one_context_per_user(self._spec):
            translated, contexts = counts.users, counts.source_users
        limit = self._spec.start if self._spec.mode == "causal" else self._spec.as_of
        return {
            "candidates": rows,
            "accepted": good,
            "bad_rows_beyond_chance": rows - good - max_bad_rows_by_chance(rows, max_bad_share),
            "effective_users": counts.effective_users,
            "quarantined_share": (rows - good) / rows if rows else 0.0,
            "source_events": counts.source_events.total(),
            "contexts": contexts,
            "translated_contexts": translated,
            "source_coverage": translated / contexts if contexts else 0.0,
            "max_events_per_source_event": counts.max_per_context,
            "seconds_trained_past_limit": max(0.0, (self._spec.translator_trained_until - limit).total_seconds()),
            "max_user_item_copies": counts.max_copies,
        } | self.distribution_figures(ACCEPTED_EVENTS, counts.effective_users)

    def distribution_figures(self, events: str, effective_users: float) -> dict[str, float]:
        """Compute the figures on how events spread over items, compared with the real events.

        ``bucket_distance``: total variation distance over popularity buckets. ``max_item_excess``: largest share of an item among the
        events above its share among real ones. ``effective_items`` and ``real_effective_items``: exp(entropy) of the items.
        ``effective_items_ratio``: the first, divided by the second or by what the events and their users could reach at most, if that is
        less. Sums are ordered, so that equal events give equal figures.

        Args:
            events: Table or view with a row's item.
            effective_users: Effective number of their users, (Σ n)²/Σ n².
        """
        distance = self._bucket_distance(events) if effective_users else 1.0
        return {"bucket_distance": distance} | self._item_figures(events, effective_users)

    def query_figures(self, rules: Sequence[FigureRule], measured: Collection[str]) -> dict[str, float | None]:
        """Compute the figures that rules define by a query.

        Raises:
            QualityError: A figure has no query, a query fails or returns no number, or a figure is measured already.
        """
        import duckdb

        found: dict[str, float | None] = {}
        for rule in rules:
            if rule.query is None and rule.figure in measured:
                continue
            if rule.query is None or rule.figure in measured or rule.figure in found:
                raise unusable_rule_error(
                    rule.name, f"the figure {rule.figure!r} " + ("is already measured" if rule.query else "is not measured")
                )
            try:
                ((value,),) = self._connection.execute(rule.query).fetchall()
                found[rule.figure] = None if value is None else float(value)
            except (duckdb.Error, TypeError, ValueError) as error:
                raise unusable_rule_error(rule.name, f"its query returns no number: {error}") from error
        return found

    def counts_by_source(self) -> dict[str, dict[str, int]]:
        """Count per source domain: ``source_events`` of the window, and ``candidates`` and ``accepted`` rows made from them."""
        counts = self.rows.counts
        return {
            name: {
                "source_events": counts.source_events[name],
                "candidates": counts.candidates[name],
                "accepted": counts.accepted[name],
            }
            for name in self._sources
        }

    def _item_figures(self, events: str, effective_users: float) -> dict[str, float]:
        excess, made, real, rows = self.verdicts.fetch_row(
            f"""WITH made AS (SELECT {ITEM_ID}, count(*) AS events FROM {events} GROUP BY {ITEM_ID}),
            items AS (
                SELECT coalesce(made.events, 0) AS made_events, coalesce(real.events, 0) AS real_events,
                    made_events / sum(made_events) OVER () AS p, real_events / sum(real_events) OVER () AS q
                FROM {ITEM_EVENTS} real FULL JOIN made USING ({ITEM_ID}))
            SELECT max(p - q), exp(-sum(p * ln(p) ORDER BY p) FILTER (made_events > 0)),
                exp(-sum(q * ln(q) ORDER BY q) FILTER (real_events > 0)), sum(made_events)
            FROM items"""
        )
        if not rows:
            return {
                "max_item_excess": 0.0,
                "effective_items": 0.0,
                "real_effective_items": real or 0.0,
                "effective_items_ratio": 0.0,
            }
        reachable = min(real or math.inf, rows, ROWS_PER_USER * effective_users)
        return {
            "max_item_excess": float(1.0 if excess is None else excess),
            "effective_items": float(made),
            "real_effective_items": float(real or 0.0),
            "effective_items_ratio": float(made / reachable),
        }

    def _bucket_distance(self, events: str) -> float:
        """Compute the total variation distance from real events over popularity buckets of equal real volume.

        Items of equal popularity share a bucket, as in popularity matching of `scalr_prod.generation`, but this code is independent of it.
        The sum is ordered, so that equal events give a bit-identical figure.
        """
        (distance,) = self.verdicts.fetch_row(
            f"""WITH levels AS (SELECT events, sum(events) AS mass FROM {ITEM_EVENTS} GROUP BY events),
            cut AS (
                SELECT events, mass, sum(mass) OVER () AS total,
                    floor({self._buckets} * (sum(mass) OVER (ORDER BY events) - mass / 2) / sum(mass) OVER ()) AS bucket
                FROM levels),
            real AS (SELECT bucket, sum(mass) / any_value(total) AS share FROM cut GROUP BY bucket),
            made AS (
                SELECT bucket, count(*) / sum(count(*)) OVER () AS share
                FROM {events} JOIN {ITEM_EVENTS} USING ({ITEM_ID}) JOIN cut USING (events) GROUP BY bucket)
            SELECT 0.5 * sum(abs(real.share - coalesce(made.share, 0)) ORDER BY bucket) FROM real LEFT JOIN made USING (bucket)"""
        )
        return float(distance)
