# SPDX-License-Identifier: Apache-2.0
"""Audit of a run: every rule over every candidate row, out of core in DuckDB, against the lake as of the run."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from scalr_prod.core.partitioned import rebatch
from scalr_prod.generation import candidate_schema, has_one_context_per_user
from scalr_prod.lake import Lake
from scalr_prod.quality.row_verdicts import RowVerdicts, evaluate_rules
from scalr_prod.quality.rule_set import unusable_rule_error
from scalr_prod.quality.rules import EVENT_COLUMNS
from scalr_prod.quality.sample_size import ROWS_PER_USER, max_bad_rows_by_chance
from scalr_prod.quality.user_partitions import UserPartitions
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table, source_item_key_sql
from scalr_prod.workspace import create_delta_view, escape_glob, open_duckdb, quote_literal, staging_folder, timestamp_literal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa

    from scalr_prod.config import Settings
    from scalr_prod.ledger import RunSpec
    from scalr_prod.quality.rule_protocol import FigureRule, RowRule


#: View of user and item of the accepted rows.
ACCEPTED_EVENTS: Final = "accepted_events"

#: View name in the audit → lake table.
_READ: Final = {
    "all_source_events": Table.SOURCE_EVENTS,
    "all_target_events": Table.TARGET_EVENTS,
    "target_items": Table.TARGET_ITEMS,
}
_SHOWN: Final = ("event_id", USER_ID, ITEM_ID, EVENT_TIMESTAMP)
#: Accepted rows per written batch.
_BATCH: Final = 100_000
#: Columns that identify the context of an event.
_CONTEXT: Final = f"{USER_ID}, source_domain, source_item_id, source_event_timestamp"


@contextmanager
def open_audit(
    settings: Settings, spec: RunSpec, files: Sequence[Path], rules: Sequence[RowRule], *, popularity_buckets: int
) -> Iterator[Audit]:
    """Apply the rules to every row of the candidate files; spill to the project's home."""
    with staging_folder(settings, "gate") as folder, open_duckdb(settings, folder) as connection:
        lake = Lake.open(settings)

        for name, table in _READ.items():
            create_delta_view(connection, name, lake.open_table(table, version=spec.table_versions.get(table.value)))
        for domain in ("source", "target"):
            connection.execute(
                f"CREATE TEMP VIEW {domain}_events AS "
                f"SELECT * FROM all_{domain}_events WHERE {CREATED_TIMESTAMP} <= {timestamp_literal(spec.as_of)}"
            )
        if files:
            found = connection.read_parquet([escape_glob(path) for path in files], filename=True, file_row_number=True)
            found.create_view("candidates")
        else:
            connection.register("candidates", _empty_candidates(candidate_schema(lake)))
        connection.execute(
            f"""CREATE TEMP TABLE items AS SELECT {ITEM_ID}, true AS found, min(first_seen) AS first_seen FROM (
                SELECT {ITEM_ID}, min({EVENT_TIMESTAMP}) AS first_seen FROM target_events GROUP BY {ITEM_ID}
                UNION ALL SELECT {ITEM_ID}, NULL FROM target_items)
            GROUP BY {ITEM_ID}"""
        )
        sources = settings.domains.source_names
        ranges = UserPartitions(connection, spec, sources, folder, home=settings.home)
        own = [f"c.{name}" for name in EVENT_COLUMNS]
        judged = evaluate_rules(connection, _joined(sources), rules, columns=own, shown=_SHOWN, paths=ranges.iter_files())
        connection.execute(f"CREATE TEMP VIEW {ACCEPTED_EVENTS} AS SELECT {USER_ID}, {ITEM_ID} FROM judged WHERE accepted")
        yield Audit(judged, ranges, spec, popularity_buckets, sources)


class Audit:
    """The rule verdicts on a run's rows, and the figures computed from them."""

    def __init__(
        self, judged: RowVerdicts, ranges: UserPartitions, spec: RunSpec, popularity_buckets: int, sources: Sequence[str]
    ) -> None:
        self.verdicts = judged
        self._ranges = ranges
        self._connection = judged.connection
        self._spec = spec
        self._buckets = popularity_buckets
        self._sources = sources

    def accepted(self) -> pa.RecordBatchReader:
        """Read the rows that pass every rule, ordered by user and time, so that equal rows give an equal file."""
        import pyarrow as pa

        columns, order = ", ".join(EVENT_COLUMNS), f"{USER_ID}, {EVENT_TIMESTAMP}, {ITEM_ID}"
        schema = self._connection.sql(f"SELECT {columns} FROM judged LIMIT 0").to_arrow_table().schema

        def batches() -> Iterator[pa.RecordBatch]:
            for file in self.verdicts.files:  # one file per user partition, in user order
                query = f"SELECT {columns} FROM read_parquet({quote_literal(file)}) WHERE accepted ORDER BY {order}"
                yield from self._connection.sql(query).to_arrow_reader(_BATCH)

        return pa.RecordBatchReader.from_batches(schema, rebatch(batches(), _BATCH))

    def rejected(self) -> pa.RecordBatchReader:
        """Read the other rows, with the names of the broken rules in ``reason``; ``run_id`` is that of the audited run."""
        columns = ", ".join(f"'{self._spec.run_id}' AS run_id" if name == "run_id" else name for name in EVENT_COLUMNS)
        broken = ", ".join(f"CASE WHEN NOT {rule.name} THEN '{rule.name}' END" for rule in self.verdicts.rules)
        query = f"SELECT {columns}, concat_ws(', ', {broken}) AS reason FROM judged WHERE NOT accepted"
        return self._connection.sql(query).to_arrow_reader(100_000)

    def figures(self, max_bad_share: float) -> dict[str, float]:
        """Compute the figures that the run rules bound; see `rules.RunRules`.

        Args:
            max_bad_share: The largest allowed share of bad rows.
        """
        rows, good = self.verdicts.counts()
        most, translated = self._per_context()
        effective_users, copies = self._per_user()
        contexts = source_events = self._ranges.source_event_counts.total()
        if has_one_context_per_user(self._spec):
            (translated,) = self.verdicts.fetch_row(f"SELECT count(DISTINCT {USER_ID}) FROM judged WHERE accepted")
            contexts = self._ranges.user_count
        limit = self._spec.start if self._spec.mode == "causal" else self._spec.as_of
        return {
            "candidates": rows,
            "accepted": good,
            "bad_rows_beyond_chance": rows - good - max_bad_rows_by_chance(rows, max_bad_share),
            "effective_users": effective_users,
            "quarantined_share": (rows - good) / rows if rows else 0.0,
            "source_events": source_events,
            "contexts": contexts,
            "translated_contexts": int(translated),
            "source_coverage": translated / contexts if contexts else 0.0,
            "max_events_per_source_event": most,
            "seconds_trained_past_limit": max(0.0, (self._spec.translator_trained_until - limit).total_seconds()),
            "max_user_item_copies": copies,
        } | self.distribution_figures(ACCEPTED_EVENTS, effective_users)

    def distribution_figures(self, events: str, effective_users: float) -> dict[str, float]:
        """Compute the figures on how events spread over items, beside the real events.

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
        source_events = self._ranges.source_event_counts
        counts = {name: {"source_events": source_events[name], "candidates": 0, "accepted": 0} for name in self._sources}
        query = "SELECT source_domain, count(*), count(*) FILTER (accepted) FROM judged GROUP BY source_domain"
        for name, candidates, accepted in self._connection.sql(query).fetchall():
            if name in counts:
                counts[name] |= {"candidates": candidates, "accepted": accepted}
        return counts

    def _per_context(self) -> tuple[int, int]:
        """Return the largest number of accepted rows of one context, and the number of contexts with any."""
        most = contexts = 0
        for file in self.verdicts.files:
            largest, count = self.verdicts.fetch_row(
                f"""SELECT coalesce(max(events), 0), count(*) FROM (
                    SELECT count(*) AS events FROM read_parquet({quote_literal(file)}) WHERE accepted GROUP BY {_CONTEXT})"""
            )
            most, contexts = max(most, largest), contexts + count
        return most, contexts

    def _per_user(self) -> tuple[float, int]:
        """Return the effective number of users, and the largest number of accepted rows of one user and item.

        Users with n accepted rows each carry the evidence of (Σ n)²/Σ n² users with equally many.
        """
        total = squares = copies = 0
        for file in self.verdicts.files:
            events, squared, most = self.verdicts.fetch_row(
                f"""WITH pairs AS (
                    SELECT {USER_ID}, count(*) AS copies FROM read_parquet({quote_literal(file)}) WHERE accepted
                    GROUP BY {USER_ID}, {ITEM_ID}),
                users AS (SELECT sum(copies) AS events, max(copies) AS copies FROM pairs GROUP BY {USER_ID})
                SELECT coalesce(sum(events), 0), coalesce(sum(events * events), 0), coalesce(max(copies), 0) FROM users"""
            )
            total, squares, copies = total + int(events), squares + int(squared), max(copies, int(most))
        return (total * total / squares if squares else 0.0), copies

    def _item_figures(self, events: str, effective_users: float) -> dict[str, float]:
        excess, made, real, rows = self.verdicts.fetch_row(
            f"""WITH real AS (SELECT {ITEM_ID}, count(*) AS events FROM target_events GROUP BY {ITEM_ID}),
            made AS (SELECT {ITEM_ID}, count(*) AS events FROM {events} GROUP BY {ITEM_ID}),
            items AS (
                SELECT coalesce(made.events, 0) AS made_events, coalesce(real.events, 0) AS real_events,
                    made_events / sum(made_events) OVER () AS p, real_events / sum(real_events) OVER () AS q
                FROM real FULL JOIN made USING ({ITEM_ID}))
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
            f"""WITH popularity AS (SELECT {ITEM_ID}, count(*) AS events FROM target_events GROUP BY {ITEM_ID}),
            levels AS (SELECT events, sum(events) AS mass FROM popularity GROUP BY events),
            cut AS (
                SELECT events, mass, sum(mass) OVER () AS total,
                    floor({self._buckets} * (sum(mass) OVER (ORDER BY events) - mass / 2) / sum(mass) OVER ()) AS bucket
                FROM levels),
            real AS (SELECT bucket, sum(mass) / any_value(total) AS share FROM cut GROUP BY bucket),
            made AS (
                SELECT bucket, count(*) / sum(count(*)) OVER () AS share
                FROM {events} JOIN popularity USING ({ITEM_ID}) JOIN cut USING (events) GROUP BY bucket)
            SELECT 0.5 * sum(abs(real.share - coalesce(made.share, 0)) ORDER BY bucket) FROM real LEFT JOIN made USING (bucket)"""
        )
        return float(distance)


def _empty_candidates(schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    more = [pa.field("filename", pa.string()), pa.field("file_row_number", pa.int64())]
    return pa.schema([*schema, *more]).empty_table()


def _joined(sources: Sequence[str]) -> str:
    """Return the query of candidates ``c`` with source event ``s``, item ``i`` and the user's own consumption of the item ``u``."""
    source_key = source_item_key_sql("source_domain", "source_item_id", sources)
    return f"""
        WITH u AS (
            SELECT {USER_ID}, {ITEM_ID}, min({EVENT_TIMESTAMP}) AS first_consumed FROM target t
            SEMI JOIN partition_rows p ON t.{USER_ID} = p.{USER_ID} AND t.{ITEM_ID} = p.{ITEM_ID}
            GROUP BY {USER_ID}, {ITEM_ID})
        SELECT {{columns}} FROM (
            SELECT c.*, struct_pack(found := ({USER_ID}, {source_key}, source_event_timestamp) IN (FROM source)) AS s FROM c) c
        LEFT JOIN items i ON i.{ITEM_ID} = c.{ITEM_ID}
        LEFT JOIN u ON u.{USER_ID} = c.{USER_ID} AND u.{ITEM_ID} = c.{ITEM_ID}"""
