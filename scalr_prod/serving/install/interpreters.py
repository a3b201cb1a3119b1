# SPDX-License-Identifier: Apache-2.0
"""Choice of Python for the serving environment: one that the server can embed and numpy < 2 has wheels for.

Uses only the standard library: `make setup` imports it before anything is installed.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scalr_prod.errors import ServingError
from scalr_prod.serving.install.environment import find_library

if TYPE_CHECKING:
    from collections.abc import Iterator


#: Python versions with wheels of numpy < 2, in order of preference.
SUPPORTED_MINORS: Final = ("3.12", "3.11")
LOCAL_SCORER_HINT: Final = 'or do without Triton: [serving] scorer = "local" in scalr.toml'
_MIN_GLIBC: Final = (2, 35)
_INSPECTION_SCRIPT: Final = """
import json, sys, sysconfig
print(json.dumps({"minor": "%d.%d" % sys.version_info[:2],
                  "places": [sysconfig.get_config_var("LIBDIR") or "", sys.base_prefix + "/lib"]}))
"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Interpreter:
    """A working Python interpreter.

    Attributes:
        path: The interpreter's binary.
        minor: Its version, such as ``3.12``.
        library: Folder of its shared library, which the server embeds; None if missing.
    """

    path: str
    minor: str
    library: Path | None

    @classmethod
    def from_path(cls, path: str) -> Interpreter | None:
        """Inspect the interpreter at a path; None if it does not run."""
        try:
            output = subprocess.run(  # noqa: S603 - an interpreter of this machine
                [path, "-I", "-c", _INSPECTION_SCRIPT], capture_output=True, check=True, timeout=60, text=True
            ).stdout
            facts = json.loads(output)
        except (OSError, subprocess.SubprocessError, ValueError):
            return None
        return cls(path, facts["minor"], find_library(facts["minor"], facts["places"]))


def require_platform() -> None:
    """Check that a Triton server can be installed on this machine.

    Raises:
        ServingError: The platform is not Linux x86-64, or the C library is too old.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise ServingError(
            f"no Triton server for {platform.system()} {platform.machine()} comes from the package index",
            where="this machine",
            next_step='set [serving] scorer = "local", or [serving] url',
        )
    kind, version = platform.libc_ver()
    if kind != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < _MIN_GLIBC:
        raise ServingError(
            f"Triton needs glibc 2.35 or later (Ubuntu 22.04, Debian 12), this is {kind or 'another libc'} {version}",
            where="this machine",
            next_step='set [serving] scorer = "local", or [serving] url',
        )


def choose_interpreter(*, system_packages: bool = False) -> Interpreter:
    """Return the running Python if it can serve, else another one of this machine, else one that uv installs.

    Args:
        system_packages: Whether apt may install a missing shared library, later.

    Raises:
        ServingError: There is none; the error says what to install.
    """
    fitting = []
    for interpreter in _candidates():
        if interpreter.minor not in SUPPORTED_MINORS:
            continue
        if interpreter.library is not None:
            return interpreter
        fitting.append(interpreter)
    if fitting and system_packages:
        return fitting[0]
    installed = _from_uv()
    if installed is not None:
        return installed
    if fitting:
        name = f"libpython{fitting[0].minor}"
        raise ServingError(
            f"{name}.so.1.0, which Triton's python backend embeds, was not found",
            where=fitting[0].path,
            next_step=f"install it (Debian, Ubuntu: apt-get install {name}) and run the command again; {LOCAL_SCORER_HINT}",
        )
    raise ServingError(
        f"the serving environment needs Python {' or '.join(SUPPORTED_MINORS)}: numpy < 2, which the server needs, has no wheel for "
        f"Python {platform.python_version()}",
        where=sys.executable,
        next_step=f"install one, or uv (pip install uv), which brings one; then run the command again; {LOCAL_SCORER_HINT}",
    )


def find_uv() -> str | None:
    """Return uv's path: beside the running Python or on the PATH."""
    sibling = Path(sys.executable).with_name("uv")
    return str(sibling) if sibling.is_file() else shutil.which("uv")


def install_system_package(package: str) -> bool:
    """Install a package with apt; return False without root, without apt, or if apt fails."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    logger.info("installing %s …", package)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    quiet = ["apt-get", "-qq", "-o", "Dpkg::Use-Pty=0"]
    subprocess.run([*quiet, "update"], env=environment, check=False)  # noqa: S603 - a fixed program
    command = [*quiet, "install", "--yes", "--no-install-recommends", package]
    done = subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL)  # noqa: S603 - as above
    return done.returncode == 0


def _candidates() -> Iterator[Interpreter]:
    homes = (Path.home() / ".pyenv" / "versions", Path.home() / ".local" / "share" / "uv" / "python")
    paths = [sys.executable]
    for minor in SUPPORTED_MINORS:
        paths += [found for found in (shutil.which(f"python{minor}"),) if found]
        paths += [str(path) for home in homes for path in sorted(home.glob(f"*/bin/python{minor}"))]
    for path in dict.fromkeys(paths):
        interpreter = Interpreter.from_path(path)
        if interpreter is not None:
            yield interpreter


def _from_uv() -> Interpreter | None:
    uv = find_uv()
    if uv is None:
        return None
    logger.info("Python %s cannot be used for serving; installing Python %s …", platform.python_version(), SUPPORTED_MINORS[0])
    got = subprocess.run([uv, "python", "install", "--quiet", SUPPORTED_MINORS[0]], check=False)  # noqa: S603 - uv
    if got.returncode:
        return None
    found = subprocess.run(  # noqa: S603 - uv
        [uv, "python", "find", "--managed-python", SUPPORTED_MINORS[0]], check=False, capture_output=True, text=True
    )
    return Interpreter.from_path(found.stdout.strip()) if not found.returncode else None
