"""The DAGs in a real, fresh Airflow: parsed, then run in order on made data, down to the lake and the training set."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from deltalake import DeltaTable
from support.warm import LIBRARIES, OF_AIRFLOW, Warm

pytest.importorskip("airflow.sdk")

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(900)]
#: Runs of DAGs: ten seconds each, and what they share takes most of a minute; CONTRIBUTING.md.
long = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
DAGS = ROOT / "airflow_dags"
#: Its program is a DAG that rolls days up to weeks.
PAGE = ROOT / "docs" / "guides" / "airflow-partitions.md"
KINDS = ("backfill", "events", "maintenance", "training_set", "translator")
HEAVY = {"torch", "feast", "great_expectations", "dask", "duckdb", "deltalake", "pyarrow", "pandas", "tritonclient"}
NAMES = tuple(f"scalr_{kind}" for kind in KINDS)
#: The translator learns until here, and the window begins here.
TRAINED = datetime(2024, 5, 30, tzinfo=UTC)
END = TRAINED + timedelta(days=8)


@dataclass(frozen=True)
class Outcome:
    """How one DAG run went: its exit code and output, and task → state."""

    returncode: int
    output: str
    states: dict[str, str]


@dataclass(frozen=True)
class Airflow:
    home: Path
    env: dict[str, str]
    process: Warm | None

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "airflow", *arguments]
        if self.process:
            return self.process.run(command, env=self.env)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=self.env)

    def test(self, dag: str, **conf: object) -> Outcome:
        """`airflow dags test` with a window or none; a logical date of its own for each run."""
        day = f"2024-06-{1 + len(self.query('SELECT id FROM dag_run')):02d}"
        done = self("dags", "test", dag, day, "--conf", json.dumps(conf))
        # Asked for now: tests run in any order, and others run the same DAG.
        latest = f"SELECT run_id FROM dag_run WHERE dag_id = '{dag}' ORDER BY id DESC LIMIT 1"
        states = self.query(f"SELECT task_id, state FROM task_instance WHERE dag_id = '{dag}' AND run_id = ({latest})")
        return Outcome(done.returncode, done.stdout + done.stderr, dict(states))

    def emitted(self, asset: str) -> list[tuple[str | None, dict]]:
        """Partition key and extra of an asset's events, the oldest first."""
        events = self.query(
            "SELECT partition_key, event.extra FROM asset_event AS event JOIN asset ON asset.id = asset_id "
            f"WHERE name = '{asset}' ORDER BY event.id"
        )
        return [(key, json.loads(extra)) for key, extra in events]

    def query(self, sql: str) -> list[tuple]:
        with sqlite3.connect(self.home / "airflow.db") as connection:
            return connection.execute(sql).fetchall()


@pytest.fixture(scope="module")
def project(make_project, tmp_path_factory):
    extra = (
        '[serving]\nscorer = "local"\nthreads = 1\n[compute]\nworkers = 1\n'
        '[training_set]\nnegatives_per_event = 1\nsuite = "training"\n[quality]\nmax_bucket_distance = 1.0\nmin_information = 0\n'
    )
    return make_project(tmp_path_factory.mktemp("logs"), extra, users=120)


@pytest.fixture(scope="module")
def airflow(request, project, tmp_path_factory, here):
    home = tmp_path_factory.mktemp("airflow")
    dags = Path(shutil.copytree(DAGS, home / "dags"))
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    (dags / "weekly_digest.py").write_text(program)
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    env |= {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "SCALR_CONFIG": str(project.base / "scalr.toml"),
        "SCALR_AIRFLOW_RETRIES": "0",
        "SCALR_COMPUTE__DASK": here,
        "OMP_NUM_THREADS": "1",
    }
    runs = any(item.get_closest_marker("long") for item in request.session.items)  # else nothing of ours is at work
    run = Airflow(home, env, Warm((*LIBRARIES, *OF_AIRFLOW) if runs else OF_AIRFLOW, env))
    done = run("db", "migrate")
    assert done.returncode == 0, done.stderr
    yield run
    run.process.close()


@pytest.fixture(scope="module")
def apart(airflow, tmp_path_factory):
    """An Airflow that cannot import what the package's work needs: SCALR_COMMAND does the tasks."""
    folder = tmp_path_factory.mktemp("without")
    (folder / "sitecustomize.py").write_text(f"""
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise ImportError(f"{{name}} is not in this environment")

sys.meta_path.insert(0, Without())
""")
    scalr = [sys.executable, "-c", "from scalr_prod.apps.cli import main; main()"]
    command = shlex.join(["env", "-u", "PYTHONPATH", *scalr])
    return Airflow(airflow.home, airflow.env | {"PYTHONPATH": str(folder), "SCALR_COMMAND": command}, None)


@pytest.fixture(scope="module")
def translator(airflow):
    return airflow.test("scalr_translator", trained_until=TRAINED.isoformat())


@pytest.fixture(scope="module")
def events(airflow, translator):
    assert translator.returncode == 0, translator.output[-8000:]
    return airflow.test("scalr_events", start=TRAINED.isoformat(), end=END.isoformat())


@pytest.fixture(scope="module")
def training_set(airflow, events):
    assert events.returncode == 0, events.output[-8000:]
    return airflow.test("scalr_training_set")


def test_the_file_parses_in_under_a_second_and_imports_nothing_heavy(airflow):
    """Airflow's own `airflow.sdk` is there already where DAG files are parsed, so it is loaded before the clock starts."""
    script = """
import importlib.util, json, sys, time
from airflow.sdk import Asset, CronDataIntervalTimetable, Param, dag, get_current_context, task
started = time.perf_counter()
spec = importlib.util.spec_from_file_location("dags", sys.argv[1])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
seconds = time.perf_counter() - started
heavy = {"torch", "feast", "great_expectations", "dask", "duckdb", "deltalake"} & set(sys.modules)
print(json.dumps([seconds, sorted(heavy)]))
"""
    (file,) = DAGS.glob("*.py")
    command = [sys.executable, "-c", script, str(file)]
    for _ in range(3):  # the machine may be busy
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=airflow.env)
        seconds, heavy = json.loads(done.stdout.splitlines()[-1])
        assert heavy == []
        if seconds < 1:
            break
    assert seconds < 1


def test_airflow_finds_the_dags_and_no_import_error(airflow):
    assert airflow("dags", "reserialize").returncode == 0
    assert json.loads(airflow("dags", "list-import-errors", "--output", "json").stdout.splitlines()[-1]) == []
    found = dict(airflow.query("SELECT dag_id, max_active_runs FROM dag"))
    assert found == dict.fromkeys((*NAMES, "weekly_digest"), 1)


@long
def test_the_translator_is_trained_until_the_given_time_and_promoted(airflow, translator, project):
    assert translator.returncode == 0, translator.output[-8000:]
    assert set(translator.states.values()) == {"success"}
    with sqlite3.connect(project.home / "ledger.db") as ledger:
        promoted = ledger.execute("SELECT version FROM model_promotions ORDER BY id DESC LIMIT 1").fetchone()
    manifest = json.loads((project.home / "models" / "translator" / str(promoted[0]) / "manifest.json").read_text())
    assert datetime.fromisoformat(manifest["trained_until"]) == TRAINED


@long
def test_the_window_is_published_and_the_asset_carries_it(airflow, events, project):
    assert events.returncode == 0, events.output[-8000:]
    assert set(events.states.values()) == {"success"}
    # Tests run in any order: others announce other windows, or this one again.
    (key, extra), *_ = [
        event for event in airflow.emitted("synthetic_target_events") if event[1].get("start") == TRAINED.isoformat()
    ]
    assert key is None, "or DAGs without partitions would not start"
    published = DeltaTable(str(project.home / "lake" / "synthetic_target_events")).to_pandas()
    published = published[published["run_id"] == extra["run_id"]]
    assert len(published) > 20
    assert published["event_timestamp"].between(TRAINED, END, inclusive="left").all()
    assert (published["created_timestamp"] == END).all(), "known from the window's end on"
    (run_id,) = published["run_id"].unique()
    spec = json.loads((project.home / "runs" / run_id / "run.json").read_text())
    assert spec["mode"] == "causal"
    assert datetime.fromisoformat(spec["translator_trained_until"]) <= TRAINED
    assert extra["run_id"] == run_id
    assert Path(extra["config"]).name == "scalr.toml"
    assert [datetime.fromisoformat(extra[name]) for name in ("start", "end", "as_of")] == [TRAINED, END, END]
    assert extra.keys() == {"config", "run_id", "start", "end", "as_of"}
    days = [(TRAINED + timedelta(days=number)).date().isoformat() for number in range(8)]
    daily = [event for event in airflow.emitted("daily_synthetic_target_events") if event[1]["as_of"] == extra["as_of"]][:8]
    assert sorted(key for key, _ in daily) == days, "a partition for each day of the window"
    assert [extra for _, extra in daily] == [{name: extra[name] for name in ("config", "as_of")}] * 8


@long
def test_the_training_set_takes_its_cutoff_from_the_asset(airflow, training_set, project):
    assert training_set.returncode == 0, training_set.output[-8000:]
    folder = project.home / "datasets" / "training_set" / "v1"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert datetime.fromisoformat(manifest["cutoff"]) == END
    rows = pd.read_parquet(folder / "rows")
    assert (rows["event_timestamp"] < END).all()
    published = DeltaTable(str(project.home / "lake" / "synthetic_target_events")).to_pandas()
    assert rows["is_synthetic"].sum() == (published["created_timestamp"] <= END).sum()
    assert (rows["label"] == 0).sum() > 100
    # `check` has put it to the suite that [training_set] names.
    ((verdict,),) = [[page] for page in (project.home / "data_docs" / "validations" / "training").rglob("*.html")]
    assert "no two synthetic rows have the same user, item and time" in verdict.read_text()


@long
def test_running_everything_again_changes_nothing(apart, training_set, project):
    """Nor where Airflow has an environment of its own; a second way to do the tasks comes to the same rows."""
    before = DeltaTable(str(project.home / "lake" / "synthetic_target_events")).to_pandas().sort_values("event_id")
    again = apart.test("scalr_events", start=TRAINED.isoformat(), end=END.isoformat())
    assert again.returncode == 0, again.output[-8000:]
    after = DeltaTable(str(project.home / "lake" / "synthetic_target_events")).to_pandas().sort_values("event_id")
    pd.testing.assert_frame_equal(before.reset_index(drop=True), after.reset_index(drop=True))


@long
def test_a_window_the_translator_has_seen_fails_at_once_and_says_why(airflow, translator):
    start = TRAINED - timedelta(days=20)
    done = airflow.test("scalr_events", start=start.isoformat(), end=(start + timedelta(days=1)).isoformat())
    assert done.returncode != 0
    states = done.states
    assert states["generate"] == "failed"
    assert states["publish"] == "upstream_failed"
    assert "TrainedPastWindow" in done.output
    assert "scalr translator train --trained-until" in done.output


@long
def test_a_window_without_source_events_is_skipped(airflow, translator):
    done = airflow.test("scalr_events", start="2025-01-01T00:00:00+00:00", end="2025-01-02T00:00:00+00:00")
    assert done.returncode == 0, done.output[-8000:]
    states = done.states
    assert states["ingest"] == "success"
    assert {states[task] for task in ("generate", "validate", "publish", "late")} == {"skipped"}


@long
def test_a_backfill_publishes_the_windows_of_its_range_and_emits_the_asset_once(airflow, events, training_set, project):
    before = len(airflow.emitted("synthetic_target_events"))
    done = airflow.test("scalr_backfill", start=END.isoformat(), end=(END + timedelta(days=10)).isoformat(), days=5)
    assert done.returncode == 0, done.output[-8000:]
    published = DeltaTable(str(project.home / "lake" / "synthetic_target_events")).to_pandas()
    for number in range(2):
        start = END + timedelta(days=5 * number)
        window = published[published["event_timestamp"].between(start, start + timedelta(days=5), inclusive="left")]
        assert len(window) > 10
        assert (window["created_timestamp"] == start + timedelta(days=5)).all()
        assert len(window["run_id"].unique()) == 1
    new = airflow.emitted("synthetic_target_events")[before:]
    assert [extra["as_of"] for _, extra in new] == [(END + timedelta(days=10)).isoformat()]


def made_up(airflow, folder, *, days, refused):
    """An Airflow whose tasks are not done: windows of days of May 2024 are made up, of which one is refused."""
    error = dict.fromkeys(("found", "where", "next_step", "stage", "run_id"), "") | {"error": "QualityGateFailed"}
    scalr = folder / "scalr.py"
    scalr.write_text(f"""
import json, sys
call = json.load(sys.stdin)
if "window" not in call:
    days = {list(days)}
    windows = [[f"2024-05-{{day:02d}}T00:00:00+00:00", f"2024-05-{{day + 1:02d}}T00:00:00+00:00"] for day in days]
    print(json.dumps({{"windows": windows}}))
    sys.exit(0)
start, end = call["window"]
refused = start.startswith("2024-05-{refused:02d}")
made = {{"start": start, "end": end, "as_of": end, "run_id": "run_" + start, "days": [start[:10]]}}
print(json.dumps({error} if refused else made))
sys.exit(3 if refused else 0)
""")
    return replace(airflow, env=airflow.env | {"SCALR_COMMAND": shlex.join([sys.executable, str(scalr)])})


@long
def test_a_refused_window_of_a_backfill_does_not_keep_the_others_from_being_announced(airflow, tmp_path):
    before = len(airflow.emitted("synthetic_target_events"))
    done = made_up(airflow, tmp_path, days=range(1, 5), refused=3).test(
        "scalr_backfill", start="2024-05-01T00:00:00Z", end="2024-05-05T00:00:00Z"
    )
    assert {task: done.states[task] for task in ("announce", "finish")} == {"announce": "success", "finish": "upstream_failed"}
    new = airflow.emitted("synthetic_target_events")[before:]
    assert [extra["as_of"] for _, extra in new] == ["2024-05-05T00:00:00+00:00"]
    assert done.returncode != 0, "the run fails, since a window did"


@long
def test_days_are_partitions_that_a_dag_rolls_up_to_weeks(airflow, tmp_path):
    """Of two published weeks less a day, the scheduler runs the DAG of docs/guides/airflow-partitions.md for the complete one."""
    assert airflow("dags", "reserialize").returncode == 0
    assert airflow("dags", "unpause", "weekly_digest").returncode == 0  # Airflow collects no events for a paused DAG
    before = len(airflow.emitted("daily_synthetic_target_events"))
    done = made_up(airflow, tmp_path, days=range(6, 19), refused=0).test(
        "scalr_backfill", start="2024-05-06T00:00:00Z", end="2024-05-19T00:00:00Z"
    )
    assert done.returncode == 0, done.output[-8000:]
    keys = [key for key, _ in airflow.emitted("daily_synthetic_target_events")[before:]]
    assert sorted(keys) == [f"2024-05-{day:02d}" for day in range(6, 19)]
    assert airflow("dags", "pause", "weekly_digest").returncode == 0  # its runs are made, and not started
    done = airflow("scheduler", "--num-runs", "1")
    assert done.returncode == 0, done.stderr[-8000:]
    weeks = airflow.query("SELECT partition_key FROM dag_run WHERE dag_id = 'weekly_digest' AND partition_key LIKE '2024-05-%'")
    assert ("2024-05-06 (W19)",) in weeks
    assert ("2024-05-13 (W20)",) not in weeks, "its Sunday is missing"


@long
def test_upkeep_is_a_dag(airflow, events):
    done = airflow.test("scalr_maintenance")
    assert done.returncode == 0, done.output[-8000:]
    assert done.states == {"maintain": "success"}


def test_each_listed_project_has_dags_of_its_own_and_a_broken_one_stops_no_other(airflow, project, tmp_path):
    content = (project.base / "scalr.toml").read_text().replace('events = "', f'events = "{project.base}/')
    for name in ("north", "south"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scalr.toml").write_text(f'[project]\nname = "{name}"\n' + content)
    (tmp_path / "east.toml").write_text("[domains")
    script = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
found = {dag.dag_id: [dag.params.get("config"), sorted(task.task_id for task in dag.tasks)] for dag in bag.dags.values()}
print(json.dumps([found, {str(file): text for file, text in bag.import_errors.items()}], default=str))
"""
    env = airflow.env | {"SCALR_PROJECTS": str(tmp_path)}
    done = airflow.process.run([sys.executable, "-c", script, DAGS], env=env)
    assert done.returncode == 0, done.stderr
    found, errors = json.loads(done.stdout.splitlines()[-1])
    assert errors == {}
    (broken,) = [name for name in found if "_east_" in name]
    assert set(found) == {f"scalr_{name}_{kind}" for name in ("north", "south") for kind in KINDS} | {broken}
    for name in ("north", "south"):
        assert found[f"scalr_{name}_events"][0] == str(tmp_path / name / "scalr.toml")
    assert found[broken][1] == ["settings"]
