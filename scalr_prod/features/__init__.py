# SPDX-License-Identifier: Apache-2.0
"""Point-in-time features: Feast over the lake's Delta tables.

`apply_feature_repo` writes the repository and registers the views. The other packages read through `join_point_in_time` and `read_window`.
`open_feature_store` returns Feast's own SDK. Only this package imports Feast, and only on first use.
"""

from __future__ import annotations

from scalr_prod.features.client import join_point_in_time, open_feature_store, read_window
from scalr_prod.features.datasets import SavedDatasetReport, save_dataset, saved_dataset_location
from scalr_prod.features.export import ExportFormat, FeastExport, export_definitions
from scalr_prod.features.external_features import ExternalFeatures, check_external_features, open_external_features
from scalr_prod.features.online_store import MaterializationReport, materialize
from scalr_prod.features.repository import RepositoryReport, apply_feature_repo
from scalr_prod.features.sources import FeatureSource, ServiceSources, references_by_key, service_sources

__all__ = [
    "ExportFormat",
    "ExternalFeatures",
    "FeastExport",
    "FeatureSource",
    "MaterializationReport",
    "RepositoryReport",
    "SavedDatasetReport",
    "ServiceSources",
    "apply_feature_repo",
    "check_external_features",
    "export_definitions",
    "join_point_in_time",
    "materialize",
    "open_external_features",
    "open_feature_store",
    "read_window",
    "references_by_key",
    "save_dataset",
    "saved_dataset_location",
    "service_sources",
]
