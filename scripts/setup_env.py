"""Build one of the project's two environments from its pinned constraint file.

Usage: python scripts/setup_env.py package|serving

Needs Python 3.11 to 3.13 and a package index. uv does the resolving; it is installed into the environment itself. This runs
before anything is installed: it imports the standard library, and of the package only what needs no more than that.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scalr_prod.errors import ServingError  # noqa: E402 - found through the line above
from scalr_prod.serving.environment import ServingEnvironment, examine_environment  # noqa: E402 - as above

#: numpy < 2, which the server needs, has no wheel for a later Python.
SERVING = ("3.12", "3.11")
GLIBC = (2, 35)
LOCAL = 'or do without Triton: [serving] scorer = "local" in scalr.toml'


def main(name: str) -> None:
    """Make the environment, or bring it up to date."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f"Python 3.11, 3.12 or 3.13 is needed, this is {sys.version.split()[0]}; run: make PYTHON=python3.12 setup")
    if name == "package":
        install(ROOT / ".venv", sys.executable, "package")
    else:
        serving(ROOT / ".venv-triton")


def serving(folder: Path) -> None:
    """The serving environment; where no server can run, why, and what to do instead."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        folder.mkdir(exist_ok=True)
        print(f"no Triton server for {platform.system()} {platform.machine()} comes from the package index; {LOCAL}")
        return
    kind, version = platform.libc_ver()
    if kind != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < GLIBC:
        sys.exit(
            f"Triton needs glibc 2.35 or later (Ubuntu 22.04, Debian 12), this is {kind or 'another libc'} {version}; {LOCAL}"
        )
    install(folder, interpreter(), "serving")
    environment = examined(folder)
    if environment.library is None:
        provide_library(environment)
        environment = examined(folder)
    problem = environment.problem() or broken_server(environment)
    if problem:
        sys.exit(f"{folder}: {problem}; {LOCAL}")


def interpreter() -> str:
    """A Python that numpy < 2 has wheels for: this one, or another that this machine has, or one that uv brings."""
    if minor_of(sys.executable) in SERVING:
        return sys.executable
    homes = (Path.home() / ".pyenv" / "versions", Path.home() / ".local" / "share" / "uv" / "python")
    for minor in SERVING:
        found = shutil.which(f"python{minor}")
        others = [str(path) for home in homes for path in sorted(home.glob(f"*/bin/python{minor}"))]
        for candidate in ([found] if found else []) + others:
            if minor_of(candidate) == minor:
                return candidate
    uv = next((str(path) for path in (ROOT / ".venv" / "bin" / "uv", shutil.which("uv")) if path and Path(path).exists()), None)
    if uv is not None:
        print(f"Python {platform.python_version()} cannot serve (numpy < 2 has no wheel for it); getting Python {SERVING[0]} …")
        if not subprocess.run([uv, "python", "install", "--quiet", SERVING[0]], check=False).returncode:
            return subprocess.run([uv, "python", "find", SERVING[0]], check=True, capture_output=True, text=True).stdout.strip()
    sys.exit(
        f"the serving environment needs Python {' or '.join(SERVING)}: numpy < 2 has no wheel for {platform.python_version()}. "
        f"Install one and run make setup again; {LOCAL}"
    )


def minor_of(python: str) -> str | None:
    """Version of an interpreter, such as ``3.12``; None where it does not run."""
    question = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        return subprocess.run([python, "-c", question], capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def install(folder: Path, base: str, name: str) -> None:
    """The environment with everything in it; one of another Python than ``base`` is made anew."""
    python = folder / "bin" / "python"
    if python.exists() and minor_of(str(python)) != minor_of(base):
        shutil.rmtree(folder)
    if not python.exists() or subprocess.run([python, "-c", "import pip"], check=False, capture_output=True).returncode:
        make_venv(folder, base)
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv")
    constraints = ROOT / "constraints" / f"{name}.txt"
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    command = [python, "-m", "uv", "pip", "install", "--quiet", "--python", python, "--constraint", constraints]
    if name == "package":
        run(*command, "--editable", f"{ROOT}[all]", *groups["dev"])
    else:
        run(*command, *groups["serving"])
        # The server runs the package's own torch module; its other dependencies would pull numpy 2, unfit for the server.
        run(*command, "--no-deps", "--editable", ROOT)


def make_venv(folder: Path, base: str) -> None:
    """A virtual environment with pip. Debian's Python comes without `ensurepip`; as root it is installed."""
    shutil.rmtree(folder, ignore_errors=True)
    if subprocess.run([base, "-c", "import ensurepip, venv"], check=False, capture_output=True).returncode:
        package = f"python{minor_of(base)}-venv"
        if not apt(package):
            sys.exit(
                f"{base} cannot make virtual environments; install what is missing (Debian, Ubuntu: apt-get install {package})"
            )
    run(base, "-m", "venv", "--symlinks", folder)


def provide_library(environment: ServingEnvironment) -> None:
    """The interpreter's shared library, which the server's python backend embeds: by apt where this is root."""
    package = f"libpython{environment.minor}"
    if not apt(package):
        sys.exit(
            f"{package}.so.1.0 is nowhere to be found, and Triton's python backend needs it. Install it "
            f"(Debian, Ubuntu: apt-get install {package}) or use a Python that has it, then run make setup again; {LOCAL}"
        )


def apt(package: str) -> bool:
    """Whether the package could be installed: only as root, only where there is apt."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    print(f"installing {package} …")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    quiet = ["apt-get", "-qq", "-o", "Dpkg::Use-Pty=0"]
    subprocess.run([*quiet, "update"], env=environment, check=False)
    command = [*quiet, "install", "--yes", "--no-install-recommends", package]
    return subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL).returncode == 0


def examined(folder: Path) -> ServingEnvironment:
    """What was installed."""
    try:
        return examine_environment(folder)
    except ServingError as error:
        sys.exit(str(error))


def broken_server(environment: ServingEnvironment) -> str | None:
    """Why the server's program does not even tell its options; None where it does."""
    try:
        done = subprocess.run(
            [str(environment.server), "--help"],
            env=environment.variables(1),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"tritonserver does not run: {error}"
    return (
        None
        if "--model-repository" in done.stdout + done.stderr
        else f"tritonserver does not run: {done.stderr[-500:].strip()}"
    )


def run(*command: str | Path) -> None:
    """Run a step, or stop with what failed."""
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    if subprocess.run([str(part) for part in command], env=environment, check=False).returncode:
        sys.exit(f"setup stopped at: {' '.join(str(part) for part in command)}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in {"package", "serving"}:  # noqa: PLR2004 - one argument
        sys.exit(__doc__)
    main(sys.argv[1])
