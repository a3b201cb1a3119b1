# SPDX-License-Identifier: Apache-2.0
"""Source tables of a feature service, their timestamp columns, and a digest of the definitions."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from feast_delta.columns import is_hidden_until_created, source_columns
from feast_delta.scan import open_delta_table
from scalr_prod.core.delta_log import arrow_schema
from scalr_prod.features.client import open_feature_store, translate_feast_errors
from scalr_prod.schemas import ITEM_ID, USER_ID

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deltalake import DeltaTable
    from feast import FeatureStore
    from feast.feature_view_projection import FeatureViewProjection

    from scalr_prod.config import Settings


@dataclass(frozen=True)
class FeatureSource:
    """The table of one feature view.

    Attributes:
        view: The feature view.
        table: Its Delta table at the current version.
        event: Column of the event time.
        created: Column of the creation time; None if there is none, or if it does not limit visibility.
    """

    view: str
    table: DeltaTable
    event: str
    created: str | None


@dataclass(frozen=True)
class ServiceSources:
    """Sources of a feature service.

    Attributes:
        digest: SHA-256 of the definitions and table schemas; with an equal digest, equal rows give equal features.
        sources: One per view.
        untraceable_reason: Why changes of the features cannot be traced in Delta logs, or None if they can.
    """

    digest: str
    sources: tuple[FeatureSource, ...]
    untraceable_reason: str | None = None

    def merge(self, other: ServiceSources) -> ServiceSources:
        """Add the sources of external features."""
        both = hashlib.sha256(f"{self.digest} {other.digest}".encode()).hexdigest()
        named = tuple(replace(source, view=f"own {source.view}") for source in other.sources)
        return ServiceSources(both, (*self.sources, *named), self.untraceable_reason or other.untraceable_reason)


def service_sources(settings: Settings, service: str) -> ServiceSources:
    """Return the sources of a feature service.

    Raises:
        FeatureStoreError: There is no such service, or a table cannot be read.
    """
    with translate_feast_errors(settings):
        store = open_feature_store(settings)
        projections = store.get_feature_service(service).feature_view_projections
        return feature_sources(store, projections, settings.project.storage_options)


def references_by_key(store: FeatureStore, service: str) -> dict[str, str | list[str]]:
    """Split a service by first join key: ``user_id`` or ``item_id`` → ``view:feature`` references.

    The whole service is under ``user_id``, by its name, if references would not be equivalent (a view has another name or other keys in the
    service, or is not a plain view), or if no view is keyed by the user.
    """
    from feast_delta.queries import join_keys

    projections = store.get_feature_service(service).feature_view_projections
    views = {view.name: view for view in store.list_feature_views()}
    found: dict[str, list[str]] = {}
    for projection in projections:
        if projection.name not in views or projection.name_to_use() != projection.name or projection.join_key_map:
            return {USER_ID: service}
        first = next(iter(join_keys(views[projection.name])), USER_ID)
        key = ITEM_ID if first == ITEM_ID else USER_ID
        found.setdefault(key, []).extend(f"{projection.name}:{feature.name}" for feature in projection.features)
    return dict(found) if USER_ID in found else {USER_ID: service}


def feature_sources(
    store: FeatureStore, projections: Iterable[FeatureViewProjection], options: dict[str, str]
) -> ServiceSources:
    """Collect the sources of feature view projections.

    Args:
        store: Feast's store.
        projections: The views and their features.
        options: Storage options of the deltalake package.

    Raises:
        FeatureStoreError: A table cannot be read.
    """
    from feast.data_format import DeltaFormat
    from feast.infra.offline_stores.file_source import FileSource

    from feast_delta.queries import source_path

    definitions, sources, unclear = [], [], None
    plain_views = {view.name: view for view in store.list_feature_views()}
    for projection in projections:
        view = plain_views.get(projection.name)
        source = view.batch_source if view else None
        if view is None or not isinstance(source, FileSource) or not isinstance(source.file_format, DeltaFormat):
            unclear = unclear or f"the view {projection.name} is not read from a Delta table"
            continue
        table = open_delta_table(source_path(store.config, source), options)
        columns = source_columns(source)
        limited = is_hidden_until_created(view.name, view.tags, source.tags, default=store.config.offline_store.knowledge_time)
        sources.append(FeatureSource(view.name, table, columns.event, columns.created if limited else None))
        definitions.append(
            {
                "view": projection.name_to_use(),
                "features": [[feature.name, str(feature.dtype)] for feature in projection.features],
                "keys": {name: projection.join_key_map.get(name, name) for name in view.join_keys},
                "ttl": view.ttl.total_seconds() if view.ttl else 0,
                "path": source.path,
                "columns": [dict(columns.mapped_columns), columns.event, columns.created, limited],
                "schema": str(arrow_schema(table)),
            }
        )
    digest = hashlib.sha256(json.dumps(definitions, sort_keys=True).encode()).hexdigest()
    return ServiceSources(digest, tuple(sources), unclear)
