# SPDX-License-Identifier: Apache-2.0
"""`scalr serving install`: environment of a local Triton, from the constraints that ship with the package.

Uses only the standard library: `make setup` imports it before anything is installed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core import assets
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import ServingError
from scalr_prod.serving.install.environment import ServingEnvironment, environment_candidates, examine_environment
from scalr_prod.serving.install.interpreters import (
    LOCAL_SCORER_HINT,
    choose_interpreter,
    install_system_package,
    require_platform,
)
from scalr_prod.serving.install.virtualenvs import EnvironmentSpec, build_environment
from scalr_prod.version import __version__

if TYPE_CHECKING:
    from scalr_prod.config import Settings
    from scalr_prod.serving.install.virtualenvs import Torch


#: Marks an environment created here, which may be changed or recreated.
_MARKER_FILE: Final = "scalr-serving.json"
#: What the model's process imports (triton_models/translator/1/model.py).
_PRECOMPILE_SCRIPT: Final = (
    "import numpy, torch, numba, scalr_prod.serving.client.keepalive, scalr_prod.serving.client.wire, "
    "scalr_prod.translator.module"
)


_PACKAGE: Final = Path(__file__).resolve().parents[2]
_NAME: Final = "scalr-prod"


def checkout_folder() -> Path | None:
    """Return the checkout that the package runs from; None if it was installed from a wheel."""
    project = _PACKAGE.parent / "pyproject.toml"
    try:
        named = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["name"]
    except (OSError, ValueError, KeyError):
        return None
    return _PACKAGE.parent if named == _NAME else None


def build_wheel(folder: Path) -> Path:
    """Build a wheel of the installed package, to install it elsewhere without a package index.

    Args:
        folder: Folder to write the wheel to.

    Raises:
        ServingError: The installed package has no metadata.
    """
    try:
        distribution = metadata.distribution(_NAME)
    except metadata.PackageNotFoundError as error:
        raise ServingError(
            f"{_NAME} is not installed in the running Python", where=str(_PACKAGE), next_step="install it with pip"
        ) from error
    info = f"scalr_prod-{distribution.version}.dist-info"
    content = {f"{info}/{name}": (distribution.read_text(name) or "").encode() for name in ("METADATA", "WHEEL")}
    for path in sorted(_PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            content[f"{_PACKAGE.name}/{path.relative_to(_PACKAGE).as_posix()}"] = path.read_bytes()
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in content.items())
    wheel = folder / f"scalr_prod-{distribution.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return wheel


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


@dataclass(frozen=True)
class InstallPlan(Jsonable):
    """Describe what `install_serving` would do.

    Attributes:
        folder: The environment.
        exists: Whether it exists already and would be updated.
        python: The interpreter to create it from.
        minor: Its version, such as ``3.12``.
        requirements: File that lists what is installed.
        constraints: File that lists the versions.
        package: The checkout to install this package from; None to copy the installed files.
    """

    folder: Path
    exists: bool
    python: str
    minor: str
    requirements: Path
    constraints: Path
    package: Path | None

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        values = super().to_json()
        return values | {"package": values["package"] or f"scalr-prod {__version__}, as it is installed here"}


@dataclass(frozen=True)
class InstallReport(Jsonable):
    """Describe what was installed.

    Attributes:
        folder: The environment.
        python: Version of its Python, such as ``3.12``.
        tool: The installer: ``uv`` or ``pip``.
        packages: Versions of the packages that the server needs.
        server: The server binary.
        next_step: What to write into scalr.toml if the environment is not on the search path.
    """

    folder: str
    python: str
    tool: str
    packages: dict[str, str | None]
    server: str
    next_step: str | None


def plan_serving(settings: Settings | None = None, *, folder: Path | None = None, system_packages: bool = False) -> InstallPlan:
    """Plan the location and sources of the serving environment, without changing anything.

    Args:
        settings: The project's settings, if there are some: they may name the environment.
        folder: The environment; default: the one found, else the first of `environment_candidates`.
        system_packages: Whether apt may install a shared library that Python lacks.

    Raises:
        ServingError: No server runs on this machine, no Python fits, or the folder holds something else.
    """
    require_platform()
    places = [folder.absolute()] if folder is not None else environment_candidates(settings)
    chosen = next((place for place in places if (place / "bin" / "python").exists()), places[0])
    exists = _is_serving_environment(chosen)
    interpreter = choose_interpreter(system_packages=system_packages)
    files = assets.asset_folder("constraints")
    return InstallPlan(
        chosen, exists, interpreter.path, interpreter.minor, files / "serving.in", files / "serving.txt", checkout_folder()
    )


def install_serving(
    settings: Settings | None = None, *, folder: Path | None = None, torch: Torch = "auto", system_packages: bool = False
) -> InstallReport:
    """Create or update the serving environment, and check that its server runs.

    Args:
        settings: The project's settings, if there are some: they may name the environment.
        folder: The environment; default: the one found, else the first of `environment_candidates`.
        torch: ``cpu``, ``cuda``, or ``auto``: the CPU build if there is no GPU and a CPU build is available.
        system_packages: Whether apt may install what Python lacks, as root.

    Raises:
        ServingError: As `plan_serving`; or the installation failed, or the installed server does not run.
    """
    plan = plan_serving(settings, folder=folder, system_packages=system_packages)
    with tempfile.TemporaryDirectory(prefix="scalr-serving-") as scratch:
        # The server runs this package's torch module; its other dependencies would install numpy 2, which breaks the server.
        alone = ("--editable", str(plan.package)) if plan.package is not None else (str(build_wheel(Path(scratch))),)
        recipe = EnvironmentSpec(plan.folder, plan.python, plan.constraints, ("--requirement", str(plan.requirements)), alone)
        tool = build_environment(recipe, torch=torch, system_packages=system_packages)
    (plan.folder / _MARKER_FILE).write_text(json.dumps({"scalr-prod": __version__}) + "\n", encoding="utf-8")
    environment = examine_environment(plan.folder)
    library = f"libpython{environment.minor}"
    if environment.library is None and system_packages and install_system_package(library):
        environment = examine_environment(plan.folder)
    problem = environment.find_problem() or _server_failure(environment) or _precompile(environment)
    if problem is not None:
        raise ServingError(
            problem, where=str(plan.folder), next_step=f"remove the folder and run the command again; {LOCAL_SCORER_HINT}"
        )
    is_findable = plan.folder in environment_candidates(settings)
    return InstallReport(
        folder=str(plan.folder),
        python=environment.minor,
        tool=tool,
        packages=environment.packages,
        server=str(environment.server_binary),
        next_step=None if is_findable else f'write into scalr.toml: [serving] environment = "{plan.folder}"',
    )


def _is_serving_environment(folder: Path) -> bool:
    """Return whether the folder holds a serving environment.

    Raises:
        ServingError: The folder holds something else, which must not be overwritten.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    other = folder.resolve() != Path(sys.prefix).resolve()
    if other and (folder / _MARKER_FILE).is_file():
        return True
    if other and (folder / "bin" / "python").exists() and examine_environment(folder).packages["nvidia-pytriton"] is not None:
        return True
    raise ServingError(
        "this folder is not a serving environment",
        where=str(folder),
        next_step="choose another one with --folder, or with [serving] environment in scalr.toml",
    )


def _server_failure(environment: ServingEnvironment) -> str | None:
    """Return why the server binary cannot print its options; None if it can."""
    try:
        done = subprocess.run(  # noqa: S603 - the server that was just installed
            [str(environment.server_binary), "--help"],
            env=environment.server_variables(1),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"tritonserver does not run: {error}"
    if "--model-repository" in done.stdout + done.stderr:
        return None
    return f"tritonserver does not run: {done.stderr[-500:].strip()}"


def _precompile(environment: ServingEnvironment) -> str | None:
    """Import what the model's process imports, so that Python caches the bytecode; return the error, or None.

    The server may not be allowed to write there: without the cache, each start compiles a thousand files, which more than doubles the time
    of importing them. Compiling all files of the environment would take far longer, mostly for files that nothing imports.
    """
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(  # noqa: S603 - the interpreter that was just installed
        [str(environment.folder / "bin" / "python"), "-c", _PRECOMPILE_SCRIPT],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    return f"the model's imports fail: {done.stderr[-500:].strip()}" if done.returncode else None
