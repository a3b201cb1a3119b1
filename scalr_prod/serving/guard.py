"""A local server that is watched over while a run uses it: one that dies or hangs is started anew.

The workers need not know. They ask again until their deadline, and go to where the server is then.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from scalr_prod.errors import ScalrError
from scalr_prod.scoring.transport import Channel, Failure
from scalr_prod.serving.ensure import ensure_serving
from scalr_prod.serving.loading import check_version
from scalr_prod.serving.process import is_alive, restart_locked
from scalr_prod.serving.repository import model_folder
from scalr_prod.serving.state import ServerRecord, read_record, server_lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scalr_prod.settings import Settings

__all__ = ["guarded_serving"]

logger = logging.getLogger(__name__)

_EVERY_S: Final = 1.0
_PROBE_S: Final = 5.0
#: A busy machine may answer late: only a server that is silent for this long, and no longer than requests wait, hangs.
_HANGS_AFTER_S: Final = 30.0
#: Restarts within one run; a server that needs more has a cause that a person should see.
_RESTARTS: Final = 5


@contextmanager
def guarded_serving(settings: Settings, version: int) -> Iterator[None]:
    """`ensure_serving`, and start the local server anew where it dies, hangs, or loses the process that the model runs in.

    A server that the settings name elsewhere, or one that is stopped by command, is left as it is.

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
        guard = _Guard(settings, version)
        guard.start()
        try:
            yield
        finally:
            guard.end()


class _Guard(threading.Thread):
    def __init__(self, settings: Settings, version: int) -> None:
        super().__init__(name="triton guard", daemon=True)
        self._settings, self._version = settings, version
        self._over = threading.Event()
        self._answered_at = time.monotonic()

    def end(self) -> None:
        """Stop watching; a restart that is under way is finished first."""
        self._over.set()
        self.join()

    def run(self) -> None:
        restarts = 0
        while restarts < _RESTARTS and not self._over.wait(_EVERY_S):
            record = read_record(self._settings)
            if record is None:  # stopped by command
                return
            trouble = self._trouble(record)
            if trouble is not None:
                restarts += 1
                logger.warning("Triton at %s %s: starting it anew (%d of %d)", record.url, trouble, restarts, _RESTARTS)
                self._restart(record)

    def _trouble(self, record: ServerRecord) -> str | None:
        if not is_alive(record):
            return "has ended"
        if not self._model_process_runs(record):
            return "has lost the process that the model runs in"
        try:
            with Channel(record.url) as channel:
                channel.server_name(_PROBE_S)
        except Failure:
            limit = min(_HANGS_AFTER_S, self._settings.serving.deadline_s / 2)
            return f"does not answer for {limit:g} s" if time.monotonic() - self._answered_at > limit else None
        self._answered_at = time.monotonic()
        return None

    def _model_process_runs(self, record: ServerRecord) -> bool:
        import psutil

        program = str(model_folder(self._settings) / str(self._version))
        try:
            for process in psutil.Process(record.pid).children(recursive=True):
                ended = process.status() in {psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED}
                if not ended and any(program in part for part in process.cmdline()):
                    return True
        except psutil.Error:  # it has ended just now: the next look tells
            return True
        return False

    def _restart(self, seen: ServerRecord) -> None:
        try:
            with server_lock(self._settings):
                found = read_record(self._settings)
                if found is None or found.pid != seen.pid:  # another run's guard was faster, or it was stopped by command
                    return
                restart_locked(self._settings, [self._version])
                check_version(self._settings, self._version)
        except (ScalrError, OSError) as error:
            logger.warning("Triton could not be started anew: %s", error)
        finally:
            self._answered_at = time.monotonic()
