# SPDX-License-Identifier: Apache-2.0
"""Watchdog of a local server during a run: restarts it if it dies or hangs.

Workers need not know of it: they retry until their deadline, and switch to the server's new address.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from scalr_prod.errors import MalformedResponse, ModelNotReady, ScalrError, ScoringError
from scalr_prod.serving.client.retry import RequestOptions
from scalr_prod.serving.client.security import Security
from scalr_prod.serving.client.transport import Channel, RequestFailure
from scalr_prod.serving.client.triton import TritonScorer
from scalr_prod.serving.local_server.process import describe_end, is_alive, restart_locked
from scalr_prod.serving.local_server.server_state import ServerRecord, read_heartbeats, read_record, server_lock
from scalr_prod.serving.local_server.session import ensure_serving
from scalr_prod.serving.model_control import probe_version
from scalr_prod.serving.model_repository import configured_instances, model_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scalr_prod.config import Settings


logger = logging.getLogger(__name__)

_PROBE_INTERVAL_S: Final = 1.0
_PROBE_TIMEOUT_S: Final = 5.0
#: A busy machine may answer late. A server counts as hung if it answers nobody and processes no group of contexts for this long,
#: but no longer than requests wait.
_HANGS_AFTER_S: Final = 30.0
#: Maximum restarts within one run; a server that needs more has a problem that a person should look at.
_MAX_RESTARTS: Final = 5


@contextmanager
def serve_with_watchdog(settings: Settings, version: int) -> Iterator[None]:
    """Serve the version, and restart the local server if it dies, hangs, mixes up answers or loses a model process.

    Servers named in the settings, and servers stopped by command, are not touched.

    Args:
        settings: The project's settings.
        version: The translator version.

    Raises:
        ScalrError: As `ensure_serving`.
    """
    with ensure_serving(settings, version):
        if settings.serving.scorer == "local" or settings.serving.url is not None:
            yield
            return
        watchdog = _Watchdog(settings, version)
        watchdog.start()
        try:
            yield
        finally:
            watchdog.stop()


class _Watchdog(threading.Thread):
    def __init__(self, settings: Settings, version: int) -> None:
        super().__init__(name="triton watchdog", daemon=True)
        self._settings, self._version = settings, version
        self._stop_requested = threading.Event()
        self._alive_at, self._last_heartbeat = time.monotonic(), (0, -1)
        self._seen: dict[int, int] = {}

    def stop(self) -> None:
        """Stop watching, after finishing a restart under way."""
        self._stop_requested.set()
        self.join()

    def run(self) -> None:
        restarts = 0
        while restarts < _MAX_RESTARTS and not self._stop_requested.wait(_PROBE_INTERVAL_S):
            try:
                record = read_record(self._settings)
                problem = None if record is None else self._find_problem(record)
            except (ScalrError, OSError) as error:
                # Such as a shared home that does not answer: the next probe may find it again.
                logger.warning("the local Triton could not be probed: %s", error)
                continue
            if record is None:  # stopped by command
                return
            if problem is not None:
                restarts += 1
                logger.warning("Triton at %s %s: restarting it (%d of %d)", record.url, problem, restarts, _MAX_RESTARTS)
                self._restart(record)

    def _find_problem(self, record: ServerRecord) -> str | None:
        if not is_alive(record):
            return describe_end(record)
        if self._has_lost_process(record):
            return "lost a process of its model"
        name = self._settings.served_model
        try:  # a real request, since a server may report to be well while its model does not answer
            TritonScorer(
                lambda: [record.url], self._version, model=name, options=RequestOptions(deadline_s=_PROBE_TIMEOUT_S)
            ).close()
        except MalformedResponse:
            return "mixes up answers"
        except ModelNotReady as error:
            return f"has a model that does not answer ({error.found})"
        except ScoringError:
            return self._check_silence(record)
        self._alive_at = time.monotonic()
        return None

    def _check_silence(self, record: ServerRecord) -> str | None:
        """Return why a silent server counts as hung: it answers nobody and makes no progress within its batch.

        Other, larger requests may be queued before the probe.
        """
        answered = self._last_heartbeat[0]
        try:
            with Channel(record.url, Security.for_control(self._settings)) as channel:
                answered = channel.answered_requests(self._settings.served_model, _PROBE_TIMEOUT_S)
        except RequestFailure as failure:
            logger.info("Triton at %s does not report statistics either: %s", record.url, failure.detail)
        signs = (answered, read_heartbeats(self._settings, self._version))
        if signs != self._last_heartbeat:
            self._alive_at, self._last_heartbeat = time.monotonic(), signs
        limit = min(_HANGS_AFTER_S, self._settings.serving.deadline_s / 2)
        silent = time.monotonic() - self._alive_at > limit
        return f"answers nobody and makes no progress for {limit:g} s" if silent else None

    def _has_lost_process(self, record: ServerRecord) -> bool:
        """Return whether fewer instances run than were seen before, up to the configured number; more may be starting."""
        import psutil

        program, running = f"{model_folder(self._settings) / str(self._version)}/", 0
        try:
            for process in psutil.Process(record.pid).children(recursive=True):
                ended = process.status() in {psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED}
                running += not ended and any(program in part for part in process.cmdline())
        except psutil.Error:  # it has just exited: the next check reports it
            return False
        expected = max(self._seen.get(record.pid, 1), running)
        self._seen = {record.pid: expected}
        return running < min(expected, configured_instances(self._settings))

    def _restart(self, seen: ServerRecord) -> None:
        try:
            with server_lock(self._settings):
                current = read_record(self._settings)
                if current is None or current.pid != seen.pid:  # stopped by command, or restarted by another run
                    return
                restart_locked(self._settings, [self._version])
                probe_version(self._settings, self._version)
        except (ScalrError, OSError) as error:
            logger.warning("Triton could not be restarted: %s", error)
        finally:
            self._alive_at = time.monotonic()
