"""The online store: each entity's latest row, and no row that the lake no longer holds."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from scalr_prod.errors import FeatureStoreError
from scalr_prod.feast_store.access import explained, open_feature_store, quiet
from scalr_prod.feast_store.repository import repository_lock

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from feast import FeatureStore, FeatureView

    from scalr_prod.settings import Settings

__all__ = ["MaterializationReport", "materialize"]

logger = logging.getLogger(__name__)

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class MaterializationReport:
    """What was written to the online store.

    Attributes:
        views: The feature views.
        emptied: Those that were emptied first, since rows had gone from their tables.
        end: Rows up to this time.
        online_store: Its kind.
    """

    views: tuple[str, ...]
    emptied: tuple[str, ...]
    end: datetime
    online_store: str

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        views = {"views": list(self.views), "emptied": list(self.emptied)}
        return {**views, "end": self.end.isoformat(), "online_store": self.online_store}


def materialize(
    settings: Settings, *, end: datetime | None = None, views: Sequence[str] | None = None
) -> MaterializationReport:
    """Write each entity's latest row to the online store, of every view that has a place there.

    Feast only ever writes over what is there: an entity whose rows have gone (a run was rolled back, a window replaced) would
    be served for ever. So a view from whose table an entity's latest row has gone since the last time is emptied first.

    Args:
        settings: The project's settings.
        end: Rows with event times up to this; default: now.
        views: Only these views.

    Raises:
        FeatureStoreError: No such view, or the online store cannot be reached.
    """
    end = end or datetime.now(UTC)
    with explained(settings), repository_lock(settings), quiet("materialize"):
        store = open_feature_store(settings)
        chosen = [view for view in store.list_feature_views() if (view.online if views is None else view.name in views)]
        unknown = sorted(set(views or ()) - {view.name for view in chosen})
        if unknown:
            raise FeatureStoreError(f"no feature view {', '.join(unknown)}", next_step="name views of the repository")
        record = settings.feast_repo / ".materialized.json"
        before = _read(record)
        now = _versions(store, chosen)
        emptied = [
            view
            for view in chosen
            if view.name in before.keys() & now.keys() and _lost_rows(store, view, before[view.name], now[view.name])
        ]
        for view in emptied:
            _empty(store, view)
        store.materialize(start_date=_BEGINNING, end_date=end, feature_views=[view.name for view in chosen])
        record.write_text(json.dumps(before | now), encoding="utf-8")
    names = tuple(view.name for view in chosen)
    return MaterializationReport(names, tuple(view.name for view in emptied), end, settings.feast.online_store)


def _read(record: Path) -> dict[str, int]:
    try:
        found: dict[str, int] = json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return found


def _versions(store: FeatureStore, views: Sequence[FeatureView]) -> dict[str, int]:
    """Delta version of each view's table; views over other files have none."""
    from feast.data_format import DeltaFormat

    from scalr_prod.feast_store.reads import source_path
    from scalr_prod.feast_store.scan import delta_table

    options = store.config.offline_store.storage_options
    sources = {view.name: view.batch_source for view in views}
    return {
        name: delta_table(source_path(store.config, source), options).version()
        for name, source in sources.items()
        if isinstance(getattr(source, "file_format", None), DeltaFormat)
    }


def _lost_rows(store: FeatureStore, view: FeatureView, before: int, now: int) -> bool:
    """Whether an entity that had rows at one version of the table has none at the other, or only older ones."""
    from deltalake import DeltaTable

    from scalr_prod.feast_store.reads import source_path
    from scalr_prod.feast_store.retrievals import duckdb_session
    from scalr_prod.feast_store.scan import quote, scan_delta

    if before == now:
        return False
    source, path = view.batch_source, source_path(store.config, view.batch_source)
    column_of = {new: old for old, new in source.field_mapping.items()}
    keys = ", ".join(quote(column_of.get(column.name, column.name)) for column in view.entity_columns)
    options = store.config.offline_store.storage_options or None
    with duckdb_session(store.config) as connection:
        latest = []
        for version in (before, now):
            try:
                table = DeltaTable(path, version=version, storage_options=options)
                scan = scan_delta(connection, table, f"version_{version}")
                query = f"SELECT {keys}, max({quote(source.timestamp_field)}) AS latest FROM {scan.relation} GROUP BY ALL"
                connection.execute(f"CREATE TEMP TABLE latest_{version} AS {query}")
            except Exception as error:
                # Vacuumed, or the log was cut: what has gone can no longer be told.
                logger.warning("%s: version %d cannot be read (%s); the online view is filled anew", view.name, version, error)
                return True
            latest.append(f"latest_{version}")
        lost = (
            f"SELECT EXISTS (SELECT 1 FROM {latest[0]} a LEFT JOIN {latest[1]} b USING ({keys})"
            f" WHERE b.latest IS NULL OR b.latest < a.latest)"
        )
        return bool(connection.execute(lost).fetchone()[0])


def _empty(store: FeatureStore, view: FeatureView) -> None:
    provider = store._get_provider()  # noqa: SLF001 - Feast has no public way to empty one view
    for delete, keep in (([view], []), ([], [view])):
        provider.update_infra(
            project=store.project,
            tables_to_delete=delete,
            tables_to_keep=keep,
            entities_to_delete=[],
            entities_to_keep=[],
            partial=True,
        )
