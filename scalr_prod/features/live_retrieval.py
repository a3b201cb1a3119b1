# SPDX-License-Identifier: Apache-2.0
"""Retrieval of a feature view or a feature service of a live Feast repository into a Parquet file, to be checked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from scalr_prod.errors import FeatureStoreError, SettingsError, UnreadableInput
from scalr_prod.features.client import (
    capture_feast_output,
    open_feature_store,
    translate_feast_errors,
    unopened_repository_error,
)

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    import pandas as pd
    from feast import FeatureService, FeatureStore

    from scalr_prod.config import Settings


@dataclass(frozen=True)
class FeatureRetrieval:
    """What to retrieve of a live Feast repository, by the repository's own offline store.

    Attributes:
        repo: The repository's folder; None: the project's own.
        entities: A Parquet or CSV file of rows to join features to, with the keys and ``event_timestamp``; None: the rows of a window.
        start: First event time of the window; default: from the beginning.
        end: Last event time of the window; default: now.
    """

    repo: Path | None = None
    entities: Path | None = None
    start: datetime | None = None
    end: datetime | None = None


def retrieve_features(name: str, asked: FeatureRetrieval, settings: Settings | None, output: Path) -> None:
    """Write the rows of a feature view, or a service's retrieval, as Parquet.

    Features are named ``view__feature``, except those of a single view's window, which keep their names.

    Args:
        name: A feature view, a label view or a feature service.
        asked: The repository, and the rows or the window.
        settings: The project's settings; None: no project.
        output: The file to write.

    Raises:
        SettingsError: There is neither a repository nor a project, or both entity rows and a window.
        UnreadableInput: The entity rows cannot be read.
        FeatureStoreError: The repository cannot be opened, has no such view or service, or cannot be retrieved from.
    """
    if asked.entities is not None and (asked.start or asked.end):
        raise SettingsError("entity rows have their own times", where="--entities", next_step="leave out --start and --end")
    store = _open_store(asked.repo, settings)
    with translate_feast_errors(store), capture_feast_output("retrieval"):
        text_keys = _text_keys(store)
    entities = None if asked.entities is None else _read_entities(asked.entities, text_keys)
    with translate_feast_errors(store), capture_feast_output("retrieval"):
        features, is_service = _features(store, name)
        if entities is None:
            start = asked.start or datetime(1970, 1, 1, tzinfo=UTC)
            options: dict[str, Any] = {"start_date": start, "end_date": asked.end or datetime.now(UTC)}
        else:
            options = {"entity_df": entities}
        full_names = is_service or entities is not None
        job = store.get_historical_features(features=features, full_feature_names=full_names, **options)
        _write(job, output)


def _open_store(repo: Path | None, settings: Settings | None) -> FeatureStore:
    if settings is not None and (repo is None or repo.resolve() == settings.feast_repo.resolve()):
        return open_feature_store(settings)  # with the secrets that its file lacks
    if repo is None:
        raise SettingsError("there is no project whose repository could be read", where="--feast", next_step="name a folder")
    os.environ.setdefault("FEAST_USAGE", "False")
    file = repo / "feature_store.yaml"
    if not file.is_file():
        raise FeatureStoreError(
            "there is no feature_store.yaml", where=str(repo), next_step="name a feature repository's folder"
        )
    import yaml
    from feast import FeatureStore

    content: Any = None
    try:
        content = yaml.safe_load(os.path.expandvars(file.read_text(encoding="utf-8")))
        store = FeatureStore(repo_path=str(repo))
        _ = store.registry  # opened at first use
    except Exception as error:
        raise unopened_repository_error(file, content, error) from error
    return store


def _features(store: FeatureStore, name: str) -> tuple[FeatureService | list[str], bool]:
    """Return what Feast is asked for, and whether it is a service."""
    services = {service.name: service for service in store.list_feature_services()}
    views = {view.name: view for view in [*store.list_feature_views(), *store.list_label_views()]}
    if name in views:
        return [f"{name}:{feature.name}" for feature in views[name].features], False
    if name in services:
        return services[name], True
    raise FeatureStoreError(
        f"no feature view or service {name}; there are: {', '.join(sorted({*views, *services})) or 'none'}",
        where=str(store.repo_path),
        next_step="name one of them",
    )


def _text_keys(store: FeatureStore) -> set[str]:
    """Return the names of the keys that are text."""
    from feast.types import String

    return {key.name for view in store.list_feature_views() for key in view.entity_columns if key.dtype == String}


def _read_entities(path: Path, text_keys: Collection[str]) -> pd.DataFrame:
    """Return entity rows; ``event_timestamp`` in UTC if it has no zone. In a CSV file, text keys stay text: ``007`` is no number."""
    import pandas as pd

    try:
        is_csv = path.suffix == ".csv"
        rows = pd.read_csv(path, dtype=dict.fromkeys(text_keys, str)) if is_csv else pd.read_parquet(path)
        rows["event_timestamp"] = pd.to_datetime(rows["event_timestamp"], utc=True)
    except KeyError as error:
        raise UnreadableInput(
            "has no column event_timestamp", where=str(path), next_step="add it: the time of each row"
        ) from error
    except (OSError, ValueError) as error:  # pyarrow's errors are of these
        raise UnreadableInput(f"cannot be read: {error}", where=str(path), next_step="name a Parquet or CSV file") from error
    return rows


def _write(job: Any, output: Path) -> None:
    """Write a retrieval's rows; in batches where the offline store streams, as feast-delta does, without on-demand features."""
    from pyarrow import parquet

    if not hasattr(job, "stream") or job.on_demand_feature_views:
        parquet.write_table(job.to_arrow(), output)
        return
    with job.stream() as reader, parquet.ParquetWriter(output, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
