# SPDX-License-Identifier: Apache-2.0
"""Every rule over every candidate, in DuckDB: out of core, vectorised, against the lake as the run was allowed to see it."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.contracts import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table, source_domain_sql, source_key_sql
from scalr_prod.duck import exact, open_duckdb, staging_folder, view_of
from scalr_prod.holdout import not_held_out_sql
from scalr_prod.lake import Lake
from scalr_prod.quality.judged import Judged, judge
from scalr_prod.quality.rule_set import unusable
from scalr_prod.quality.rules import COLUMNS, instant_sql, one_context_per_user

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa

    from scalr_prod.ledger import RunSpec
    from scalr_prod.quality.protocol import FigureRule, RowRule
    from scalr_prod.settings import Settings

__all__ = ["Audit", "auditing"]

#: Tables of the lake by what the audit calls them.
_READ: Final = {
    "all_source_events": Table.SOURCE_EVENTS,
    "all_target_events": Table.TARGET_EVENTS,
    "target_items": Table.TARGET_ITEMS,
}
_SHOWN: Final = ("event_id", USER_ID, ITEM_ID, EVENT_TIMESTAMP)
#: Rows that are put in order at once: DuckDB holds them whole, with their texts.
_SORTED_ROWS: Final = 500_000
#: What tells the contexts of events apart.
_CONTEXT: Final = f"{USER_ID}, source_domain, source_item_id, source_event_timestamp"


@contextmanager
def auditing(
    settings: Settings, spec: RunSpec, files: Sequence[Path], rules: Sequence[RowRule], *, popularity_buckets: int
) -> Iterator[Audit]:
    """Judge every row of the candidates' files; what does not fit in memory is spilled below home."""
    with staging_folder(settings, "gate") as folder, open_duckdb(settings, folder) as connection:
        lake = Lake.open(settings)

        for name, table in _READ.items():
            view_of(connection, name, lake.open_table(table, version=spec.table_versions.get(table.value)))
        for domain in ("source", "target"):
            connection.execute(
                f"CREATE TEMP VIEW {domain}_events AS "
                f"SELECT * FROM all_{domain}_events WHERE {CREATED_TIMESTAMP} <= {instant_sql(spec.as_of)}"
            )
        if files:
            found = connection.read_parquet([exact(path) for path in files], filename=True, file_row_number=True)
            found.create_view("candidates")
        else:
            connection.register("candidates", _nothing(lake.schema(Table.SYNTHETIC_TARGET_EVENTS)))
        _number_repeated(connection, "repeated_ids", "event_id")
        _number_repeated(connection, "repeated_keys", f"{USER_ID}, {ITEM_ID}, {EVENT_TIMESTAMP}")
        own = [f"c.{name}" for name in COLUMNS]
        judged = judge(
            connection, _joined(settings.domains.source_names), rules, columns=own, shown=_SHOWN, path=folder / "judged.parquet"
        )
        yield Audit(judged, spec, popularity_buckets, settings.domains.source_names)


class Audit:
    """The judged rows of a run, and what they come to."""

    def __init__(self, judged: Judged, spec: RunSpec, popularity_buckets: int, sources: Sequence[str]) -> None:
        self.judged = judged
        self._connection = judged.connection
        self._spec = spec
        self._buckets = popularity_buckets
        self._sources = sources

    def accepted(self) -> pa.RecordBatchReader:
        """The rows that keep every rule, by user and time, so that the same rows make the same file."""
        import pyarrow as pa

        query = f"SELECT {', '.join(COLUMNS)} FROM judged WHERE accepted"
        order = f"ORDER BY {USER_ID}, {EVENT_TIMESTAMP}, {ITEM_ID}"
        schema = self._connection.sql(f"{query} LIMIT 0").to_arrow_table().schema

        def batches() -> Iterator[pa.RecordBatch]:
            for before, last in pairwise([None, *self._pieces_by_user()]):
                after = "" if before is None else f"AND {USER_ID} > $before"
                params = {"last": last} if before is None else {"last": last, "before": before}
                piece = self._connection.sql(f"{query} AND {USER_ID} <= $last {after} {order}", params=params)
                yield from piece.to_arrow_reader(100_000)

        return pa.RecordBatchReader.from_batches(schema, batches())

    def _pieces_by_user(self) -> list[Any]:
        """Users that the accepted rows are cut after, so that about `_SORTED_ROWS` at a time are put in order: the last of each piece."""
        found = self._connection.sql(
            f"""SELECT max({USER_ID}) FROM (
                SELECT {USER_ID}, sum(count(*)) OVER (ORDER BY {USER_ID}) - count(*) AS before
                FROM judged WHERE accepted GROUP BY {USER_ID})
            GROUP BY before // {_SORTED_ROWS} ORDER BY 1"""
        )
        return [last for (last,) in found.fetchall()]

    def refused(self) -> pa.RecordBatchReader:
        """The other rows with the names of the rules that they break in ``reason``; ``run_id`` is the audited run's."""
        columns = ", ".join(f"'{self._spec.run_id}' AS run_id" if name == "run_id" else name for name in COLUMNS)
        broken = ", ".join(f"CASE WHEN NOT {rule.name} THEN '{rule.name}' END" for rule in self.judged.rules)
        query = f"SELECT {columns}, concat_ws(', ', {broken}) AS reason FROM judged WHERE NOT accepted"
        return self._connection.sql(query).to_arrow_reader(100_000)

    def figures(self) -> dict[str, float | int | None]:
        """What the accepted rows come to as a whole; see `rules.run_rules`."""
        rows, good = self.judged.counts()
        most, translated = self.judged.row(
            f"SELECT max(events), count(*) FROM (SELECT count(*) AS events FROM judged WHERE accepted GROUP BY {_CONTEXT})"
        )
        source_events = contexts = sum(self._window_by_source.values())
        if one_context_per_user(self._spec):
            (translated,) = self.judged.row(f"SELECT count(DISTINCT {USER_ID}) FROM judged WHERE accepted")
            (contexts,) = self.judged.row(f"SELECT count(DISTINCT {USER_ID}) FROM ({self._in_window()})")
        limit = self._spec.start if self._spec.mode == "causal" else self._spec.as_of
        return {
            "candidates": rows,
            "accepted": good,
            "quarantined_share": (rows - good) / rows if rows else 0.0,
            "source_events": int(source_events),
            "contexts": int(contexts),
            "translated_contexts": int(translated),
            "source_coverage": translated / contexts if contexts else 0.0,
            "max_events_per_source_event": int(most or 0),
            "seconds_trained_past_limit": max(0.0, (self._spec.translator_trained_until - limit).total_seconds()),
            "bucket_distance": self._bucket_distance() if good else 1.0,
        }

    def asked(self, bounds: Sequence[FigureRule], measured: Collection[str]) -> dict[str, float | None]:
        """The figures that rules bring a query for.

        Raises:
            QualityError: A figure has no query, a query fails or gives no number, or a figure is among those measured already.
        """
        import duckdb

        found: dict[str, float | None] = {}
        for rule in bounds:
            if rule.query is None and rule.figure in measured:
                continue
            if rule.query is None or rule.figure in measured or rule.figure in found:
                raise unusable(
                    rule.name, f"the figure {rule.figure!r} " + ("is there already" if rule.query else "is not measured")
                )
            try:
                ((value,),) = self._connection.execute(rule.query).fetchall()
                found[rule.figure] = None if value is None else float(value)
            except (duckdb.Error, TypeError, ValueError) as error:
                raise unusable(rule.name, f"its query gives no number: {error}") from error
        return found

    def by_source(self) -> dict[str, dict[str, int]]:
        """By source domain: its ``source_events`` of the window, and the ``candidates`` and ``accepted`` rows made from them."""
        asked = self._window_by_source
        found = {name: {"source_events": asked.get(name, 0), "candidates": 0, "accepted": 0} for name in self._sources}
        query = "SELECT source_domain, count(*), count(*) FILTER (accepted) FROM judged GROUP BY source_domain"
        for name, candidates, accepted in self._connection.sql(query).fetchall():
            if name in found:
                found[name] |= {"candidates": candidates, "accepted": accepted}
        return found

    @cached_property
    def _window_by_source(self) -> dict[str, int]:
        """Source events of the window by domain."""
        domain = source_domain_sql(ITEM_ID, self._sources)
        query = f"SELECT {domain}, count(*) FROM ({self._in_window()}) GROUP BY ALL"
        return dict(self._connection.sql(query).fetchall())

    def _in_window(self) -> str:
        """SQL: the window's distinct source events of users that are not held out."""
        window = f"{EVENT_TIMESTAMP} >= {instant_sql(self._spec.start)} AND {EVENT_TIMESTAMP} < {instant_sql(self._spec.end)}"
        asked = not_held_out_sql(self._spec.settings, USER_ID)
        return f"SELECT DISTINCT {USER_ID}, {ITEM_ID}, {EVENT_TIMESTAMP} FROM source_events WHERE {window} AND {asked}"

    def _bucket_distance(self) -> float:
        """Total variation between the shares of accepted and of real events in buckets of equal real volume by popularity.

        Items of one popularity share a bucket, as in the alignment of `scalr_prod.generation`, of which this is no part. Summed up
        in order, so that the same events give the same figure to the last bit.
        """
        (distance,) = self.judged.row(
            f"""WITH popularity AS (SELECT {ITEM_ID}, count(*) AS events FROM target_events GROUP BY {ITEM_ID}),
            levels AS (SELECT events, sum(events) AS mass FROM popularity GROUP BY events),
            cut AS (
                SELECT events, mass, sum(mass) OVER () AS total,
                    floor({self._buckets} * (sum(mass) OVER (ORDER BY events) - mass / 2) / sum(mass) OVER ()) AS bucket
                FROM levels),
            real AS (SELECT bucket, sum(mass) / any_value(total) AS share FROM cut GROUP BY bucket),
            made AS (
                SELECT bucket, count(*) / sum(count(*)) OVER () AS share
                FROM judged JOIN popularity USING ({ITEM_ID}) JOIN cut USING (events) WHERE accepted GROUP BY bucket)
            SELECT 0.5 * sum(abs(real.share - coalesce(made.share, 0)) ORDER BY bucket) FROM real LEFT JOIN made USING (bucket)"""
        )
        return float(distance)


def _nothing(schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    more = [pa.field("filename", pa.string()), pa.field("file_row_number", pa.int64())]
    return pa.schema([*schema, *more]).empty_table()


def _number_repeated(connection: Any, name: str, key: str) -> None:
    """Make the table ``name``: the place of each candidate that shares a key with a better one, by ``filename, file_row_number``.

    Of rows that share a key, the one with the highest probability comes first. Hashes are counted, eight bytes a row, and only rows
    that share one are put in order.
    """
    connection.execute(
        f"""CREATE TEMP TABLE {name} AS
        WITH shared AS (SELECT hash({key}) AS digest FROM candidates GROUP BY digest HAVING count(*) > 1)
        SELECT filename, file_row_number,
            row_number() OVER (PARTITION BY {key} ORDER BY probability DESC, event_id, filename, file_row_number) AS place
        FROM candidates WHERE hash({key}) IN (SELECT digest FROM shared) QUALIFY place > 1"""
    )


def _joined(sources: Sequence[str]) -> str:
    """The candidates ``c`` with their source event ``s``, joined to their item ``i`` and the user's own consumption of it ``u``."""
    source_key = source_key_sql("source_domain", "source_item_id", sources)
    return f"""
        WITH e AS (
            SELECT {USER_ID}, {ITEM_ID}, {EVENT_TIMESTAMP} FROM source_events
            WHERE {EVENT_TIMESTAMP} >= (SELECT min(source_event_timestamp) FROM candidates)
                AND {EVENT_TIMESTAMP} <= (SELECT max(source_event_timestamp) FROM candidates)),
        c AS (
            SELECT candidates.*,
                coalesce(of_id.place, 1) AS same_event_id, coalesce(of_key.place, 1) AS same_user_item_time,
                struct_pack(found := ({USER_ID}, {source_key}, source_event_timestamp) IN (FROM e)) AS s
            FROM candidates
            LEFT JOIN repeated_ids of_id USING (filename, file_row_number)
            LEFT JOIN repeated_keys of_key USING (filename, file_row_number)),
        i AS (
            SELECT {ITEM_ID}, true AS found, min(first_seen) AS first_seen FROM (
                SELECT {ITEM_ID}, min({EVENT_TIMESTAMP}) AS first_seen FROM target_events GROUP BY {ITEM_ID}
                UNION ALL SELECT {ITEM_ID}, NULL FROM target_items)
            GROUP BY {ITEM_ID}),
        u AS (
            SELECT {USER_ID}, {ITEM_ID}, min({EVENT_TIMESTAMP}) AS first_consumed FROM target_events t
            SEMI JOIN candidates c ON t.{USER_ID} = c.{USER_ID} AND t.{ITEM_ID} = c.{ITEM_ID}
            GROUP BY {USER_ID}, {ITEM_ID})
        SELECT {{columns}} FROM c
        LEFT JOIN i ON i.{ITEM_ID} = c.{ITEM_ID}
        LEFT JOIN u ON u.{USER_ID} = c.{USER_ID} AND u.{ITEM_ID} = c.{ITEM_ID}"""
