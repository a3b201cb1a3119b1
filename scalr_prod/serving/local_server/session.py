# SPDX-License-Identifier: Apache-2.0
"""Serving session: a server that answers for the duration of a block."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from scalr_prod.errors import DeadlineExceeded, MalformedResponse, ModelNotReady, ModelVersionMismatch, ServerUnreachable
from scalr_prod.serving.local_server.process import restart_locked, start_locked, stop_locked
from scalr_prod.serving.local_server.server_state import has_other_users, read_heartbeats, read_record, server_lock, server_user
from scalr_prod.serving.model_control import load_versions, probe_version, versions_by_server
from scalr_prod.serving.model_repository import configured_versions
from scalr_prod.translator import load_version

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

    from scalr_prod.config import Settings


logger = logging.getLogger(__name__)


@contextmanager
def ensure_serving(settings: Settings, version: int, *, also_loaded: AbstractSet[int] | None = None) -> Iterator[None]:
    """Make the version available for the duration of the block.

    For the local scorer only the version's folder is looked for. Servers named in the settings are checked, and load the version if they
    do not hold it. Otherwise the local server is found or started; its last user stops it unless a command started it.

    Args:
        settings: The project's settings.
        version: The translator version.
        also_loaded: The other versions that a running server is to hold; default: all that it holds already.

    Raises:
        ServingError: The server could not be started, or could not load the version.
        ScoringError: It does not answer as expected.
        TranslatorNotFound: The version was never trained.
    """
    if settings.serving.scorer == "local":
        load_version(settings, version)  # here once; each process that asks loads its tables itself
        yield
    elif settings.serving.url is not None:
        _ensure_loaded(settings, version, also_loaded)
        yield
    else:
        try:
            with server_user(settings):
                with server_lock(settings):
                    _ensure_local(settings, version, also_loaded)
                yield
        finally:
            stop_unused_server(settings)


def stop_unused_server(settings: Settings) -> None:
    """Stop a local server that nobody uses, unless a command started it; a killed run may have left one."""
    if settings.serving.scorer == "local" or settings.serving.url is not None or read_record(settings) is None:
        return
    with server_lock(settings):
        record = read_record(settings)
        if record is not None and not record.lasting and not has_other_users(settings):
            stop_locked(settings, kill=True)


def _ensure_local(settings: Settings, version: int, also_loaded: AbstractSet[int] | None) -> None:
    fresh = start_locked(settings, [version], keep_running=False).started
    while True:
        before = read_heartbeats(settings, version)
        try:
            return _ensure_loaded(settings, version, None if fresh else also_loaded)
        except (DeadlineExceeded, MalformedResponse, ServerUnreachable) as error:
            if fresh:
                raise
            if not isinstance(error, MalformedResponse) and read_heartbeats(settings, version) != before:
                logger.info("Triton is busy with other requests: waiting for it")
                continue
            # It hangs, mixes up answers or is about to exit: nobody needs a server that an earlier run left in this state.
            restart_locked(settings, [version])
            return _ensure_loaded(settings, version, None)


def _ensure_loaded(settings: Settings, version: int, also_loaded: AbstractSet[int] | None) -> None:
    loaded_by_server = versions_by_server(settings).values()
    if any(
        version not in loaded or (also_loaded is not None and not set(loaded) <= {version, *also_loaded})
        for loaded in loaded_by_server
    ):
        load_versions(
            settings, {version, *(configured_versions(settings) if also_loaded is None else also_loaded)}, needed=version
        )
        return
    try:
        probe_version(settings, version)
    except (ModelNotReady, ModelVersionMismatch):
        # A different model has this number: another home's, or one from before this home was recreated.
        load_versions(settings, {version, *configured_versions(settings)}, needed=version)
