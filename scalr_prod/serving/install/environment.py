# SPDX-License-Identifier: Apache-2.0
"""Location and inspection of the serving environment.

The server is the one in the wheel nvidia-pytriton. Its python backend starts a stub that embeds the interpreter, so it needs that
interpreter's shared library. It also needs numpy < 2: with numpy 2 every output arrives empty.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scalr_prod.errors import ServingError
from scalr_prod.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scalr_prod.config import Settings


_INSTALL_HINT: Final = 'run: scalr serving install (Linux x86-64), or set [serving] scorer = "local"'
#: Variables of this process passed to the server: temporary folders, language and GPU. Any other one may be a secret.
_INHERITED_VARIABLES: Final = frozenset(
    {
        "CUDA_DEVICE_ORDER",
        "CUDA_VISIBLE_DEVICES",
        "HOME",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "NUMBA_CACHE_DIR",
        "NUMBA_DISABLE_JIT",
        "NVIDIA_DRIVER_CAPABILITIES",
        "NVIDIA_VISIBLE_DEVICES",
        "TMPDIR",
        "TZ",
        "XDG_CACHE_HOME",
    }
)
_INSPECTION_SCRIPT: Final = """
import importlib.metadata as m, importlib.util as u, json, sys, sysconfig
def version(name):
    try:
        return m.version(name)
    except m.PackageNotFoundError:
        return None
spec = u.find_spec("pytriton")
print(json.dumps({
    "minor": "%d.%d" % sys.version_info[:2],
    "places": [sysconfig.get_config_var("LIBDIR") or "", sys.base_prefix + "/lib"],
    "packages": {name: version(name) for name in ("numpy", "torch", "safetensors", "nvidia-pytriton", "scalr-prod")},
    "pytriton": spec.submodule_search_locations[0] if spec else None,
}))
"""


@dataclass(frozen=True)
class ServingEnvironment:
    """Describe an inspected serving environment.

    Attributes:
        folder: The virtual environment.
        minor: Version of its Python, such as ``3.11``.
        packages: Versions of the packages that the server needs; None if missing.
        wheel: Folder of ``tritonserver`` in the wheel; None if the wheel is missing.
        library: Folder of the interpreter's shared library; None if missing, empty path if the system's loader finds it.
    """

    folder: Path
    minor: str
    packages: dict[str, str | None]
    wheel: Path | None
    library: Path | None

    @property
    def server_binary(self) -> Path | None:
        """Return the server binary, or None if it is missing or does not fit this Python."""
        if self.wheel is None or not self.stub_binary.is_file():
            return None
        server = self.wheel / "bin" / "tritonserver"
        return server if server.is_file() else None

    @property
    def stub_binary(self) -> Path:
        """Return the stub binary that embeds this Python."""
        return (self.wheel or self.folder) / "python_backend_stubs" / self.minor / "triton_python_backend_stub"

    def find_problem(self) -> str | None:
        """Return what prevents a server from starting, in one sentence; None if nothing does."""
        missing = [name for name, version in self.packages.items() if version is None]
        if missing:
            return f"not installed there: {', '.join(missing)}"
        if self.packages["scalr-prod"] != __version__:
            return f"scalr-prod {self.packages['scalr-prod']} is installed there, and {__version__} here"
        if int((self.packages["numpy"] or "2").split(".")[0]) > 1:
            return f"numpy {self.packages['numpy']} is installed there; the server needs numpy < 2, or its outputs arrive empty"
        if self.server_binary is None:
            return f"the wheel nvidia-pytriton has no server for Python {self.minor} on this machine"
        if self.library is None:
            name = f"libpython{self.minor}"
            return f"{name}.so.1.0 was not found (Debian and Ubuntu: apt-get install {name})"
        return None

    def server_variables(self, threads: int) -> dict[str, str]:
        """Return the server's environment variables: only those it needs, so that no secret of this process leaks."""
        inherited = {key: value for key, value in os.environ.items() if key in _INHERITED_VARIABLES}
        wheel = self.wheel or self.folder
        libraries = [wheel.parent.parent / "nvidia_pytriton.libs", self.library, os.environ.get("LD_LIBRARY_PATH")]
        return inherited | {
            # The stub finds its packages through the first python on the PATH.
            "PATH": os.pathsep.join([str(self.folder / "bin"), os.environ.get("PATH", os.defpath)]),
            "LD_LIBRARY_PATH": os.pathsep.join(str(place) for place in libraries if place and str(place) != "."),
            # Groups of contexts that the model processes in parallel, each with one torch thread (docs/adr/0012).
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "PYTHONDONTWRITEBYTECODE": "1",
        }


def environment_candidates(settings: Settings | None) -> list[Path]:
    """Return the folders to search for a serving environment, in order.

    Only the folder named in the settings, if any; else ``.venv-triton`` beside the running virtual environment, in the checkout, in the
    working directory, and beside scalr.toml.
    """
    if settings is not None and settings.serving.environment is not None:
        return [settings.resolve(settings.serving.environment)]
    # There is no environment of ours beside the system's Python.
    parents = [Path(sys.prefix).parent] if sys.prefix != sys.base_prefix else []
    checkout = Path(__file__).resolve().parents[3]
    parents += [checkout] if (checkout / "pyproject.toml").is_file() else []
    parents += [Path.cwd(), *([settings.base] if settings is not None else [])]
    return list(dict.fromkeys(parent / ".venv-triton" for parent in parents))


def find_environment(settings: Settings | None) -> ServingEnvironment:
    """Find the serving environment in `environment_candidates`.

    Raises:
        ServingError: There is none.
    """
    places = environment_candidates(settings)
    for folder in places:
        if (folder / "bin" / "python").exists():
            return examine_environment(folder)
    raise ServingError("no serving environment was found", where=", ".join(map(str, places)), next_step=_INSTALL_HINT)


def require_environment(settings: Settings) -> None:
    """Check that a local server can start, before the work that needs it later. Other scorers need no environment.

    Raises:
        ServingError: There is no serving environment, or no server can be started from it.
    """
    if settings.serving.scorer == "triton" and settings.serving.url is None:
        _usable(find_environment(settings))


def prepare_backend_folder(environment: ServingEnvironment, folder: Path) -> Path:
    """Prepare Triton's python backend folder: the wheel's files and the stub of the right Python.

    Raises:
        ServingError: No server can be started from this environment.
    """
    wheel = _usable(environment)
    python = folder / "python"
    python.mkdir(parents=True, exist_ok=True)
    for file in (*(wheel / "backends" / "python").iterdir(), environment.stub_binary):
        link = python / file.name
        if link.is_symlink() and link.readlink() == file:
            continue
        link.unlink(missing_ok=True)
        link.symlink_to(file)
    return folder


def examine_environment(folder: Path) -> ServingEnvironment:
    """Inspect one environment.

    Raises:
        ServingError: Its Python does not run.
    """
    try:
        output = subprocess.run(  # noqa: S603 - the interpreter of the named environment
            [folder / "bin" / "python", "-I", "-c", _INSPECTION_SCRIPT], capture_output=True, check=True, timeout=60, text=True
        ).stdout
        facts = json.loads(output)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ServingError(
            f"its Python does not run: {error}", where=str(folder), next_step=f"remove it; {_INSTALL_HINT}"
        ) from error
    wheel = Path(facts["pytriton"]) / "tritonserver" if facts["pytriton"] else None
    library = find_library(facts["minor"], facts["places"])
    return ServingEnvironment(folder, facts["minor"], facts["packages"], wheel, library)


def find_library(minor: str, folders: Sequence[str]) -> Path | None:
    """Return the folder of a Python's shared library, which the server's python backend embeds.

    Args:
        minor: The Python's version, such as ``3.12``.
        folders: Folders to search before asking the system's loader.
    """
    name = f"libpython{minor}.so.1.0"
    library = next((Path(place) for place in folders if place and (Path(place) / name).is_file()), None)
    return library or _system_library(name)


def _usable(environment: ServingEnvironment) -> Path:
    """Return the wheel's folder of an environment that a server can be started from."""
    problem = environment.find_problem()
    if problem is not None or environment.wheel is None:
        raise ServingError(f"Triton cannot be started: {problem}", where=str(environment.folder), next_step=_INSTALL_HINT)
    return environment.wheel


def _system_library(name: str) -> Path | None:
    """Return the folder in which the system's loader finds a library."""
    for program in ("/sbin/ldconfig", "/usr/sbin/ldconfig"):
        try:
            cache = subprocess.run(  # noqa: S603 - a fixed program
                [program, "-p"], capture_output=True, check=True, timeout=30, text=True
            ).stdout
        except (OSError, subprocess.SubprocessError):
            continue
        for line in cache.splitlines():
            if line.strip().startswith(f"{name} ") and "=>" in line:
                return Path(line.split("=>")[1].strip()).parent
    return None
