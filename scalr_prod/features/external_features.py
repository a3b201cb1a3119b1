# SPDX-License-Identifier: Apache-2.0
"""External features: services and views of the user's own Feast repository.

The repository's registry and definitions are used unchanged. Features are computed by this package's offline store, whatever its
feature_store.yaml names: a value counts only once it had happened and was known, every spine row stays in place, and memory is bounded.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from feast_delta.columns import is_hidden_until_created, source_columns
from scalr_prod.errors import FeatureStoreError
from scalr_prod.features.client import (
    join_point_in_time,
    open_feature_store,
    translate_feast_errors,
    unopened_repository_error,
)
from scalr_prod.features.sources import ServiceSources, feature_sources
from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID, PROVENANCE_COLUMNS, USER_ID, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from feast import FeatureStore, FeatureView
    from feast.feature_view_projection import FeatureViewProjection

    from feast_delta.columns import KnowledgeTime
    from scalr_prod.config import LogColumns, Settings
    from scalr_prod.features.store_snapshot import StoreSnapshot


_SETTING: Final = "[training_set] features"
_LISTED: Final = 30


@dataclass(frozen=True)
class ExternalJoin:
    """The join of the features that ``[training_set] features`` names; it can be pickled.

    Attributes:
        store: The user's feature store, with this package's offline store.
        requests: Services, and lists of ``view:feature``; one join each.
        keys: Join keys of the views → ``user_id`` or ``item_id``.
    """

    store: StoreSnapshot
    requests: tuple[str | list[str], ...]
    keys: dict[str, str]

    def __call__(self, spine: pa.Table, connection: DuckDBPyConnection | None = None) -> pa.Table:
        """Join the features to a spine, in its order.

        Args:
            spine: ``user_id``, ``item_id`` and ``event_timestamp``; values count if they had happened and were known by then.
            connection: An open DuckDB connection whose database runs the join; default: a new one.

        Returns:
            One column ``view__feature`` per feature, null if there is no value.

        Raises:
            FeatureStoreError: A key has another type than the ids, or a table cannot be read or lacks a column.
        """
        import pyarrow as pa

        columns = {key: spine.column(own) for key, own in self.keys.items()} | {EVENT_TIMESTAMP: spine.column(EVENT_TIMESTAMP)}
        store, entities, joined = self.store.open(), pa.table(columns), []
        for features in self.requests:
            found = join_point_in_time(store, entities, features, connection=connection)
            joined.append(found.drop_columns(list(columns)))
        return pa.table({name: table.column(name) for table in joined for name in table.column_names})


@dataclass(frozen=True)
class ExternalFeatures:
    """The features that ``[training_set] features`` names.

    Attributes:
        join: Joins them to a spine.
        projections: The views and features.
        sources: Tables that the features are computed from.
        digest: Digest of the definitions and of the sources' current content.
    """

    join: ExternalJoin
    projections: tuple[FeatureViewProjection, ...]
    sources: ServiceSources
    digest: str


def check_external_features(settings: Settings) -> None:
    """Check early that the features of ``[training_set] features`` exist.

    Features of the project's own repository can be checked only once the repository exists.

    Raises:
        FeatureStoreError: See `open_external_features`.
    """
    if settings.training_set.features_repo is not None or (settings.feast_repo / "feature_store.yaml").is_file():
        open_external_features(settings)


def open_external_features(settings: Settings) -> ExternalFeatures | None:
    """Open the features that ``[training_set] features`` names; None if it names none.

    Raises:
        FeatureStoreError: There is no such repository, service, view or feature; a view has another key than user and item, or the
            name of a built-in view; a feature has the name of a provenance column; or a source is not a file, or is missing.
    """
    options = settings.training_set
    if not options.features:
        return None
    from scalr_prod.features.store_snapshot import StoreSnapshot

    with translate_feast_errors(settings):
        repo = settings.resolve(options.features_repo) if options.features_repo else None
        store = (
            _opened(repo, settings.compute.memory_mb, settings.project.storage_options)
            if repo
            else open_feature_store(settings)
        )
        views = {view.name: view for view in store.list_feature_views()}
        services = {service.name: service for service in store.list_feature_services()}
        where = f"{_SETTING} of {repo or settings.feast_repo}"
        references: list[str] = []
        requests: list[str | list[str]] = []
        projections: list[FeatureViewProjection] = []
        for name in options.features:
            if name in services and ":" not in name:
                requests.append(name)
                projections += services[name].feature_view_projections
            else:
                projection = _projection(name, views, services, where)
                references += [f"{projection.name}:{feature.name}" for feature in projection.features]
                projections.append(projection)
        requests += [references] if references else []
        _check(projections, views, where)
        keys = _keys(projections, views, settings.domains.target.columns, options.feature_keys)
        sources = feature_sources(store, projections, settings.project.storage_options)
        files = {projection.name: _files(store, views[projection.name]) for projection in projections}
        default = store.config.offline_store.knowledge_time
        defined = [_definition(projection, views[projection.name], default) for projection in projections]
        text = json.dumps({"keys": keys, "defined": defined, "files": files}, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        join = ExternalJoin(StoreSnapshot.from_store(store), tuple(requests), keys)
        return ExternalFeatures(join, tuple(projections), sources, digest)


def _opened(repo: Path, memory_mb: int, storage_options: dict[str, str]) -> FeatureStore:
    """Open the user's repository with this package's offline store in place of its own."""
    import yaml
    from feast import FeatureStore
    from feast.repo_config import RepoConfig

    from scalr_prod.features.offline_store import DeltaOfflineStoreConfig

    file = repo / "feature_store.yaml"
    os.environ.setdefault("FEAST_USAGE", "False")
    content: Any = None
    try:
        content = yaml.safe_load(os.path.expandvars(file.read_text(encoding="utf-8")))
        ours = DeltaOfflineStoreConfig(memory_mb=memory_mb, storage_options=dict(storage_options))
        config = RepoConfig(**content | {"offline_store": ours.model_dump()})
        config.repo_path = repo
        return FeatureStore(config=config, repo_path=str(repo))
    except FileNotFoundError as error:
        raise FeatureStoreError(
            "there is no feature repository: no feature_store.yaml",
            where=str(repo),
            next_step="correct [training_set] features_repo",
        ) from error
    except Exception as error:
        raise unopened_repository_error(file, content, error) from error


def _projection(name: str, views: dict[str, FeatureView], services: Iterable[str], where: str) -> FeatureViewProjection:
    """Return the projection that ``view`` or ``view:feature`` names."""
    from copy import copy

    view_name, _, feature = name.partition(":")
    view = views.get(view_name)
    if view is None:
        raise FeatureStoreError(
            f"there is no feature {'view' if ':' in name else 'service or view'} '{view_name}'; there are the services "
            f"{_listed(services)} and the views {_listed(views)}",
            where=where,
            next_step="correct the name, or run `feast apply` in the repository",
        )
    projection = copy(view.projection)
    projection.features = [field for field in view.features if not feature or field.name == feature]
    if not projection.features:
        raise FeatureStoreError(
            f"the view {view_name} has no feature '{feature}'; it has: {_listed(field.name for field in view.features)}",
            where=where,
            next_step="correct the name",
        )
    return projection


def _check(projections: list[FeatureViewProjection], views: dict[str, FeatureView], where: str) -> None:
    columns: set[str] = set()
    for projection in projections:
        called = projection.name_to_use()
        if projection.name not in views:
            raise FeatureStoreError(
                f"the view {projection.name} is not read from a table (on-demand and stream views are not supported)",
                where=where,
                next_step="name views and services of feature views alone",
            )
        if called in set(Table):
            raise FeatureStoreError(
                f"the view {called} has the name of a built-in view, whose features every training set has",
                where=where,
                next_step="leave it out, or give it another name (with_name in the service)",
            )
        names = {f"{called}__{feature.name}" for feature in projection.features}
        if leaked := [feature.name for feature in projection.features if feature.name in PROVENANCE_COLUMNS]:
            raise FeatureStoreError(
                f"the feature {called}:{leaked[0]} has the name of a column that distinguishes synthetic rows from real ones",
                where=where,
                next_step="leave it out, or give it another name: no model may learn from a row's provenance",
            )
        if repeated := sorted(names & columns):
            raise FeatureStoreError(f"{repeated[0]} is named twice", where=where, next_step="name each feature once")
        columns |= names


def _keys(
    projections: list[FeatureViewProjection], views: dict[str, FeatureView], log: LogColumns, feature_keys: Mapping[str, str]
) -> dict[str, str]:
    """Map each join key to ``user_id`` or ``item_id``: by the settings, else by its name here or in the target's log."""
    from feast.feature_view import DUMMY_ENTITY_ID

    known = {log.user: USER_ID, log.item: ITEM_ID, USER_ID: USER_ID, ITEM_ID: ITEM_ID}
    known |= {key: {"user": USER_ID, "item": ITEM_ID}[own] for key, own in feature_keys.items()}
    found: dict[str, str] = {}
    for projection in projections:
        for name in views[projection.name].join_keys:
            key = projection.join_key_map.get(name, name)
            if name == DUMMY_ENTITY_ID:
                continue
            if key not in known:
                raise FeatureStoreError(
                    f"the view {projection.name} is joined on '{key}', which is neither the user nor the item",
                    where=_SETTING,
                    next_step=f'map it: feature_keys = {{ {key} = "user" }} under [training_set]; other keys cannot be joined',
                )
            found[key] = known[key]
    return found


def _definition(projection: FeatureViewProjection, view: FeatureView, default: KnowledgeTime) -> list[Any]:
    """Return the parts of a view's definition that decide its values."""
    source, columns = view.batch_source, source_columns(view.batch_source)
    return [
        projection.name_to_use(),
        [[feature.name, str(feature.dtype)] for feature in projection.features],
        {name: projection.join_key_map.get(name, name) for name in view.join_keys},
        view.ttl.total_seconds() if view.ttl else 0,
        source.path,
        [
            dict(columns.mapped_columns),
            columns.event,
            columns.created,
            is_hidden_until_created(view.name, view.tags, source.tags, default=default),
        ],
    ]


def _files(store: FeatureStore, view: FeatureView) -> Any:
    """Return the state of a source: the version of a Delta table, or names, sizes and times of Parquet files.

    Raises:
        FeatureStoreError: The source is not a file, or is missing.
    """
    import fsspec
    from feast.data_format import DeltaFormat

    from feast_delta.queries import source_path
    from feast_delta.scan import open_delta_table
    from scalr_prod.core.delta_log import version_fingerprint

    options = store.config.offline_store.storage_options
    path = source_path(store.config, view.batch_source)
    if isinstance(view.batch_source.file_format, DeltaFormat):
        return version_fingerprint(open_delta_table(path, options))
    filesystem, inner = fsspec.core.url_to_fs(path)
    found = filesystem.find(inner, detail=True) if filesystem.exists(inner) else {}
    if not found:
        raise FeatureStoreError(
            "the feature view's source is missing",
            where=path,
            next_step=f"correct the source of {view.name}, then `feast apply`",
        )
    return [
        [name, facts.get("size"), str(facts.get("mtime") or facts.get("LastModified") or facts.get("etag"))]
        for name, facts in sorted(found.items())
    ]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:_LISTED]) or "(none)"
