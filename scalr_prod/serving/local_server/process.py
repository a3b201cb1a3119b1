# SPDX-License-Identifier: Apache-2.0
"""Local Triton server: a separate process on loopback that outlives the command which started it."""

from __future__ import annotations

import logging
import os
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import ServingError
from scalr_prod.serving.client.address import secret_file, server_file
from scalr_prod.serving.client.security import Security
from scalr_prod.serving.client.transport import Channel, RequestFailure
from scalr_prod.serving.install.environment import find_environment, prepare_backend_folder
from scalr_prod.serving.local_server.launch import child_processes, launch_server
from scalr_prod.serving.local_server.server_state import (
    ServerRecord,
    read_record,
    refuse_second_machine,
    restrict_shared_memory,
    server_lock,
    state_folder,
)
from scalr_prod.serving.model_repository import configured_versions, install_version, write_config
from scalr_prod.serving.promotion_stack import promoted_versions
from scalr_prod.translator import load_version, version_numbers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scalr_prod.config import Settings


logger = logging.getLogger(__name__)

_PROBE_S: Final = 2.0
_STOP_S: Final = 20
_PORT_TRIES: Final = 3


@dataclass(frozen=True)
class ServerStatus(Jsonable):
    """Describe the server's state.

    Attributes:
        running: Whether it answers.
        url: Address of gRPC, host:port or unix:path; None if no server was started and the settings name none.
        versions: Loaded translator versions.
        pid: Process id of a local server.
        metrics_url: Address of a local server's Prometheus metrics.
        log: Log file of a local server.
        started: Whether this call started it.
        detail: Why it does not answer.
    """

    running: bool
    url: str | None
    versions: list[int] = field(default_factory=list)
    pid: int | None = None
    metrics_url: str | None = None
    log: str | None = None
    started: bool = False
    detail: str | None = None


def start_triton(settings: Settings) -> ServerStatus:
    """Start the local server, or find the running one, and wait until it answers. It runs until `stop_triton`.

    It loads the promoted version, and the one before it for a rollback.

    Raises:
        ServingError: The settings name a server elsewhere, there is no serving environment, or the server did not come up;
            the error then holds the end of its log.
    """
    _ensure_local_server(settings, "started")
    with server_lock(settings):
        return start_locked(settings, promoted_versions(settings)[-2:], keep_running=True)


def stop_triton(settings: Settings) -> bool:
    """Stop the local server; requests in progress fail.

    Returns:
        Whether there was one.

    Raises:
        ServingError: The settings name a server elsewhere, or it could not be stopped.
    """
    _ensure_local_server(settings, "stopped")
    with server_lock(settings):
        return stop_locked(settings)


def triton_status(settings: Settings) -> ServerStatus:
    """Return whether the server answers, and which versions it holds."""
    record = read_record(settings) if settings.serving.url is None else None
    if settings.serving.url is None and record is None:
        return ServerStatus(running=False, url=None, detail="no local server was started")
    if record is not None and not is_alive(record):
        detail = f"it was started on {record.host}" if record.is_elsewhere else f"process {record.pid} {describe_end(record)}"
        return ServerStatus(running=False, url=record.url, log=record.log, detail=detail)
    statuses = [
        _server_status(settings, url, record) for url in ((record.url,) if record is not None else settings.serving.urls)
    ]
    if len(statuses) == 1:
        return statuses[0]
    silent = "; ".join(f"{status.url}: {status.detail}" for status in statuses if not status.running)
    common_versions = set.intersection(*(set(status.versions) for status in statuses))
    return ServerStatus(
        running=not silent, url=", ".join(settings.serving.urls), versions=sorted(common_versions), detail=silent or None
    )


def _server_status(settings: Settings, url: str, record: ServerRecord | None) -> ServerStatus:
    """Return the status of one server."""
    local = {} if record is None else {key: getattr(record, key) for key in ("pid", "metrics_url", "log")}
    try:
        with Channel(url, Security.for_control(settings)) as channel:
            channel.server_name(_PROBE_S)
            versions = channel.ready_versions(settings.served_model, _PROBE_S)
            return ServerStatus(running=True, url=url, versions=versions, **local)
    except RequestFailure as failure:
        return ServerStatus(running=False, url=url, detail=failure.detail, **local)


def start_locked(settings: Settings, versions: Iterable[int], *, keep_running: bool) -> ServerStatus:
    """Start the server as `start_triton` does; the caller must hold the server lock.

    Args:
        settings: The project's settings.
        versions: Versions to load, unless a server runs already. Each is a process with torch in it.
        keep_running: Whether it runs until a command stops it.
    """
    existing = read_record(settings)
    if existing is not None and is_alive(existing):
        _wait_ready(settings, existing)
        if keep_running and not existing.lasting:
            ServerRecord(**(asdict(existing) | {"lasting": True})).write(settings)
        return triton_status(settings)
    environment = find_environment(settings)
    backends = prepare_backend_folder(environment, state_folder(settings) / "backends")
    # A stopped server leaves no record; one that exited by itself is restarted with all versions that it held.
    to_load = {*versions}
    if existing is not None:
        to_load |= {*configured_versions(settings)} & {*version_numbers(settings.home)}  # retention removes old ones
        _remove_leftovers(existing)
    for version in sorted(to_load):
        install_version(settings, load_version(settings, version))
    write_config(settings, to_load)
    for attempt in range(1, _PORT_TRIES + 1):
        record = launch_server(settings, environment, backends, keep_running=keep_running)
        try:
            _wait_ready(settings, record)
        except BaseException as error:
            is_port_taken = isinstance(error, ServingError) and not is_alive(record) and "already in use" in log_tail(record)
            stop_locked(settings)
            if not is_port_taken or attempt == _PORT_TRIES:
                raise
            logger.warning("another process took the port; trying another one")
            continue
        break
    status = triton_status(settings)
    return ServerStatus(**(asdict(status) | {"started": True}))


def restart_locked(settings: Settings, versions: Iterable[int]) -> ServerStatus:
    """Kill a failed server and start another one; the caller must hold the server lock.

    Args:
        settings: The project's settings.
        versions: Versions to hold, in addition to those it held.
    """
    record = read_record(settings)
    if record is not None and is_alive(record):
        _signal(record, signal.SIGKILL)
        _wait_until_ended(record, _STOP_S)
    return start_locked(settings, versions, keep_running=record is not None and record.lasting)


def stop_locked(settings: Settings, *, kill: bool = False) -> bool:
    """Stop the server, see `stop_triton`; the caller must hold the server lock.

    Args:
        settings: The project's settings.
        kill: Do not let it finish requests. It keeps nothing that has to be written, and its own shutdown takes three seconds.
    """
    record = read_record(settings)
    if record is None:
        return False
    was_alive = is_alive(record)
    if was_alive:
        if not kill:
            _signal(record, signal.SIGTERM)
        if kill or not _wait_until_ended(record, _STOP_S):
            _signal(record, signal.SIGKILL)
            if not _wait_until_ended(record, _STOP_S):
                raise ServingError(
                    f"process {record.pid} does not exit", where=record.url, next_step=f"inspect it: ps -p {record.pid}"
                )
    _remove_leftovers(record)
    for file in (server_file(settings), secret_file(settings)):
        file.unlink(missing_ok=True)
    return was_alive


def log_tail(record: ServerRecord) -> str:
    """Return the last errors in the server's log, or its last lines if there are none."""
    try:
        text = Path(record.log).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "no log"
    telling = [line for line in text if line[:1] == "E" or "rror" in line]
    return "\n    ".join(["", *(telling or text)[-8:]])


def _wait_ready(settings: Settings, record: ServerRecord) -> None:
    """Wait until the server answers with its own name."""
    limit = settings.serving.startup_timeout_s
    ends_at = time.monotonic() + limit
    with Channel(record.url) as channel:
        while True:
            if not is_alive(record):
                raise _failed_start(record)
            try:
                name = channel.server_name(_PROBE_S)
            except RequestFailure as failure:
                if time.monotonic() > ends_at:
                    raise ServingError(
                        f"Triton does not answer after {limit:g} s ({failure.detail}); the end of its log: {log_tail(record)}",
                        where=record.url,
                        next_step="raise [serving] startup_timeout_s, or see its log",
                    ) from failure
            else:
                if name == record.name:
                    restrict_shared_memory(record)
                    return
                raise ServingError(
                    f"another server ({name}) answers there",
                    where=record.url,
                    next_step="run: scalr triton stop, then scalr triton start",
                )
            time.sleep(0.1)


def _failed_start(record: ServerRecord) -> ServingError:
    """Return the error of a server that ended while starting. The log of a killed one does not hold the reason."""
    how, without = describe_end(record), 'or run without Triton: [serving] scorer = "local"'
    if "killed by signal" in how:
        return ServingError(
            f"Triton {how}, while starting",
            where=record.log,
            next_step=f"see the kernel's log (dmesg) and free memory; {without}",
        )
    return ServingError(
        f"Triton {how} while starting; the end of its log: {log_tail(record)}",
        where=record.log,
        next_step=f"fix the reported problem; {without}",
    )


def is_alive(record: ServerRecord) -> bool:
    """Return whether the server's process runs; an exited child that was not waited for does not count."""
    child = child_processes.get(record.pid)
    return (child is not None and child.poll() is None) or record.is_alive


def describe_end(record: ServerRecord) -> str:
    """Return how the server's process ended, as far as this process knows: only a parent learns the signal or exit status."""
    child = child_processes.get(record.pid)
    status = None if child is None else child.poll()
    if status is None:
        return "has ended"
    if status >= 0:
        return f"exited with status {status}"
    reason = ", likely out of memory" if -status == signal.SIGKILL else ""
    return f"was killed by signal {-status} ({signal.Signals(-status).name}){reason}"


def _wait_until_ended(record: ServerRecord, seconds: float) -> bool:
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        if not is_alive(record):
            return True
        time.sleep(0.05)
    return False


def _signal(record: ServerRecord, number: signal.Signals) -> None:
    try:
        if number == signal.SIGKILL:
            os.killpg(record.pid, number)  # its stubs too, which would otherwise keep running
        else:
            os.kill(record.pid, number)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise ServingError(
            f"process {record.pid} belongs to another user", where=record.url, next_step="stop it as that user"
        ) from error


def _remove_leftovers(record: ServerRecord) -> None:
    """Remove what a killed server leaves behind: stubs, socket and its shared memory."""
    import psutil

    killed = []
    for process in psutil.process_iter(["cmdline"]):
        if any(record.name in part for part in process.info["cmdline"] or ()) and process.pid != os.getpid():
            try:
                process.kill()
            except psutil.Error:  # it has exited meanwhile, or belongs to another user
                continue
            killed.append(process)
    psutil.wait_procs(killed, timeout=_STOP_S)  # a process with much memory takes a while to exit
    for region in Path("/dev/shm").glob(f"{record.name}_*"):  # noqa: S108 - where the server keeps it
        region.unlink(missing_ok=True)
    Path(record.url.removeprefix("unix:")).unlink(missing_ok=True)
    with suppress(OSError):  # it is removed already
        Path(record.socket_folder).rmdir()


def _ensure_local_server(settings: Settings, verb: str) -> None:
    if settings.serving.url is not None:
        raise ServingError(
            f"the settings name a server, which is not {verb} from here",
            where=f"[serving] url = {settings.serving.url!r}",
            next_step="remove url to use a local server",
        )
    refuse_second_machine(settings)
