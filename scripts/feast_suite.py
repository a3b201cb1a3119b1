"""Run Feast's universal tests of offline stores on feast-delta, against the installed Feast.

Usage: FEAST_SOURCES=DIR python scripts/feast_suite.py [--other-version] [pytest arguments]

The tests are in Feast's repository and in no archive on the package index, so DIR is a checkout of the installed version; only its tests
are run, on the Feast that is installed. ``--other-version`` runs those of a checkout whose modules are not the installed ones. Libraries
that the tests need besides are installed into build/feast-suite.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "feast-suite"
#: What the tests import that the environment lacks.
LIBRARIES = ("minio", "python-keycloak", "testcontainers")
#: Of the installed package's modules, so many must be those of the checkout.
LEAST_EQUAL = 0.9
OTHER_VERSION = "--other-version"
SETTINGS = """[pytest]
addopts = --import-mode=prepend --disable-warnings -p late_path -p no:randomly -p no:cacheprovider
timeout = 300
markers =
    xdist_group: of Feast's tests
    slow: of Feast's tests
    local_only: of Feast's tests
    rbac_remote_integration_test: of Feast's tests
"""


def main(arguments: list[str]) -> int:
    """Run the tests and print the counts; give pytest's exit code."""
    sources = os.environ.get("FEAST_SOURCES")
    version = metadata.version("feast")
    if not sources:
        sys.exit(
            f"Feast's universal tests were not run: they are in Feast's repository alone. Check out the sources of Feast {version},\n"
            "then run: make feast-suite FEAST_SOURCES=<the checkout>"
        )
    checkout = Path(sources).expanduser().resolve() / "sdk" / "python"
    if not (checkout / "tests" / "universal").is_dir():
        sys.exit(
            f"Feast's universal tests were not run: {checkout} has no tests/universal; FEAST_SOURCES names a checkout of Feast"
        )
    equal, modules = _equal_modules(checkout / "feast")
    print(f"{equal} of {modules} modules of the installed Feast {version} are those of {sources}")
    if equal < LEAST_EQUAL * modules and OTHER_VERSION not in arguments:
        sys.exit(
            f"Feast's universal tests were not run: {sources} is of another version than the installed Feast {version};\n"
            f"to run them all the same: python scripts/feast_suite.py {OTHER_VERSION}"
        )
    _prepare(checkout)
    return _run([argument for argument in arguments if argument != OTHER_VERSION])


def _equal_modules(package: Path) -> tuple[int, int]:
    """Count the modules of the installed Feast that a checkout has in the same form, and all of them."""
    (installed,) = util.find_spec("feast").submodule_search_locations
    modules = [path.relative_to(installed) for path in Path(installed).rglob("*.py")]
    same = [
        name
        for name in modules
        if (package / name).is_file() and (package / name).read_bytes() == (installed / name).read_bytes()
    ]
    return len(same), len(modules)


def _prepare(checkout: Path) -> None:
    """Copy the tests alone, so that the installed Feast is tested, and install what they need."""
    shutil.rmtree(FOLDER / "tests", ignore_errors=True)
    shutil.copytree(checkout / "tests", FOLDER / "tests")
    (FOLDER / "pytest.ini").write_text(SETTINGS)
    packages = FOLDER / "packages"
    # Last on the path: what the environment has is not replaced.
    (FOLDER / "late_path.py").write_text(f"import sys\n\nsys.path.append({str(packages)!r})\n")
    if not packages.is_dir():
        constraints = ROOT / "constraints" / "package.txt"
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--target",
            packages,
            "--constraint",
            constraints,
            *LIBRARIES,
        ]
        try:
            subprocess.run(command, check=True)
        except BaseException:
            shutil.rmtree(packages, ignore_errors=True)
            raise


def _run(arguments: list[str]) -> int:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    path = [FOLDER, ROOT / "packages" / "feast-delta" / "src", *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "FULL_REPO_CONFIGS_MODULE": "feast_delta.universal_tests",
        "FEAST_IS_LOCAL_TEST": "True",
        "FEAST_USAGE": "False",
        "IS_TEST": "True",
    }
    report = FOLDER / "report.xml"
    # test_dqm_validation needs Great Expectations below 1.0.
    chosen = ["--integration", "--ignore", "tests/integration/offline_store/test_dqm_validation.py", f"--junit-xml={report}"]
    command = [sys.executable, "-m", "pytest", "-c", "pytest.ini", *chosen, "tests/integration/offline_store", *arguments]
    done = subprocess.run(command, check=False, cwd=FOLDER, env=kept | variables)
    suite = ET.parse(report).getroot().find("testsuite")  # noqa: S314 - pytest wrote it
    total, failed, skipped = (int(suite.get(name)) for name in ("tests", "failures", "skipped"))
    failed += int(suite.get("errors"))
    print(
        f"feast {metadata.version('feast')}: {total} tests, {total - failed - skipped} passed, {failed} failed, {skipped} skipped"
    )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
