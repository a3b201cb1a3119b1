"""Run feast-delta's own tests on several releases of Feast, each in a small environment of its own.

Usage: python scripts/feast_matrix.py [RELEASE ...]

Without RELEASE: those of `RELEASES`; with some, the counts of the others stay. Environments are in build/feast-matrix and are made anew;
they hold feast-delta, Feast, and what the tests need: nothing of scalr-prod. deltalake, DuckDB, pandas and pyarrow are the tested releases,
so Feast's own makes the difference. The counts are written to benchmarks/results/feast_matrix.json, for the page of compatibility. Exit
code: 1 if a test failed on any release.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / "packages" / "feast-delta"
FOLDER = ROOT / "build" / "feast-matrix"
RESULT = ROOT / "benchmarks" / "results" / "feast_matrix.json"
#: The newest release of Feast and the two before.
RELEASES = ("0.67.0", "0.66.0", "0.65.0")
HELD = ("deltalake", "duckdb", "pandas", "pyarrow")
#: What the tests need besides feast-delta.
LIBRARIES = ("hypothesis", "polars", "pytest", "pytest-timeout")
TESTS = ("tests/unit/feast_delta", "tests/property/test_point_in_time.py")


def main(releases: list[str]) -> int:
    """Test each release, print and write the counts."""
    tested = json.loads(RESULT.read_text())["figures"]["releases"] if RESULT.exists() else []
    found = {one["feast"]: one for one in tested}
    for release in releases:
        folder = FOLDER / release
        make_environment(folder, release)
        counts = run_tests(folder)
        found[release] = {"feast": release, **counts}
        print(f"feast {release}: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped", flush=True)
    newest_first = [found[release] for release in RELEASES if release in found]
    record = {
        "benchmark": "feast_matrix",
        "figures": {"releases": newest_first, "with": pinned(HELD), "tests": list(TESTS)},
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()},
    }
    RESULT.write_text(json.dumps(record, indent=2) + "\n")
    return int(any(found[release]["failed"] or not found[release]["passed"] for release in releases))


def pinned(names: tuple[str, ...]) -> dict[str, str]:
    """Return the tested release of each package."""
    pins = (line.partition(" ;")[0].split("==") for line in (ROOT / "constraints" / "package.txt").read_text().splitlines())
    return {name: release for name, release in pins if name in names}


def make_environment(folder: Path, release: str) -> None:
    """Install feast-delta and a release of Feast."""
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
    held = [f"{name}=={version}" for name, version in pinned(HELD).items()]
    wanted = [f"feast=={release}", *held, *LIBRARIES, "--editable", STORE]
    subprocess.run([uv, "pip", "install", "--quiet", "--python", folder / "bin" / "python", *wanted], check=True)


def run_tests(folder: Path) -> dict[str, Any]:
    """Run the tests without the fixtures of the package above, and return their counts."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHONPATH"))}
    with tempfile.TemporaryDirectory() as made:
        report = Path(made) / "report.xml"
        command = [
            folder / "bin" / "python",
            "-m",
            "pytest",
            "-q",
            "--noconftest",
            "-m",
            "not nightly",
            f"--junit-xml={report}",
        ]
        subprocess.run([*command, *TESTS], check=False, cwd=ROOT, env=kept | {"FEAST_USAGE": "False"})
        if not report.exists():
            sys.exit(f"the tests did not run in {folder}")
        suite = ET.parse(report).getroot().find("testsuite")  # noqa: S314 - pytest wrote it
    total, failures, errors, skipped = (int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped"))
    failed = failures + errors
    return {"passed": total - failed - skipped, "failed": failed, "skipped": skipped}


if __name__ == "__main__":
    if sys.argv[1:2] in (["--help"], ["-h"]):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:] or list(RELEASES)))
