# SPDX-License-Identifier: Apache-2.0
"""Virtual environments from pinned constraints, for `scalr serving install` and `make setup`.

Uses only the standard library: `make setup` imports it before anything is installed.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from scalr_prod.errors import ServingError
from scalr_prod.serving.install.interpreters import Interpreter, find_uv, install_system_package

if TYPE_CHECKING:
    from collections.abc import Mapping


#: The build of torch to install; ``auto``: the CPU build if there is no GPU and a CPU build is available.
Torch = Literal["auto", "cpu", "cuda"]

#: uv does not read pip's configuration: pip's package index settings and uv's variables for them.
_PIP_TO_UV: Final = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",  # uv has no such variable: it becomes an option
    "constraint": "UV_CONSTRAINT",
    "trusted-host": "UV_INSECURE_HOST",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EnvironmentSpec:
    """Specification of a virtual environment.

    Attributes:
        folder: The virtual environment.
        python: The interpreter to create it from.
        constraints: File of pinned versions.
        requirements: Arguments of ``pip install`` for packages with their dependencies.
        no_deps_arguments: Arguments of ``pip install`` for packages without dependencies, reinstalled each time; may be empty.
    """

    folder: Path
    python: str
    constraints: Path
    requirements: tuple[str, ...]
    no_deps_arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Installer:
    """uv or pip, configured for one environment."""

    name: Literal["uv", "pip"]
    command: tuple[str, ...]
    variables: Mapping[str, str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
        return subprocess.run(  # noqa: S603 - uv or pip with arguments of ours
            [*self.command, *arguments], env={**self.variables, **kept}, check=False, capture_output=True, text=True
        )

    def install(self, *arguments: str) -> None:
        """Install, or raise with the reason.

        Raises:
            ServingError: It failed; the error holds the end of the tool's output.
        """
        done = self.run("--quiet", *arguments)
        if done.returncode:
            raise ServingError(
                f"{self.name} could not install what is needed: {_tail(done.stderr)}",
                where=" ".join(arguments),
                next_step="check access to the package index and the free disk space; then run the command again",
            )

    def resolve(self, *arguments: str) -> set[str] | None:
        """Return the packages that would be installed, without installing any; None if they cannot be resolved."""
        report = () if self.name == "uv" else ("--quiet", "--report", "-")
        done = self.run("--dry-run", *report, *arguments)
        if done.returncode:
            return None
        if self.name == "pip":
            return {entry["metadata"]["name"].lower().replace("_", "-") for entry in json.loads(done.stdout)["install"]}
        added = (line.strip() for line in (done.stdout + done.stderr).splitlines())
        return {line[2:].split("==")[0].lower() for line in added if line.startswith("+ ")}


def build_environment(spec: EnvironmentSpec, *, torch: Torch = "auto", system_packages: bool = False) -> str:
    """Create or update the environment. If creation fails, remove it again.

    Args:
        spec: The environment to create.
        torch: Which build of torch.
        system_packages: Whether apt may install packages that Python needs to create environments, as root.

    Returns:
        The installer: ``uv`` or ``pip``.

    Raises:
        ServingError: The environment could not be created.
    """
    python = spec.folder / "bin" / "python"
    current, expected = Interpreter.from_path(str(python)), Interpreter.from_path(spec.python)
    fresh = current is None or expected is None or current.minor != expected.minor
    if fresh:
        shutil.rmtree(spec.folder, ignore_errors=True)
        _make_venv(spec.folder, spec.python, system_packages=system_packages)
    try:
        tool = _tool(python)
        more = _choose_torch(tool, spec, torch)
        tool.install("--constraint", str(spec.constraints), *spec.requirements, *more)
        if spec.no_deps_arguments:
            tool.install("--no-deps", "--force-reinstall", *spec.no_deps_arguments)
    except BaseException:
        if fresh:
            shutil.rmtree(spec.folder, ignore_errors=True)
        raise
    return tool.name


def install_uv(python: Path) -> str | None:
    """Install uv with pip into the environment of a Python; None if there is no pip or the index has no uv."""
    program = python.with_name("uv")
    if not program.is_file():
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"]
        subprocess.run(command, check=False, capture_output=True)  # noqa: S603 - pip
    return str(program) if program.is_file() else None


def has_nvidia_gpu() -> bool:
    """Return whether the driver of an NVIDIA GPU is loaded."""
    return Path("/dev/nvidiactl").exists() or Path("/proc/driver/nvidia/version").exists()


def describe_unseen_gpu(folder: Path, torch: str | None) -> str | None:
    """Describe why an environment's torch cannot see this machine's GPU; None if there is no GPU, or it can.

    Args:
        folder: The environment.
        torch: The version of torch in it; None if there is none.
    """
    if torch is None or not torch.endswith("+cpu") or not has_nvidia_gpu():
        return None
    way = f"remove {folder}, then run: scalr serving install --torch cuda"
    return f"torch {torch} is a build for CPUs, and does not see this machine's GPU; to use it {way}"


def _choose_torch(tool: _Installer, recipe: EnvironmentSpec, torch: Torch) -> tuple[str, ...]:
    """Return further install arguments, so that a machine without a GPU gets no CUDA libraries where possible."""
    if torch == "cuda" or (torch == "auto" and has_nvidia_gpu()):
        return ()
    arguments = ("--constraint", str(recipe.constraints), "torch")
    if not _brings_cuda(tool.resolve(*arguments)):
        return ()
    # This index has only the CUDA build. uv knows PyTorch's own indexes.
    backend = ("--torch-backend", "cpu")
    names = tool.resolve(*backend, *arguments) if tool.name == "uv" else None
    if names is not None and not _brings_cuda(names):
        return backend
    how = "PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL tell where a CPU build is"
    if torch == "cpu":
        raise ServingError(
            "only the CUDA build of torch is available: the package index has no other, and PyTorch's own is out of reach",
            where=str(recipe.folder),
            next_step=f"{how}; or take the CUDA build, which runs on a CPU as well: --torch cuda",
        )
    logger.warning(
        "no GPU here, but the package index offers only the CUDA build of torch: about 3 GB more are installed. %s.", how
    )
    return ()


def _brings_cuda(names: set[str] | None) -> bool:
    return any(name.startswith(("nvidia-", "cuda-")) for name in names or ())


def _tool(python: Path) -> _Installer:
    """Return uv if it is available or installable, since it is faster and selects torch builds; else pip."""
    uv = find_uv() or install_uv(python)
    if uv is not None:
        # As pip does. Where Python writes no bytecode, as in many images, every process would compile all that it imports.
        variables = {"UV_COMPILE_BYTECODE": "1"} | _uv_variables(python)
        more = ("--no-index",) if variables.pop("UV_NO_INDEX", "") in {"1", "true", "True"} else ()
        return _Installer("uv", (uv, "pip", "install", "--python", str(python), *more), variables)
    return _Installer("pip", (str(python), "-m", "pip", "install", "--disable-pip-version-check"), {})


def _uv_variables(python: Path) -> dict[str, str]:
    """Return pip's package index configuration as uv's environment variables."""
    done = subprocess.run(  # noqa: S603 - pip
        [str(python), "-m", "pip", "config", "list"], check=False, capture_output=True, text=True
    )
    variables: dict[str, str] = {}
    sections = ("global", "install", ":env:")  # later ones override earlier ones
    lines = [line for section in sections for line in done.stdout.splitlines() if line.startswith(f"{section}.")]
    for line in lines:
        key, _, value = line.partition("=")
        name = _PIP_TO_UV.get(key.rpartition(".")[2])
        if name is not None:
            separator = "," if name == "UV_FIND_LINKS" else " "
            variables[name] = separator.join(str(ast.literal_eval(value)).split())
    return variables


def _make_venv(folder: Path, python: str, *, system_packages: bool) -> None:
    """Create a virtual environment with pip. Debian's Python comes without ``ensurepip``."""
    probe = subprocess.run([python, "-c", "import ensurepip, venv"], check=False, capture_output=True)  # noqa: S603 - Python
    if probe.returncode:
        interpreter = Interpreter.from_path(python)
        package = f"python{interpreter.minor if interpreter else '3'}-venv"
        if not (system_packages and install_system_package(package)):
            raise ServingError(
                "this Python cannot create virtual environments",
                where=python,
                next_step=f"install what is missing (Debian, Ubuntu: apt-get install {package}), then run the command again",
            )
    done = subprocess.run(  # noqa: S603 - Python
        [python, "-m", "venv", "--symlinks", str(folder)], check=False, capture_output=True, text=True
    )
    if done.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        raise ServingError(
            f"the virtual environment could not be created: {_tail(done.stderr or done.stdout)}",
            where=str(folder),
            next_step="check that the folder is writable and the disk has free space; then run the command again",
        )


def _tail(text: str) -> str:
    return "\n    ".join(["", *[line for line in text.splitlines() if line.strip()][-6:]])
