# SPDX-License-Identifier: Apache-2.0
"""The project's Feast repository: rendered from a template and applied to the registry when it changes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from scalr_prod.core import assets
from scalr_prod.core.atomic_io import atomic_path, read_json, write_text
from scalr_prod.core.file_lock import file_lock
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.core.redaction import is_secret_name
from scalr_prod.errors import FeatureStoreError, ProjectsMixed, ScalrError
from scalr_prod.features.client import feast_error, open_feature_store
from scalr_prod.features.tenancy import (
    APPLIED_FILE,
    check_registry_owner,
    previous_project_name,
    remove_from_registry,
    remove_label_views,
    remove_permissions,
)
from scalr_prod.lake import Lake, check_domains
from scalr_prod.schemas import ITEM_ID, RECOMMENDED_BY, USER_ID, Table, id_type_of
from scalr_prod.version import __version__
from scalr_prod.workspace import ProjectIdentity, claim_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scalr_prod.config import Settings


logger = logging.getLogger(__name__)

_LOCK_TIMEOUT_S = 300


@dataclass(frozen=True)
class RepositoryReport(Jsonable):
    """Result of `apply_feature_repo`.

    Attributes:
        path: The repository's folder; `feast -c PATH …` works on it.
        applied: False if everything was up to date.
        views: Names of the feature views, and of the label view.
        services: Names of the feature services.
    """

    path: str
    applied: bool
    views: tuple[str, ...]
    services: tuple[str, ...]


def apply_feature_repo(settings: Settings) -> RepositoryReport:
    """Write the project's feature repository and apply its definitions to the registry.

    If nothing has changed, this takes milliseconds and does not import Feast. One process at a time applies, because Feast's SQL registry
    locks under concurrent applies.

    Raises:
        TableNotFound: The logs have not been ingested yet.
        ProjectsMixed: The lake or the registry belongs to another project.
        DomainsMixed: The lake's tables were created for other domains.
        ForeignFiles: The folder holds another feature repository.
        FeatureStoreError: Feast refused the definitions, or the registry cannot be reached.
    """
    lake = _lake_facts(settings)
    files = _files(settings, lake | _definition_facts(settings))
    fingerprint = _fingerprint(settings.feast_registry_url, files)
    repo = settings.feast_repo
    # Check without the lock first: a materialization holds it for long.
    if report := _up_to_date(settings, files, fingerprint):
        return report
    names = (*files, APPLIED_FILE)
    claim_directory(repo, "feature-repository", setting="[feast] repo", names=names)
    with lock_repository(repo):
        if report := _up_to_date(settings, files, fingerprint):
            return report
        previous = previous_project_name(repo, settings.project_name)
        with _written_files(repo, files):
            views, services = _apply(settings, previous)
        state = {"project": settings.project_name, "fingerprint": fingerprint, "views": views, "services": services}
        write_text(repo / APPLIED_FILE, json.dumps(state, indent=2))
    logger.info("applied %d feature views and %d services in %s", len(views), len(services), repo)
    return RepositoryReport(str(repo), applied=True, views=tuple(views), services=tuple(services))


@contextmanager
def lock_repository(repo: Path) -> Iterator[None]:
    """Hold the project's lock for writes to Feast's registry.

    Raises:
        FeatureStoreError: Another process has held the lock for too long.
    """
    repo.mkdir(parents=True, exist_ok=True)
    busy = FeatureStoreError(
        f"another process has been writing to the feature registry for over {_LOCK_TIMEOUT_S} s",
        where=str(repo),
        next_step="wait for it to finish, then run the command again",
    )
    with file_lock(repo / ".lock", busy, timeout_s=_LOCK_TIMEOUT_S):
        yield


@contextmanager
def _written_files(repo: Path, files: dict[str, str]) -> Iterator[None]:
    """Write the files; restore the previous ones if the registry belongs to another project."""
    before = {name: (repo / name).read_bytes() if (repo / name).is_file() else None for name in files}
    for name, text in files.items():
        write_text(repo / name, text)  # others may read them now
    try:
        yield
    except ProjectsMixed:
        for name, content in before.items():
            if content is None:
                (repo / name).unlink()
            else:
                with atomic_path(repo / name) as unfinished:
                    unfinished.write_bytes(content)
        raise


def _registry_file(registry_url: str) -> Path | None:
    """Return the path of a SQLite registry, else None."""
    from sqlalchemy.engine import make_url

    registry = make_url(registry_url)
    return Path(registry.database or "") if registry.drivername.startswith("sqlite") else None


def _definition_facts(settings: Settings) -> dict[str, Any]:
    """Return what the settings say about the definitions."""
    sources = ", ".join(settings.domains.source_names)
    return {
        "project": settings.project_name,
        "description": f"Synthetic events of {settings.domains.target.name}, translated from events of {sources}.",
        "owner": settings.feast.owner,
        "tags": dict(settings.feast.tags),
        "label_view": settings.feast.label_view,
        "operator_roles": list(settings.feast.operator_roles),
        "reader_roles": list(settings.feast.reader_roles),
    }


def _lake_facts(settings: Settings) -> dict[str, Any]:
    lake = Lake.open(settings)
    opened = check_domains(settings, lake)
    source, target = (lake.schema(table, opened=opened.get(table)) for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS))
    item = id_type_of(source, ITEM_ID)
    # With several source domains, item ids of events include the domain and those of synthetic events do not. These tables are created
    # when both sides are ingested.
    quarantine = Table.SYNTHETIC_QUARANTINE
    synthetic = lake.schema(quarantine, opened=opened.get(quarantine)) if settings.domains.has_several_sources else None
    return {
        "root": lake.root,
        "user": id_type_of(source, USER_ID),
        "source_item": item,
        "source_item_id": id_type_of(synthetic, "source_item_id") if synthetic is not None else item,
        "target_item": id_type_of(target, ITEM_ID),
        **({"typed": Table.TARGET_EVENTS.value} if "event_type" in target.names else {}),
        **({"recommended": Table.TARGET_EVENTS.value} if RECOMMENDED_BY in target.names else {}),
    }


def _files(settings: Settings, lake: dict[str, Any]) -> dict[str, str]:
    template = assets.asset_folder("feature_repo")
    yaml = Template((template / "feature_store.yaml").read_text(encoding="utf-8"))
    options = {key: value for key, value in settings.project.storage_options.items() if not is_secret_name(key)}
    url = settings.feast_registry_url
    redis = settings.feast.redis
    online = (
        {"type": "sqlite", "path": str(settings.home / "feast_online.db")}
        if settings.feast.online_store == "sqlite"
        else {
            "type": "redis",
            "connection_string": "${SCALR_FEAST__REDIS}" if "password=" in redis else redis,
            # Overwrite a row even if its time is not newer: late events, republished windows.
            "skip_dedup": True,
        }
    )
    return {
        "feature_store.yaml": yaml.substitute(
            project=settings.project_name,
            # Workers keep their store open: reconnect after a database restart.
            sqlalchemy=json.dumps(
                {"echo": False, "pool_pre_ping": True} | ({"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {})
            ),
            registry=json.dumps("${SCALR_FEAST__REGISTRY}" if _has_secret(url) else url),
            storage_options=json.dumps(options),
            lake=json.dumps(lake["root"]),
            writable=json.dumps([path if "://" in path else str(settings.resolve(path)) for path in settings.feast.writable]),
            memory_mb=settings.compute.memory_mb,
            spill=json.dumps(str(settings.home / "staging")),
            online_store=json.dumps(online),
        ),
        "definitions.py": (template / "definitions.py").read_text(encoding="utf-8"),
        "lake.json": json.dumps(lake, indent=2) + "\n",
    }


def _has_secret(url: str) -> bool:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise FeatureStoreError(
            "is not a SQLAlchemy URL",
            where="[feast] registry",
            next_step="write it like postgresql+psycopg://user@host/database",
        ) from error
    return parsed.password is not None or any(map(is_secret_name, parsed.query))


def _fingerprint(registry_url: str, files: dict[str, str]) -> str:
    # Include the registry's address: a new, empty registry needs an apply.
    parts = [
        __version__,
        hashlib.sha256(registry_url.encode()).hexdigest(),
        *(f"{k}\0{v}" for k, v in files.items()),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _up_to_date(settings: Settings, files: dict[str, str], fingerprint: str) -> RepositoryReport | None:
    """Return the last applied state if nothing has changed and the registry still exists."""
    repo = settings.feast_repo
    state = read_json(repo / APPLIED_FILE)
    file = _registry_file(settings.feast_registry_url)
    is_missing = file is not None and not file.is_file()
    is_same = state.get("project") == settings.project_name and state.get("fingerprint") == fingerprint
    if is_missing or not is_same or not all(_same(repo / name, text) for name, text in files.items()):
        return None
    return RepositoryReport(str(repo), applied=False, views=tuple(state["views"]), services=tuple(state["services"]))


def _same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def _apply(settings: Settings, previous: str | None) -> tuple[list[str], list[str]]:
    """Apply the definitions; leave other registry objects alone, except ours under a previous name."""
    store = open_feature_store(settings)
    from feast import Entity, FeatureService, FeatureView, FileSource, LabelView, Project
    from feast.permissions.permission import Permission

    found = vars(_load_definitions(settings.feast_repo / "definitions.py"))
    kinds = Project | Entity | FeatureView | LabelView | FeatureService | Permission
    objects = [value for value in found.values() if isinstance(value, kinds)]
    sources = [
        view.batch_source for view in objects if isinstance(view, FeatureView) and isinstance(view.batch_source, FileSource)
    ]
    label_views = {value.name for value in objects if isinstance(value, LabelView)}
    permissions = {value.name for value in objects if isinstance(value, Permission)}
    project, file = ProjectIdentity.from_settings(settings), _registry_file(settings.feast_registry_url)
    shared = file is None or not file.resolve().is_relative_to(settings.home)
    try:
        check_registry_owner(project, store, shared=shared)
        with _read_once(store.registry):
            store.apply([*sources, *objects])
            remove_label_views(store.registry, store.project, {source.path for source in sources}, keep=label_views)
            remove_permissions(store.registry, store.project, keep=permissions)
        if previous is not None:
            remove_from_registry(store, previous, lake=project.lake, home=settings.home, shared=shared)
    except ScalrError:
        raise
    except Exception as error:
        # Feast and its registry's driver raise many exception types.
        raise feast_error(
            "the definitions could not be applied",
            error,
            where=settings.feast_repo,
            secrets=settings.secrets,
            next_step="check [feast] registry, and that the lake's tables can be read",
        ) from error
    views = [value.name for value in objects if isinstance(value, FeatureView | LabelView)]
    return views, [value.name for value in objects if isinstance(value, FeatureService)]


@contextmanager
def _read_once(registry: Any) -> Iterator[None]:
    """Refresh Feast's registry cache once at the end, not after each applied object; a refresh reads every project's objects."""
    mode, registry.cache_mode = registry.cache_mode, "held"  # any value except Feast's two modes
    try:
        yield
    finally:
        registry.cache_mode = mode
    registry.refresh()


def _load_definitions(path: Path) -> Any:
    # Do not import by name: two projects in one process would share the first one's definitions.
    spec = importlib.util.spec_from_file_location(f"scalr_feature_repo_{abs(hash(os.fspath(path)))}", path)
    if spec is None or spec.loader is None:
        raise FeatureStoreError(
            "cannot be loaded", where=str(path), next_step="remove the file; the next command writes it again"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
