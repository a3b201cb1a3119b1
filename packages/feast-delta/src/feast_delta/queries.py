# SPDX-License-Identifier: Apache-2.0
"""DuckDB queries over Feast's views and sources: which table, columns and rows to read."""

from __future__ import annotations

from calendar import timegm
from dataclasses import dataclass
from typing import TYPE_CHECKING

from feast.data_format import DeltaFormat
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.offline_stores.file_source import FileSource
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.utils import _get_requested_feature_views_to_features_dict

from feast_delta.columns import is_hidden_until_created, source_columns
from feast_delta.delta_log import (
    UNBOUNDED,
    arrow_schema,
    file_time_bounds,
    files_in_key_range,
    files_in_time_range,
    row_count_by_file,
)
from feast_delta.errors import DeltaStoreError
from feast_delta.point_in_time import ViewJoin, spine_key_range, tie_breakers, timestamps_sql
from feast_delta.scan import Scan, open_delta_table, resolve_path, scan_delta, scan_parquet
from feast_delta.sessions import quote_identifier
from feast_delta.spines import EVENT_TIMESTAMP, key_sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from feast.data_source import DataSource
    from feast.feature_view import FeatureView
    from feast.infra.registry.base_registry import BaseRegistry
    from feast.repo_config import RepoConfig

    from feast_delta.point_in_time import KeyRange


@dataclass(frozen=True)
class RowFilter:
    """Filter of a source's rows: ``start <= event <= end`` and ``created <= known_by``.

    Attributes:
        event: Column of the event time.
        created: Column of the creation time; None: creation times do not count.
        start_us: µs since 1970; None: no limit.
        end_us: µs since 1970; None: no limit.
        known_by_micros: µs since 1970; None: no limit.
    """

    event: str
    created: str | None = None
    start_us: int | None = None
    end_us: int | None = None
    known_by_micros: int | None = None

    def where_sql(self, *conditions: str) -> str:
        """Return the WHERE clause, with further conditions; empty without any."""
        conditions = (*self._conditions(), *conditions)
        return f" WHERE {' AND '.join(conditions)}" if conditions else ""

    def since_sql(self, start_us: int) -> str:
        """Return the condition that a row happened at this time or later."""
        return f"{self._happened} >= make_timestamptz({start_us})"

    @property
    def _happened(self) -> str:
        # The cast handles external tables with naive times or nanoseconds; it is a no-op for Delta's timestamps in UTC.
        return f"CAST({quote_identifier(self.event)} AS TIMESTAMPTZ)"

    def _conditions(self) -> Iterator[str]:
        if self.start_us is not None:
            yield self.since_sql(self.start_us)
        if self.end_us is not None:
            yield f"{self._happened} <= make_timestamptz({self.end_us})"
        if self.created and self.known_by_micros is not None:
            created = f"coalesce(CAST({quote_identifier(self.created)} AS TIMESTAMPTZ), {self._happened})"
            yield f"{created} <= make_timestamptz({self.known_by_micros})"


@dataclass(frozen=True)
class JoinOptions:
    """How feature views are joined to a spine.

    Attributes:
        full_names: Name features ``view__feature``.
        force_created: A row is visible only from its creation time on, whatever the tags and settings say.
        created_until_us: Leave out rows created after this, µs since 1970; None: no limit.
        whole_spine: The session holds the whole spine, so files without any of its keys need not be opened.
    """

    full_names: bool
    force_created: bool = False
    created_until_us: int | None = None
    whole_spine: bool = True


@dataclass(frozen=True)
class EntitySubset:
    """Entities whose latest rows are read.

    Attributes:
        keys: Their join keys.
        recent_us: Rows from this time on are searched first, µs since 1970; older rows are not read if every entity has one.
            None: all rows are searched at once.
    """

    keys: pa.Table
    recent_us: int | None = None


def requested_features(
    feature_views: Sequence[FeatureView], feature_refs: list[str], project: str, registry: BaseRegistry
) -> dict[FeatureView, list[str]]:
    """Return the requested features of each view, in the order of the references."""
    odfvs = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
    by_view, _ = _get_requested_feature_views_to_features_dict(feature_refs, list(feature_views), odfvs)
    return {view: list(dict.fromkeys(names)) for view, names in by_view.items()}


def join_keys(view: FeatureView) -> dict[str, str]:
    """Return a view's join keys → the spine columns that they are joined on."""
    names = [column.name for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]
    return {name: view.projection.join_key_map.get(name, name) for name in names}


def plan_view_join(
    connection: DuckDBPyConnection,
    config: RepoConfig,
    view: FeatureView,
    names: Sequence[str],
    spine: pa.Schema,
    options: JoinOptions,
    *,
    number: int,
) -> ViewJoin:
    """Describe how to join a feature view to a spine, point in time.

    Args:
        connection: The DuckDB connection.
        config: Feast's settings.
        view: The view.
        names: The requested features.
        spine: The spine's schema.
        options: How to join it.
        number: Suffix of the objects created in the connection.

    Raises:
        DeltaStoreError: The table cannot be read or lacks a column, or the spine lacks a key.
    """
    source, columns = view.batch_source, source_columns(view.batch_source)
    keys = {columns.column_name(key): spine_key for key, spine_key in join_keys(view).items()}
    needed = [*keys, *columns.timestamp_columns, *map(columns.column_name, names)]
    features = [columns.column_name(feature.name) for feature in view.features]

    def spine_key(column: str, schema: pa.Schema) -> str:
        return key_sql(spine, keys[column], schema.field(column).type, view.name)

    def spine_range(schema: pa.Schema) -> KeyRange | None:
        column = next(iter(keys), None)
        if column is None or column not in schema.names:
            return None
        return spine_key_range(connection, column, schema.field(column).type, spine_key(column, schema))

    alias = f"source_{number}"
    within = ReadRange(keys=spine_range if options.whole_spine else None)
    scan = open_source(connection, config, source, alias, needed, optional_columns=features, within=within)
    prefix = f"{view.projection.name_to_use()}__" if options.full_names else ""
    limit_us = earliest(known_by_micros(config, source, view), options.created_until_us)
    limited = is_hidden_until_created(view.name, view.tags, source.tags, default=config.offline_store.knowledge_time)
    return ViewJoin(
        scan=scan,
        keys=tuple((column, spine_key(column, scan.schema)) for column in keys),
        event=columns.event,
        created=columns.created,
        features=tuple((columns.column_name(name), f"{prefix}{name}") for name in names),
        tie_breakers=tie_breakers(scan.schema, features),
        ttl_us=round(view.ttl.total_seconds() * 1_000_000) if view.ttl else 0,
        known_by_spine_time=options.force_created or (limited and limit_us is None),
        known_by_micros=limit_us,
    )


def known_by_micros(config: RepoConfig, source: DataSource, view: FeatureView | None = None) -> int | None:
    """Return the fixed knowledge time of the settings in µs; None if unset, or if a tag says that creation times are load times."""
    known_by = optional_micros(config.offline_store.known_by)
    name, tags = (view.name, view.tags) if view else (source.name, None)
    if known_by is None or not is_hidden_until_created(name, tags, source.tags, default="created"):
        return None
    return known_by


def earliest(*moments: int | None) -> int | None:
    """Return the earliest of the given times; None if all are None."""
    return min((moment for moment in moments if moment is not None), default=None)


def window_columns(view: FeatureView, names: Sequence[str], *, full_names: bool, created: bool) -> list[tuple[str, str]]:
    """Return (column, name in the result) of a read without a spine: keys, event time, features, creation time."""
    columns = source_columns(view.batch_source)
    prefix = f"{view.projection.name_to_use()}__" if full_names else ""
    known = view.batch_source.created_timestamp_column
    return [
        *((columns.column_name(key), name) for key, name in join_keys(view).items()),
        (columns.event, EVENT_TIMESTAMP),
        *((columns.column_name(name), f"{prefix}{name}") for name in names),
        *([(columns.created, known)] if columns.created and created else []),
    ]


def ensure_unique_names(spine: Iterable[str], views: Sequence[ViewJoin]) -> None:
    """Ensure that no feature has the name of a spine column.

    Raises:
        DeltaStoreError: A feature has the name of a spine column.
    """
    spine_columns = set(spine)
    clash = sorted({name for view in views for _, name in view.features if name in spine_columns})
    if clash:
        raise DeltaStoreError(
            f"the spine already has columns named like features: {', '.join(clash)}",
            where="entity_df",
            next_step="ask with full_feature_names=True, or rename them in the spine",
        )


@dataclass(frozen=True)
class ReadRange:
    """The rows of a source that are needed; files of a Delta table without any of them are not opened.

    Attributes:
        time: A time column, its first value and the end of its values (µs, None: unbounded); None: any time.
        keys: Returns the range of keys for the table's schema; rows outside of it are not copied if the table cannot be read in place.
            None: any key.
    """

    time: tuple[str, int | None, int | None] | None = None
    keys: Callable[[pa.Schema], KeyRange | None] | None = None


def open_source(
    connection: DuckDBPyConnection,
    config: RepoConfig,
    source: DataSource | None,
    alias: str,
    columns: Sequence[str],
    *,
    optional_columns: Sequence[str] = (),
    within: ReadRange = ReadRange(),
) -> Scan:
    """Make a data source selectable, and check that it has the columns.

    Args:
        connection: The DuckDB connection.
        config: Feast's settings.
        source: The data source.
        alias: A name that is unique in the connection.
        columns: Columns that it must have.
        optional_columns: Columns to read if it has them.
        within: The rows that are needed.

    Raises:
        DeltaStoreError: The source is not a file source, is missing, or lacks a column.
    """
    path = source_path(config, source)
    options = config.offline_store.storage_options
    if source is not None and isinstance(source.file_format, DeltaFormat):
        table = open_delta_table(path, options, config.offline_store.pinned_version(path))
        names = None
        if within.time is not None:
            column, low, high = within.time
            names = files_in_time_range(
                table, column, UNBOUNDED[0] if low is None else low, UNBOUNDED[1] if high is None else high
            )
        keys, rows_sql = within.keys(arrow_schema(table)) if within.keys else None, "true"
        if keys is not None:
            names, rows_sql = files_in_key_range(table, *keys), keys.condition_sql
        part = config.offline_store.files_to_read(path)
        scan = scan_delta(
            connection, table, alias, [*columns, *optional_columns], file_names=names, part=part, rows_sql=rows_sql
        )
    else:
        scan = scan_parquet(connection, path, alias, [*columns, *optional_columns])
    missing = [column for column in columns if column not in scan.schema.names]
    if missing:
        raise DeltaStoreError(
            f"the table has no column {', '.join(missing)}; it has: {', '.join(scan.schema.names)}",
            where=path,
            next_step="correct the feature view's definition, or its source's field_mapping",
        )
    return scan


def source_path(config: RepoConfig, source: DataSource | None) -> str:
    """Return the path or URL of a file source; relative paths start from the repository.

    Raises:
        DeltaStoreError: The source is not a file source.
    """
    if not isinstance(source, FileSource):
        raise DeltaStoreError(
            f"this offline store reads a FileSource, not {type(source).__name__}",
            where=f"data source {getattr(source, 'name', '')}".rstrip(),
            next_step="use a FileSource with DeltaFormat",
        )
    return resolve_path(source.path, config.repo_path)


def window_sql(scan: Scan, columns: Sequence[tuple[str, str]], rows: RowFilter) -> str:
    """Select the filtered rows in table order; ``columns`` are (column, name in the result)."""
    return f"SELECT {_selected_sql(columns)} FROM {scan.relation}{rows.where_sql()}"


def latest_sql(
    connection: DuckDBPyConnection,
    scan: Scan,
    columns: Sequence[tuple[str, str]],
    rows: RowFilter,
    *,
    keys: Sequence[str],
    features: Sequence[str],
    subset: EntitySubset | None = None,
) -> str:
    """Select each entity's filtered row with the greatest (event, created); features break ties, as in a join.

    Args:
        connection: The DuckDB connection; the result is selected from a table that is created in it.
        scan: The source.
        columns: (column, name in the result).
        rows: Filter of the rows.
        keys: Columns that identify an entity.
        features: Columns that break ties, as far as their types can be compared.
        subset: Only these entities; default: all.
    """
    key_list = ", ".join(map(quote_identifier, keys))
    among = []
    if subset is not None:
        connection.register("wanted_entities", subset.keys)
        among.append(f"({key_list}) IN (SELECT ({key_list}) FROM wanted_entities)")
    ties = tie_breakers(scan.schema, features)
    names = [f"k{i}" for i in range(len(keys))]
    group = ", ".join(names)
    clocks = ", ".join(timestamps_sql(rows.event, rows.created))
    selected = [
        f"{quote_identifier(column)} AS {name}" for column, name in zip([*keys, *ties], [*names, *_numbered(ties)], strict=True)
    ]
    by_key = f" GROUP BY {group}" if keys else " HAVING count(*) > 0"
    key_columns = "".join(f"{name}, " for name in names)

    def candidates_sql(since: int | None) -> str:
        where = rows.where_sql(*among, *([] if since is None else [rows.since_sql(since)]))
        return f"SELECT {', '.join([*selected, f'({clocks}) AS clocks', f'{scan.row_id} AS rid'])} FROM {scan.relation}{where}"

    def create_latest(since: int | None) -> tuple[int, int | None]:
        """Create the table ``latest``; return its row count and earliest event (None: an event time is null)."""
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE latest AS SELECT {key_columns}max(clocks) AS clocks, arg_max(rid, (clocks, rid)) AS rid "
            f"FROM ({candidates_sql(since)}){by_key}"
        )
        count, timed, first = connection.execute("SELECT count(*), count(clocks[1]), min(clocks[1]) FROM latest").fetchall()[0]
        return int(count), first if timed == count else None

    count, first = create_latest(None if subset is None else subset.recent_us)
    if subset is not None and subset.recent_us is not None and count < subset.keys.num_rows:
        count, first = create_latest(None)
    same = " AND ".join([*(f"r.{name} IS NOT DISTINCT FROM l.{name}" for name in names), "r.clocks = l.clocks"])
    tied = f"SELECT r.* FROM ({candidates_sql(first)}) r JOIN latest l ON {same}"
    if connection.execute(f"SELECT EXISTS ({tied} AND r.rid <> l.rid)").fetchall()[0][0]:
        order = ", ".join(["clocks", *_numbered(ties), "rid"])
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE latest AS SELECT arg_max(rid, ({order})) AS rid FROM ({tied}){by_key}"
        )
    late = "" if first is None else f" WHERE {rows.since_sql(first)}"
    return (
        f"SELECT {_selected_sql(columns)} FROM (SELECT *, {scan.row_id} AS rid FROM {scan.relation}{late})"
        " SEMI JOIN latest USING (rid)"
    )


def latest_statement(
    scan: Scan, columns: Sequence[tuple[str, str]], rows: RowFilter, *, keys: Sequence[str], features: Sequence[str]
) -> str:
    """Return the query of `latest_sql` for all entities as one statement, which creates no table."""
    ties = map(quote_identifier, tie_breakers(scan.schema, features))
    order = ", ".join([*timestamps_sql(rows.event, rows.created), *ties, scan.row_id])
    by_key = f" GROUP BY {', '.join(map(quote_identifier, keys))}" if keys else ""
    latest = f"SELECT arg_max({scan.row_id}, ({order})) AS rid FROM {scan.relation}{rows.where_sql()}{by_key}"
    return (
        f"SELECT {_selected_sql(columns)} FROM (SELECT *, {scan.row_id} AS rid FROM {scan.relation})"
        f" SEMI JOIN ({latest}) USING (rid)"
    )


def _selected_sql(columns: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{quote_identifier(column)} AS {quote_identifier(name)}" for column, name in columns)


def newest_files_start_us(scan: Scan, column: str, rows: int) -> int | None:
    """Return the start of the newest files of a Delta table that together have at least ``rows`` rows, µs, by the log's statistics.

    None: it is no Delta table, it has fewer rows, or the log lacks statistics.
    """
    if scan.table is None:
        return None
    bounds, records, total = file_time_bounds(scan.table, column), row_count_by_file(scan.table), 0
    for name in sorted(bounds, key=lambda name: bounds[name][1], reverse=True):
        total += records[name]
        if total >= rows:
            return None if bounds[name] == UNBOUNDED else bounds[name][0]
    return None


def _numbered(ties: Sequence[str]) -> list[str]:
    return [f"t{i}" for i in range(len(ties))]


def optional_micros(moment: datetime | None) -> int | None:
    """Convert to µs since 1970; a naive datetime counts as UTC, as in Feast."""
    # Exact, where a timestamp in seconds is a rounded float.
    return None if moment is None else timegm(moment.utctimetuple()) * 1_000_000 + moment.microsecond
