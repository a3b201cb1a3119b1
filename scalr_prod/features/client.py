# SPDX-License-Identifier: Apache-2.0
"""Feast client for the other packages: open the store, join point in time, read a window. Feast's errors become ours."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import time
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from feast_delta.errors import DeltaStoreError
from scalr_prod.config import Settings
from scalr_prod.core.redaction import redact, secrets_in
from scalr_prod.core.store_errors import translated
from scalr_prod.errors import FeatureStoreError, ScalrError
from scalr_prod.lake import Lake
from scalr_prod.schemas import EVENT_TIMESTAMP, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from feast import FeatureStore

    from feast_delta.retrieval_job import DeltaRetrievalJob
    from scalr_prod.core.delta_log import FilePart


logger = logging.getLogger(__name__)

#: Mean seconds between attempts to open a registry.
_PAUSES_S: Final = (0.1, 0.3, 1.0, 3.0)


def open_feature_store(
    settings: Settings, *, known_by: datetime | None = None, versions: Mapping[str, int] | None = None
) -> FeatureStore:
    """Open the project's Feast store; any method of Feast's SDK works on it.

    Args:
        settings: The project's settings.
        known_by: Read only rows created by then; default: by each spine row's own time.
        versions: Table name → Delta version to read; default: the latest.

    Raises:
        FeatureStoreError: The repository does not exist yet, was applied where the lake was before, or Feast cannot open it.
    """
    os.environ.setdefault("FEAST_USAGE", "False")
    from feast import FeatureStore
    from feast.repo_config import load_repo_config

    read_registries_uncached()
    yaml = settings.feast_repo / "feature_store.yaml"
    if not yaml.is_file():
        raise FeatureStoreError("there is no feature repository yet", where=str(yaml.parent), next_step="run: scalr histories")
    try:
        config = load_repo_config(settings.feast_repo, yaml)
        # Secrets and per-call options are not in the file; they come from the settings.
        config.registry.path = settings.feast_registry_url
        config.offline_store.storage_options = dict(settings.project.storage_options)
        config.offline_store.known_by = known_by
        config.offline_store.versions = dict(versions or {})
        if settings.feast.online_store == "redis":
            config.online_store.connection_string = settings.feast.redis
        former_lake, config.offline_store.lake = config.offline_store.lake, Lake.open(settings).root
        store = FeatureStore(config=config, repo_path=str(settings.feast_repo))
        _open_registry(store)
    except Exception as error:
        # Feast does not wrap errors: invalid files, unknown drivers and unreachable addresses all arrive as they are.
        raise feast_error(
            "Feast cannot be opened",
            error,
            where=yaml,
            secrets=settings.secrets,
            next_step="check [feast] in scalr.toml and that the registry can be reached, then run: scalr histories",
        ) from error
    if former_lake != config.offline_store.lake:
        raise FeatureStoreError(
            f"the feature views still read the lake at {former_lake}; it is now at {config.offline_store.lake}",
            where=str(yaml.parent),
            next_step="run: scalr histories",
        )
    return store


def _open_registry(store: FeatureStore) -> Any:
    """Open the store's registry and create its tables; an address that does not answer is an error here.

    Feast creates the tables of a new registry without a lock, so concurrent processes fail on them. Retry.
    """
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    for pause in _PAUSES_S:
        with suppress(IntegrityError, ProgrammingError):
            return store.registry
        time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, so that they do not retry together
    return store.registry


def read_registries_uncached() -> None:
    """Take Feast's cache of registry objects out of its functions.

    It is keyed by the memory address of a registry's contents, which those of another registry may get: in a process with two projects,
    one would read and write the other's tables.
    """
    from feast.infra.registry import proto_registry_utils

    for name, function in list(vars(proto_registry_utils).items()):
        if getattr(function, "__module__", "") == proto_registry_utils.__name__ and hasattr(function, "__wrapped__"):
            setattr(proto_registry_utils, name, function.__wrapped__)


def join_point_in_time(
    store: FeatureStore,
    spine: pa.Table,
    features: str | Sequence[str],
    *,
    known_by: datetime | None = None,
    versions: Mapping[str, int] | None = None,
    connection: DuckDBPyConnection | None = None,
) -> pa.Table:
    """Join features to each spine row, as they were known at its time.

    A feature row is visible if its event time is not after the spine row's, and it was created by ``known_by`` (default: by the
    spine row's time). Among visible rows the greatest event time wins, then the greatest creation time.

    Args:
        store: The project's store, from `open_feature_store`; it keeps ``known_by`` and ``versions`` afterwards.
        spine: Rows with ``event_timestamp`` and the keys (``user_id``, ``item_id``) of the features.
        features: The name of a feature service, or ``view:feature`` references.
        known_by: Fixed knowledge time.
        versions: Table name → Delta version to read; default: the latest.
        connection: An open DuckDB connection whose database runs the join; default: a new one.

    Returns:
        All spine rows in their order, with their columns, then one column ``view__feature`` per feature; null where no
        feature row is visible.

    Raises:
        FeatureStoreError: No such service, view or feature; a missing key; a table that cannot be read; or the offline store returned
            other rows than the spine's.
    """
    with translate_feast_errors(store):
        options = store.config.offline_store
        options.known_by, options.versions, options.within = known_by, dict(versions or {}), connection
        try:
            requested = store.get_feature_service(features) if isinstance(features, str) else list(features)
            job = store.get_historical_features(entity_df=spine, features=requested, full_feature_names=True)
            found = job.to_arrow()
        finally:
            options.within = None
    _ensure_same_rows(found, spine)
    return found


def _ensure_same_rows(found: pa.Table, spine: pa.Table) -> None:
    """Check that a point-in-time join returned the spine's rows in their order: callers put the columns side by side."""
    if found.num_rows != spine.num_rows or not all(
        found.column(field.name).cast(field.type).equals(spine.column(field.name)) for field in spine.schema
    ):
        raise FeatureStoreError(
            f"the point-in-time join gave {found.num_rows} rows for {spine.num_rows}, or gave them in another order",
            where="feature_store.yaml",
            next_step="check that feature_store.yaml names the offline store of scalr_prod; if it does, report this as a bug",
        )


@dataclass(frozen=True)
class ViewWindow:
    """Rows of a feature view with ``start <= event_timestamp < end``.

    Attributes:
        view: The feature view.
        start: Default: from the beginning.
        end: Default: to the end.
        known_by: Leave out rows created after this.
        columns: Which columns; default: all columns of the table.
        versions: Table name → Delta version to read; default: the latest.
        files: Table name → part of its files to read; default: all.
    """

    view: str
    start: datetime | None = None
    end: datetime | None = None
    known_by: datetime | None = None
    columns: Sequence[str] | None = None
    versions: Mapping[str, int] | None = None
    files: Mapping[str, FilePart] | None = None


def stream_window(project: Settings | FeatureStore, window: ViewWindow) -> pa.RecordBatchReader:
    """Read a window of a feature view, without a spine, in batches: memory does not grow with the window.

    Args:
        project: The project's settings, or its store; the store keeps ``known_by``, ``versions`` and ``files`` afterwards.
        window: The rows and columns to read.

    Returns:
        The rows, in the table's order and types.

    Raises:
        FeatureStoreError: No such view or column, or its table cannot be read; also while the batches are read.
    """
    import pyarrow as pa

    # The connection stays open until the last batch has been read, or the reader is dropped.
    resources = contextlib.ExitStack()
    with translate_feast_errors(project):
        job, names = _window_job(project, window)
        reader = resources.enter_context(job.stream())
    schema = pa.schema([reader.schema.field(name) for name in names])

    def batches() -> Iterator[pa.RecordBatch]:
        with resources:
            while True:
                with translate_feast_errors(project):
                    batch = next(reader, None)
                if batch is None:
                    return
                yield batch.select(names)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _window_job(project: Settings | FeatureStore, window: ViewWindow) -> tuple[DeltaRetrievalJob, list[str]]:
    """Return Feast's job for a window, and the requested columns of its result."""
    store = open_feature_store(project) if isinstance(project, Settings) else project
    options = store.config.offline_store
    options.known_by, options.versions, options.files = window.known_by, dict(window.versions or {}), dict(window.files or {})
    definition = store.get_feature_view(window.view)
    features = [feature.name for feature in definition.features]
    if window.view in set(Table):
        available = Lake(options.lake, options.storage_options).schema(Table(window.view)).names
    else:
        created = definition.batch_source.created_timestamp_column or None
        keys = [column.name for column in definition.entity_columns]
        available = [*keys, EVENT_TIMESTAMP, *features, *([created] if created else [])]
    names = list(window.columns) if window.columns is not None else available
    unknown = sorted(set(names) - set(available))
    if unknown:
        raise FeatureStoreError(
            f"no column {', '.join(unknown)}; there are: {', '.join(available)}",
            where=window.view,
            next_step="name columns of the view",
        )
    # Feast requires at least one feature.
    requested = [name for name in names if name in features] or features[:1]
    job = store.get_historical_features(
        features=[f"{window.view}:{name}" for name in requested],
        start_date=window.start or datetime(1, 1, 2, tzinfo=UTC),
        # Feast's windows include their end; ours do not.
        end_date=(window.end - timedelta(microseconds=1)) if window.end else datetime(9999, 12, 30, tzinfo=UTC),
    )
    return job, names


@contextmanager
def translate_feast_errors(used: Settings | FeatureStore) -> Iterator[None]:
    """Turn Feast's exceptions into `FeatureStoreError`, and silence its warnings about experimental methods.

    Args:
        used: The project whose repository is used, or the store.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    except ScalrError:
        raise
    except DeltaStoreError as error:
        raise translated(error) from error
    except Exception as error:
        where, secrets = (
            (used.feast_repo, used.secrets) if isinstance(used, Settings) else (used.repo_path, _store_secrets(used))
        )
        raise feast_error(
            "Feast failed",
            error,
            where=where,
            secrets=secrets,
            next_step="check the names of views, features and columns; run: scalr histories",
        ) from error


def feast_error(finding: str, error: Exception, *, where: Path, secrets: Iterable[str], next_step: str) -> FeatureStoreError:
    """Return the `FeatureStoreError` for an exception that Feast or one of its drivers raised.

    Args:
        finding: What failed.
        error: The exception.
        where: The repository or its file.
        secrets: Secrets that its message may hold.
        next_step: What to do about it, unless a database cannot be reached or a file cannot be read or written.
    """
    if _is_outage(error):
        next_step = (
            "check that the registry and the online store can be reached and the disk has space, then run the command again"
        )
    message = redact(str(error), secrets) or type(error).__name__
    return FeatureStoreError(f"{finding}: {message}", where=str(where), next_step=next_step)


def unopened_repository_error(file: Path, content: Any, error: Exception) -> FeatureStoreError:
    """Return the error of a repository that Feast cannot open. It does not wrap errors of YAML, pydantic, drivers or addresses.

    Args:
        file: Its feature_store.yaml.
        content: What the file contains, if that could be read.
        error: The exception.
    """
    return feast_error(
        "Feast cannot open the repository",
        error,
        where=file,
        secrets=secrets_in(content, options=True) if isinstance(content, dict) else (),
        next_step="see that `feast apply` works there",
    )


def _is_outage(error: Exception) -> bool:
    """Return whether a database or an operating system refused the work, for whatever names."""
    from sqlalchemy.exc import InterfaceError, OperationalError

    is_of_redis = type(error).__module__ == "redis.exceptions"  # an optional dependency
    is_of_system = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
    return is_of_redis or is_of_system or isinstance(error, InterfaceError | OperationalError)


def _store_secrets(store: FeatureStore) -> list[str]:
    """List the secrets of a store's registry, online store and offline store."""
    parts = {name: getattr(store.config, name).model_dump() for name in ("registry", "online_store", "offline_store")}
    return list(secrets_in(parts, options=True))


@contextmanager
def capture_feast_output(operation: str) -> Iterator[None]:
    """Redirect what Feast prints to the debug log: standard output belongs to the command line."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            yield
    finally:
        if printed.getvalue().strip():
            logger.debug("feast %s: %s", operation, printed.getvalue().strip())
