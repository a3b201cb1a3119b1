"""`feast-delta` from its wheel in an empty environment: what comes with it, and the repository of its README, run as it is written."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

#: Minutes: it installs Feast into an environment of its own.
pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / "packages" / "feast-delta"
README = (STORE / "README.md").read_text(encoding="utf-8")
#: Distributions of the package above, or that it brings.
OTHERS = {
    "airflow",
    "apache-airflow",
    "great-expectations",
    "llvmlite",
    "numba",
    "polars",
    "scalr-prod",
    "torch",
    "tritonclient",
}
ROWS = """
import datetime as dt, pyarrow as pa
from deltalake import write_deltalake
day = lambda n: dt.datetime(2024, 1, n, tzinfo=dt.timezone.utc)
for names, days, counts in ((["ann", "bob"], [2, 5], [1, 7]), (["ann"], [8], [2])):
    times = [day(n) for n in days]
    rows = {"customer_id": names, "event_timestamp": times, "created": times, "order_count": counts}
    write_deltalake("orders", pa.table(rows), mode="append")
"""
INSTALLED = """
import json
from importlib import metadata
found = {one.name.lower(): sum(file.locate().stat().st_size for file in one.files or [] if file.locate().is_file())
         for one in metadata.distributions()}
print(json.dumps(found))
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


class Stranger:
    """A folder with an environment of its own, in which `feast-delta` was installed with pip alone."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "venv" / "bin"
        #: Apart from the environment: Feast imports every module below it.
        self.repo = folder / "shop"
        self.repo.mkdir()
        strange = ("PYTHON", "VIRTUAL_ENV", "SCALR_", "UV_", "COV_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
        self.environment = kept | {"PATH": f"{self.bin}{os.pathsep}/usr/bin{os.pathsep}/bin"}

    def run(self, *command: str | Path) -> str:
        done = subprocess.run(
            command, cwd=self.repo, env=self.environment, capture_output=True, text=True, check=False, timeout=900
        )
        assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-1000:]
        return done.stdout

    def python(self, program: str) -> str:
        return self.run(self.bin / "python", "-c", program)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> Stranger:
    stranger = Stranger(tmp_path_factory.mktemp("stranger"))
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "build", "--quiet", "--wheel", "--out-dir", stranger.folder / "dist", STORE], check=True)
    (wheel,) = (stranger.folder / "dist").glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", stranger.folder / "venv"], check=True)
    constraints = ROOT / "constraints" / "package.txt"
    stranger.run(stranger.bin / "pip", "install", "--quiet", "--constraint", constraints, wheel)
    return stranger


def test_nothing_of_the_package_above_comes_along(stranger):
    sizes = json.loads(stranger.python(INSTALLED))
    assert {"feast", "feast-delta", "deltalake", "duckdb", "pyarrow"} <= set(sizes)
    assert not set(sizes) & OTHERS
    assert sizes["feast-delta"] < 1_000_000
    # What the README says of the others; deltalake and duckdb alone are more than the 100 MB that were hoped for.
    said = {name: int(found) for name, found in re.findall(r"(deltalake|duckdb) (\d+)", README)}
    assert all(abs(sizes[name] / 2**20 - said[name]) < 5 for name in ("deltalake", "duckdb")), sizes


def test_the_repository_of_the_readme_runs(stranger):
    (settings,) = blocks("yaml")
    definitions, retrieval, time_travel, as_sql = blocks("python")
    (stranger.repo / "feature_store.yaml").write_text(settings)
    (stranger.repo / "definitions.py").write_text(definitions)
    stranger.python(ROWS)
    commands = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ feast ")]
    assert [command.split()[1] for command in commands] == ["apply", "materialize"]
    for command in commands:
        stranger.run(*shlex.split(command))
    shown = """
import json
frames = (training, before, same)
columns = [frame.sort_values(["customer_id", "event_timestamp"])["order_count"].tolist() for frame in frames]
print(json.dumps([*columns, online]))
"""
    said = stranger.python(retrieval + time_travel + as_sql + shown)
    training, before, same, online = json.loads(said.splitlines()[-1])
    assert training == [1, 2, 7]
    assert before == [1, 1, 7], "as of the first version of the table"
    assert same == before, "the statement reads the files of that version"
    assert online == {"customer_id": ["ann"], "order_count": [2]}
