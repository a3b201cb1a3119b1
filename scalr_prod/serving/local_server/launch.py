# SPDX-License-Identifier: Apache-2.0
"""Start command of a local Triton, with its socket, secret and access restrictions.

Triton's control protocols run code: a client that may load a model may send its program along. So a local server has no HTTP, its gRPC
endpoint is a Unix socket in a folder that only this user can enter, and the control protocols also require a secret. The secret is not
enough: Triton takes it on the command line, which every user of the machine can read (docs/adr/0012).
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from scalr_prod.errors import ServingError
from scalr_prod.serving.client.address import secret_file
from scalr_prod.serving.client.keepalive import HEARTBEAT_FOLDER_VARIABLE
from scalr_prod.serving.client.security import CONTROL_HEADER, CONTROL_PROTOCOLS
from scalr_prod.serving.install.virtualenvs import describe_unseen_gpu
from scalr_prod.serving.local_server.server_state import ServerRecord, heartbeat_folder, state_folder
from scalr_prod.serving.model_repository import configured_versions

if TYPE_CHECKING:
    from pathlib import Path

    from scalr_prod.config import Settings
    from scalr_prod.serving.install.environment import ServingEnvironment


logger = logging.getLogger(__name__)

_HOST: Final = "127.0.0.1"
#: The kernel's limit of a Unix socket's path is 107 bytes.
_MAX_SOCKET_PATH: Final = 107
#: Triton appends a port to every address, so it is part of the socket's name.
_PORT: Final = 1
#: Servers started by this process: only their parent can tell that one has exited.
child_processes: dict[int, subprocess.Popen[bytes]] = {}


def launch_server(settings: Settings, environment: ServingEnvironment, backends: Path, *, keep_running: bool) -> ServerRecord:
    """Start a server with a new socket and a new secret, and record both; it may take seconds until it answers.

    Args:
        settings: The project's settings.
        environment: The serving environment.
        backends: Folder prepared by `prepare_backend_folder`.
        keep_running: Whether it runs until a command stops it.

    Raises:
        ServingError: No socket can be created in the folder of temporary files.
    """
    settings.model_repository.mkdir(parents=True, exist_ok=True)
    name = f"scalr-{secrets.token_hex(8)}"
    log = state_folder(settings) / "triton.log"
    folder, metrics = _socket_folder(), _free_port()
    command = [str(environment.server_binary), f"--id={name}", f"--model-repository={settings.model_repository}"]
    command += ["--model-control-mode=explicit", "--disable-auto-complete-config", "--exit-timeout-secs=10"]
    command += [f"--backend-directory={backends}", f"--backend-config=python,shm-region-prefix-name={name}_"]
    command += ["--allow-http=false", f"--grpc-address=unix:{folder}/grpc", f"--grpc-port={_PORT}"]
    command += [f"--grpc-restricted-protocol={','.join(CONTROL_PROTOCOLS)}:{CONTROL_HEADER}={_new_secret(settings)}"]
    command += [f"--metrics-address={_HOST}", f"--metrics-port={metrics}"]
    if configured_versions(settings):
        # A version that cannot be loaded must not end the server: the caller that requested it reports it.
        command += [f"--load-model={settings.served_model}", "--exit-on-error=false"]
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - the server of the named environment, with options of our own
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment.server_variables(settings.serving.threads)
            | {HEARTBEAT_FOLDER_VARIABLE: str(heartbeat_folder(settings))},
            cwd=state_folder(settings),
            start_new_session=True,
        )
    try:
        child_processes[process.pid] = process
        record = _record_process(settings, process, name, folder, metrics, keep_running=keep_running)
    except BaseException:  # without a record, no command could stop it
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with the processes of its models
        process.wait()
        child_processes.pop(process.pid, None)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if unseen := describe_unseen_gpu(environment.folder, environment.packages["torch"]):
        logger.warning("%s", unseen)
    logger.info("started Triton as process %d at %s", process.pid, record.url)
    return record


def _record_process(
    settings: Settings, process: subprocess.Popen[bytes], name: str, folder: str, metrics: int, *, keep_running: bool
) -> ServerRecord:
    """Write the record of a server that was started."""
    import psutil

    try:
        created = psutil.Process(process.pid).create_time()
    except psutil.NoSuchProcess:
        created = 0.0
    record = ServerRecord(
        url=f"unix:{folder}/grpc:{_PORT}",
        metrics_url=f"http://{_HOST}:{metrics}/metrics",
        pid=process.pid,
        created=created,
        name=name,
        repository=str(settings.model_repository),
        log=str(state_folder(settings) / "triton.log"),
        lasting=keep_running,
        socket_folder=folder,
        host=socket.gethostname(),
    )
    record.write(settings)
    return record


def _socket_folder() -> str:
    """Create a folder that only this user can enter; its path is short however long the home's is."""
    folder = tempfile.mkdtemp(prefix="scalr-triton-")
    if len(os.fsencode(f"{folder}/grpc:{_PORT}")) > _MAX_SOCKET_PATH:
        os.rmdir(folder)  # noqa: PTH106 - as it was made
        raise ServingError(
            f"the folder of temporary files has too long a path for a socket ({_MAX_SOCKET_PATH} bytes at most)",
            where=folder,
            next_step="set TMPDIR to a folder with a shorter path, such as /tmp",
        )
    return folder


def _new_secret(settings: Settings) -> str:
    """Create a secret and write it where only this user can read it."""
    secret = secrets.token_hex(32)
    path = secret_file(settings)
    staged = path.with_suffix(f".{os.getpid()}")
    staged.unlink(missing_ok=True)
    with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(secret)
    staged.replace(path)
    return secret


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])
