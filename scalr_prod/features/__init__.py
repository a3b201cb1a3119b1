# SPDX-License-Identifier: Apache-2.0
"""Point-in-time features: Feast over the lake's Delta tables.

`apply_feature_repo` writes the repository and registers the views. The other packages read through `join_point_in_time` and
`stream_window`. `open_feature_store` returns Feast's own SDK. Only this package imports Feast, and only on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.import_hook import before_import
from scalr_prod.core.lazy_exports import lazy_exports
from scalr_prod.features.feast_import import prepare_feast_import

if TYPE_CHECKING:
    from scalr_prod.features.client import ViewWindow, join_point_in_time, open_feature_store, stream_window
    from scalr_prod.features.datasets import save_dataset, saved_dataset_location
    from scalr_prod.features.erasure import erase_entities
    from scalr_prod.features.export import ExportFormat, FeastExport, export_definitions
    from scalr_prod.features.external_features import (
        ExternalFeatures,
        ExternalJoin,
        check_external_features,
        open_external_features,
    )
    from scalr_prod.features.live_retrieval import FeatureRetrieval, retrieve_features
    from scalr_prod.features.materialization_state import has_been_materialized
    from scalr_prod.features.offline_store import DeltaOfflineStore, DeltaOfflineStoreConfig
    from scalr_prod.features.online_store import materialize
    from scalr_prod.features.repository import apply_feature_repo
    from scalr_prod.features.sources import FeatureSource, ServiceSources, references_by_key, service_sources
    from scalr_prod.features.store_snapshot import StoreSnapshot
    from scalr_prod.features.template import TemplateReport, write_template

__all__ = [
    "DeltaOfflineStore",
    "DeltaOfflineStoreConfig",
    "ExportFormat",
    "ExternalFeatures",
    "ExternalJoin",
    "FeastExport",
    "FeatureRetrieval",
    "FeatureSource",
    "ServiceSources",
    "StoreSnapshot",
    "TemplateReport",
    "ViewWindow",
    "apply_feature_repo",
    "check_external_features",
    "erase_entities",
    "export_definitions",
    "has_been_materialized",
    "join_point_in_time",
    "materialize",
    "open_external_features",
    "open_feature_store",
    "references_by_key",
    "retrieve_features",
    "save_dataset",
    "saved_dataset_location",
    "service_sources",
    "stream_window",
    "write_template",
]

before_import("feast", prepare_feast_import)
__getattr__ = lazy_exports(
    __name__,
    {
        "DeltaOfflineStore": "offline_store",
        "DeltaOfflineStoreConfig": "offline_store",
        "ExportFormat": "export",
        "ExternalFeatures": "external_features",
        "ExternalJoin": "external_features",
        "FeastExport": "export",
        "FeatureRetrieval": "live_retrieval",
        "FeatureSource": "sources",
        "ServiceSources": "sources",
        "StoreSnapshot": "store_snapshot",
        "TemplateReport": "template",
        "ViewWindow": "client",
        "apply_feature_repo": "repository",
        "check_external_features": "external_features",
        "erase_entities": "erasure",
        "export_definitions": "export",
        "has_been_materialized": "materialization_state",
        "join_point_in_time": "client",
        "materialize": "online_store",
        "open_external_features": "external_features",
        "open_feature_store": "client",
        "references_by_key": "sources",
        "retrieve_features": "live_retrieval",
        "save_dataset": "datasets",
        "saved_dataset_location": "datasets",
        "service_sources": "sources",
        "stream_window": "client",
        "write_template": "template",
    },
)
