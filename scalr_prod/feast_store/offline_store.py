# SPDX-License-Identifier: Apache-2.0
"""The offline store under the class path that feature_store.yaml files of earlier versions name."""

from __future__ import annotations

from scalr_prod.features import DeltaOfflineStore, DeltaOfflineStoreConfig

__all__ = ["DeltaOfflineStore", "DeltaOfflineStoreConfig"]
