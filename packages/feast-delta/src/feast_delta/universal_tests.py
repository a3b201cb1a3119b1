# SPDX-License-Identifier: Apache-2.0
"""Feast's universal tests of offline stores, run on this store.

A repository configuration of those tests, which are in Feast's repository and not in its wheel. With ``sdk/python`` of Feast on the path::

    FULL_REPO_CONFIGS_MODULE=feast_delta.universal_tests FEAST_IS_LOCAL_TEST=True pytest --integration tests/integration/offline_store

``FEAST_DELTA_KNOWLEDGE_TIME=created`` runs them with ``knowledge_time: created``.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from deltalake import write_deltalake
from feast import FileSource
from feast.data_format import DeltaFormat
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from tests.universal.feature_repos.universal.data_source_creator import DataSourceCreator

from feast_delta.offline_store import DeltaOfflineStoreConfig

if TYPE_CHECKING:
    import pandas as pd


class DeltaTableCreator(DataSourceCreator):
    """Creates the tests' data sources as Delta tables in a temporary folder.

    Args:
        project_name: Feast's project.
        args: Ignored.
        kwargs: Ignored.
    """

    def __init__(self, project_name: str, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002 - Feast's signature
        super().__init__(project_name)
        self._folder = tempfile.TemporaryDirectory(prefix=f"{project_name}-", ignore_cleanup_errors=True)

    def create_data_source(
        self,
        df: pd.DataFrame,
        destination_name: str,
        created_timestamp_column: str | None = "created_ts",
        field_mapping: dict[str, str] | None = None,
        timestamp_field: str | None = "ts",
    ) -> FileSource:
        """Write a data frame as a Delta table, and return its source."""
        path = self._new_path(destination_name)
        write_deltalake(path, pa.Table.from_pandas(df, preserve_index=False))
        return FileSource(
            path=path,
            file_format=DeltaFormat(),
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            field_mapping=field_mapping or {"ts_1": "ts"},
        )

    def create_offline_store_config(self) -> DeltaOfflineStoreConfig:
        """Return the settings of the store."""
        return DeltaOfflineStoreConfig(knowledge_time=os.environ.get("FEAST_DELTA_KNOWLEDGE_TIME", "event"))

    def create_saved_dataset_destination(self) -> SavedDatasetFileStorage:
        """Return a new place for a saved dataset."""
        return SavedDatasetFileStorage(path=self._new_path("saved"), file_format=DeltaFormat())

    def create_logged_features_destination(self) -> FileLoggingDestination:
        """Return a new folder for logged features."""
        return FileLoggingDestination(path=self._new_path("logged"))

    def teardown(self) -> None:
        """Remove everything."""
        self._folder.cleanup()

    def _new_path(self, name: str) -> str:
        return f"{self._folder.name}/{name}-{uuid.uuid4().hex[:8]}"


AVAILABLE_OFFLINE_STORES = [("local", DeltaTableCreator)]
AVAILABLE_ONLINE_STORES = {"sqlite": ({"type": "sqlite"}, None)}
