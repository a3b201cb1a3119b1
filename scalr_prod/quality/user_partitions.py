# SPDX-License-Identifier: Apache-2.0
"""Partitions of the audit by user: candidates with their users' events of both domains, one partition in memory at a time.

Rules about a row, or about a user's rows, need one partition only. Event ids alone are compared across all rows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.partitioned import PARTITION_ROWS, iter_partition_tables, quantile_bounds
from scalr_prod.generation import has_one_context_per_user
from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID, USER_ID, source_domain_sql
from scalr_prod.workspace import has_consent_sql, not_held_out_sql, quote_literal, timestamp_literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from scalr_prod.ledger import RunSpec


_KEY: Final = f"{USER_ID}, {ITEM_ID}, {EVENT_TIMESTAMP}"
#: Bits of a digest, so that it is a non-negative BIGINT.
_BITS: Final = 63


class UserPartitions:
    """Tables of one user partition at a time.

    ``c``: the candidates, with ``same_event_id`` and ``same_user_item_time``: rank among rows with an equal key, 1 for the first.
    ``source``: the users' source events of the window, and of the time range that candidates refer to. ``target``: their target events.

    Args:
        connection: DuckDB, with ``candidates``, ``source_events`` and ``target_events`` as known by the run's ``as_of``.
        spec: The run.
        sources: The project's source domains.
        folder: Folder of the judged rows and of spilled partitions.
        home: The project's home.

    Attributes:
        source_event_counts: Domain → distinct source events of the window, without those of held-out users and users without consent;
            complete after the last partition.
        user_count: Number of users with such events; counted only if the run has one context per user.
    """

    def __init__(self, connection: Any, spec: RunSpec, sources: Sequence[str], folder: Path, *, home: Path) -> None:
        self.source_event_counts: Counter[str] = Counter()
        self.user_count = 0
        self._connection, self._spec, self._sources, self._folder = connection, spec, sources, folder
        self._window = (
            f"{EVENT_TIMESTAMP} >= {timestamp_literal(spec.start)} AND {EVENT_TIMESTAMP} < {timestamp_literal(spec.end)}"
        )

        self._is_translated = f"{not_held_out_sql(spec.settings, USER_ID)} AND {has_consent_sql(home, spec.settings, USER_ID)}"

    def iter_files(self) -> Iterator[Path]:
        """Yield the output file of each partition, after creating the partition's tables."""
        db = self._connection
        self._find_repeated_ids()
        queries = {
            "source": f"SELECT {_KEY} FROM source_events WHERE {self._in_time()}",
            "target": f"SELECT {_KEY} FROM target_events",
        }
        edges = self._edges([*queries.values(), f"SELECT {USER_ID} FROM candidates WHERE {USER_ID} IS NOT NULL"])
        tables = [
            iter_partition_tables(db, query, key=USER_ID, bounds=edges, folder=self._folder / f"{name}-partitions", name=name)
            for name, query in queries.items()
        ]
        db.execute(
            f"""CREATE TEMP TABLE candidate_files AS
            SELECT filename, min({USER_ID}) AS first_user, max({USER_ID}) AS last_user, count(*) > count({USER_ID}) AS lacks_users
            FROM candidates GROUP BY filename"""
        )
        for number, _ in enumerate(zip(*tables, strict=True)):
            partition = _Partition(edges, number)
            # DuckDB leaves out files by name without opening them; otherwise each partition would open all files.
            files = db.execute(f"SELECT filename FROM candidate_files WHERE {partition.files_sql}", partition.bounds).fetchall()
            names = ", ".join(quote_literal(name) for (name,) in files) or "NULL"
            query = f"FROM candidates WHERE {partition.rows_sql} AND filename IN ({names})"
            db.execute(f"CREATE OR REPLACE TEMP TABLE partition_rows AS {query}", partition.bounds)
            shared = f"SELECT hash({_KEY}) AS digest FROM partition_rows GROUP BY digest HAVING count(*) > 1"
            _number_repeated(db, "repeated_keys", "partition_rows", _KEY, f"hash({_KEY}) IN ({shared})")
            db.execute(
                """CREATE OR REPLACE TEMP VIEW c AS
                SELECT partition_rows.*, coalesce(of_id.place, 1) AS same_event_id, coalesce(of_key.place, 1) AS same_user_item_time
                FROM partition_rows
                LEFT JOIN repeated_ids of_id USING (filename, file_row_number)
                LEFT JOIN repeated_keys of_key USING (filename, file_row_number)"""
            )
            self._count()
            yield self._folder / f"judged-{number:05d}.parquet"

    def _in_time(self) -> str:
        """Return SQL: whether a source event is in the window, or in the time range that candidates refer to."""
        start, end = map(timestamp_literal, (self._spec.start, self._spec.end))
        ((first, last),) = self._connection.execute(
            f"""SELECT least({start}, min(source_event_timestamp))::VARCHAR, greatest({end}, max(source_event_timestamp))::VARCHAR
            FROM candidates"""
        ).fetchall()
        return f"{EVENT_TIMESTAMP} >= TIMESTAMPTZ '{first}' AND {EVENT_TIMESTAMP} <= TIMESTAMPTZ '{last}'"

    def _edges(self, queries: Sequence[str]) -> list[Any]:
        """Return the users that split the rows of all queries into partitions of about `PARTITION_ROWS` rows."""
        every = " UNION ALL ".join(f"SELECT {USER_ID} FROM ({query})" for query in queries)
        ((rows,),) = self._connection.execute(f"SELECT count(*) FROM ({every})").fetchall()
        return quantile_bounds(self._connection, f"({every})", USER_ID, rows)

    def _find_repeated_ids(self) -> None:
        """Create ``repeated_ids`` over all candidates; count digests one range at a time."""
        db = self._connection
        ((rows,),) = db.execute("SELECT count(*) FROM candidates").fetchall()
        count = -(-rows // (8 * PARTITION_ROWS)) or 1  # a digest has eight bytes
        edges = [(number << _BITS) // count for number in range(1, count)]
        digest = f"(hash(event_id) >> {64 - _BITS})::BIGINT"
        db.execute("CREATE TEMP TABLE shared_ids (digest BIGINT)")
        query, folder = f"SELECT {digest} AS digest FROM candidates", self._folder / "digest-partitions"
        for table in iter_partition_tables(db, query, key="digest", bounds=edges, folder=folder, name="digests"):
            db.execute(f"INSERT INTO shared_ids SELECT digest FROM {table} GROUP BY digest HAVING count(*) > 1")
        _number_repeated(db, "repeated_ids", "candidates", "event_id", f"{digest} IN (FROM shared_ids)")

    def _count(self) -> None:
        counted = f"SELECT DISTINCT {_KEY} FROM source WHERE {self._window} AND {self._is_translated}"
        domain = source_domain_sql(ITEM_ID, self._sources)
        query = f"SELECT {domain}, count(*) FROM ({counted}) GROUP BY ALL"
        self.source_event_counts.update(dict(self._connection.execute(query).fetchall()))
        if has_one_context_per_user(self._spec):
            ((users,),) = self._connection.execute(f"SELECT count(DISTINCT {USER_ID}) FROM ({counted})").fetchall()
            self.user_count += users


@dataclass(frozen=True)
class _Partition:
    """The candidates of a partition: those of its users; rows without a user are in the first partition.

    Attributes:
        edges: The first user of each partition but the first.
        number: Number of the partition.
    """

    edges: Sequence[Any]
    number: int

    @property
    def bounds(self) -> dict[str, Any]:
        """Parameters of the SQL: the first user, and the first one of the next partition."""
        first = {"first": self.edges[self.number - 1]} if self.number else {}
        return first | ({"next": self.edges[self.number]} if self.number < len(self.edges) else {})

    @property
    def rows_sql(self) -> str:
        """SQL of whether a row of ``candidates`` is in the partition."""
        return self._within(USER_ID, USER_ID, f"{USER_ID} IS NULL")

    @property
    def files_sql(self) -> str:
        """SQL of whether a row of ``candidate_files`` may hold rows of the partition."""
        return self._within("first_user", "last_user", "lacks_users")

    def _within(self, first_user: str, last_user: str, lacks_users: str) -> str:
        conditions = {"first": f"{last_user} >= $first", "next": f"{first_user} < $next"}
        condition = " AND ".join(conditions[name] for name in self.bounds) or "true"
        return condition if self.number else f"({condition} OR {lacks_users})"


def _number_repeated(connection: Any, name: str, rows: str, key: str, shared: str) -> None:
    """Create the table ``name``: the rank of each row that is not the first with its key, by ``filename, file_row_number``.

    Among rows with an equal key, the highest probability comes first.

    Args:
        connection: DuckDB connection.
        name: Name of the table.
        rows: Relation of the rows.
        key: Columns of the key.
        shared: SQL: whether another row has the key's digest. Only such rows are sorted.
    """
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE {name} AS
        SELECT filename, file_row_number,
            row_number() OVER (PARTITION BY {key} ORDER BY probability DESC, event_id, filename, file_row_number) AS place
        FROM {rows} WHERE {shared} QUALIFY place > 1"""
    )
