"""The Dagster asset graph of a project: which stages it has, how their partitions hang together, and what becomes of errors."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

pytest.importorskip("dagster", reason="dagster is not installed: scalr-prod[dagster]")

import dagster as dg

from scalr_prod.core.calendar import day_windows
from scalr_prod.errors import QualityGateFailed, ServerUnreachable, SettingsError
from scalr_prod.integrations.airflow.scheduling import partition_keys
from scalr_prod.integrations.dagster import scalr_definitions
from scalr_prod.integrations.dagster.definitions import dagster_failures
from scalr_prod.pipeline import GRAPH


@pytest.fixture
def graph(settings):
    """Makes the definitions of a project in a time zone, with the assets by stage."""

    def make(zone="UTC", first_day="2024-03-01"):
        path = settings.base / "scalr.toml"
        (settings.base / "shop.toml").write_text(f'[project]\nname = "shop"\ntimezone = "{zone}"\n' + path.read_text())
        definitions = scalr_definitions(settings.base / "shop.toml", first_day=first_day)
        assets = {asset.key.path[-1]: asset for asset in definitions.assets}
        assert {asset.key.path[0] for asset in definitions.assets} == {"shop"}
        return definitions, assets

    return make


def test_assets_are_the_stages_of_the_graph_that_take_time(graph):
    _, assets = graph()
    assert list(assets) == [stage.name for stage in GRAPH if not stage.light]
    needs = {name: {key.path[-1] for key in asset.dependency_keys} for name, asset in assets.items()}
    assert needs == {
        "ingest": set(),
        "histories": {"ingest"},
        "translator": {"histories"},
        "generate": {"histories", "translator"},  # by way of plan, policy and feast
        "validate": {"generate"},
        "publish": {"validate"},
        "late": {"publish"},
        "dataset": {"histories", "late"},
    }


def test_jobs_and_schedules_are_a_daily_and_a_weekly_one(graph):
    definitions, _ = graph("Europe/Berlin")
    dg.Definitions.validate_loadable(definitions)
    names = {job: {node.name for node in definitions.resolve_job_def(job).graph.nodes} for job in JOBS}
    assert names["scalr_shop_translator"] == {f"shop__{name}" for name in ("ingest", "histories", "translator")}
    assert names["scalr_shop_events"] == {f"shop__{stage.name}" for stage in GRAPH if not stage.light} - {"shop__translator"}
    schedules = {
        one.job_name: (one.cron_schedule, one.execution_timezone) for one in definitions.get_repository_def().schedule_defs
    }
    assert schedules == {
        "scalr_shop_events": ("0 3 * * *", "Europe/Berlin"),
        "scalr_shop_translator": ("0 1 * * 1", "Europe/Berlin"),
    }


JOBS = ("scalr_shop_events", "scalr_shop_translator")


def as_told(window):
    """A partition's bounds as a task is told them; midnight of a day whose clocks go forward then does not exist."""
    return tuple(datetime.fromisoformat(moment.isoformat()).astimezone(UTC) for moment in (window.start, window.end))


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/Sao_Paulo"])
def test_a_day_is_of_the_projects_calendar_and_its_translator_knows_nothing_of_it(graph, zone):
    _, assets = graph(zone, first_day="2018-02-01")
    days, weeks = assets["generate"].partitions_def, assets["translator"].partitions_def
    mapping = assets["generate"].get_partition_mapping(assets["translator"].key)
    for first in ("2018-02-01", "2018-02-18", "2018-03-25", "2018-10-28", "2018-11-04", "2018-12-30"):
        keys = [(datetime.fromisoformat(first) + timedelta(days=number)).date().isoformat() for number in range(9)]
        windows = [as_told(days.time_window_for_partition_key(key)) for key in keys]
        assert windows == day_windows(windows[0][0], windows[-1][1], zone)
        assert [partition_keys(*window, zone) for window in windows] == [[key] for key in keys], "as Airflow's"
        for key, (start, _) in zip(keys, windows, strict=True):
            (week,) = mapping.get_upstream_mapped_partitions_result_for_partitions(
                days.subset_with_partition_keys([key]), days, weeks
            ).partitions_subset.get_partition_keys()
            _, trained_until = as_told(weeks.time_window_for_partition_key(week))
            assert timedelta(0) <= start - trained_until < timedelta(days=7)
            assert trained_until.astimezone(ZoneInfo(zone)).weekday() == 0


def test_a_first_day_that_is_no_date_is_refused(graph):
    with pytest.raises(SettingsError, match="'yesterday' is not a date") as caught:
        graph(first_day="yesterday")
    assert "first_day as 2024-05-01" in caught.value.next_step


def test_errors_become_failures_that_say_what_to_do_and_only_temporary_ones_are_retried():
    with (
        pytest.raises(dg.Failure, match=r"QualityGateFailed: gate\.json, run run_1: 3 rows\n  next: look") as caught,
        dagster_failures(),
    ):
        raise QualityGateFailed("3 rows", where="gate.json", next_step="look").add_context(run_id="run_1")
    assert not caught.value.allow_retries
    facts = {name: value.value for name, value in caught.value.metadata.items()}
    assert facts == {
        "error": "QualityGateFailed", "found": "3 rows", "where": "gate.json", "next_step": "look", "run_id": "run_1"
    }  # fmt: skip
    with pytest.raises(dg.Failure, match="ServerUnreachable") as caught, dagster_failures():
        raise ServerUnreachable("nothing answers")
    assert caught.value.allow_retries
    with pytest.raises(ZeroDivisionError), dagster_failures():
        raise ZeroDivisionError
