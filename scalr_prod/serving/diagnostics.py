# SPDX-License-Identifier: Apache-2.0
"""Checks of `scalr doctor` for serving."""

from __future__ import annotations

import platform
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import ScalrError, ServingError
from scalr_prod.serving.install.environment import find_environment
from scalr_prod.serving.install.virtualenvs import describe_unseen_gpu

if TYPE_CHECKING:
    from scalr_prod.config import Settings


_LOCAL: Final = 'run: scalr serving install; or set [serving] scorer = "local"'
_SETTINGS: Final = """
[domains.source]
name = "source"
events = "none.parquet"
[domains.target]
name = "target"
events = "none.parquet"
"""


@dataclass(frozen=True)
class DiagnosticCheck(Jsonable):
    """Describe the outcome of one check.

    Attributes:
        name: What was checked.
        ok: Whether it is usable.
        found: The finding, in one sentence.
        next_step: What to do if it is not usable; for a usable one, a warning's remedy.
    """

    name: str
    ok: bool
    found: str
    next_step: str | None = None


def serving_checks(settings: Settings | None, *, deep: bool = False) -> list[DiagnosticCheck]:
    """Check the serving environment; with settings, also the server that they name.

    Args:
        settings: The project's settings; None: the machine alone.
        deep: Also start a server in a temporary home, send it a request, and stop it.
    """
    if settings is not None and settings.serving.scorer == "local":
        return [DiagnosticCheck("scorer", ok=True, found="local: the translator runs in the workers; no Triton is needed")]
    if settings is not None and settings.serving.url is not None:
        return [_remote(settings)]
    checks = [*_environment(settings), _ports()]
    if settings is not None:
        checks.append(_running(settings))
    if deep and all(check.ok for check in checks):
        checks.append(_started(settings))
    return checks


def _environment(settings: Settings | None) -> list[DiagnosticCheck]:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        found = f"no Triton server for {platform.system()} {platform.machine()} comes from the package index"
        return [
            DiagnosticCheck(
                "serving environment", ok=False, found=found, next_step='set [serving] scorer = "local", or [serving] url'
            )
        ]
    try:
        environment = find_environment(settings)
    except ServingError as error:
        return [
            DiagnosticCheck("serving environment", ok=False, found=f"{error.found}: {error.where}", next_step=error.next_step)
        ]
    versions = environment.packages
    missing = [name for name, version in versions.items() if version is None]
    numpy = versions["numpy"] or "absent"
    old = numpy.startswith(("0.", "1."))
    torch = describe_unseen_gpu(environment.folder, versions["torch"]) or versions["torch"] or "absent"
    library = environment.library
    name = f"libpython{environment.minor}"
    return [
        DiagnosticCheck(
            "serving environment",
            ok=not missing,
            found=f"{environment.folder}, Python {environment.minor}" + (f"; missing: {', '.join(missing)}" if missing else ""),
            next_step=f"remove {environment.folder}, then {_LOCAL}" if missing else None,
        ),
        DiagnosticCheck("serving torch", ok=versions["torch"] is not None, found=torch),
        DiagnosticCheck(
            "serving numpy < 2", ok=old, found=numpy, next_step=None if old else f"outputs would arrive empty; {_LOCAL}"
        ),
        DiagnosticCheck(
            "tritonserver",
            ok=environment.server_binary is not None,
            found=str(environment.server_binary or "not there"),
            next_step=None
            if environment.server_binary
            else f"the wheel has one for Python 3.8 to 3.13 on Linux x86-64; {_LOCAL}",
        ),
        DiagnosticCheck(
            name,
            ok=library is not None,
            found=str(library or "not found"),
            next_step=None if library else f"install it (Debian, Ubuntu: apt-get install {name}), or {_LOCAL}",
        ),
    ]


def _ports() -> DiagnosticCheck:
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return DiagnosticCheck("loopback port", ok=True, found="free ports are available on 127.0.0.1")
    except OSError as error:
        return DiagnosticCheck("loopback port", ok=False, found=str(error), next_step="allow sockets on 127.0.0.1")


def _running(settings: Settings) -> DiagnosticCheck:
    from scalr_prod.serving.local_server.process import triton_status

    status = triton_status(settings)
    if status.running:
        return DiagnosticCheck("triton", ok=True, found=f"process {status.pid} at {status.url}, versions {status.versions}")
    return DiagnosticCheck("triton", ok=True, found=f"{status.detail}; one is started when it is needed")


def _remote(settings: Settings) -> DiagnosticCheck:
    from scalr_prod.serving.local_server.process import triton_status

    status = triton_status(settings)
    if status.running:
        return DiagnosticCheck("triton", ok=True, found=f"answers at {status.url}, versions {status.versions}")
    step = "start that server, or correct [serving] url"
    return DiagnosticCheck("triton", ok=False, found=f"no answer at {status.url}: {status.detail}", next_step=step)


def _started(settings: Settings | None) -> DiagnosticCheck:
    from scalr_prod.config import load_settings
    from scalr_prod.serving.local_server.process import start_triton, stop_triton

    serving = settings.serving.model_dump(exclude={"repository"}) if settings is not None else {}
    if settings is not None and settings.serving.environment is not None:
        serving["environment"] = str(settings.resolve(settings.serving.environment))
    with tempfile.TemporaryDirectory(prefix="scalr-doctor-") as scratch:
        path = Path(scratch) / "scalr.toml"
        path.write_text(_SETTINGS, encoding="utf-8")
        probe = load_settings(path, serving=serving)
        try:
            status = start_triton(probe)
            return DiagnosticCheck("tritonserver runs", ok=True, found=f"started, answered at {status.url}, stopped")
        except ScalrError as error:
            return DiagnosticCheck("tritonserver runs", ok=False, found=error.found, next_step=error.next_step)
        finally:
            stop_triton(probe)
