# SPDX-License-Identifier: Apache-2.0
"""Feast's data-quality monitoring: feature statistics computed by DuckDB and stored in SQLite."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from feast.monitoring.monitoring_utils import monitoring_table_meta, normalize_monitoring_row, opt_float

from feast_delta import queries
from feast_delta.columns import source_columns
from feast_delta.errors import DeltaStoreError
from feast_delta.point_in_time import timestamps_sql
from feast_delta.sessions import quote_identifier

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from duckdb import DuckDBPyConnection
    from feast.data_source import DataSource
    from feast.repo_config import RepoConfig


_QUANTILES = {"p50": 0.5, "p75": 0.75, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_STATISTICS = ("mean", "stddev", "min_val", "max_val", *_QUANTILES)
_KINDS = ("feature", "feature_view", "feature_service", "job")


def compute_metrics(
    config: RepoConfig,
    source: DataSource,
    features: Sequence[tuple[str, str]],
    rows: queries.RowFilter,
    *,
    bins: int,
    top_values: int,
) -> list[dict[str, Any]]:
    """Compute feature statistics over the filtered rows, in Feast's format.

    Args:
        config: Feast's settings.
        source: The data source.
        features: (name, ``numeric`` or ``categorical``) of each feature; other kinds are skipped, as in Feast.
        rows: Filter of the rows.
        bins: Number of bins of a numeric histogram.
        top_values: Number of values of a categorical histogram.

    Returns:
        One dictionary per feature. Mean, quantiles and histogram cover finite values; quantiles are interpolated linearly.
    """
    columns = source_columns(source)
    numeric = [name for name, kind in features if kind == "numeric"]
    with config.offline_store.open_session() as connection:
        names = [name for name, kind in features if kind in {"numeric", "categorical"}]
        scan = queries.open_source(connection, config, source, "source_0", [rows.event, *map(columns.column_name, names)])
        selected = queries.window_sql(scan, [(columns.column_name(name), name) for name in names], rows)
        metrics = _numeric(connection, selected, numeric, bins) if numeric else {}
        return [
            metrics[name] if kind == "numeric" else _categorical(connection, selected, name, top_values)
            for name, kind in features
            if kind in {"numeric", "categorical"}
        ]


def latest_event_time(config: RepoConfig, source: DataSource, event: str) -> datetime | None:
    """Return the latest event time of a source; None without rows."""
    column = source_columns(source).column_name(event)
    with config.offline_store.open_session() as connection:
        scan = queries.open_source(connection, config, source, "source_0", [column])
        query = f"SELECT max({timestamps_sql(column, None)[0]}) FROM {scan.relation}"
        ((latest,),) = connection.execute(query).fetchall()
    return None if latest is None else datetime.fromtimestamp(0, UTC) + timedelta(microseconds=latest)


def _metric(name: str, kind: str, rows: int, nulls: int) -> dict[str, Any]:
    counts = {"row_count": rows, "null_count": nulls, "null_rate": nulls / rows if rows else 0.0}
    return {"feature_name": name, "feature_type": kind, **counts, **dict.fromkeys(_STATISTICS), "histogram": None}


def _numeric(connection: DuckDBPyConnection, rows: str, names: Sequence[str], bins: int) -> dict[str, dict[str, Any]]:
    parts = ["count(*)"]
    for name in names:
        value = f"CAST({quote_identifier(name)} AS DOUBLE)"
        finite = f"FILTER (WHERE isfinite({value}))"
        parts += [f"count({quote_identifier(name)})", *(f"{f}({value}) {finite}" for f in ("avg", "stddev_samp", "min", "max"))]
        parts += [f"quantile_cont({value}, {share}) {finite}" for share in _QUANTILES.values()]
    ((total, *values),) = connection.execute(f"SELECT {', '.join(parts)} FROM ({rows})").fetchall()
    width = 1 + len(_STATISTICS)
    metrics = {}
    for number, name in enumerate(names):
        present, *statistics = values[number * width : (number + 1) * width]
        metrics[name] = _metric(name, "numeric", total, total - present)
        metrics[name] |= dict(zip(_STATISTICS, map(opt_float, statistics), strict=True))
    _add_histograms(connection, rows, metrics, bins)
    return metrics


def _add_histograms(connection: DuckDBPyConnection, rows: str, metrics: dict[str, dict[str, Any]], bins: int) -> None:
    """Add numpy's histogram of each feature, in one pass over the rows."""
    limits = {name: (found["min_val"], found["max_val"]) for name, found in metrics.items() if found["min_val"] is not None}
    if not limits:
        return
    edges = {name: np.histogram_bin_edges([], bins=bins, range=limit) for name, limit in limits.items()}
    counts = {name: np.zeros(bins, np.int64) for name in edges}
    selected = ", ".join(f"CAST({quote_identifier(name)} AS DOUBLE) AS {quote_identifier(name)}" for name in edges)
    for batch in connection.sql(f"SELECT {selected} FROM ({rows})").to_arrow_reader(65_536):
        for name in edges:
            values = batch.column(name).to_numpy(zero_copy_only=False)
            counts[name] += np.histogram(values[np.isfinite(values)], bins=edges[name])[0]
    for name, found in edges.items():
        histogram = {"bins": found.tolist(), "counts": counts[name].tolist(), "bin_width": float(found[1] - found[0])}
        metrics[name]["histogram"] = histogram


def _categorical(connection: DuckDBPyConnection, rows: str, name: str, top: int) -> dict[str, Any]:
    counted = f"SELECT {quote_identifier(name)} AS value, count(*) AS n FROM ({rows}) GROUP BY ALL"
    query = f"SELECT coalesce(sum(n), 0), coalesce(sum(n) FILTER (WHERE value IS NULL), 0), count(value) FROM ({counted})"
    ((total, nulls, unique),) = connection.execute(query).fetchall()
    metric = _metric(name, "categorical", int(total), int(nulls))
    if unique:
        query = f"SELECT value, n FROM ({counted}) WHERE value IS NOT NULL ORDER BY n DESC, value LIMIT {int(top)}"
        values = [{"value": value, "count": n} for value, n in connection.execute(query).fetchall()]
        other = int(total - nulls) - sum(entry["count"] for entry in values)
        metric["histogram"] = {"values": values, "other_count": other, "unique_count": unique}
    return metric


def ensure_tables(config: RepoConfig) -> None:
    """Create the tables of metrics and jobs if they do not exist."""
    with _database(config) as database:
        for kind in _KINDS:
            table, columns, key = monitoring_table_meta(kind)
            listed = ", ".join(f'"{column}"' for column in columns)
            unique = ", ".join(f'"{column}"' for column in key)
            database.execute(f"CREATE TABLE IF NOT EXISTS {table} ({listed}, PRIMARY KEY ({unique}))")


def save_metrics(config: RepoConfig, kind: str, metrics: Sequence[dict[str, Any]]) -> None:
    """Store metrics; a metric with an existing key replaces it."""
    ensure_tables(config)
    table, columns, _ = monitoring_table_meta(kind)
    marks = ", ".join("?" for _ in columns)
    rows = [[_stored(metric.get(column)) for column in columns] for metric in metrics]
    with _database(config) as database:
        database.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", rows)


def query_metrics(
    config: RepoConfig,
    project: str,
    kind: str,
    *,
    filters: dict[str, Any] | None = None,
    start: date | None = None,
    end: date | None = None,
) -> list[dict[str, Any]]:
    """Return a project's metrics of a kind by ascending date; ``start`` and ``end`` are inclusive."""
    ensure_tables(config)
    table, columns, _ = monitoring_table_meta(kind)
    wanted = {"project_id": project or None, **(filters or {})}
    where = [(f'"{_known(column, columns)}" = ?', _stored(value)) for column, value in wanted.items() if value is not None]
    if "metric_date" in columns and kind != "job":
        where += [(f"metric_date {sign} ?", _stored(day)) for sign, day in ((">=", start), ("<=", end)) if day is not None]
    condition = " AND ".join(part for part, _ in where) or "true"
    order = "job_id" if kind == "job" else "metric_date"
    with _database(config) as database:
        query = f"SELECT * FROM {table} WHERE {condition} ORDER BY {order}"
        found = database.execute(query, [value for _, value in where]).fetchall()
    return [normalize_monitoring_row(dict(zip(columns, row, strict=True))) for row in found]


def clear_baseline(config: RepoConfig, project: str, **filters: str | None) -> None:
    """Unset the baseline flag of the matching feature metrics."""
    ensure_tables(config)
    table, columns, _ = monitoring_table_meta("feature")
    wanted = {"project_id": project, **{column: value for column, value in filters.items() if value is not None}}
    condition = " AND ".join(f'"{_known(column, columns)}" = ?' for column in wanted)
    with _database(config) as database:
        update = f"UPDATE {table} SET is_baseline = 0 WHERE {condition}"
        database.execute(update, list(wanted.values()))


@contextmanager
def _database(config: RepoConfig) -> Iterator[sqlite3.Connection]:
    if config.repo_path is None:
        raise DeltaStoreError(
            "metrics are stored in the feature repository, but the settings name none",
            where="repo_path",
            next_step="open the store by FeatureStore(repo_path=…), or set repo_path of its RepoConfig",
        )
    with closing(sqlite3.connect(Path(config.repo_path) / "feast_monitoring.db", timeout=60)) as database, database:
        yield database


def _known(column: str, columns: Sequence[str]) -> str:
    if column not in columns:
        raise DeltaStoreError(
            f"metrics have no column {column!r}; they have: {', '.join(columns)}",
            where="filters",
            next_step="correct the filter",
        )
    return column


def _stored(value: Any) -> Any:
    if isinstance(value, date | datetime):
        return value.isoformat()
    return json.dumps(value) if isinstance(value, dict | list) else value
