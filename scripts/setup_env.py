"""Build one of the project's two environments from its pinned constraint file.

Usage: python scripts/setup_env.py package|serving

Needs Python 3.11 to 3.13 and a package index. This runs before anything is installed: it imports the standard library, and of
the package only what needs no more than that. The serving environment is made as `scalr serving install` makes it.
"""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scalr_prod.errors import ServingError  # noqa: E402 - found through the line above
from scalr_prod.serving.install.installer import install_serving  # noqa: E402 - as above
from scalr_prod.serving.install.interpreters import LOCAL_SCORER_HINT  # noqa: E402 - as above
from scalr_prod.serving.install.virtualenvs import EnvironmentSpec, build_environment, install_uv  # noqa: E402 - as above


def main(name: str) -> None:
    """Make the environment, or bring it up to date."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f"Python 3.11, 3.12 or 3.13 is needed, this is {sys.version.split()[0]}; run: make PYTHON=python3.12 setup")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if name == "package":
            package(ROOT / ".venv")
        else:
            serving(ROOT / ".venv-triton")
    except ServingError as error:
        sys.exit(str(error))


def package(folder: Path) -> None:
    """The package with all extras, its offline store for Feast, and what developing them needs."""
    dev = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["dev"]
    requirements = ("--editable", f"{ROOT / 'packages' / 'feast-delta'}", "--editable", f"{ROOT}[all]", *dev)
    build_environment(
        EnvironmentSpec(folder, sys.executable, ROOT / "constraints" / "package.txt", requirements), system_packages=True
    )
    python = folder / "bin" / "python"
    install_uv(python)  # what renews the constraints
    # The installer compiles the packages that it installs, but not those of an editable install.
    sources = (ROOT / "scalr_prod", ROOT / "packages" / "feast-delta" / "src")
    subprocess.run([python, "-m", "compileall", "-q", *sources], check=True)


def serving(folder: Path) -> None:
    """What Triton runs in; where none can run, a word about it, since everything else works without."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        folder.mkdir(exist_ok=True)
        print(
            f"no Triton server for {platform.system()} {platform.machine()} comes from the package index; {LOCAL_SCORER_HINT}"
        )
        return
    # The package's environment has uv, which is faster than pip.
    os.environ["PATH"] = os.pathsep.join([str(ROOT / ".venv" / "bin"), os.environ.get("PATH", os.defpath)])
    install_serving(folder=folder, system_packages=True)
    subprocess.run([ROOT / ".venv" / "bin" / "python", "-m", "scalr_prod.apps.kernel_compilation", folder], check=True)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in {"package", "serving"}:  # noqa: PLR2004 - one argument
        sys.exit(__doc__)
    main(sys.argv[1])
