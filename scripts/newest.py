"""Install the newest releases of the dependencies, without the constraint files, and run a short set of tests on them.

Usage: python scripts/newest.py [FOLDER [TEST ...]]

FOLDER is the environment (default: .venv-newest). Dependencies keep their lower bounds and lose their upper ones, so this shows what the
next release lines would break. Without TEST the tests of `LIBRARIES` run. Exit code: pytest's; 1 if the environment cannot be made.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scalr_prod.errors import ServingError  # noqa: E402 - found through the line above
from scalr_prod.serving.install.virtualenvs import EnvironmentSpec, build_environment  # noqa: E402 - as above

STORE = ROOT / "packages" / "feast-delta"
#: The libraries that this project stands on, and the test file that uses each of them most directly.
LIBRARIES = {
    "apache-airflow": "tests/unit/integrations/test_dags.py",
    "dask": "tests/unit/compute/test_executor.py",
    "deltalake": "tests/unit/lake/test_lake.py",
    "duckdb": "tests/unit/feast_delta/test_conformance.py",
    "feast": "tests/integration/test_feast_stock.py",
    "great-expectations": "tests/unit/quality/test_dataset_check.py",
    "torch": "tests/unit/translator/test_estimators.py",
    "tritonclient": "tests/unit/serving/test_retry.py",
}
_VERSIONS = "import json, sys; from importlib.metadata import version; print(json.dumps({n: version(n) for n in sys.argv[1:]}))"


def main(folder: Path, tests: list[str]) -> int:
    """Make the environment anew, print its versions beside the tested ones, and run the tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    store = tomllib.loads((STORE / "pyproject.toml").read_text())["project"]
    extras = [line for extra, lines in project["project"]["optional-dependencies"].items() if extra != "all" for line in lines]
    lines = [*project["project"]["dependencies"], *store["dependencies"], *extras, *project["dependency-groups"]["dev"]]
    wanted = [without_upper_bound(line) for line in lines if Requirement(line).name != store["name"]]
    with tempfile.TemporaryDirectory() as made:
        bounds = Path(made) / "lower.txt"
        bounds.write_text("\n".join(line for line in dict.fromkeys(wanted) if "[" not in line) + "\n")
        spec = EnvironmentSpec(
            folder.absolute(),
            sys.executable,
            bounds,
            ("--upgrade", *dict.fromkeys(wanted)),
            ("--editable", str(STORE), "--editable", str(ROOT)),
        )
        try:
            build_environment(spec)
        except ServingError as error:
            sys.exit(str(error))
    python = spec.folder / "bin" / "python"
    found = json.loads(subprocess.run([python, "-c", _VERSIONS, *LIBRARIES], check=True, capture_output=True, text=True).stdout)
    tested = tested_versions()
    for name, version in found.items():
        print(f"{name:20} {version:16} {'as tested' if version == tested[name] else f'tested: {tested[name]}'}")
    command = [python, "-m", "pytest", "-q", "-m", "not long and not nightly", *(tests or LIBRARIES.values())]
    return subprocess.run(command, check=False, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": "0"}).returncode


def without_upper_bound(line: str) -> str:
    """Return a requirement that also allows every later release."""
    requirement = Requirement(line)
    lower = [part for part in requirement.specifier if part.operator in {">", ">=", "!="}]
    requirement.specifier = SpecifierSet(",".join(map(str, lower)))
    return str(requirement)


def tested_versions() -> dict[str, str]:
    """Return the version of each library in the package's constraint file."""
    pins = (line.partition(" ;")[0].split("==") for line in (ROOT / "constraints" / "package.txt").read_text().splitlines())
    return {name: version for name, version in pins if name in LIBRARIES}


if __name__ == "__main__":
    if sys.argv[1:2] in (["--help"], ["-h"]):
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / ".venv-newest", sys.argv[2:]))
