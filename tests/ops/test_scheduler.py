"""A real Airflow scheduler, two projects in one deployment: each DAG by its own schedule, published sets as by the command alone.

The two share a ledger. Nothing is triggered by hand: the weekly DAG trains, the daily one publishes, its asset builds the training
set.
"""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("airflow.sdk")

from scalr_prod import Project
from scalr_prod.contracts import Table

pytestmark = [pytest.mark.airflow, pytest.mark.nightly, pytest.mark.timeout(1800)]

DAGS = Path(__file__).resolve().parents[2] / "airflow_dags"
NAMES = ("north", "south")
EXTRA = """
[serving]
scorer = "local"
threads = 1
[compute]
workers = 1
[quality]
max_bucket_distance = 1.0
min_information = 0
"""
LEAN = 'threads = 1\nestimators = ["popularity", "frequency", "linear"]'


@pytest.fixture(scope="module")
def projects(make_project, tmp_path_factory):
    """Two projects whose logs end now: name → scalr.toml."""
    root = tmp_path_factory.mktemp("deployment")
    configs = {}
    for number, name in enumerate(NAMES):
        folder = root / "projects" / name
        config = make_project(folder, EXTRA, users=200, seed=11 + number).base / "scalr.toml"
        shared = f'[project]\nname = "{name}"\n[ledger]\nurl = "sqlite:///{root}/ledger.db"\n'
        config.write_text(shared + config.read_text().replace("threads = 2", LEAN))
        shift = pd.Timestamp.now(tz="UTC") - pd.read_parquet(folder / "s.parquet")["timestamp"].max()
        for file in ("s.parquet", "t.parquet"):
            log = pd.read_parquet(folder / file)
            log["timestamp"] = (log["timestamp"] + shift).astype("datetime64[us, UTC]")
            log.to_parquet(folder / file)
        configs[name] = config
    return configs


class Deployment:
    """Airflow at work: what its database says, and a way to unpause."""

    def __init__(self, home: Path, env: dict[str, str]) -> None:
        self.home, self.env = home, env

    def __call__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "airflow", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=self.env)
        assert done.returncode == 0, done.stderr[-3000:]

    def query(self, sql: str) -> list[tuple]:
        with sqlite3.connect(f"file:{self.home / 'airflow.db'}?mode=ro", uri=True, timeout=60) as connection:
            return connection.execute(sql).fetchall()

    def wait_for(self, dag: str, *, minutes: float = 12) -> tuple[str, datetime | None, datetime | None]:
        """The DAG's first run once it has ended: run type, and its data interval."""
        give_up = time.monotonic() + 60 * minutes
        while True:
            found = self.query(
                f"SELECT state, run_type, data_interval_start, data_interval_end FROM dag_run WHERE dag_id = '{dag}' ORDER BY id"
            )
            if found and found[0][0] in {"success", "failed"}:
                tasks = self.query(f"SELECT task_id, state FROM task_instance WHERE dag_id = '{dag}'")
                assert found[0][0] == "success", (dag, tasks, self.log_of(dag))
                kind, *interval = found[0][1:]
                return kind, *(datetime.fromisoformat(f"{at}+00:00") if at else None for at in interval)
            assert time.monotonic() < give_up, (dag, found, (self.home / "standalone.log").read_text()[-3000:])
            time.sleep(2)

    def log_of(self, dag: str) -> str:
        logs = sorted((self.home / "logs" / f"dag_id={dag}").rglob("*.log"), key=lambda path: path.stat().st_mtime)
        return logs[-1].read_text()[-3000:] if logs else "no log"


@contextmanager
def running(home: Path, projects: dict[str, Path]):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    env |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "2",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API_AUTH__JWT_SECRET": "for-this-test-alone-and-long-enough-to-sign-with",
        "SCALR_PROJECTS": str(next(iter(projects.values())).parent.parent),
        "SCALR_AIRFLOW_RETRIES": "0",
        "OMP_NUM_THREADS": "1",
    }
    with (home / "standalone.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "airflow", "standalone"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
        try:
            yield Deployment(home, env)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def test_two_projects_run_by_their_own_schedules(projects, tmp_path):
    home = tmp_path / "airflow"
    home.mkdir()
    with running(home, projects) as airflow:
        listed(airflow)
        trained = {name: turn_on(airflow, f"scalr_{name}_translator") for name in NAMES}
        for name in NAMES:
            airflow("dags", "unpause", f"scalr_{name}_training_set")
        published = {name: turn_on(airflow, f"scalr_{name}_events") for name in NAMES}
        built = {name: airflow.wait_for(f"scalr_{name}_training_set") for name in NAMES}
        assert {kind for kind, *_ in (*trained.values(), *published.values())} == {"scheduled"}
        assert {kind for kind, *_ in built.values()} == {"asset_triggered"}
    for name, config in projects.items():
        _, _, until = trained[name]
        _, start, end = published[name]
        alone = by_command(config, tmp_path / name, until, start, end)
        with Project.open(config) as project:
            rows = rows_of(project)
            assert len(rows) > 5
            pd.testing.assert_frame_equal(rows, alone)
            assert [run.project for run in project.runs()] == [name]
            manifest = project.training_set().manifest
            assert datetime.fromisoformat(manifest["cutoff"]) == end
            assert manifest["synthetic"] == len(rows)


def listed(airflow):
    """Wait until Airflow has read the file."""
    give_up = time.monotonic() + 300
    expected = {
        f"scalr_{name}_{kind}" for name in NAMES for kind in ("backfill", "events", "maintenance", "training_set", "translator")
    }
    found = set()
    while found != expected:
        assert time.monotonic() < give_up, (found, (airflow.home / "standalone.log").read_text()[-3000:])
        time.sleep(2)
        try:
            found = {dag for (dag,) in airflow.query("SELECT dag_id FROM dag")}
        except sqlite3.OperationalError:  # the database is being made
            continue


def turn_on(airflow, dag):
    airflow("dags", "unpause", dag)
    return airflow.wait_for(dag)


def by_command(config, folder, until, start, end):
    """What the same window gives in a home of its own, without a scheduler."""
    import shutil

    shutil.copytree(config.parent, folder, ignore=shutil.ignore_patterns(".scalr"))
    window = {"mode": "causal", "start": start, "end": end, "as_of": end}
    with Project.open(folder / "scalr.toml", ledger={"url": None}, generation=window) as project:
        project.ingest()
        project.histories()
        project.train(until)
        run_id = project.generate().run_id
        project.validate(run_id)
        project.publish(run_id)
        return rows_of(project)


def rows_of(project):
    rows = project.lake.read(Table.SYNTHETIC_TARGET_EVENTS).to_pandas()
    return rows.drop(columns="run_id").sort_values("event_id", ignore_index=True)
