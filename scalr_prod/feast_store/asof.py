# SPDX-License-Identifier: Apache-2.0
"""The point-in-time join: for each spine row, the newest feature row that had happened and was known by then.

A feature row is visible to a spine row at time T if ``event <= T`` and ``created <= K``, where K is T itself, or a fixed
knowledge time, or the earlier of the two. Of the visible rows the one with the greatest (event, created) counts. One ASOF
join cannot say that: the latest row may not be known yet, and must not hide an older one that is. So the feature rows are
first reduced to those that can ever be an answer, each from the moment at which it becomes visible,
``seen = greatest(event, created)``:

* only those whose event is not older than that of any row seen before, or at the same time: an older row that becomes known
  late never replaces a newer one that is known already;
* of those that every spine row sees, only each entity's newest;
* of these with the same ``seen``, the one with the greatest creation time.

After that an ASOF join on ``seen`` is exact. Where no row is late (``created <= event`` everywhere), ``seen`` is the event's time
and no row falls away. Rows of an entity with both ``seen`` and event equal are told apart after the join, and only those that
it has found. With a fixed K the rows created after K are left out; where T sets no limit, ``seen`` is the event's time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from scalr_prod.duck import literal, quote

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from scalr_prod.feast_store.scan import Scan

__all__ = ["ROW", "SPINE", "TIME", "ViewJoin", "clocks_sql", "fitted", "join_sql", "match", "tie_breakers", "withheld"]

#: The spine's table in the connection and its row number.
SPINE = "spine"
ROW = "__spine_row"
#: The spine's time in microseconds, whatever the resolution and type of its own column.
TIME = "__spine_time"

#: A row's number in a view that was narrowed.
_ROW_ID = "__row_id"

#: SQL of the earliest time that the spine asks about, µs.
_SINCE = f"(SELECT min({TIME}) FROM {SPINE})"

#: So many rows of a table of several files are held in the session, 40 bytes each and narrow features: each file is then read once for
#: what only finds rows.
_HELD = 1_000_000

#: Where the table has this many times the spine's rows, rows of other entities are left out first: it costs a lookup a row.
_FEW = 8

#: Features of so many bits together go through the join with the rows; wider ones are looked up by row id afterwards.
_CARRIED_BITS = 256


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
        few: The table has many rows beside the spine's: those of other entities are left out before the join.
        held: Keys, clocks and narrow features of the rows that can matter, where the session holds them: what finds a row reads these.
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
    few: bool = False
    held: Scan | None = None

    @property
    def narrow(self) -> Scan:
        """Where what finds a row looks."""
        return self.held or self.scan


def fitted(connection: Any, view: ViewJoin, number: int) -> ViewJoin:
    """The same view, of those rows alone that can matter to the spine.

    Their first key lies between the spine's least and greatest: a table that is sorted by that key (histories are) is then read where the
    spine's entities lie, and not as a whole. Of a table of several files, keys, clocks and narrow features are held in the session: a file
    costs time at each look, whatever is in it.

    Args:
        connection: DuckDB connection that holds the spine as `SPINE`.
        view: The feature view.
        number: Names the table made here.
    """
    spine_rows, table_rows = (_count(connection, relation) for relation in (SPINE, view.scan.relation))
    view = _between(connection, replace(view, few=spine_rows * _FEW < table_rows))
    return _hold(connection, view, number) if view.scan.files > 1 and table_rows <= _HELD else view


def _hold(connection: Any, view: ViewJoin, number: int) -> ViewJoin:
    """Read once what finds a row: a row is numbered there as in the files."""
    event, _ = clocks_sql(view.event, view.created)
    columns = dict.fromkeys([*(column for column, _ in view.keys), view.event, *([view.created] if view.created else [])])
    carried = [column for column, _ in zip(_columns(view), _carried(view), strict=False)]
    selected = ", ".join(map(quote, dict.fromkeys([*columns, *carried])))
    connection.execute(
        f"CREATE TEMP TABLE held_{number} AS SELECT {selected}, {view.scan.row_id} AS {_ROW_ID} FROM {view.scan.relation}"
        f" WHERE {_limits_sql(replace(view, known_by_us=None), event)}"
    )
    return replace(view, held=replace(view.scan, relation=f"held_{number}", row_id=_ROW_ID), few=False)


def _between(connection: Any, view: ViewJoin) -> ViewJoin:
    """The same view, of those rows alone whose first key lies between the spine's least and greatest."""
    if not view.keys:
        return view
    import pyarrow as pa

    column, spine = view.keys[0]
    if pa.types.is_string(kind := view.scan.schema.field(column).type) or pa.types.is_large_string(kind):
        spine = f"CAST({spine} AS VARCHAR)"  # a spine's categories have an order of their own
    least, most = connection.execute(f"SELECT min({spine}), max({spine}) FROM {SPINE} s").fetchall()[0]
    if not isinstance(least, int | str) or "\0" in f"{least}{most}":  # no keys, or such as cannot be said in SQL
        return view
    low, high = literal(least), literal(most)
    relation = (
        f"(SELECT *, {view.scan.row_id} AS {_ROW_ID} FROM {view.scan.relation} WHERE {quote(column)} BETWEEN {low} AND {high})"
    )
    return replace(view, scan=replace(view.scan, relation=relation, row_id=_ROW_ID))


def match(connection: Any, view: ViewJoin, number: int) -> bool:
    """Find each spine row's feature row: makes the table ``match_<number>``, without spine rows that find none.

    Its columns: ``spine_row``, ``rid``, and the features themselves (``c0``, …) where they are narrow.

    Args:
        connection: DuckDB connection that holds the spine as `SPINE`, with columns `ROW` and `TIME`.
        view: The feature view.
        number: Names the tables made here.

    Returns:
        Whether any row became visible only after it had happened.
    """
    late = view.created is not None and view.by_spine and _any_late(connection, view)
    rows = every = _rows_sql(view, late=late)
    keys, carried = [f"k{i}" for i in range(len(view.keys))], _carried(view)
    # Without late rows both clocks are one, and each column more makes the join's sort slower.
    group = [*keys, "seen", *(["event"] if late else [])]
    partition = f"PARTITION BY {', '.join(keys)} " if keys else ""
    newest = f" QUALIFY event >= max(event) OVER ({partition}ORDER BY seen)" if late else ""
    if _mostly_before(connection, view):
        rows = _last_before_sql(every, keys)
    found = ", ".join(f"f.{name}" for name in [*group, "rid", *carried])
    connection.execute(
        f"CREATE TEMP TABLE match_{number} AS SELECT s.{ROW} AS spine_row, {found} FROM {SPINE} s"
        f" ASOF JOIN (SELECT * FROM ({rows}){newest}) f ON {_asof_sql(view, 'seen')}"
    )
    same = " AND ".join(f"r.{name} = m.{name}" for name in group)
    if _exists(connection, f"SELECT 1 FROM ({every}) r JOIN match_{number} m ON {same} WHERE r.rid <> m.rid"):
        # Row ids depend on how the table's files lie: between rows with both clocks equal, the values decide. All of the view's
        # count, not only those that are asked for: any choice of features comes from one row, the one in the online store.
        values = [f"t{i}" for i in range(len(view.ties))]
        kept = ", ".join(f"{name} := {name}" for name in ["rid", *carried])
        best = (
            f"SELECT {', '.join(group)}, arg_max(struct_pack({kept}), ({', '.join(['created', *values, 'rid'])})) AS best"
            f" FROM ({_rows_sql(view, late=late, ties=True)}) r SEMI JOIN match_{number} m ON {same} GROUP BY ALL"
        )
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE match_{number} AS SELECT m.spine_row, unnest(r.best)"
            f" FROM match_{number} m JOIN ({best}) r ON {same}"
        )
    return late


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
    event, _ = clocks_sql(view.event, view.created)
    unmatched = f"SELECT s.* FROM {SPINE} s ANTI JOIN match_{number} m ON m.spine_row = s.{ROW}"
    keys = "".join(f"{quote(column)} AS k{i}, " for i, (column, _) in enumerate(view.keys))
    # Most rows are those of entities that found theirs: they are left out before the join sorts.
    asked = [f"{quote(column)} IN (SELECT {spine} FROM ({unmatched}) s)" for column, spine in view.keys]
    rows = f"SELECT {keys}{event} AS event FROM {view.narrow.relation} WHERE {' AND '.join(asked) or 'true'}"
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
        selected += [f"v{number}.c{columns.index(column)} AS {quote(name)}" for column, name in view.features]
        found = f"match_{number}"
        if columns and not _carried(view):
            payload = ", ".join(f"{quote(column)} AS c{i}" for i, column in enumerate(columns))
            found = (
                f"(SELECT m.spine_row, p.* EXCLUDE (rid) FROM match_{number} m"
                f" JOIN (SELECT {view.scan.row_id} AS rid, {payload} FROM {view.scan.relation}) p ON p.rid = m.rid)"
            )
        if columns:
            joins.append(f" LEFT JOIN {found} v{number} ON v{number}.spine_row = s.{ROW}")
    return f"SELECT {', '.join(selected)} FROM {SPINE} s{''.join(joins)} ORDER BY s.{ROW}"


def _any_late(connection: Any, view: ViewJoin) -> bool:
    """Whether a row that can matter to a spine row was created after it had happened."""
    event, created = clocks_sql(view.event, view.created)
    return _exists(connection, f"SELECT 1 FROM {view.narrow.relation} WHERE {created} > {event} AND {_limits_sql(view, event)}")


def _rows_sql(view: ViewJoin, *, late: bool, ties: bool = False) -> str:
    """The rows that can matter to any spine row: keys, event, created, seen (all µs), row id, narrow features; and what breaks ties."""
    scan, (event, created) = view.scan if ties else view.narrow, clocks_sql(view.event, view.created)
    seen = f"greatest({event}, {created})" if late else event
    selected = [
        *(f"{quote(column)} AS k{i}" for i, (column, _) in enumerate(view.keys)),
        *(f"{quote(column)} AS t{i}" for i, column in enumerate(view.ties if ties else ())),
        *(f"{quote(column)} AS {name}" for column, name in zip(_columns(view), _carried(view), strict=False)),
        f"{event} AS event, {created} AS created, {seen} AS seen, {scan.row_id} AS rid",
    ]
    return f"SELECT {', '.join(selected)} FROM {scan.relation} WHERE {_limits_sql(view, seen)}"


def _mostly_before(connection: Any, view: ViewJoin) -> bool:
    """Whether most rows had happened before anything that the spine asks about, as where a day is joined with years."""
    event, _ = clocks_sql(view.event, view.created)
    asked = f"SELECT count(*), count(*) FILTER (WHERE {event} <= {_SINCE}) FROM {view.narrow.relation}"
    rows, before = connection.execute(asked).fetchall()[0]
    return bool(2 * before > rows)


def _last_before_sql(rows: str, keys: Sequence[str]) -> str:
    """The same rows, but of those that every spine row sees only each entity's newest, which alone can be an answer.

    They are found by their event's time, and are neither sorted nor carried any further.
    """
    listed, by_key = ("".join(f"{key}, " for key in keys), f" GROUP BY {', '.join(keys)}") if keys else ("", "")
    same = " AND ".join([*(f"r.{key} = l.{key}" for key in keys), "r.event = l.event"])
    last = f"SELECT {listed}max(event) AS event FROM ({rows}) WHERE seen <= {_SINCE}{by_key}"
    return (
        f"SELECT r.* FROM ({rows}) r JOIN ({last}) l ON {same} WHERE r.seen <= {_SINCE}"
        f" UNION ALL SELECT * FROM ({rows}) WHERE seen > {_SINCE}"
    )


def _limits_sql(view: ViewJoin, clock: str) -> str:
    """Which rows can matter to any spine row, by when they had happened or could be seen."""
    event, created = clocks_sql(view.event, view.created)
    limits = [f"{clock} <= (SELECT max({TIME}) FROM {SPINE})"]
    if view.few:
        limits += [f"{quote(column)} IN (SELECT {spine} FROM {SPINE} s)" for column, spine in view.keys]
    if view.ttl_us:
        limits.append(f"{event} >= (SELECT min({TIME}) FROM {SPINE}) - {view.ttl_us}")
    if view.created and view.known_by_us is not None:
        limits.append(f"{created} <= {view.known_by_us}")
    return " AND ".join(limits)


def _carried(view: ViewJoin) -> list[str]:
    """The names of the features in ``match_<number>``: all of them, if they are narrow; else none, and they are looked up by row id."""
    import pyarrow as pa

    kinds = [view.scan.schema.field(column).type for column in _columns(view)]
    if not all(pa.types.is_primitive(kind) for kind in kinds) or sum(kind.bit_width for kind in kinds) > _CARRIED_BITS:
        return []
    return [f"c{i}" for i in range(len(kinds))]


def _micros_sql(column: str) -> str:
    # The cast is for tables of others, with naive times or nanoseconds; for the lake's own it does nothing.
    return f"epoch_us(CAST({quote(column)} AS TIMESTAMPTZ))"


def _columns(view: ViewJoin) -> list[str]:
    return list(dict.fromkeys(column for column, _ in view.features))


def _count(connection: Any, relation: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {relation}").fetchall()[0][0])


def _exists(connection: Any, query: str) -> bool:
    return bool(connection.execute(f"SELECT EXISTS ({query})").fetchall()[0][0])
