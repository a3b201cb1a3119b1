# SPDX-License-Identifier: Apache-2.0
"""The point-in-time join: for each spine row, the newest feature row that had happened and was known by then.

A feature row is visible to a spine row at time T if ``event <= T`` and ``created <= K``, where K is T itself, or a fixed
knowledge time, or the earlier of the two. Of the visible rows the one with the greatest (event, created) counts. One ASOF
join cannot say that: the latest row may not be known yet, and must not hide an older one that is. So the feature rows are
first reduced to those that can ever be an answer, each from the moment at which it becomes visible,
``seen = greatest(event, created)``:

* of all rows of an entity with the same ``seen``, the one with the greatest (event, created);
* of these, only those whose event is not older than that of any row seen before: an older row that becomes known late never
  replaces a newer one that is known already.

After that an ASOF join on ``seen`` is exact. Where no row is late (``created <= event`` everywhere), the second step falls
away. With a fixed K the rows created after K are left out; where T sets no limit, ``seen`` is the event's time. What every
spine row sees counts as seen at the earliest spine time: of an entity's history, one row is left of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalr_prod.feast_store.scan import quote

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from scalr_prod.feast_store.scan import Scan

__all__ = ["ROW", "SPINE", "TIME", "ViewJoin", "clocks_sql", "join_sql", "match", "tie_breakers", "withheld"]

#: The spine's table in the connection and its row number.
SPINE = "spine"
ROW = "__spine_row"
#: The spine's time in microseconds, whatever the resolution and type of its own column.
TIME = "__spine_time"

#: Where the table has this many times the spine's rows, rows of other entities are left out first: it costs a lookup a row.
_FEW = 8


@dataclass(frozen=True)
class ViewJoin:
    """One feature view's part in a join; column names are those of its table.

    Attributes:
        scan: Where its rows are.
        keys: (column, SQL of the spine's key, where the spine is called ``s``) of each join key.
        event: Column of the event's time.
        created: Column of the creation time, if there is one.
        features: (column, name in the result).
        ties: Columns that decide, in this order, between rows with both clocks equal.
        ttl_us: A row older than this at the spine's time counts as absent; 0: never.
        by_spine: Whether a row counts only from its creation time on.
        known_by_us: Rows created after this are left out, µs since 1970; None: none are.
    """

    scan: Scan
    keys: tuple[tuple[str, str], ...]
    event: str
    created: str | None
    features: tuple[tuple[str, str], ...]
    ties: tuple[str, ...] = ()
    ttl_us: int = 0
    by_spine: bool = True
    known_by_us: int | None = None


def match(connection: Any, view: ViewJoin, number: int) -> None:
    """Find each spine row's feature row: makes the table ``match_<number>`` (spine row, row id), without rows that find none.

    Args:
        connection: DuckDB connection that holds the spine as `SPINE`, with columns `ROW` and `TIME`.
        view: The feature view.
        number: Names the tables made here.
    """
    spine_rows, table_rows = (_count(connection, relation) for relation in (SPINE, view.scan.relation))
    _reduce(connection, view, number, few=spine_rows * _FEW < table_rows)
    connection.execute(
        f"CREATE TEMP TABLE match_{number} AS SELECT s.{ROW} AS spine_row, f.rid FROM {SPINE} s"
        f" ASOF JOIN reduced_{number} f ON {_asof_sql(view, 'seen')}"
    )
    connection.execute(f"DROP TABLE reduced_{number}")


def withheld(connection: Any, view: ViewJoin, number: int) -> int:
    """How many spine rows have no value only because of knowledge time: something had happened, but was created later.

    Args:
        connection: DuckDB connection in which `match` has been run for the view.
        view: The feature view.
        number: As for `match`.
    """
    if view.created is None or not view.by_spine:
        return 0
    if _count(connection, f"match_{number}") == _count(connection, SPINE):
        return 0
    event, created = clocks_sql(view.event, view.created)
    if not _exists(connection, f"SELECT 1 FROM {view.scan.relation} WHERE {created} > {event}"):
        return 0
    unmatched = f"SELECT s.* FROM {SPINE} s ANTI JOIN match_{number} m ON m.spine_row = s.{ROW}"
    keys = "".join(f"{quote(column)} AS k{i}, " for i, (column, _) in enumerate(view.keys))
    # Most rows are those of entities that found theirs: they are left out before the join sorts.
    asked = [f"{quote(column)} IN (SELECT {spine} FROM ({unmatched}) s)" for column, spine in view.keys]
    rows = f"SELECT {keys}{event} AS event FROM {view.scan.relation} WHERE {' AND '.join(asked) or 'true'}"
    return _count(connection, f"({unmatched}) s ASOF JOIN ({rows}) f ON {_asof_sql(view, 'event')}")


def tie_breakers(schema: pa.Schema, columns: Sequence[str]) -> tuple[str, ...]:
    """Those columns that are there and have an order: they decide between rows with both clocks equal."""
    import pyarrow as pa

    def ordered(kind: pa.DataType) -> bool:
        inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
        return not pa.types.is_nested(inner)

    return tuple(column for column in columns if column in schema.names and ordered(schema.field(column).type))


def clocks_sql(event: str, created: str | None) -> tuple[str, str]:
    """SQL of a row's event time and creation time, both µs since 1970. Without a creation time a row was created when it happened."""
    happened = _micros_sql(event)
    return happened, f"coalesce({_micros_sql(created)}, {happened})" if created else "0::BIGINT"


def _asof_sql(view: ViewJoin, clock: str) -> str:
    """The condition of an ASOF join of the spine ``s`` with rows ``f``, and the filter by age."""
    equal = [f"{spine} = f.k{i}" for i, (_, spine) in enumerate(view.keys)]
    fresh = f" WHERE f.event >= s.{TIME} - {view.ttl_us}" if view.ttl_us else ""
    return f"{' AND '.join([*equal, f's.{TIME} >= f.{clock}'])}{fresh}"


def join_sql(spine_columns: Sequence[str], views: Sequence[ViewJoin]) -> str:
    """The whole result, in spine order, once `match` has been run for each view (numbered from 0)."""
    selected = [f"s.{quote(column)}" for column in spine_columns]
    joins = []
    for number, view in enumerate(views):
        columns = _columns(view)
        payload = ", ".join(f"{quote(column)} AS c{i}" for i, column in enumerate(columns))
        selected += [f"v{number}.c{columns.index(column)} AS {quote(name)}" for column, name in view.features]
        if columns:
            joins.append(
                f" LEFT JOIN (SELECT m.spine_row, p.* EXCLUDE (rid) FROM match_{number} m"
                f" JOIN (SELECT {view.scan.row_id} AS rid, {payload} FROM {view.scan.relation}) p ON p.rid = m.rid) v{number}"
                f" ON v{number}.spine_row = s.{ROW}"
            )
    return f"SELECT {', '.join(selected)} FROM {SPINE} s{''.join(joins)} ORDER BY s.{ROW}"


def _rows_sql(view: ViewJoin, *, few: bool, ties: bool = False) -> str:
    """The rows that can matter to any spine row: keys, event, created, seen (all µs), row id; with ``ties``, values too."""
    event, created = clocks_sql(view.event, view.created)
    keys = [f"{quote(column)} AS k{i}" for i, (column, _) in enumerate(view.keys)]
    seen = f"greatest({event}, {created})" if view.created is not None and view.by_spine else event
    values = [f"{quote(column)} AS t{i}" for i, column in enumerate(view.ties)] if ties else []
    clocks = [f"{event} AS event", f"{created} AS created", f"{seen} AS seen"]
    selected = ", ".join([*keys, *values, *clocks, f"{view.scan.row_id} AS rid"])
    limits = [f"{seen} <= (SELECT max({TIME}) FROM {SPINE})"]
    if few:
        limits += [f"{quote(column)} IN (SELECT {spine} FROM {SPINE} s)" for column, spine in view.keys]
    if view.ttl_us:
        limits.append(f"{event} >= (SELECT min({TIME}) FROM {SPINE}) - {view.ttl_us}")
    if view.created and view.known_by_us is not None:
        limits.append(f"{created} <= {view.known_by_us}")
    return f"SELECT {selected} FROM {view.scan.relation} WHERE {' AND '.join(limits)}"


def _reduce(connection: Any, view: ViewJoin, number: int, *, few: bool) -> None:
    """Make ``reduced_<number>``: for each entity and ``seen``, the row that counts from then on.

    Of what every spine row sees, one row of each entity is left: found by its event's time alone, then among the few rows that share that.
    So what lies before the spine is read once, and is neither grouped by its times nor sorted.
    """
    rows = f"rows_{number}"
    connection.execute(f"CREATE TEMP TABLE {rows} AS {_rows_sql(view, few=few)}")
    late = view.created is not None and view.by_spine and _exists(connection, f"SELECT 1 FROM {rows} WHERE seen > event")
    keys = [f"k{i}" for i in range(len(view.keys))]
    listed = "".join(f"{key}, " for key in keys)
    by_key = f" GROUP BY {', '.join(keys)}" if keys else " HAVING count(*) > 0"
    partition = f"PARTITION BY {', '.join(keys)} " if keys else ""
    newest = f" QUALIFY event >= max(event) OVER ({partition}ORDER BY seen)" if late else ""
    since = f"(SELECT min({TIME}) FROM {SPINE})"
    same = " AND ".join([*(f"r.{key} = l.{key}" for key in keys), "r.event = l.event"])

    def seen_by_all(rows: str) -> str:
        last = f"SELECT {listed}max(event) AS event FROM {rows} WHERE seen <= {since}{by_key}"
        return f"SELECT r.* FROM {rows} r JOIN ({last}) l ON {same} WHERE r.seen <= {since}"

    of_each = "max(event) AS event, max(rid) AS rid, count(*) AS rows"
    connection.execute(
        f"CREATE TEMP TABLE reduced_{number} AS SELECT * FROM ("
        f"SELECT {listed}{since} AS seen, max(event) AS event, arg_max(rid, created) AS rid, arg_max(rows, created) AS rows"
        f" FROM (SELECT {listed}created, {of_each} FROM ({seen_by_all(rows)}) GROUP BY {listed}created){by_key}"
        f" UNION ALL SELECT {listed}seen, {of_each} FROM {rows} WHERE seen > {since} GROUP BY {listed}seen){newest}"
    )
    if _exists(connection, f"SELECT 1 FROM reduced_{number} WHERE rows > 1"):
        # Row ids depend on how the table's files lie: between rows with both clocks equal, the values decide. All of the view's
        # count, not only those that are asked for: any choice of features comes from one row, the one in the online store.
        order = ", ".join(["event", "created", *(f"t{i}" for i in range(len(view.ties))), "rid"])
        tied = f"({_rows_sql(view, few=few, ties=True)})"
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE reduced_{number} AS SELECT * FROM ("
            f"SELECT {listed}seen, max(event) AS event, arg_max(rid, ({order})) AS rid FROM (SELECT * REPLACE ({since} AS seen)"
            f" FROM ({seen_by_all(tied)}) UNION ALL FROM {tied} WHERE seen > {since}) GROUP BY {listed}seen){newest}"
        )
    connection.execute(f"DROP TABLE {rows}")


def _micros_sql(column: str) -> str:
    # The cast is for tables of others, with naive times or nanoseconds; for the lake's own it does nothing.
    return f"epoch_us(CAST({quote(column)} AS TIMESTAMPTZ))"


def _columns(view: ViewJoin) -> list[str]:
    return list(dict.fromkeys(column for column, _ in view.features))


def _count(connection: Any, relation: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {relation}").fetchall()[0][0])


def _exists(connection: Any, query: str) -> bool:
    return bool(connection.execute(f"SELECT EXISTS ({query})").fetchall()[0][0])
