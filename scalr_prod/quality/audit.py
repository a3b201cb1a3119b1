"""Every rule over every candidate, in DuckDB: out of core, vectorised, against the lake as the run was allowed to see it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.contracts import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table
from scalr_prod.duck import open_duckdb, staging_folder
from scalr_prod.hashing import stable_hash_sql
from scalr_prod.lake import Lake
from scalr_prod.quality.rules import COLUMNS, RowRule, instant_sql

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd
    import pyarrow as pa

    from scalr_prod.ledger import RunSpec
    from scalr_prod.settings import Settings

__all__ = ["Audit", "auditing"]

#: Rows of the frame that is given to Great Expectations at once: one byte a rule and row.
SLICE_ROWS: Final = 1_000_000
_EXAMPLES: Final = 3
_SHOWN: Final = ("event_id", USER_ID, ITEM_ID, EVENT_TIMESTAMP)


@contextmanager
def auditing(
    settings: Settings, spec: RunSpec, files: Sequence[Path], rules: Sequence[RowRule], *, popularity_buckets: int
) -> Iterator[Audit]:
    """Judge every row of the candidates' files; what does not fit in memory is spilled below home."""
    with staging_folder(settings, "gate") as folder, open_duckdb(settings, folder) as connection:
        lake = Lake.open(settings)

        def known(table: Table) -> Any:
            return lake.dataset(table, version=spec.table_versions.get(table.value))

        connection.register("all_source_events", known(Table.SOURCE_EVENTS))
        connection.register("all_target_events", known(Table.TARGET_EVENTS))
        connection.register("target_items", known(Table.TARGET_ITEMS))
        for domain in ("source", "target"):
            connection.execute(
                f"CREATE VIEW {domain}_events AS "
                f"SELECT * FROM all_{domain}_events WHERE {CREATED_TIMESTAMP} <= {instant_sql(spec.as_of)}"
            )
        audited = folder / "audited.parquet"
        connection.read_parquet([str(path) for path in files], filename=True, file_row_number=True).create_view("candidates")
        connection.execute(_judged(rules, audited))
        connection.read_parquet(str(audited)).create_view("audited")
        yield Audit(connection, spec, rules, popularity_buckets)


class Audit:
    """The judged rows of a run, and what they come to."""

    def __init__(self, connection: Any, spec: RunSpec, rules: Sequence[RowRule], popularity_buckets: int) -> None:
        self._connection = connection
        self._spec = spec
        self._rules = rules
        self._buckets = popularity_buckets

    def counts(self) -> tuple[int, int]:
        """Rows in all, and those that keep every rule."""
        rows, good = self._row("SELECT count(*), count(*) FILTER (accepted) FROM audited")
        return int(rows), int(good)

    def frames(self) -> Iterator[pd.DataFrame]:
        """Slices of at most `SLICE_ROWS` rows with one boolean column per rule, True where it is kept."""
        columns = ", ".join(rule.name for rule in self._rules)
        for batch in self._connection.sql(f"SELECT {columns} FROM audited").to_arrow_reader(SLICE_ROWS):
            if batch.num_rows:
                yield batch.to_pandas()

    def examples(self, rule: RowRule) -> list[dict[str, Any]]:
        """The first rows that break a rule: id, user, item, time."""
        shown = ", ".join(_SHOWN)
        query = f"SELECT {shown} FROM audited WHERE NOT {rule.name} ORDER BY {shown} LIMIT {_EXAMPLES}"
        rows = self._connection.sql(query).to_arrow_table().to_pylist()
        return [{key: value if isinstance(value, int) else str(value) for key, value in row.items()} for row in rows]

    def accepted(self) -> pa.RecordBatchReader:
        """The rows that keep every rule, by user and time, so that the same rows make the same file."""
        columns = ", ".join(COLUMNS)
        order = f"{USER_ID}, {EVENT_TIMESTAMP}, {ITEM_ID}"
        return self._connection.sql(f"SELECT {columns} FROM audited WHERE accepted ORDER BY {order}").to_arrow_reader(100_000)

    def refused(self) -> pa.RecordBatchReader:
        """The other rows with the names of the rules that they break in ``reason``; ``run_id`` is the audited run's."""
        columns = ", ".join(f"'{self._spec.run_id}' AS run_id" if name == "run_id" else name for name in COLUMNS)
        broken = ", ".join(f"CASE WHEN NOT {rule.name} THEN '{rule.name}' END" for rule in self._rules)
        query = f"SELECT {columns}, concat_ws(', ', {broken}) AS reason FROM audited WHERE NOT accepted"
        return self._connection.sql(query).to_arrow_reader(100_000)

    def figures(self) -> dict[str, float | int | None]:
        """What the accepted rows come to as a whole; see `rules.run_rules`."""
        rows, good = self.counts()
        context = f"{USER_ID}, source_item_id, source_event_timestamp"
        most, translated = self._row(
            f"SELECT max(events), count(*) FROM (SELECT count(*) AS events FROM audited WHERE accepted GROUP BY {context})"
        )
        window = f"{EVENT_TIMESTAMP} >= {instant_sql(self._spec.start)} AND {EVENT_TIMESTAMP} < {instant_sql(self._spec.end)}"
        (asked,) = self._row(
            f"SELECT count(*) FROM (SELECT DISTINCT {USER_ID}, {ITEM_ID}, {EVENT_TIMESTAMP} FROM source_events WHERE {window})"
        )
        limit = self._spec.start if self._spec.mode == "causal" else self._spec.as_of
        return {
            "candidates": rows,
            "accepted": good,
            "quarantined_share": (rows - good) / rows if rows else 0.0,
            "source_events": int(asked),
            "translated_source_events": int(translated),
            "source_coverage": translated / asked if asked else 0.0,
            "max_events_per_source_event": int(most or 0),
            "seconds_trained_past_limit": max(0.0, (self._spec.translator_trained_until - limit).total_seconds()),
            "bucket_distance": self._bucket_distance() if good else 1.0,
        }

    def _row(self, query: str) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self._connection.execute(query).fetchall()[0]
        return row

    def _bucket_distance(self) -> float:
        """Total variation between the shares of accepted and of real events in buckets of equal real volume by popularity."""
        (distance,) = self._row(
            f"""WITH popularity AS (SELECT {ITEM_ID}, count(*) AS events FROM target_events GROUP BY {ITEM_ID}),
            ranked AS (
                SELECT {ITEM_ID}, events, sum(events) OVER () AS total,
                    sum(events) OVER (ORDER BY events DESC, {stable_hash_sql(ITEM_ID)}) - events / 2 AS middle FROM popularity),
            bucketed AS (SELECT {ITEM_ID}, events, total, floor({self._buckets} * middle / total) AS bucket FROM ranked),
            proposed AS (SELECT {ITEM_ID}, count(*) AS events, sum(count(*)) OVER () AS total
                FROM audited WHERE accepted GROUP BY {ITEM_ID}),
            shares AS (
                SELECT b.bucket, sum(b.events / b.total) AS real, sum(coalesce(p.events / p.total, 0)) AS made
                FROM bucketed b LEFT JOIN proposed p USING ({ITEM_ID}) GROUP BY b.bucket)
            SELECT 0.5 * sum(abs(real - made)) FROM shares"""
        )
        return float(distance)


def _judged(rules: Sequence[RowRule], path: Path) -> str:
    """The statement that writes the candidates with one boolean column per rule, and ``accepted``."""
    columns = ", ".join(f"c.{name}" for name in COLUMNS)
    held = ", ".join(f"coalesce({rule.holds}, false) AS {rule.name}" for rule in rules)
    all_of = " AND ".join(rule.name for rule in rules)
    # Of rows that share a key, the one with the highest probability stays.
    first = "ORDER BY probability DESC, event_id, filename, file_row_number"
    key = f"{USER_ID}, {ITEM_ID}, {EVENT_TIMESTAMP}"
    source = f"{USER_ID}, {ITEM_ID}, {EVENT_TIMESTAMP}"
    return f"""COPY (
        WITH c AS (
            SELECT *, row_number() OVER (PARTITION BY event_id {first}) AS same_event_id,
                row_number() OVER (PARTITION BY {key} {first}) AS same_user_item_time
            FROM candidates),
        s AS (
            SELECT DISTINCT {source}, true AS found FROM source_events e
            SEMI JOIN candidates c ON e.{USER_ID} = c.{USER_ID} AND e.{ITEM_ID} = c.source_item_id
                AND e.{EVENT_TIMESTAMP} = c.source_event_timestamp),
        i AS (
            SELECT {ITEM_ID}, true AS found, min(first_seen) AS first_seen FROM (
                SELECT {ITEM_ID}, min({EVENT_TIMESTAMP}) AS first_seen FROM target_events GROUP BY {ITEM_ID}
                UNION ALL SELECT {ITEM_ID}, NULL FROM target_items)
            GROUP BY {ITEM_ID}),
        u AS (
            SELECT {USER_ID}, {ITEM_ID}, min({EVENT_TIMESTAMP}) AS first_consumed FROM target_events t
            SEMI JOIN candidates c ON t.{USER_ID} = c.{USER_ID} AND t.{ITEM_ID} = c.{ITEM_ID}
            GROUP BY {USER_ID}, {ITEM_ID}),
        judged AS (
            SELECT {columns}, {held}
            FROM c
            LEFT JOIN s ON s.{USER_ID} = c.{USER_ID} AND s.{ITEM_ID} = c.source_item_id
                AND s.{EVENT_TIMESTAMP} = c.source_event_timestamp
            LEFT JOIN i ON i.{ITEM_ID} = c.{ITEM_ID}
            LEFT JOIN u ON u.{USER_ID} = c.{USER_ID} AND u.{ITEM_ID} = c.{ITEM_ID})
        SELECT *, {all_of} AS accepted FROM judged
    ) TO '{str(path).replace("'", "''")}' (FORMAT parquet)"""
