"""A real Airflow scheduler, two projects in one deployment, three days in a row: published sets as by Project's methods alone.

Airflow's metadata, the ledger and the Feast registry are in PostgreSQL, the online store is Redis. A day lasts a few minutes. The weekly
DAG trains and the daily one publishes, each by its own schedule; the asset builds the training sets. On the second day a task is
killed; events of the first day arrive before the third; a backfill of the three days runs beside the third.
"""

from __future__ import annotations

import shutil
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from redis_server import running_redis
from support.small import LOCAL, lean

pytest.importorskip("airflow.sdk")

from airflow_deployment import kill_task, running_airflow

from scalr_prod import Project
from scalr_prod.contracts import Table

pytestmark = [pytest.mark.airflow, pytest.mark.nightly, pytest.mark.timeout(2700)]

NAMES = ("north", "south")
KINDS = ("backfill", "events", "maintenance", "training_set", "translator")
#: Length of a window, minutes. The first day's run must end within two of them, or Airflow leaves a window out (catchup is off).
MINUTES = 3
EXTRA = f"""{LOCAL}[generation]
partitions = 2
"""


@pytest.fixture(scope="module")
def databases(postgres):
    return {name: postgres.database(name) for name in ("airflow", "ledger", "feast")}


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    with running_redis(tmp_path_factory.mktemp("redis")) as address:
        yield address


@pytest.fixture(scope="module")
def projects(make_project, tmp_path_factory, databases, redis):
    """Two projects whose logs end now: name → scalr.toml. They share all that can be shared."""
    root = tmp_path_factory.mktemp("deployment")
    shared = f"""
[ledger]
url = "{databases["ledger"].render_as_string(hide_password=False)}"
[feast]
registry = "{databases["feast"].render_as_string(hide_password=False)}"
online_store = "redis"
redis = "{redis}"
"""
    configs = {}
    for number, name in enumerate(NAMES):
        folder = root / "projects" / name
        config = lean(make_project(folder, EXTRA, users=80, seed=11 + number).base / "scalr.toml")
        text = f'[project]\nname = "{name}"\n' + config.read_text()
        (folder / "alone.toml.txt").write_text(text)
        config.write_text(shared + text + "lookback = 1\n")  # of [generation], the last section
        shift = pd.Timestamp.now(tz="UTC") - pd.read_parquet(folder / "s.parquet")["timestamp"].max()
        for file in ("s.parquet", "t.parquet"):
            log = pd.read_parquet(folder / file)
            log["timestamp"] = (log["timestamp"] + shift).astype("datetime64[us, UTC]")
            log.to_parquet(folder / file)
        configs[name] = config
    return configs


def add_events(config, start, end, *, every, seed):
    """Source events of users and items that the log has: one in each so many seconds of ``[start, end)``."""
    path = config.parent / "s.parquet"
    log = pd.read_parquet(path)
    times = pd.date_range(start, end, freq=f"{every}s", inclusive="left").astype("datetime64[us, UTC]")
    random = np.random.default_rng(seed)
    new = log.iloc[random.integers(0, len(log), len(times))].assign(
        timestamp=times + timedelta(seconds=every * random.random())
    )
    whole = pd.concat([log, new]).sort_values("timestamp", ignore_index=True)
    beside = path.with_suffix(".new")
    whole.to_parquet(beside)
    beside.replace(path)


def plant_three_days(configs):
    """Events from two windows ago to four ahead, whichever of them Airflow takes for the first."""
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    today = now - timedelta(minutes=now.minute % MINUTES)
    for seed, config in enumerate(configs.values()):
        add_events(config, today - timedelta(minutes=2 * MINUTES), today + timedelta(minutes=4 * MINUTES), every=10, seed=seed)


def kill_the_second_days_generate(airflow, project, events):
    """Once the run is under way: its lease is held, and the ledger says it generates. Gives when, and which try it was."""
    give_up = time.monotonic() + 60 * 12
    while not any(run.state == "generating" for run in project.runs()) or airflow.state(events, 1, "generate") != "running":
        assert time.monotonic() < give_up, (airflow.runs(events), airflow.log())
        time.sleep(0.05)
    task = airflow.tasks(events, airflow.runs(events)[1].run_id)["generate"]
    return kill_task(task.pid), task.try_number


def wait_for_runs_of(config, start, number):
    """Until the ledger has so many runs of the window that begins then."""
    give_up = time.monotonic() + 180
    with Project.open(config) as project:
        while sum(run.spec.start == start for run in project.runs()) < number:
            assert time.monotonic() < give_up, [(run.run_id, run.spec.start, run.state) for run in project.runs()]
            time.sleep(0.2)


def in_order(airflow, dags, day, task):
    """Each project once its task of that day has begun, whichever comes first."""
    waiting, give_up = set(NAMES), time.monotonic() + 60 * 15
    while waiting:
        for name in sorted(waiting):
            if airflow.state(dags[name]["events"], day, task) in {"running", "success"}:
                waiting.remove(name)
                yield name
        assert time.monotonic() < give_up, (waiting, airflow.log())
        time.sleep(0.5)


def test_two_projects_by_their_own_schedules_for_three_days(projects, databases, tmp_path):
    home = tmp_path / "airflow"
    home.mkdir()
    dags = {name: {kind: f"scalr_{name}_{kind}" for kind in KINDS} for name in NAMES}
    environment = {
        "SCALR_PROJECTS": str(projects["north"].parent.parent),
        "SCALR_EVENTS_CRON": f"*/{MINUTES} * * * *",
    }
    with running_airflow(home, databases["airflow"], **environment) as airflow:
        airflow.wait_until_listed({dag for of_project in dags.values() for dag in of_project.values()})
        for name in NAMES:
            airflow.pause(dags[name]["translator"], paused=False)
        trained = {name: airflow.wait_for_run(dags[name]["translator"]) for name in NAMES}
        plant_three_days(projects)
        airflow.parse_again(dags["north"]["events"])
        for kind in ("training_set", "backfill", "events"):
            for name in NAMES:
                airflow.pause(dags[name][kind], paused=False)

        airflow.wait_for_run(dags["north"]["events"])
        with Project.open(projects["north"]) as project:
            killed_at, tried = kill_the_second_days_generate(airflow, project, dags["north"]["events"])
        first = {name: airflow.wait_for_run(dags[name]["events"]) for name in NAMES}
        for name in in_order(airflow, dags, 1, "publish"):
            first_day = first[name].data_interval_start, first[name].data_interval_end
            add_events(projects[name], *first_day, every=30, seed=7)
        for name in in_order(airflow, dags, 2, "late"):
            wait_for_runs_of(projects[name], first[name].data_interval_start, 2)  # the second is that of the late events
            third = airflow.runs(dags[name]["events"])[2]
            span = {"start": first[name].data_interval_start.isoformat(), "end": third.data_interval_end.isoformat()}
            airflow.trigger(dags[name]["backfill"], **span, minutes=MINUTES)
        for name in NAMES:
            airflow.wait_for_run(dags[name]["events"], 2)
            airflow.pause(dags[name]["events"], paused=True)
        filled = {name: airflow.wait_for_run(dags[name]["backfill"]) for name in NAMES}
        building = {dags[name]["training_set"] for name in NAMES}
        airflow.wait_until_idle(building)

        windows = {}
        for name in NAMES:
            days = airflow.runs(dags[name]["events"])[:3]
            windows[name] = [(day.data_interval_start, day.data_interval_end) for day in days]
            assert {day.run_type for day in days} == {trained[name].run_type} == {"scheduled"}
            assert [start for start, _ in windows[name][1:]] == [end for _, end in windows[name][:-1]]
            assert {end - start for start, end in windows[name]} == {timedelta(minutes=MINUTES)}
            # Beside: the third day's run was not over when the backfill began.
            assert filled[name].start_date < days[2].end_date
            built = airflow.runs(dags[name]["training_set"])
            assert len(built) >= 3
            assert {(run.state, run.run_type) for run in built} == {("success", "asset_triggered")}
        # What Airflow itself noted of the task that was killed.
        second = airflow.runs(dags["north"]["events"])[1]
        began = airflow.tries(dags["north"]["events"], second.run_id, "generate")

    for name, config in projects.items():
        alone = by_project(config, tmp_path / name, trained[name].data_interval_end, windows[name])
        with Project.open(config) as project, Project.open(alone, training_set={"cutoff": windows[name][2][1]}) as apart:
            rows = rows_of(project, windows[name])
            for start, end in windows[name]:
                assert rows["event_timestamp"].between(start, end, inclusive="left").sum() > 5
            pd.testing.assert_frame_equal(rows, rows_of(apart, windows[name]))
            check_ledger(project, name, windows[name])
            check_training_sets(project, apart, windows[name])
    assert timedelta(0) < began[tried + 1] - killed_at < timedelta(seconds=90), (killed_at, began)


def by_project(config, folder, until, windows):
    """The same days in a home of its own, with the late events there in time; no scheduler, server or other project. Its scalr.toml."""
    shutil.copytree(config.parent, folder, ignore=shutil.ignore_patterns(".scalr"))
    alone = folder / "scalr.toml"
    alone.write_text((folder / "alone.toml.txt").read_text())
    with Project.open(alone) as project:
        project.ingest()
        project.histories()
        project.train(until)
    for start, end in windows:
        with Project.open(alone, generation={"mode": "causal", "start": start, "end": end, "as_of": end}) as project:
            run_id = project.generate().run_id
            project.validate(run_id)
            project.publish(run_id)
    return alone


def rows_of(project, windows):
    """The published rows of the windows; a fourth may have begun."""
    rows = project.lake.read(Table.SYNTHETIC_TARGET_EVENTS).to_pandas()
    rows = rows[rows["event_timestamp"] < windows[-1][1]]
    return rows.drop(columns="run_id").sort_values("event_id", ignore_index=True)


def check_ledger(project, name, windows):
    """Runs of this project alone; the first window was published again because of the late events."""
    runs = project.runs()
    assert {run.project for run in runs} == {name}
    of_first = [run for run in runs if run.spec.start == windows[0][0]]
    causes = [change.cause for run in of_first for change in project.ledger.history(run.run_id) if change.to_state == "planned"]
    assert any("source events arrived after run_" in cause for cause in causes)


def check_training_sets(project, apart, windows):
    """One for each window, by its end; the last is what the other home's is."""
    latest = project.training_set().manifest["version"]
    cutoffs = {datetime.fromisoformat(project.training_set(one).manifest["cutoff"]): one for one in range(1, latest + 1)}
    assert {end for _, end in windows} <= set(cutoffs)
    apart.build_training_set()
    here, there = (
        one.training_set(version).to_pandas() for one, version in ((project, cutoffs[windows[-1][1]]), (apart, None))
    )
    pd.testing.assert_frame_equal(*(rows.drop(columns=["run_id"], errors="ignore") for rows in (here, there)))
