"""What the features of a service are computed from: tables, clocks, and a digest of the definitions."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scalr_prod.feast_store.access import explained, open_feature_store
from scalr_prod.feast_store.columns import limited_by_creation, source_columns
from scalr_prod.feast_store.scan import delta_table
from scalr_prod.growth import schema_of_table

if TYPE_CHECKING:
    from deltalake import DeltaTable

    from scalr_prod.settings import Settings

__all__ = ["FeatureSource", "ServiceSources", "service_sources"]


@dataclass(frozen=True)
class FeatureSource:
    """One view's table.

    Attributes:
        view: The feature view.
        table: Its Delta table, as it is now.
        event: Column of the event time.
        created: Column of the creation time; None where there is none, or where it limits nothing.
    """

    view: str
    table: DeltaTable
    event: str
    created: str | None


@dataclass(frozen=True)
class ServiceSources:
    """What a service is made of.

    Attributes:
        digest: SHA-256 of the definitions and of the tables' schemas: the same rows give the same features where it is the same.
        sources: One for each view.
        unclear: Why the features' dependencies cannot be told from tables' logs; None: they can.
    """

    digest: str
    sources: tuple[FeatureSource, ...]
    unclear: str | None = None


def service_sources(settings: Settings, service: str) -> ServiceSources:
    """The sources of a feature service.

    Raises:
        FeatureStoreError: There is no such service, or a table cannot be read.
    """
    from feast.data_format import DeltaFormat
    from feast.infra.offline_stores.file_source import FileSource

    from scalr_prod.feast_store.reads import source_path

    told, sources, unclear = [], [], None
    with explained(settings):
        store = open_feature_store(settings)
        ordinary = {view.name: view for view in store.list_feature_views()}
        for projection in store.get_feature_service(service).feature_view_projections:
            view = ordinary.get(projection.name)
            source = view.batch_source if view else None
            if view is None or not isinstance(source, FileSource) or not isinstance(source.file_format, DeltaFormat):
                unclear = unclear or f"the view {projection.name} is not read from a Delta table"
                continue
            table = delta_table(source_path(store.config, source), settings.project.storage_options)
            columns = source_columns(source)
            limited = limited_by_creation(view.name, view.tags, source.tags)
            sources.append(FeatureSource(view.name, table, columns.event, columns.created if limited else None))
            told.append(
                {
                    "view": projection.name_to_use(),
                    "features": [[feature.name, str(feature.dtype)] for feature in projection.features],
                    "keys": {name: projection.join_key_map.get(name, name) for name in view.join_keys},
                    "ttl": view.ttl.total_seconds() if view.ttl else 0,
                    "path": source.path,
                    "columns": [dict(columns.column_of), columns.event, columns.created, limited],
                    "schema": str(schema_of_table(table)),
                }
            )
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return ServiceSources(digest, tuple(sources), unclear)
