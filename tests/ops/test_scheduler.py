"""A real Airflow scheduler, two projects in one deployment, three days in a row: published sets as by Project's methods alone.

Airflow's metadata, the ledger and the Feast registry are in PostgreSQL, the online store is Redis. A day lasts a few minutes, as many as
the weekly DAG's run says that this machine needs. The weekly DAG trains and the daily one publishes, each by its own schedule; the asset
builds the training sets. On the second day a task is killed; events of the first day arrive before the third; a backfill of the three
days runs beside the third.
"""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from support.redis_server import running_redis
from support.small import LOCAL, lean

pytest.importorskip("airflow.sdk")

from support.airflow_deployment import kill_task, running_airflow

from scalr_prod import Project
from scalr_prod.schemas import Table

#: Seconds for all waits together, on a machine of any speed.
LIMIT = 2400
pytestmark = [pytest.mark.airflow, pytest.mark.nightly, pytest.mark.timeout(LIMIT + 600)]

NAMES = ("north", "south")
MINUTE = timedelta(minutes=1)
KINDS = ("backfill", "events", "maintenance", "training_set", "translator")
#: Lengths that a window may have, minutes; an hour is so many of them.
LENGTHS = (2, 3, 4, 5, 6)
#: Source events of a window, of whatever length.
EVENTS = 20
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


def window_for(trained):
    """Minutes of a window, from the weekly DAG's runs: at least four times the shorter one, in which no task was tried again.

    A day's run takes twice as long, and that of the killed task a minute more. Airflow leaves a window out where the run before it
    is not over within two windows (catchup is off).
    """
    seconds = min((run.end_date - run.start_date).total_seconds() for run in trained)
    return next((length for length in LENGTHS if length * 60 >= 4 * seconds), LENGTHS[-1])


def plant_three_days(configs, length):
    """Events from two windows ago to four ahead, whichever of them Airflow takes for the first."""
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    today = now - now.minute % (length // MINUTE) * MINUTE
    for seed, config in enumerate(configs.values()):
        add_events(config, today - 2 * length, today + 4 * length, every=length.seconds // EVENTS, seed=seed)


def kill_the_second_days_generate(airflow, project, events):
    """Once the run is under way: its lease is held, and the ledger says it generates. Gives when, and which try it was."""

    def generates():
        return any(run.state == "generating" for run in project.runs()) and airflow.state(events, 1, "generate") == "running"

    airflow.until(generates, every=0.05, what=f"the second day's generate of {events}")
    task = airflow.tasks(events, airflow.runs(events)[1].run_id)["generate"]
    return kill_task(task.pid), task.try_number


def runs_of(config, start):
    """How many runs of the window that begins then the ledger has."""
    with Project.open(config) as project:
        return sum(run.spec.start == start for run in project.runs())


def in_order(airflow, ready, what):
    """Each project once it is ready, whichever is first."""
    waiting = set(NAMES)
    while waiting:
        found = airflow.until(lambda: [name for name in sorted(waiting) if ready(name)], every=0.2, what=f"{waiting}: {what}")
        waiting.difference_update(found)
        yield from found


def test_two_projects_by_their_own_schedules_for_three_days(projects, databases, tmp_path):
    home = tmp_path / "airflow"
    home.mkdir()
    dags = {name: {kind: f"scalr_{name}_{kind}" for kind in KINDS} for name in NAMES}
    listing = {"SCALR_PROJECTS": str(projects["north"].parent.parent)}
    with running_airflow(home, databases["airflow"], limit=LIMIT, **listing) as airflow:
        every_dag = {dag for of_project in dags.values() for dag in of_project.values()}
        airflow.wait_until_listed(every_dag)
        for name in NAMES:
            airflow.pause(dags[name]["translator"], paused=False)
        trained = {name: airflow.wait_for_run(dags[name]["translator"]) for name in NAMES}
        length = window_for(trained.values()) * MINUTE
        plant_three_days(projects, length)
        # Airflow reads the file once more, with the schedule: the next window is the last one that is over.
        read_again = airflow.begin("dag-processor", SCALR_EVENTS_CRON=f"*/{length // MINUTE} * * * *")
        airflow.wait_until_listed(every_dag, since=read_again)
        for kind in ("training_set", "backfill", "events"):
            for name in NAMES:
                airflow.pause(dags[name][kind], paused=False)

        airflow.wait_for_run(dags["north"]["events"])
        with Project.open(projects["north"]) as project:
            killed_at, tried = kill_the_second_days_generate(airflow, project, dags["north"]["events"])
        first = {name: airflow.wait_for_run(dags[name]["events"]) for name in NAMES}

        def begun(name, day, task):
            return airflow.state(dags[name]["events"], day, task) in {"running", "success"}

        for name in in_order(airflow, lambda name: begun(name, 1, "publish"), "the second day's publish"):
            first_day = first[name].data_interval_start, first[name].data_interval_end
            add_events(projects[name], *first_day, every=3 * length.seconds // EVENTS, seed=7)

        def late(name):  # the second run of the first window is that of the late events
            return begun(name, 2, "late") and runs_of(projects[name], first[name].data_interval_start) >= 2

        for name in in_order(airflow, late, "the run of the late events"):
            third = airflow.runs(dags[name]["events"])[2]
            span = {"start": first[name].data_interval_start.isoformat(), "end": third.data_interval_end.isoformat()}
            airflow.trigger(dags[name]["backfill"], **span, minutes=length // MINUTE)
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
            assert [start for start, _ in windows[name][1:]] == [end for _, end in windows[name][:-1]], airflow.states()
            assert {end - start for start, end in windows[name]} == {length}
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
    causes = [
        change.cause for run in of_first for change in project.ledger.changes.find(run.run_id) if change.to_state == "planned"
    ]
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
