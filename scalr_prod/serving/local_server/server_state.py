# SPDX-License-Identifier: Apache-2.0
"""State files of the local server: how to find it, who uses it, and when its last user has left."""

from __future__ import annotations

import json
import socket
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scalr_prod.core.atomic_io import write_text
from scalr_prod.core.file_lock import file_lock
from scalr_prod.errors import ServingError
from scalr_prod.serving.client.address import server_file
from scalr_prod.serving.client.keepalive import read_heartbeat_count
from scalr_prod.workspace import claim_home

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scalr_prod.config import Settings


#: Starting a server, loading a version and stopping may each take this long, while other processes wait.
_LOCK_TIMEOUT_S: Final = 600
#: Tolerance in seconds: a process's start is given in wall-clock time, which may be adjusted later.
_CLOCK_STEP_S: Final = 2


@dataclass(frozen=True)
class ServerRecord:
    """Record of the local server at its start.

    Attributes:
        url: Address of gRPC, a Unix socket: unix:path.
        metrics_url: Address of the Prometheus metrics.
        pid: The server's process, the leader of its own process group.
        created: The kernel's start time of that process, since its id may be reused.
        name: The server's own name, which no other server has.
        repository: The model repository it serves.
        log: Its log.
        lasting: Whether a command started it, so that it runs until a command stops it; otherwise its last user stops it.
        socket_folder: Folder of the socket, accessible only to this user.
        host: Name of the machine it runs on. Empty: started by an older version.
    """

    url: str
    metrics_url: str
    pid: int
    created: float
    name: str
    repository: str
    log: str
    lasting: bool
    socket_folder: str
    host: str = ""

    @property
    def is_elsewhere(self) -> bool:
        """Return whether another machine, which shares the home, started it; its processes cannot be seen from here."""
        return self.host not in {"", socket.gethostname()} and not self.is_alive

    @property
    def is_alive(self) -> bool:
        """Return whether this exact process runs."""
        import psutil

        try:
            process = psutil.Process(self.pid)
            ended = process.status() == psutil.STATUS_ZOMBIE
            same_moment = abs(process.create_time() - self.created) < _CLOCK_STEP_S
            command = process.cmdline()  # empty just after its start
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:  # another user's process: it can be neither identified nor stopped
            return True
        return not ended and same_moment and (not command or f"--id={self.name}" in command)

    def write(self, settings: Settings) -> None:
        """Write the record atomically."""
        write_text(server_file(settings), json.dumps(asdict(self), indent=2) + "\n")


def read_record(settings: Settings) -> ServerRecord | None:
    """Return the record of the local server started last, running or not; None if there is no readable record."""
    try:
        content = json.loads(server_file(settings).read_text(encoding="utf-8"))
        return ServerRecord(**{field.name: content[field.name] for field in fields(ServerRecord) if field.name in content})
    except (OSError, ValueError, TypeError):
        return None


def state_folder(settings: Settings) -> Path:
    """Return the folder of the server's log, locks and backends; the model repository holds only models."""
    claim_home(settings)
    folder = settings.home / "triton-server"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def restrict_shared_memory(record: ServerRecord) -> None:
    """Restrict access to the shared memory of requests, which Triton makes readable by all users.

    Call it after each load, before requests arrive.
    """
    for region in Path("/dev/shm").glob(f"{record.name}_*"):  # noqa: S108 - where the server keeps it
        with suppress(FileNotFoundError, PermissionError):  # a model that is being unloaded; a server of another user
            region.chmod(0o600)


def heartbeat_folder(settings: Settings) -> Path:
    """Return the folder of the model processes' heartbeats."""
    folder = state_folder(settings) / "heartbeats"
    folder.mkdir(exist_ok=True)
    return folder


def read_heartbeats(settings: Settings, version: int) -> int:
    """Return how many groups of contexts a version has processed; while the count changes, the version is working."""
    return read_heartbeat_count(heartbeat_folder(settings), settings.served_model, version)


@contextmanager
def server_lock(settings: Settings) -> Iterator[None]:
    """Hold the lock under which one process at a time starts, stops or loads.

    Raises:
        ServingError: Another process has held it for too long.
    """
    path = state_folder(settings) / "server.lock"
    busy = ServingError(
        f"another process has been starting or stopping the server for {_LOCK_TIMEOUT_S} s",
        where=str(path),
        next_step="check the server: scalr triton status",
    )
    with file_lock(path, busy, timeout_s=_LOCK_TIMEOUT_S):
        yield


@contextmanager
def server_user(settings: Settings) -> Iterator[None]:
    """Register as a user of the server for the duration of the block. The kernel drops a user that dies.

    Raises:
        ServingError: Another machine uses a local server in this home.
    """
    import fcntl

    refuse_second_machine(settings)
    with (state_folder(settings) / "users.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def refuse_second_machine(settings: Settings) -> None:
    """Check that no other machine, which shares the home, uses a local server; call it outside the caller's own use.

    Raises:
        ServingError: One does. A home has one record of a server, so each machine would replace the other's.
    """
    record = read_record(settings)
    if record is not None and record.is_elsewhere and has_other_users(settings):
        raise ServingError(
            f"{record.host}, which shares this home, uses a local Triton; a home has one",
            where=str(server_file(settings)),
            next_step='set [serving] url to a Triton that each machine reaches, or [serving] scorer = "local", '
            f"or wait until {record.host} has finished",
        )


def has_other_users(settings: Settings) -> bool:
    """Return whether another process is `server_user` the server; call it outside the caller's own use."""
    import fcntl

    with (state_folder(settings) / "users.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
