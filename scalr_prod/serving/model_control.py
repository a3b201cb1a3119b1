# SPDX-License-Identifier: Apache-2.0
"""Model control: load versions on the running servers and verify them with real requests."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from scalr_prod.errors import ModelNotReady, ModelVersionMismatch, ServingError
from scalr_prod.serving.client import open_scorer
from scalr_prod.serving.client.address import server_urls
from scalr_prod.serving.client.security import Security
from scalr_prod.serving.client.transport import Channel, RequestFailure
from scalr_prod.serving.local_server.server_state import read_record, restrict_shared_memory
from scalr_prod.serving.model_repository import configured_versions, install_version, model_folder, write_config
from scalr_prod.translator import load_version

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scalr_prod.config import Settings


logger = logging.getLogger(__name__)


def loaded_versions(settings: Settings) -> list[int]:
    """Return the versions that every server holds, in ascending order.

    Raises:
        ServerUnreachable: A server does not answer.
    """
    return sorted(set.intersection(*map(set, versions_by_server(settings).values())))


def versions_by_server(settings: Settings) -> dict[str, list[int]]:
    """Return the versions that each server holds, in ascending order, by the server's address.

    Raises:
        ServerUnreachable: A server does not answer.
    """
    versions = {}
    for url in server_urls(settings):
        try:
            with Channel(url, Security.for_control(settings)) as channel:
                versions[url] = channel.ready_versions(settings.served_model, settings.serving.deadline_s)
        except RequestFailure as failure:
            raise failure.to_error(url, settings.served_model) from failure
    return versions


def load_versions(settings: Settings, versions: Iterable[int], *, needed: int) -> None:
    """Make each server hold exactly these versions, and check that the needed one answers.

    If it does not, each server gets back its previous versions.

    Args:
        settings: The project's settings.
        versions: The versions to hold.
        needed: The version to check; it is installed in the repository first.

    Raises:
        TranslatorNotFound: The needed version was never trained.
        ServingError: A server could not load it; with its reason.
        ScoringError: It was loaded, but does not answer as expected.
    """
    install_version(settings, load_version(settings, needed))
    before = configured_versions(settings)
    write_config(settings, {*versions, needed})
    try:
        _load(settings)
        probe_version(settings, needed)
    except BaseException:
        if before and before != configured_versions(settings):
            write_config(settings, before)
            _restore_loaded(settings)
        raise


def probe_version(settings: Settings, version: int) -> None:
    """Check that the version answers a request at each server.

    Raises:
        ScoringError: It does not answer as expected.
    """
    try:
        for url in server_urls(settings):
            open_scorer(_settings_for_server(settings, url), version).close()
    except (ModelNotReady, ModelVersionMismatch) as error:
        if settings.serving.url is not None:
            error.next_step = (
                f"let that server read {settings.model_repository} (or set [serving] repository to the one it reads) "
                "under --model-control-mode=explicit, or load the version there"
            )
        raise


def _load(settings: Settings) -> None:
    for url in server_urls(settings):
        _load_at(settings, url)
    if settings.serving.url is None and (record := read_record(settings)) is not None:
        restrict_shared_memory(record)


def _load_at(settings: Settings, url: str) -> None:
    try:
        with Channel(url, Security.for_control(settings)) as channel:
            channel.load_model(settings.served_model, settings.serving.startup_timeout_s)
    except RequestFailure as failure:
        if failure.is_restricted or (failure.code in {"UNAVAILABLE", "DEADLINE_EXCEEDED"} and not failure.is_model_absent):
            raise failure.to_error(url, settings.served_model) from failure
        raise ServingError(
            f"the server could not load {settings.served_model}: {failure.detail}",
            where=f"{url}, {model_folder(settings)}",
            next_step="correct what it names; the serving environment needs this version of scalr-prod",
        ) from failure


def _settings_for_server(settings: Settings, url: str) -> Settings:
    """Return the settings reduced to one of several servers."""
    if len(settings.serving.urls) <= 1:
        return settings
    return settings.model_copy(update={"serving": settings.serving.model_copy(update={"url": url})})


def _restore_loaded(settings: Settings) -> None:
    """Reload the previous versions, ignoring errors: the original error is the one to raise."""
    try:
        _load(settings)
    except (ServingError, ModelNotReady) as error:
        logger.warning("the previous versions could not be reloaded: %s", error)
