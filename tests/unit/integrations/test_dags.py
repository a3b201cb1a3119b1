"""Which projects a list names, and the data intervals of their schedules."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

pytest.importorskip("airflow.sdk")

from airflow.sdk import PartitionedAssetTimetable, RollupMapper, StartOfWeekMapper, WeekWindow
from airflow.sdk.definitions._internal.contextmanager import DagContext
from airflow.serialization.encoders import coerce_to_core_timetable
from airflow.timetables import interval
from airflow.timetables.base import TimeRestriction
from pendulum import DateTime

from scalr_prod.core.calendar import day_windows
from scalr_prod.errors import SettingsError
from scalr_prod.integrations.airflow import dags
from scalr_prod.integrations.airflow.dags import DAILY_STAGES, WEEKLY_STAGES, PublishedAssets, list_projects, make_dags
from scalr_prod.integrations.airflow.scheduling import partition_keys

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


@pytest.mark.parametrize("hour", [0, 3])
@pytest.mark.parametrize(("zone", "day"), CHANGES)
def test_airflow_rolls_the_days_of_the_schedule_up_to_weeks(timetables, monkeypatch, zone, day, hour):
    """Also where clocks change: a week is complete once each of its windows is published, and not before."""
    weeks = RollupMapper(upstream_mapper=StartOfWeekMapper(input_format="%Y-%m-%d"), window=WeekWindow())
    assets = PublishedAssets.from_project_name("shop")
    consumer = coerce_to_core_timetable(PartitionedAssetTimetable(assets=assets.days, default_partition_mapper=weeks))
    mapper = consumer.get_partition_mapper(name=assets.days.name, uri=assets.days.uri)
    span = {"first": day - timedelta(days=10), "now": day + timedelta(days=12)}
    windows = data_intervals(timetables(zone, f"0 {hour} * * *")["events"], monkeypatch, catchup=True, **span)
    keys = [key for window in windows for key in partition_keys(*window, zone)]
    assert len(keys) == len(set(keys)) == len(windows)
    collected = {week: {key for key in keys if mapper.to_downstream(key) == week} for week in map(mapper.to_downstream, keys)}
    complete = [week for week, found in collected.items() if mapper.to_upstream(week) == found]
    assert complete == list(collected)[1:-1]
    assert len(complete) >= 2


class Outlets(dict):
    """What a task records of its assets, as Airflow's accessors do."""

    def __missing__(self, asset):
        self[asset] = Recorded()
        return self[asset]


class Recorded:
    def __init__(self):
        self.extra, self.days = {}, []

    def add_partitions(self, keys):
        self.days += keys


def published(first, days):
    start = datetime(2024, 5, first, tzinfo=UTC)
    end = start + timedelta(days=days)
    window = {"start": start.isoformat(), "end": end.isoformat(), "as_of": end.isoformat(), "run_id": f"run_{first}"}
    return window | {"days": partition_keys(start, end, "UTC")}


def test_a_run_emits_its_days_as_partitions_beside_an_event_without_one(monkeypatch):
    monkeypatch.setattr(dags, "get_current_context", lambda: {"params": {"config": "scalr.toml"}})
    assets, outlets = PublishedAssets.from_project_name(None), Outlets()
    dags._emit_asset_events(outlets, assets, [published(3, 1), published(1, 1), published(1, 2)])
    assert outlets[assets.events].days == [], "with a key, Airflow would not start DAGs without partitions"
    latest = {name: value for name, value in published(3, 1).items() if name != "days"}
    assert outlets[assets.events].extra == {"config": "scalr.toml", **latest}
    assert outlets[assets.days].days == ["2024-05-01", "2024-05-02", "2024-05-03"]
    assert outlets[assets.days].extra == {"config": "scalr.toml", "as_of": latest["as_of"]}

    first = Outlets()
    dags._emit_asset_events(first, assets, [published(1, 400)])
    assert first[assets.days].days == [], "a long history is no burst of events"
    assert first[assets.events].extra["run_id"] == "run_1"


@pytest.mark.parametrize(("project", "suffix"), [(None, ""), ("shop", "_shop")])
def test_the_tasks_that_end_a_publication_emit_both_assets(settings, monkeypatch, project, suffix):
    monkeypatch.setenv("SCALR_CONFIG", str(settings.base / "scalr.toml"))
    monkeypatch.setattr(DagContext, "current_autoregister_module_name", __name__)
    DagContext.autoregistered_dags.clear()
    (settings.base / "shop.toml").write_text('[project]\nname = "shop"\n' + (settings.base / "scalr.toml").read_text())
    make_dags(str(settings.base / "shop.toml") if project else None)
    found = {
        f"{dag.dag_id}.{task.task_id}": sorted(asset.name for asset in task.outlets)
        for dag, _ in DagContext.autoregistered_dags
        for task in dag.tasks
        if task.outlets
    }
    DagContext.autoregistered_dags.clear()
    both = [f"daily_synthetic_target_events{suffix}", f"synthetic_target_events{suffix}"]
    assert found == {f"scalr{suffix}_events.late": both, f"scalr{suffix}_backfill.announce": both}


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


def test_files_in_folders_of_one_name_that_cannot_be_read_stop_no_other(settings, tmp_path):
    files = [tmp_path / folder / "shop" / "scalr.toml" for folder in ("a", "b")]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text("[domains")
    found = list_projects(os.pathsep.join(map(str, [*files, settings.base / "scalr.toml"])))
    assert len({project.name for project in found}) == 3
    assert [bool(project.error) for project in found] == [True, True, False]


def test_two_files_of_one_project_are_refused(settings, tmp_path):
    copy = shutil.copy(settings.base / "scalr.toml", tmp_path / "copy.toml")
    with pytest.raises(SettingsError, match="are of one project") as caught:
        list_projects(os.pathsep.join([str(settings.base / "scalr.toml"), str(copy)]))
    assert str(copy) in caught.value.found


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="no settings file"):
        list_projects(str(tmp_path))
