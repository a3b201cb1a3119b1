"""Which projects a list names, and the data intervals of their schedules."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

pytest.importorskip("airflow.sdk")

from airflow.sdk.definitions._internal.contextmanager import DagContext
from airflow.serialization.encoders import coerce_to_core_timetable
from airflow.timetables import interval
from airflow.timetables.base import TimeRestriction
from pendulum import DateTime

from scalr_prod.core.calendar import day_windows
from scalr_prod.errors import SettingsError
from scalr_prod.integrations.airflow.dags import DAILY_STAGES, WEEKLY_STAGES, list_projects, make_dags

#: Zone and the day of a change of clocks.
CHANGES = [
    ("America/Sao_Paulo", datetime(2018, 11, 4, tzinfo=UTC)),
    ("America/Sao_Paulo", datetime(2019, 2, 16, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2024, 3, 31, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2024, 10, 27, tzinfo=UTC)),
]


@pytest.fixture
def timetables(settings, monkeypatch):
    """The core timetables of the scheduled DAGs of a project in a zone, listed or named by SCALR_CONFIG; DAG id → timetable."""

    def make(zone=None, cron="0 3 * * *", *, listed=True):
        path = settings.base / "scalr.toml"
        text = f'[project]\nname = "shop"\ntimezone = "{zone}"\n' if zone else '[project]\nname = "shop"\n'
        (settings.base / "zoned.toml").write_text(text + path.read_text())
        monkeypatch.setenv("SCALR_EVENTS_CRON", cron)
        monkeypatch.setenv("SCALR_CONFIG", str(settings.base / "zoned.toml"))
        monkeypatch.setattr(DagContext, "current_autoregister_module_name", __name__)
        DagContext.autoregistered_dags.clear()
        make_dags(str(settings.base / "zoned.toml") if listed else None)
        found = {dag.dag_id: dag.timetable for dag, _ in DagContext.autoregistered_dags}
        DagContext.autoregistered_dags.clear()
        return {
            name.removeprefix("scalr_").removeprefix("shop_"): coerce_to_core_timetable(table) for name, table in found.items()
        }

    return make


def data_intervals(timetable, monkeypatch, *, first, now, catchup, last=None):
    """The data intervals of the runs that a scheduler has made by now, one after the other."""
    monkeypatch.setattr(interval, "utcnow", lambda: DateTime.fromtimestamp(now.timestamp(), UTC))
    earliest = DateTime.fromtimestamp(first.timestamp(), UTC)
    found = []
    while True:
        following = timetable.next_dagrun_info(
            last_automated_data_interval=last, restriction=TimeRestriction(earliest, None, catchup)
        )
        if following.run_after > now:
            return [
                (datetime.fromisoformat(one.start.isoformat()), datetime.fromisoformat(one.end.isoformat())) for one in found
            ]
        last = following.data_interval
        found.append(last)


@pytest.mark.parametrize("listed", [True, False])
def test_schedules_are_in_the_projects_time_zone(timetables, listed):
    zones = {"events": "Europe/Berlin", "translator": "Europe/Berlin", "maintenance": "Europe/Berlin"}
    made = timetables("Europe/Berlin", listed=listed)
    assert {name: made[name].serialize()["timezone"] for name in zones} == zones
    assert {timetables(listed=listed)[name].serialize()["timezone"] for name in zones} == {"UTC"}


def test_a_project_that_no_environment_names_is_scheduled_in_utc(timetables, monkeypatch):
    make = timetables
    monkeypatch.setattr("scalr_prod.integrations.airflow.dags.os.environ", {})
    assert make(listed=False)["events"].serialize()["timezone"] == "UTC"


@pytest.mark.parametrize("cron", ["0 0 * * *", "30 2 * * *", "0 3 * * *"])
@pytest.mark.parametrize(("zone", "day"), CHANGES)
def test_a_backfill_has_the_windows_of_the_daily_schedule(timetables, monkeypatch, zone, day, cron):
    timetable = timetables(zone, cron)["events"]
    span = {"first": day - timedelta(days=4), "now": day + timedelta(days=4)}
    daily = data_intervals(timetable, monkeypatch, catchup=True, **span)
    assert len(daily) in {6, 7}
    assert all(before[1] == after[0] for before, after in pairwise(daily)), "contiguous"
    assert sorted({(end - start) / timedelta(hours=1) for start, end in daily}) in ([23, 24], [24, 25])
    assert day_windows(daily[0][0], daily[-1][1], zone) == daily


@pytest.mark.parametrize("catchup", [True, False])
@pytest.mark.parametrize(("zone", "day"), CHANGES)
def test_a_dag_paused_for_three_days_translates_every_day_once(timetables, monkeypatch, zone, day, catchup):
    """With catch-up each missed day has a run; without it the last one has, and a backfill of the others has the same windows."""
    timetable = timetables(zone)["events"]
    for back in range(4):  # the change on the last day of the pause, on one in between, on the day before the pause
        first = day - timedelta(days=4 - back)
        before = data_intervals(timetable, monkeypatch, first=first, now=first + timedelta(days=3), catchup=True)
        now = before[-1][1] + timedelta(days=3, hours=2)
        last = interval.DataInterval(*(DateTime.fromtimestamp(at.timestamp(), UTC) for at in before[-1]))
        after = data_intervals(timetable, monkeypatch, first=first, now=now, catchup=catchup, last=last)
        assert len(after) == (3 if catchup else 1)
        missed = day_windows(before[-1][1], after[0][0], zone) if after[0][0] > before[-1][1] else []
        published = [*before, *missed, *after]
        assert all(window[1] == following[0] for window, following in pairwise(published))
        assert len(missed) + len(after) == 3


def test_tasks_are_the_stages_of_the_graph_that_take_time():
    assert DAILY_STAGES == ("ingest", "histories", "generate", "validate", "publish", "late")
    assert WEEKLY_STAGES == ("ingest", "histories", "translator")


def test_a_list_is_of_files_and_folders(settings, tmp_path):
    config = settings.base / "scalr.toml"
    for name in ("a", "b"):
        (tmp_path / "all" / name).mkdir(parents=True)
        text = f'[project]\nname = "{name}"\n' + config.read_text()
        (tmp_path / "all" / name / "scalr.toml").write_text(text)
    found = list_projects(os.pathsep.join([str(tmp_path / "all"), str(config)]))
    assert [project.name for project in found] == ["a", "b", settings.project_name]
    assert [project.error for project in found] == [None] * 3


def test_a_file_that_cannot_be_read_says_why_and_stops_no_other(settings, tmp_path):
    bad = tmp_path / "bad.toml"
    bad.write_text("[domains")
    first, second = list_projects(os.pathsep.join([str(bad), str(settings.base / "scalr.toml")]))
    assert "cannot be read as TOML" in first.error
    assert second.error is None


def test_two_files_of_one_project_are_refused(settings, tmp_path):
    copy = shutil.copy(settings.base / "scalr.toml", tmp_path / "copy.toml")
    with pytest.raises(SettingsError, match="are of one project") as caught:
        list_projects(os.pathsep.join([str(settings.base / "scalr.toml"), str(copy)]))
    assert str(copy) in caught.value.found


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="no settings file"):
        list_projects(str(tmp_path))
