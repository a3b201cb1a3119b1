"""From an empty folder with pip alone: the wheel, `scalr serving install`, `scalr run` on two CSV files with both scorers."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import make_two_domains
from deltalake import DeltaTable

pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.triton, pytest.mark.timeout(3000)]

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = """
[domains.source]
name = "gadgets"
events = "gadgets.csv"
[domains.target]
name = "dishes"
events = "dishes.csv"
[translator]
folds = 2
dim = 16
epochs = 2
threads = 1
"""


class Machine:
    """A folder with an environment of its own, and a user in it who has pip and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "venv" / "bin"
        strange = ("PYTHON", "VIRTUAL_ENV", "SCALR_", "UV_", "COV_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
        self.environment = kept | {"PATH": f"{self.bin}{os.pathsep}/usr/bin{os.pathsep}/bin"}

    def run(self, *command: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment | more,
            capture_output=True,
            text=True,
            check=False,
            timeout=1500,
        )

    def scalr(self, *command: str, **more: str) -> dict:
        done = self.run(self.bin / "scalr", *command, "--json", **more)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Machine:
    machine = Machine(tmp_path_factory.mktemp("empty"))
    uv = Path(sys.executable).with_name("uv")
    for source in (ROOT / "packages" / "feast-delta", ROOT):
        subprocess.run([uv, "build", "--quiet", "--wheel", "--out-dir", machine.folder / "dist", source], check=True)
    store, wheel = sorted((machine.folder / "dist").glob("*.whl"))
    subprocess.run([sys.executable, "-m", "venv", machine.folder / "venv"], check=True)
    installed = machine.run(machine.bin / "pip", "install", "--quiet", store, f"{wheel}[polars]")
    assert installed.returncode == 0, installed.stderr[-4000:]
    logs = make_two_domains(machine.folder / "logs", users=150)
    for name, path in (("gadgets", logs.source), ("dishes", logs.target)):
        frame = pd.read_parquet(path)
        frame["timestamp"] = frame["timestamp"].dt.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        frame.to_csv(machine.folder / f"{name}.csv", index=False)
    (machine.folder / "scalr.toml").write_text(SETTINGS)
    return machine


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="no Triton server for this machine")
def test_a_wheel_serves_and_both_scorers_publish_the_same_events(machine):
    refused = machine.run(machine.bin / "scalr", "run")
    assert refused.returncode == 1
    assert "scalr serving install" in refused.stderr
    assert len(refused.stderr.splitlines()) <= 5, refused.stderr
    assert not (machine.folder / ".scalr").exists(), "no work is done before it is known that it can be ended"

    plan = machine.scalr("serving", "install", "--dry-run")
    assert not plan["exists"]
    assert "_assets" in plan["constraints"]
    report = machine.scalr("serving", "install")
    assert report["folder"] == plan["folder"] == str(machine.folder / ".venv-triton")
    assert report["next_step"] is None
    assert machine.scalr("serving", "install", "--dry-run")["exists"]
    assert machine.scalr("doctor", "--config", "scalr.toml")["ok"]

    published = {}
    for scorer in ("triton", "local"):
        done = machine.scalr("run", SCALR_SERVING__SCORER=scorer, SCALR_PROJECT__HOME=f"home-{scorer}")
        assert done["stages"]["publish"]["outcome"] == "published"
        view = machine.folder / f"home-{scorer}" / "lake" / "synthetic_target_events"
        published[scorer] = set(DeltaTable(str(view)).to_pyarrow_table(columns=["event_id"])["event_id"].to_pylist())
        assert done["stages"]["publish"]["rows"] == len(published[scorer]) > 0
    assert published["triton"] == published["local"]
