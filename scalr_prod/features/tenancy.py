# SPDX-License-Identifier: Apache-2.0
"""Isolation of projects that share a registry or a Redis: one project name stands for one lake.

Feast keys registry objects and online rows by the project's name alone, so two projects of one name would read each other's rows.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.atomic_io import read_json
from scalr_prod.errors import ProjectsMixed
from scalr_prod.schemas import Table
from scalr_prod.workspace import ProjectIdentity, normalize_lake_url

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from feast import FeatureStore


logger = logging.getLogger(__name__)

#: File in the repository that records what was applied last.
APPLIED_FILE: Final = ".applied.json"
#: Label views that definitions.py may define.
LABEL_VIEWS: Final = ("synthetic_target_labels",)
#: Permissions that definitions.py may define.
PERMISSIONS: Final = ("scalr_operators", "scalr_readers")
_REDIS_KEY: Final = "scalr:project:{}"


def check_registry_owner(project: ProjectIdentity, store: FeatureStore, *, shared: bool) -> None:
    """Ensure that the registry's objects under the project's name belong to the project's lake.

    Args:
        project: The project.
        store: Feast's store.
        shared: Whether projects may share the registry; a registry in the project's home moves with it and is not checked.

    Raises:
        ProjectsMixed: They belong to another lake. Nothing was written.
    """
    if not shared:
        return
    for lake in sorted(_lakes(store, store.project)):
        if lake != project.lake and not project.was_moved_from(lake):
            raise _other_lake(project, lake, "[feast] registry")


def previous_project_name(repo: Path, name: str) -> str | None:
    """Return the name that a repository was last applied under, if it differs from the project's ``name``.

    The name is saved before the repository is rewritten, so that an interrupted rename is resumed.
    """
    previous: str | None = read_json(repo / APPLIED_FILE).get("project")
    return previous if previous != name else None


def remove_from_registry(store: FeatureStore, previous_name: str, *, lake: str, home: Path, shared: bool) -> None:
    """Remove this project's registry objects and online rows under its previous name.

    Saved datasets move to the current name. Objects of other projects under the previous name stay.

    Args:
        store: Feast's store; the definitions were applied under the current name.
        previous_name: The previous name.
        lake: The project's lake.
        home: The project's home.
        shared: See `check_registry_owner`; in a registry in the home, every object with our names is ours.
    """
    from scalr_prod.features.online_deletes import delete_view_rows

    registry = store.registry
    if previous_name not in {project.name for project in registry.list_projects()}:
        return
    lakes = {lake} if shared else _lakes(store, previous_name)
    # Our objects are defined under the current name by now; others may define their own views and services over our tables.
    ours, services, defined = (
        {found.name for found in list_objects(store.project)}
        for list_objects in (registry.list_feature_views, registry.list_feature_services, registry.list_data_sources)
    )
    sources = [
        source for source in registry.list_data_sources(previous_name) if source.name in defined and _lake_of(source) in lakes
    ]
    paths = {source.path for source in sources}
    views = [
        view
        for view in registry.list_feature_views(previous_name)
        if view.name in ours and getattr(view.batch_source, "path", None) in paths
    ]
    old = store.config.model_copy(update={"project": previous_name})
    previous_store = type(store)(config=old, repo_path=str(store.repo_path))
    _move_datasets(registry, previous_name, store.project, below=home if shared else Path("/"))
    for service in registry.list_feature_services(previous_name):
        if service.name in services and {projection.name for projection in service.feature_view_projections} <= ours:
            registry.delete_feature_service(service.name, previous_name)
    for view in views:
        if view.online:
            delete_view_rows(previous_store, view, drop=True)
        registry.delete_feature_view(view.name, previous_name)
    remove_label_views(registry, previous_name, paths)
    for source in sources:
        registry.delete_data_source(source.name, previous_name)
    if store.config.online_store.type == "redis":
        _release_redis(previous_store, lake)
    if not _has_objects(registry, previous_name):
        remove_permissions(registry, previous_name)
        registry.delete_project(previous_name)
    logger.info("%d feature views moved from project '%s' to '%s' in the registry", len(views), previous_name, store.project)


def remove_label_views(registry: Any, project: str, paths: Collection[str], *, keep: Collection[str] = ()) -> None:
    """Remove this package's label views from a Feast project.

    Args:
        registry: Feast's registry.
        project: The Feast project.
        paths: Paths of the lake's tables; label views over other tables are those of others.
        keep: Names of label views that stay.
    """
    for view in registry.list_label_views(project):
        if view.name in LABEL_VIEWS and view.name not in keep and getattr(view.batch_source, "path", None) in paths:
            registry.delete_label_view(view.name, project)


def remove_permissions(registry: Any, project: str, *, keep: Collection[str] = ()) -> None:
    """Remove this package's permissions from a Feast project.

    Args:
        registry: Feast's registry.
        project: The Feast project.
        keep: Names of permissions that stay.
    """
    for permission in registry.list_permissions(project):
        if permission.name in PERMISSIONS and permission.name not in keep:
            registry.delete_permission(permission.name, project)


def claim_redis(project: ProjectIdentity, store: FeatureStore) -> None:
    """Ensure that the rows under the project's name in Redis belong to the project's lake.

    Raises:
        ProjectsMixed: They belong to another lake. Nothing was written.
    """
    from scalr_prod.features.online_deletes import redis_client

    redis, key = redis_client(store), _REDIS_KEY.format(project.name)
    redis.set(key, project.lake, nx=True)
    known = redis.get(key)
    lake = project.lake if known is None else known.decode()
    if lake == project.lake:
        return
    if not project.was_moved_from(lake):
        raise _other_lake(project, lake, "[feast] redis")
    redis.set(key, project.lake)


def _move_datasets(registry: Any, previous: str, current: str, *, below: Path) -> None:
    for dataset in registry.list_saved_datasets(previous):
        if Path(dataset.storage.to_data_source().path).is_relative_to(below):
            registry.apply_saved_dataset(dataset, current)
            registry.delete_saved_dataset(dataset.name, previous)


def _release_redis(store: FeatureStore, lake: str) -> None:
    """Delete the owner and the fill number of a store's project from Redis, if they are this lake's."""
    from scalr_prod.features.materialization_state import delete_fill_number
    from scalr_prod.features.online_deletes import redis_client

    redis, key = redis_client(store), _REDIS_KEY.format(store.project)
    if (redis.get(key) or b"").decode() == lake:
        delete_fill_number(store)
        redis.delete(key)


def _other_lake(project: ProjectIdentity, lake: str, where: str) -> ProjectsMixed:
    return ProjectsMixed(
        f"project '{project.name}' is on lake {lake} there; the settings name lake {project.lake} for it",
        where=where,
        next_step=f'give one of the two another name, with [project] name and formerly = "{project.name}"; if it is the same project, '
        f'and was moved, set [project] moved_from = "{lake}"',
    )


def _lakes(store: FeatureStore, project: str) -> set[str]:
    """Return the lakes of a project's sources that have our table names."""
    return {lake for source in store.registry.list_data_sources(project) if (lake := _lake_of(source)) is not None}


def _lake_of(source: Any) -> str | None:
    """Return the lake of one of our sources; None for other sources."""
    lake, _, table = str(getattr(source, "path", "")).rpartition("/")
    return normalize_lake_url(lake) if source.name == table and table in {ours.value for ours in Table} else None


def _has_objects(registry: Any, project: str) -> bool:
    """Whether a project still has objects, except entities, which belong to views, and this package's permissions."""
    kinds: Iterable[Any] = (
        registry.list_all_feature_views,
        registry.list_feature_services,
        registry.list_data_sources,
        registry.list_saved_datasets,
        registry.list_validation_references,
    )
    others = [permission for permission in registry.list_permissions(project) if permission.name not in PERMISSIONS]
    return bool(others) or any(list_them(project) for list_them in kinds)
