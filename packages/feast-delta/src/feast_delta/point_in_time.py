# SPDX-License-Identifier: Apache-2.0
"""Point-in-time join: for each spine row, the newest feature row that had happened and was known by then.

A feature row is visible to a spine row at time T if ``event <= T`` and ``created <= K``. K is T itself, a fixed knowledge time, or the
earlier of the two. Among visible rows the greatest (event, created) wins. A plain ASOF join cannot express this: the latest row may not be
known yet, and must not hide an older row that is known. So feature rows are first reduced to those that can be an answer. Each counts from
the moment it becomes visible, ``seen = greatest(event, created)``:

* drop a row if one with a newer event became visible before it or at the same time: a late older row must not replace a newer row that is
  already known;
* of the rows that every spine row sees, keep each entity's newest;
* of rows with equal ``seen``, keep the one with the greatest creation time.

An ASOF join on ``seen`` is then exact. If no row is late (``created <= event`` everywhere), ``seen`` is the event time and no row is
dropped. Where a row that the join found ties with others of its entity on ``seen`` and event, the winner is chosen after the join. If K is
a fixed time, rows created after it are filtered out first, and ``seen`` is the event time. For strictly earlier
features, pass the label's time less 1 µs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from feast_delta.sessions import quote_identifier, quote_literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from duckdb import DuckDBPyConnection

    from feast_delta.scan import Scan


#: The spine's table in the connection, and its row number column.
SPINE_TABLE = "spine"
SPINE_ROW = "__spine_row"
#: The spine's time in microseconds, whatever the type of its own column.
SPINE_TIME = "__spine_time"

#: Row id in a pruned view.
_ROW_ID = "__row_id"

#: SQL of the spine's earliest time, µs.
_SINCE = f"(SELECT min({SPINE_TIME}) FROM {SPINE_TABLE})"

#: Buffer at most this many rows of a multi-file table in the session (40 bytes each, plus narrow features), so that the lookup reads
#: each file once.
_HELD = 1_000_000

#: If the table has at least this many times the spine's rows, drop rows of other entities first, at one hash lookup per row.
_SELECTIVE = 8

#: Features of up to this many bits per row go through the join; wider ones are fetched by row id afterwards.
_CARRIED_BITS = 256


class KeyRange(NamedTuple):
    """The rows whose key lies between two values, both included."""

    column: str
    low: int | str
    high: int | str

    @property
    def condition_sql(self) -> str:
        """SQL condition of these rows."""
        return f"{quote_identifier(self.column)} BETWEEN {quote_literal(self.low)} AND {quote_literal(self.high)}"


@dataclass(frozen=True)
class ViewJoin:
    """One feature view in a join; column names are those of its table.

    Attributes:
        scan: Its rows.
        keys: (column, SQL of the spine's key; the spine's alias is ``s``) of each join key.
        event: Column of the event's time.
        created: Column of the creation time, if there is one.
        features: (column, name in the result).
        tie_breakers: Columns that decide, in this order, between rows with equal event and creation times.
        ttl_us: Rows older than this at the spine's time count as absent; 0: no limit.
        known_by_spine_time: Whether a row is visible only from its creation time on.
        known_by_micros: Leave out rows created after this, µs since 1970; None: no limit.
        filter_entities: The table has many more rows than the spine: filter out other entities before the join.
        buffered: Keys, timestamps and narrow features of the relevant rows, if buffered in the session; the lookup then reads these.
    """

    scan: Scan
    keys: tuple[tuple[str, str], ...]
    event: str
    created: str | None
    features: tuple[tuple[str, str], ...]
    tie_breakers: tuple[str, ...] = ()
    ttl_us: int = 0
    known_by_spine_time: bool = True
    known_by_micros: int | None = None
    filter_entities: bool = False
    buffered: Scan | None = None

    @property
    def lookup(self) -> Scan:
        """The scan that rows are looked up in."""
        return self.buffered or self.scan


def prune(connection: DuckDBPyConnection, view: ViewJoin, number: int) -> ViewJoin:
    """Restrict a view to the rows that can match the spine.

    Keep rows whose first key lies in the spine's range: of a table sorted by that key (as histories are), only that range is then read.
    Buffer keys, timestamps and narrow features of several files in the session, because opening a file costs time at each query.

    Args:
        connection: DuckDB connection that holds the spine as `SPINE_TABLE`.
        view: The feature view.
        number: Suffix of the table created here; one of an earlier call is replaced.
    """
    spine_rows, table_rows = (_count(connection, relation) for relation in (SPINE_TABLE, view.scan.relation))
    if not spine_rows:
        return _restrict(view, "false")
    view = replace(view, filter_entities=spine_rows * _SELECTIVE < table_rows)
    if view.keys:
        column, spine = view.keys[0]
        keys = spine_key_range(connection, column, view.scan.schema.field(column).type, spine)
        view = view if keys is None else _restrict(view, keys.condition_sql)
    return _buffer(connection, view, number) if view.scan.files > 1 and table_rows <= _HELD else view


def _buffer(connection: DuckDBPyConnection, view: ViewJoin, number: int) -> ViewJoin:
    """Copy the lookup columns into a temporary table, with the row ids of the files."""
    event, _ = timestamps_sql(view.event, view.created)
    columns = dict.fromkeys([*(column for column, _ in view.keys), view.event, *([view.created] if view.created else [])])
    carried = [column for column, _ in zip(_columns(view), _carried(view), strict=False)]
    selected = ", ".join(map(quote_identifier, dict.fromkeys([*columns, *carried])))
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE held_{number} AS SELECT {selected}, {view.scan.row_id} AS {_ROW_ID} FROM {view.scan.relation}"
        f" WHERE {_limits_sql(replace(view, known_by_micros=None), event)}"
    )
    return replace(view, buffered=replace(view.scan, relation=f"held_{number}", row_id=_ROW_ID), filter_entities=False)


def spine_key_range(connection: DuckDBPyConnection, column: str, kind: pa.DataType, spine: str) -> KeyRange | None:
    """Return the range of a key in the spine; None if the spine is empty, or SQL literals cannot hold the keys.

    Args:
        connection: DuckDB connection that holds the spine as `SPINE_TABLE`.
        column: The key's column in the view's table.
        kind: Its type.
        spine: SQL of the spine's key; the spine's alias is ``s``.
    """
    import pyarrow as pa

    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        spine = f"CAST({spine} AS VARCHAR)"  # categorical columns sort by category, not by value
    least, most = connection.execute(f"SELECT min({spine}), max({spine}) FROM {SPINE_TABLE} s").fetchall()[0]
    return KeyRange(column, least, most) if isinstance(least, int | str) and "\0" not in f"{least}{most}" else None


def _restrict(view: ViewJoin, condition: str) -> ViewJoin:
    """Restrict a view to rows that meet a condition."""
    relation = f"(SELECT *, {view.scan.row_id} AS {_ROW_ID} FROM {view.scan.relation} WHERE {condition})"
    return replace(view, scan=replace(view.scan, relation=relation, row_id=_ROW_ID))


def match_rows(connection: DuckDBPyConnection, view: ViewJoin, number: int) -> bool:
    """Find the feature row of each spine row, and create the table ``match_<number>``; spine rows without one are absent.

    Its columns: ``spine_row``, ``rid``, and the features themselves (``c0``, …) where they are narrow.

    Args:
        connection: DuckDB connection that holds the spine as `SPINE_TABLE`, with columns `SPINE_ROW` and `SPINE_TIME`.
        view: The feature view.
        number: Suffix of the tables created here; those of an earlier call are replaced.

    Returns:
        Whether any row became visible later than its event time.
    """
    late = view.created is not None and view.known_by_spine_time and _any_late(connection, view)
    every = _rows_sql(view, late=late)
    rows = _last_before_sql(every, _key_names(view)) if _mostly_before(connection, view) else every
    match = f"match_{number}"
    connection.execute(f"CREATE OR REPLACE TEMP TABLE {match} AS {_nearest_sql(view, rows, late=late)}")
    if _exists(connection, f"SELECT 1 FROM ({every}) r JOIN {match} m ON {_same_sql(view, late=late)} WHERE r.rid <> m.rid"):
        connection.execute(f"CREATE OR REPLACE TEMP TABLE {match} AS {_decide_ties_sql(view, match, late=late)}")
    return late


def match_query(view: ViewJoin, number: int) -> list[str]:
    """Return common table expressions, of which the last is the table that `match_rows` creates.

    They take no shortcuts, so they need to know nothing of the rows beforehand, and give the same result more slowly.

    Args:
        view: The feature view.
        number: As for `match_rows`.
    """
    late = view.created is not None and view.known_by_spine_time
    nearest = _nearest_sql(view, _rows_sql(view, late=late), late=late)
    return [
        f"nearest_{number} AS ({nearest})",
        f"match_{number} AS ({_decide_ties_sql(view, f'nearest_{number}', late=late)})",
    ]


def count_not_yet_known(connection: DuckDBPyConnection, view: ViewJoin, number: int) -> int:
    """Count the spine rows without a value whose event had happened but was created later.

    Args:
        connection: DuckDB connection in which `match_rows` has run for the view.
        view: The feature view.
        number: As for `match_rows`.
    """
    if view.created is None or not view.known_by_spine_time:
        return 0
    if _count(connection, f"match_{number}") == _count(connection, SPINE_TABLE):
        return 0
    event, _ = timestamps_sql(view.event, view.created)
    unmatched = f"SELECT s.* FROM {SPINE_TABLE} s ANTI JOIN match_{number} m ON m.spine_row = s.{SPINE_ROW}"
    keys = "".join(f"{quote_identifier(column)} AS k{i}, " for i, (column, _) in enumerate(view.keys))
    # Most rows belong to entities with a match; filter them out before the join sorts.
    conditions = [f"{quote_identifier(column)} IN (SELECT {spine} FROM ({unmatched}) s)" for column, spine in view.keys]
    rows = f"SELECT {keys}{event} AS event FROM {view.lookup.relation} WHERE {' AND '.join(conditions) or 'true'}"
    return _count(connection, f"({unmatched}) s ASOF JOIN ({rows}) f ON {_asof_sql(view, 'event')}")


def _key_names(view: ViewJoin) -> list[str]:
    return [f"k{i}" for i in range(len(view.keys))]


def _moment_names(view: ViewJoin, *, late: bool) -> list[str]:
    """Return the columns that rows have in common which tie."""
    # Without late rows event and seen are equal, and each extra column slows the join's sort.
    return [*_key_names(view), "seen", *(["event"] if late else [])]


def _same_sql(view: ViewJoin, *, late: bool) -> str:
    return " AND ".join(f"r.{name} = m.{name}" for name in _moment_names(view, late=late))


def _nearest_sql(view: ViewJoin, rows: str, *, late: bool) -> str:
    """Select a row of ``rows`` for each spine row that sees any; which of several with the same times is left open."""
    keys = _key_names(view)
    partition = f"PARTITION BY {', '.join(keys)} " if keys else ""
    newest = f" QUALIFY event >= max(event) OVER ({partition}ORDER BY seen)" if late else ""
    found = ", ".join(f"f.{name}" for name in [*_moment_names(view, late=late), "rid", *_carried(view)])
    return (
        f"SELECT s.{SPINE_ROW} AS spine_row, {found} FROM {SPINE_TABLE} s"
        f" ASOF JOIN (SELECT * FROM ({rows}){newest}) f ON {_asof_sql(view, 'seen')}"
    )


def _decide_ties_sql(view: ViewJoin, match: str, *, late: bool) -> str:
    """Select the rows of ``match`` again, with the winner of those that have the same times.

    Row ids depend on the file layout, so values decide. All features of the view count, not only the requested ones: any selection of
    features then comes from one row, the one in the online store.
    """
    group, same = ", ".join(_moment_names(view, late=late)), _same_sql(view, late=late)
    kept = ", ".join(f"{name} := {name}" for name in ["rid", *_carried(view)])
    order = ", ".join(["created", *(f"t{i}" for i in range(len(view.tie_breakers))), "rid"])
    best = (
        f"SELECT {group}, arg_max(struct_pack({kept}), ({order})) AS best"
        f" FROM ({_rows_sql(view, late=late, ties=True)}) r SEMI JOIN {match} m ON {same} GROUP BY ALL"
    )
    return f"SELECT m.spine_row, unnest(r.best) FROM {match} m JOIN ({best}) r ON {same}"


def tie_breakers(schema: pa.Schema, columns: Sequence[str]) -> tuple[str, ...]:
    """Return the orderable columns of the schema, which decide between rows with equal timestamps."""
    import pyarrow as pa

    def ordered(kind: pa.DataType) -> bool:
        inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
        return not pa.types.is_nested(inner)

    return tuple(column for column in columns if column in schema.names and ordered(schema.field(column).type))


def timestamps_sql(event: str, created: str | None) -> tuple[str, str]:
    """Return SQL of a row's event and creation time, both µs since 1970.

    A creation time of null counts as the event time; without a column for it, it is 0.
    """
    happened = _micros_sql(event)
    return happened, f"coalesce({_micros_sql(created)}, {happened})" if created else "0::BIGINT"


def _asof_sql(view: ViewJoin, clock: str) -> str:
    """Return the ASOF join condition of spine ``s`` and rows ``f``, with the TTL filter."""
    equal = [f"{spine} = f.k{i}" for i, (_, spine) in enumerate(view.keys)]
    fresh = f" WHERE f.event >= s.{SPINE_TIME} - {view.ttl_us}" if view.ttl_us else ""
    return f"{' AND '.join([*equal, f's.{SPINE_TIME} >= f.{clock}'])}{fresh}"


def join_sql(spine_columns: Sequence[str], views: Sequence[ViewJoin]) -> str:
    """Return the query of the full result in spine order.

    It reads the table ``match_<number>`` of each view, numbered from 0: see `match_rows` and `match_query`.
    """
    selected = [f"s.{quote_identifier(column)}" for column in spine_columns]
    joins = []
    for number, view in enumerate(views):
        columns = _columns(view)
        selected += [f"v{number}.c{columns.index(column)} AS {quote_identifier(name)}" for column, name in view.features]
        found = f"match_{number}"
        if columns and not _carried(view):
            payload = ", ".join(f"{quote_identifier(column)} AS c{i}" for i, column in enumerate(columns))
            found = (
                f"(SELECT m.spine_row, p.* EXCLUDE (rid) FROM match_{number} m"
                f" JOIN (SELECT {view.scan.row_id} AS rid, {payload} FROM {view.scan.relation}) p ON p.rid = m.rid)"
            )
        if columns:
            joins.append(f" LEFT JOIN {found} v{number} ON v{number}.spine_row = s.{SPINE_ROW}")
    return f"SELECT {', '.join(selected)} FROM {SPINE_TABLE} s{''.join(joins)} ORDER BY s.{SPINE_ROW}"


def _any_late(connection: DuckDBPyConnection, view: ViewJoin) -> bool:
    """Whether a relevant row was created after its event time."""
    event, created = timestamps_sql(view.event, view.created)
    return _exists(connection, f"SELECT 1 FROM {view.lookup.relation} WHERE {created} > {event} AND {_limits_sql(view, event)}")


def _rows_sql(view: ViewJoin, *, late: bool, ties: bool = False) -> str:
    """Select the relevant rows: keys, event, created, seen (all µs), row id, narrow features; optionally the tie breakers."""
    scan, (event, created) = view.scan if ties else view.lookup, timestamps_sql(view.event, view.created)
    seen = f"greatest({event}, {created})" if late else event
    selected = [
        *(f"{quote_identifier(column)} AS k{i}" for i, (column, _) in enumerate(view.keys)),
        *(f"{quote_identifier(column)} AS t{i}" for i, column in enumerate(view.tie_breakers if ties else ())),
        *(f"{quote_identifier(column)} AS {name}" for column, name in zip(_columns(view), _carried(view), strict=False)),
        f"{event} AS event, {created} AS created, {seen} AS seen, {scan.row_id} AS rid",
    ]
    return f"SELECT {', '.join(selected)} FROM {scan.relation} WHERE {_limits_sql(view, seen)}"


def _mostly_before(connection: DuckDBPyConnection, view: ViewJoin) -> bool:
    """Whether most rows happened before the spine's earliest time, as when a day is joined with years."""
    event, _ = timestamps_sql(view.event, view.created)
    query = f"SELECT count(*), count(*) FILTER (WHERE {event} <= {_SINCE}) FROM {view.lookup.relation}"
    rows, before = connection.execute(query).fetchall()[0]
    return bool(2 * before > rows)


def _last_before_sql(rows: str, keys: Sequence[str]) -> str:
    """Reduce the rows that every spine row sees to each entity's newest; only that one can match.

    An aggregate finds them by event time, so that the older rows are neither sorted nor joined.
    """
    listed, by_key = ("".join(f"{key}, " for key in keys), f" GROUP BY {', '.join(keys)}") if keys else ("", "")
    same = " AND ".join([*(f"r.{key} = l.{key}" for key in keys), "r.event = l.event"])
    last = f"SELECT {listed}max(event) AS event FROM ({rows}) WHERE seen <= {_SINCE}{by_key}"
    return (
        f"SELECT r.* FROM ({rows}) r JOIN ({last}) l ON {same} WHERE r.seen <= {_SINCE}"
        f" UNION ALL SELECT * FROM ({rows}) WHERE seen > {_SINCE}"
    )


def _limits_sql(view: ViewJoin, clock: str) -> str:
    """Return the SQL filter of the rows that can match any spine row."""
    event, created = timestamps_sql(view.event, view.created)
    limits = [f"{clock} <= (SELECT max({SPINE_TIME}) FROM {SPINE_TABLE})"]
    if view.filter_entities:
        limits += [f"{quote_identifier(column)} IN (SELECT {spine} FROM {SPINE_TABLE} s)" for column, spine in view.keys]
    if view.ttl_us:
        limits.append(f"{event} >= (SELECT min({SPINE_TIME}) FROM {SPINE_TABLE}) - {view.ttl_us}")
    if view.created and view.known_by_micros is not None:
        limits.append(f"{created} <= {view.known_by_micros}")
    return " AND ".join(limits)


def _carried(view: ViewJoin) -> list[str]:
    """Return the names of the features in ``match_<number>``: all if they are narrow, else none (they are fetched by row id)."""
    import pyarrow as pa

    kinds = [view.scan.schema.field(column).type for column in _columns(view)]
    if not all(pa.types.is_primitive(kind) for kind in kinds) or sum(kind.bit_width for kind in kinds) > _CARRIED_BITS:
        return []
    return [f"c{i}" for i in range(len(kinds))]


def _micros_sql(column: str) -> str:
    # The cast handles external tables with naive times or nanoseconds; it is a no-op for Delta's timestamps in UTC.
    return f"epoch_us(CAST({quote_identifier(column)} AS TIMESTAMPTZ))"


def _columns(view: ViewJoin) -> list[str]:
    return list(dict.fromkeys(column for column, _ in view.features))


def _count(connection: DuckDBPyConnection, relation: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {relation}").fetchall()[0][0])


def _exists(connection: DuckDBPyConnection, query: str) -> bool:
    return bool(connection.execute(f"SELECT EXISTS ({query})").fetchall()[0][0])
