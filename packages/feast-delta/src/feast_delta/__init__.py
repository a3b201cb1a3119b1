# SPDX-License-Identifier: Apache-2.0
"""Feast offline store over Delta tables: point-in-time joins in DuckDB, without a JVM.

``offline_store.type: feast_delta.DeltaOfflineStore`` in feature_store.yaml is all that a repository needs. Importing the package is cheap:
Feast is imported with the store.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from feast_delta.version import __version__

if TYPE_CHECKING:
    from feast_delta.errors import (
        DataFileDamaged,
        DataFileMissing,
        DeltaStoreError,
        SpillError,
        TableMissing,
        TableNotWritable,
        WriteFailed,
    )
    from feast_delta.offline_store import DeltaOfflineStore, DeltaOfflineStoreConfig
    from feast_delta.retrieval_job import DeltaRetrievalJob

__all__ = [
    "DataFileDamaged",
    "DataFileMissing",
    "DeltaOfflineStore",
    "DeltaOfflineStoreConfig",
    "DeltaRetrievalJob",
    "DeltaStoreError",
    "SpillError",
    "TableMissing",
    "TableNotWritable",
    "WriteFailed",
    "__version__",
]

_MODULES = {
    "DeltaOfflineStore": "offline_store",
    "DeltaOfflineStoreConfig": "offline_store",
    "DeltaRetrievalJob": "retrieval_job",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
