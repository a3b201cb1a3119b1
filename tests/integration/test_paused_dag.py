"""A DAG paused for three days, one of which the clocks change on, then unpaused: a real Airflow scheduler publishes every day once.

Four projects in one deployment: each of two time zones, with catch-up and without. Without it Airflow runs the last window only, and the
backfill DAG translates the others. The days are of the past: the deployment's DAG file gives each DAG its first and last window, and a
plugin tells schedules without catch-up how late it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pandas as pd
import pytest
from support.small import LOCAL, lean

pytest.importorskip("airflow.sdk")

from support.airflow_deployment import running_airflow

from scalr_prod import Project
from scalr_prod.core.calendar import day_windows
from scalr_prod.schemas import Table

if TYPE_CHECKING:
    from pathlib import Path

#: Seconds for all waits together, on a machine of any speed.
LIMIT = 2400
pytestmark = [pytest.mark.airflow, pytest.mark.nightly, pytest.mark.timeout(LIMIT + 600)]

DAG_FILE = """
import json
import os
from datetime import datetime
from pathlib import Path

from airflow.sdk import dag
from scalr_prod.integrations.airflow import dags

ordinary = dags._common_options
for config, days in json.loads(Path(os.environ["TEST_DAYS"]).read_text()).items():
    changed = {
        "start_date": datetime.fromisoformat(days["first"]), "end_date": datetime.fromisoformat(days["last"]), "catchup": days["catchup"],
    }
    dags._common_options = lambda timeout_hours, changed=changed: ordinary(timeout_hours) | changed
    dags.make_dags(config)
"""
CLOCK = """
import json
import os
from pathlib import Path

from airflow.timetables import interval
from pendulum import DateTime

ordinary = interval.CronDataIntervalTimetable._skip_to_latest


def skip_to_latest(self, earliest):
    times = json.loads(Path(os.environ["TEST_CLOCK"]).read_text())
    if self._timezone.name in times:
        interval.utcnow = lambda: DateTime.fromisoformat(times[self._timezone.name])
    return ordinary(self, earliest)


interval.CronDataIntervalTimetable._skip_to_latest = skip_to_latest
"""


@dataclass(frozen=True)
class Paused:
    """A project whose DAG is paused after its first window.

    Attributes:
        name: The project.
        zone: Its time zone.
        change: Local day on which clocks change, in the second window.
        catchup: Whether its DAGs catch up.
        hours: Length of the second window.
    """

    name: str
    zone: str
    change: date
    catchup: bool
    hours: int

    @property
    def windows(self) -> list[tuple[datetime, datetime]]:
        """The first window and the three of the pause, from 03:00 to 03:00."""
        first, end = (
            datetime.combine(self.change + timedelta(days=days), time(3), ZoneInfo(self.zone)).astimezone(UTC)
            for days in (-2, 2)
        )
        return day_windows(first, end, self.zone)

    def dag(self, kind: str) -> str:
        return f"scalr_{self.name}_{kind}"


PROJECTS = (
    Paused("sao_paulo_caught_up", "America/Sao_Paulo", date(2018, 11, 4), catchup=True, hours=23),
    Paused("sao_paulo", "America/Sao_Paulo", date(2019, 2, 17), catchup=False, hours=25),
    Paused("berlin_caught_up", "Europe/Berlin", date(2024, 10, 27), catchup=True, hours=25),
    Paused("berlin", "Europe/Berlin", date(2024, 3, 31), catchup=False, hours=23),
)


@pytest.fixture(scope="module")
def configs(make_project, tmp_path_factory, at_hand) -> dict[Paused, Path]:
    """Each project's scalr.toml: its log ends a day after its last window, its translator knows what was before the first."""
    made = {}
    for one in PROJECTS:
        folder = tmp_path_factory.mktemp(one.name)
        config = lean(make_project(folder / "logs", LOCAL, users=200).base / "scalr.toml")
        config.write_text(f'[project]\nname = "{one.name}"\ntimezone = "{one.zone}"\n' + config.read_text())
        end = one.windows[-1][1] + timedelta(days=1)
        for file in ("s.parquet", "t.parquet"):
            log = pd.read_parquet(config.parent / file)
            log["timestamp"] = (log["timestamp"] + (end - log["timestamp"].max())).astype("datetime64[us, UTC]")
            log.to_parquet(config.parent / file)
        with Project.open(config) as project:
            project.ingest()
            project.histories()
            project.train(one.windows[0][0])
        made[one] = config
    return made


def advance(folder: Path, configs: dict[Paused, Path], window: int) -> None:
    """Let the window of this number be the last that has ended: two hours ago, where there is no catch-up."""
    times = {one.zone: one.windows[window][1] + timedelta(hours=2) for one in PROJECTS if not one.catchup}
    spans = {
        str(config): {"first": one.windows[0][0], "last": one.windows[window][0], "catchup": one.catchup}
        for one, config in configs.items()
    }
    for name, content in (("clock.json", times), ("days.json", spans)):
        (folder / name).write_text(json.dumps(content, default=datetime.isoformat))


def test_every_day_of_a_pause_is_published_once(configs, postgres, tmp_path, here):
    home, dag_files = tmp_path / "airflow", tmp_path / "dags"
    for folder, file, text in ((home / "plugins", "clock.py", CLOCK), (dag_files, "scalr_dags.py", DAG_FILE)):
        folder.mkdir(parents=True)
        (folder / file).write_text(text)
    advance(tmp_path, configs, 0)
    settings = {
        "AIRFLOW__CORE__DAGS_FOLDER": str(dag_files),
        "AIRFLOW__CORE__LAZY_LOAD_PLUGINS": "False",
        "TEST_DAYS": str(tmp_path / "days.json"),
        "TEST_CLOCK": str(tmp_path / "clock.json"),
        "SCALR_COMPUTE__DASK": here,
    }
    listed = {one.dag("events") for one in PROJECTS}
    with running_airflow(home, postgres.database("airflow_paused"), limit=LIMIT, **settings) as airflow:
        airflow.wait_until_listed(listed)
        for one in PROJECTS:
            airflow.pause(one.dag("events"), paused=False)
        for one in PROJECTS:  # of a run that is at work when its DAG is paused, Airflow schedules no further task
            airflow.wait_for_run(one.dag("events"))
            airflow.pause(one.dag("events"), paused=True)
        advance(tmp_path, configs, 3)
        airflow.wait_until_listed(listed, since=airflow.begin("dag-processor"))
        assert {len(airflow.runs(dag)) for dag in listed} == {1}, airflow.states()
        for one in PROJECTS:
            airflow.pause(one.dag("events"), paused=False)
            if not one.catchup:
                airflow.pause(one.dag("backfill"), paused=False)
                span = {"start": one.windows[1][0].isoformat(), "end": one.windows[2][1].isoformat()}
                airflow.trigger(one.dag("backfill"), **span)
        for one in PROJECTS:
            expected = one.windows if one.catchup else [one.windows[0], one.windows[3]]
            for number in range(1, len(expected)):
                airflow.wait_for_run(one.dag("events"), number)
            if not one.catchup:
                airflow.wait_for_run(one.dag("backfill"))
        airflow.wait_until_idle(listed)
        for one in PROJECTS:
            expected = one.windows if one.catchup else [one.windows[0], one.windows[3]]
            runs = airflow.runs(one.dag("events"))
            assert [(run.data_interval_start, run.data_interval_end) for run in runs] == expected, airflow.states()

    for one, config in configs.items():
        start, end = one.windows[1]
        assert end - start == timedelta(hours=one.hours)
        assert all(before[1] == after[0] for before, after in pairwise(one.windows))
        with Project.open(config) as project:
            attempts = project.ledger.publications.find()
            assert sorted((attempt.start, attempt.end) for attempt in attempts) == one.windows
            assert {attempt.status.value for attempt in attempts} == {"published"}
            rows = project.lake.read(Table.SYNTHETIC_TARGET_EVENTS).to_pandas()
        assert rows["event_id"].is_unique
        runs = {attempt.start: attempt.run_id for attempt in attempts}
        for start, end in one.windows:
            assert set(rows.loc[rows["event_timestamp"].between(start, end, inclusive="left"), "run_id"]) == {runs[start]}
        assert rows["run_id"].isin(runs.values()).all()
