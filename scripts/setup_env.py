"""Build one of the project's two environments from its pinned constraint file.

Usage: python scripts/setup_env.py package|serving

Needs Python 3.11 to 3.13 with `venv`, and a package index. uv does the resolving; it is installed into the environment itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(name: str) -> None:
    """Make the environment, or bring it up to date."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f"Python 3.11, 3.12 or 3.13 is needed, this is {sys.version.split()[0]}; run: make PYTHON=python3.12 setup")
    folder = ROOT / (".venv" if name == "package" else ".venv-triton")
    python = folder / "bin" / "python"
    if not python.exists():
        shutil.rmtree(folder, ignore_errors=True)
        venv.EnvBuilder(with_pip=True, symlinks=True).create(folder)
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv")
    constraints = ROOT / "constraints" / f"{name}.txt"
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    install = [python, "-m", "uv", "pip", "install", "--quiet", "--python", python, "--constraint", constraints]
    if name == "package":
        run(*install, "--editable", f"{ROOT}[all]", *groups["dev"])
    else:
        run(*install, *groups["serving"])
        # The server runs the package's own torch module; its other dependencies would pull numpy 2, unfit for the server.
        run(*install, "--no-deps", "--editable", ROOT)


def run(*command: str | Path) -> None:
    """Run a step, or stop with what failed."""
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    if subprocess.run([str(part) for part in command], env=environment, check=False).returncode:
        sys.exit(f"setup stopped at: {' '.join(str(part) for part in command)}")


if __name__ == "__main__":
    main(sys.argv[1])
