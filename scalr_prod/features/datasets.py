# SPDX-License-Identifier: Apache-2.0
"""Saved datasets: training sets in Feast's registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scalr_prod.core.jsonable import Jsonable
from scalr_prod.core.timestamps import micros_to_datetime
from scalr_prod.errors import FeatureStoreError
from scalr_prod.features.client import capture_feast_output, open_feature_store, translate_feast_errors
from scalr_prod.features.repository import lock_repository
from scalr_prod.schemas import EVENT_TIMESTAMP
from scalr_prod.workspace import escape_glob

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    import pyarrow as pa

    from scalr_prod.config import Settings


@dataclass(frozen=True)
class SavedDatasetReport(Jsonable):
    """A saved dataset in Feast's registry.

    Attributes:
        name: Name for ``FeatureStore.get_saved_dataset(name)``.
        path: Its Parquet files.
        columns: Columns that a reader gets.
    """

    name: str
    path: str
    columns: tuple[str, ...]


def save_dataset(
    settings: Settings,
    name: str,
    *,
    path: Path,
    service: str | None = None,
    time_range: tuple[datetime, datetime] | None = None,
) -> SavedDatasetReport:
    """Register Parquet files as a Feast saved dataset. Idempotent.

    Args:
        settings: The project's settings.
        name: Its name in the registry.
        path: A Parquet file or a folder of them, with ``event_timestamp``, features named ``view__feature``, and any other
            columns.
        service: The feature service that its features were joined with.
        time_range: Its first and last ``event_timestamp``; default: computed from the files.

    Raises:
        FeatureStoreError: The files are missing, have no ``event_timestamp`` or no row, or the registry cannot be reached.
    """
    schema, first, last = _facts(path, time_range)
    with (
        translate_feast_errors(settings),
        lock_repository(settings.feast_repo),
        capture_feast_output("save_dataset"),
    ):
        store = open_feature_store(settings)
        from feast.data_format import ParquetFormat
        from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
        from feast.saved_dataset import SavedDataset

        views = {view.name for view in store.list_feature_views()}
        features = [column for column in schema.names if "__" in column and column.split("__", 1)[0] in views]
        others = [column for column in schema.names if column not in features and column != EVENT_TIMESTAMP]
        dataset = SavedDataset(
            name=name,
            features=[column.replace("__", ":", 1) for column in features],
            # Feast reads back only these columns and the features, so labels and weights must be among them.
            join_keys=others,
            storage=SavedDatasetFileStorage(path=str(path), file_format=ParquetFormat()),
            full_feature_names=True,
            feature_service_name=service,
        )
        dataset.min_event_timestamp, dataset.max_event_timestamp = first, last
        store.registry.apply_saved_dataset(dataset, store.project, commit=True)
    return SavedDatasetReport(name, str(path), (*others, EVENT_TIMESTAMP, *features))


def saved_dataset_location(settings: Settings, name: str) -> str:
    """Return the path or URL of a saved dataset: Parquet files or a Delta table.

    Args:
        settings: The project's settings; any dataset of the project's registry is found, whoever saved it.
        name: Its name in the registry.

    Raises:
        FeatureStoreError: There is no such dataset (the error lists the others), or its storage is not files.
    """
    from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

    with translate_feast_errors(settings), capture_feast_output("saved datasets"):
        store = open_feature_store(settings)
        saved = {dataset.name: dataset for dataset in store.registry.list_saved_datasets(store.project)}
    if name not in saved:
        available = ", ".join(sorted(saved)) or "none"
        raise FeatureStoreError(
            f"no saved dataset {name}; there are: {available}", where=str(settings.feast_repo), next_step="name one of them"
        )
    storage = saved[name].storage
    if not isinstance(storage, SavedDatasetFileStorage):
        raise FeatureStoreError(
            f"the saved dataset {name} is stored in {type(storage).__name__}, not in files",
            where=str(settings.feast_repo),
            next_step="save it with SavedDatasetFileStorage",
        )
    uri = str(storage.file_options.uri)
    return uri if "://" in uri else str(settings.feast_repo / uri)


def _facts(path: Path, span: tuple[datetime, datetime] | None = None) -> tuple[pa.Schema, datetime, datetime]:
    import duckdb
    import pyarrow.dataset as ds

    try:
        schema = ds.dataset(path, format="parquet").schema
        if span is not None:
            return schema, *span
        pattern = f"{escape_glob(path)}/**/*.parquet" if path.is_dir() else escape_glob(path)
        with duckdb.connect(config={"threads": 1}) as connection:
            connection.execute("SET enable_progress_bar = false")  # stdout is for --json
            rows = "read_parquet(?, hive_partitioning = false)"
            query = f"SELECT epoch_us(min({EVENT_TIMESTAMP})), epoch_us(max({EVENT_TIMESTAMP})) FROM {rows}"
            first, last = connection.execute(query, [pattern]).fetchall()[0]
    except (OSError, ValueError, duckdb.Error) as error:
        raise FeatureStoreError(
            f"cannot be registered as a saved dataset: {error}",
            where=str(path),
            next_step="repeat: scalr dataset build",
        ) from error
    if first is None:
        raise FeatureStoreError("the dataset has no row", where=str(path), next_step="repeat: scalr dataset build")
    return schema, micros_to_datetime(first), micros_to_datetime(last)
