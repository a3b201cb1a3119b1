# SPDX-License-Identifier: Apache-2.0
"""Candidates beside their users' events of both domains, one range of users after the other: no more than that is in memory.

What is asked of a row, or of a user's rows, is asked of one range alone. Only the ids of events are compared among all rows.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.contracts import EVENT_TIMESTAMP, ITEM_ID, USER_ID, source_domain_sql
from scalr_prod.heaps import HEAP, edges_of, tables_of
from scalr_prod.holdout import not_held_out_sql
from scalr_prod.quality.rules import instant_sql, one_context_per_user

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from scalr_prod.ledger import RunSpec

__all__ = ["Ranges"]

_KEY: Final = f"{USER_ID}, {ITEM_ID}, {EVENT_TIMESTAMP}"
#: Bits of a digest: whole numbers that are not negative.
_BITS: Final = 63


class Ranges:
    """The tables by which one range of users after the other is judged.

    ``c``: its candidates, with ``same_event_id`` and ``same_user_item_time``: 1 for the first of the rows that share one. ``source``: the
    users' source events of the window, and of as long as candidates were made from any. ``target``: their target events.

    Args:
        connection: DuckDB, with ``candidates``, ``source_events`` and ``target_events``, as they were known by the run's ``as_of``.
        spec: The run.
        sources: The project's source domains.
        folder: Where the judged rows go, and what is dealt out to ranges meanwhile.

    Attributes:
        source_events: By domain, the window's source events of users that are not held out, each once; whole after the last range.
        users: How many users have any; counted where the run asked about each user once.
    """

    def __init__(self, connection: Any, spec: RunSpec, sources: Sequence[str], folder: Path) -> None:
        self.source_events: Counter[str] = Counter()
        self.users = 0
        self._connection, self._spec, self._sources, self._folder = connection, spec, sources, folder
        self._window = f"{EVENT_TIMESTAMP} >= {instant_sql(spec.start)} AND {EVENT_TIMESTAMP} < {instant_sql(spec.end)}"

    def files(self) -> Iterator[Path]:
        """A file for the judged rows of each range; taking the next one makes its tables."""
        db = self._connection
        self._find_repeated_ids()
        queries = {
            "source": f"SELECT {_KEY} FROM source_events WHERE {self._in_time()}",
            "target": f"SELECT {_KEY} FROM target_events",
        }
        edges = self._edges([*queries.values(), f"SELECT {USER_ID} FROM candidates WHERE {USER_ID} IS NOT NULL"])
        tables = [
            tables_of(db, query, key=USER_ID, edges=edges, path=self._folder / f"{name}.arrow", name=name)
            for name, query in queries.items()
        ]
        for number, _ in enumerate(zip(*tables, strict=True)):
            within, ends = _within(edges, number)
            db.execute(f"CREATE OR REPLACE TEMP TABLE piece AS FROM candidates WHERE {within}", ends)
            shared = f"SELECT hash({_KEY}) AS digest FROM piece GROUP BY digest HAVING count(*) > 1"
            _number_repeated(db, "repeated_keys", "piece", _KEY, f"hash({_KEY}) IN ({shared})")
            db.execute(
                """CREATE OR REPLACE TEMP VIEW c AS
                SELECT piece.*, coalesce(of_id.place, 1) AS same_event_id, coalesce(of_key.place, 1) AS same_user_item_time
                FROM piece
                LEFT JOIN repeated_ids of_id USING (filename, file_row_number)
                LEFT JOIN repeated_keys of_key USING (filename, file_row_number)"""
            )
            self._count()
            yield self._folder / f"judged-{number:05d}.parquet"

    def _in_time(self) -> str:
        """SQL: whether a source event is of the window, or of as long as candidates were made from any."""
        start, end = map(instant_sql, (self._spec.start, self._spec.end))
        ((first, last),) = self._connection.execute(
            f"""SELECT least({start}, min(source_event_timestamp))::VARCHAR, greatest({end}, max(source_event_timestamp))::VARCHAR
            FROM candidates"""
        ).fetchall()
        return f"{EVENT_TIMESTAMP} >= TIMESTAMPTZ '{first}' AND {EVENT_TIMESTAMP} <= TIMESTAMPTZ '{last}'"

    def _edges(self, queries: Sequence[str]) -> list[Any]:
        """Users that cut the rows of all queries together into ranges of about `HEAP` rows."""
        every = " UNION ALL ".join(f"SELECT {USER_ID} FROM ({query})" for query in queries)
        ((rows,),) = self._connection.execute(f"SELECT count(*) FROM ({every})").fetchall()
        return edges_of(self._connection, f"({every})", USER_ID, rows)

    def _find_repeated_ids(self) -> None:
        """Make ``repeated_ids`` of all candidates; digests of a range of them after the other are counted."""
        db = self._connection
        ((rows,),) = db.execute("SELECT count(*) FROM candidates").fetchall()
        heaps = -(-rows // (8 * HEAP)) or 1  # eight bytes each
        edges = [(heap << _BITS) // heaps for heap in range(1, heaps)]
        digest = f"(hash(event_id) >> {64 - _BITS})::BIGINT"
        db.execute("CREATE TEMP TABLE shared_ids (digest BIGINT)")
        query, path = f"SELECT {digest} AS digest FROM candidates", self._folder / "digests.arrow"
        for table in tables_of(db, query, key="digest", edges=edges, path=path, name="digests"):
            db.execute(f"INSERT INTO shared_ids SELECT digest FROM {table} GROUP BY digest HAVING count(*) > 1")
        _number_repeated(db, "repeated_ids", "candidates", "event_id", f"{digest} IN (FROM shared_ids)")

    def _count(self) -> None:
        held = not_held_out_sql(self._spec.settings, USER_ID)
        counted = f"SELECT DISTINCT {_KEY} FROM source WHERE {self._window} AND {held}"
        domain = source_domain_sql(ITEM_ID, self._sources)
        query = f"SELECT {domain}, count(*) FROM ({counted}) GROUP BY ALL"
        self.source_events.update(dict(self._connection.execute(query).fetchall()))
        if one_context_per_user(self._spec):
            ((users,),) = self._connection.execute(f"SELECT count(DISTINCT {USER_ID}) FROM ({counted})").fetchall()
            self.users += users


def _within(edges: Sequence[Any], number: int) -> tuple[str, dict[str, Any]]:
    """SQL: whether a candidate is of a range, and its parameters. What has no user is of the first, so that each is of one."""
    least, less = edges[number - 1] if number else None, edges[number] if number < len(edges) else None
    ends = {"least": least, "less": less}
    found = [f"{USER_ID} {sign} ${name}" for name, sign in (("least", ">="), ("less", "<")) if ends[name] is not None]
    kept = " AND ".join(found) or "true"
    return kept if number else f"({kept} OR {USER_ID} IS NULL)", {name: end for name, end in ends.items() if end is not None}


def _number_repeated(connection: Any, name: str, rows: str, key: str, shared: str) -> None:
    """Make the table ``name``: the place of each row that shares a key with a better one, by ``filename, file_row_number``.

    Of rows that share a key, the one with the highest probability comes first.

    Args:
        connection: Of DuckDB.
        name: Of the table.
        rows: Where the rows are.
        key: Its columns.
        shared: SQL: whether the key's digest is that of another row too. Only such rows are put in order.
    """
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE {name} AS
        SELECT filename, file_row_number,
            row_number() OVER (PARTITION BY {key} ORDER BY probability DESC, event_id, filename, file_row_number) AS place
        FROM {rows} WHERE {shared} QUALIFY place > 1"""
    )
