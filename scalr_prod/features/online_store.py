# SPDX-License-Identifier: Apache-2.0
"""Materialization of the online store: each entity's latest row, and no row that the lake no longer has."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import FeatureStoreError
from scalr_prod.features.client import capture_feast_output, open_feature_store, translate_feast_errors
from scalr_prod.features.repository import lock_repository
from scalr_prod.features.tenancy import claim_redis
from scalr_prod.workspace import ProjectIdentity

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from feast import FeatureStore, FeatureView

    from scalr_prod.config import Settings


logger = logging.getLogger(__name__)

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class MaterializationReport(Jsonable):
    """Result of a materialization.

    Attributes:
        views: The feature views.
        emptied: Views from which rows were deleted first, because their tables no longer have them.
        end: Rows up to this time.
        online_store: The store's type.
        written: View → number of entities written; None: all.
    """

    views: tuple[str, ...]
    emptied: tuple[str, ...]
    end: datetime
    online_store: str
    written: dict[str, int | None]


def materialize(
    settings: Settings, *, end: datetime | None = None, views: Sequence[str] | None = None
) -> MaterializationReport:
    """Write each entity's latest row to the online store, for every view that is served online.

    Afterwards the store serves what a point-in-time join gives at ``end``. Only entities whose rows may have changed since the last fill
    are written: those with a row in a file that was added or removed since, or between the two end times. Feast only overwrites: an entity
    whose rows are gone (rollback, replaced window) would be served forever. So such entities are deleted first.

    Args:
        settings: The project's settings.
        end: Use rows that happened and were created by then; default: now.
        views: Only these views.

    Raises:
        ProjectsMixed: Another project of this name, on another lake, fills the same Redis. Nothing was written.
        FeatureStoreError: No such view, or the online store cannot be reached.
    """
    from feast_delta.queries import source_path
    from scalr_prod.features.materialization_state import MaterializationRecord, MaterializationState, definition_digest

    end = end or datetime.now(UTC)

    with translate_feast_errors(settings), lock_repository(settings.feast_repo), capture_feast_output("materialize"):
        store = open_feature_store(settings, known_by=end)
        chosen = [view for view in store.list_feature_views() if (view.online if views is None else view.name in views)]
        unknown = sorted(set(views or ()) - {view.name for view in chosen})
        if unknown:
            raise FeatureStoreError(
                f"no feature view {', '.join(unknown)}",
                where=str(settings.feast_repo),
                next_step="name views of the repository",
            )
        if settings.feast.online_store == "redis":
            claim_redis(ProjectIdentity.from_settings(settings), store)
        record = MaterializationRecord(store)
        states = {view.name: MaterializationState(_version(store, view), end, definition_digest(view)) for view in chosen}
        # Pin the versions, so that the record matches what the fill reads even if a table changes meanwhile.
        store.config.offline_store.versions = {
            source_path(store.config, view.batch_source): version
            for view in chosen
            if (version := states[view.name].version) is not None
        }
        emptied, written = [], {}
        # One DuckDB database for all views: opening one takes longer than most of their queries.
        with store.config.offline_store.open_session() as connection:
            store.config.offline_store.within = connection
            for view in chosen:
                deleted, entities = record.begin(view, states[view.name])
                emptied += [view.name] if deleted else []
                _fill(store, view, end, entities)
                written[view.name] = None if entities is None else entities.num_rows
                record.finish(view)
        record.close()
    return MaterializationReport(tuple(view.name for view in chosen), tuple(emptied), end, settings.feast.online_store, written)


def _fill(store: FeatureStore, view: FeatureView, end: datetime, entities: pa.Table | None) -> None:
    """Write the latest rows of these entities; None: all entities."""
    from feast_delta.queries import source_path

    chosen = {} if entities is None else {source_path(store.config, view.batch_source): entities}
    store.config.offline_store.entities = chosen
    if entities is None or entities.num_rows:
        store.materialize(start_date=_BEGINNING, end_date=end, feature_views=[view.name])
    store.config.offline_store.entities = {}


def _version(store: FeatureStore, view: FeatureView) -> int | None:
    """Return the Delta version of a view's table; None for other files."""
    from feast.data_format import DeltaFormat

    from feast_delta.queries import source_path
    from feast_delta.scan import open_delta_table

    source = view.batch_source
    if not isinstance(getattr(source, "file_format", None), DeltaFormat):
        return None
    return int(open_delta_table(source_path(store.config, source), store.config.offline_store.storage_options).version())
