"""What the DAGs ask for besides the stages: project, window, and errors in the scheduler's words."""

from __future__ import annotations

import inspect
import json
import shlex
import signal
import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from typer.testing import CliRunner

from scalr_prod import errors
from scalr_prod.apps.cli import app
from scalr_prod.core.timestamps import to_micros
from scalr_prod.errors import EmptyWindow, QualityGateFailed, ScalrError, ServerUnreachable, SettingsError, UnreadableInput
from scalr_prod.integrations.airflow.scheduling import (
    airflow_errors,
    backfill_windows,
    build_call,
    config_path,
    is_retryable,
    load_project_settings,
    partition_keys,
    run_window,
    training_cutoff,
    training_set_settings,
)
from scalr_prod.integrations.airflow.tasks import TASKS, run_task, run_task_in_subprocess

#: Runs a command of another environment, which imports everything anew.
long = pytest.mark.long

DAY = {"data_interval_start": datetime(2024, 5, 1, tzinfo=UTC), "data_interval_end": datetime(2024, 5, 2, tzinfo=UTC)}


def context(**params) -> dict:
    return {"params": params}


def test_a_run_translates_its_data_interval_unless_its_params_name_a_window():
    assert run_window(context() | DAY) == (datetime(2024, 5, 1, tzinfo=UTC), datetime(2024, 5, 2, tzinfo=UTC))
    asked = context(start="2024-01-01T00:00:00+02:00", end="2024-02-01T00:00:00Z") | DAY
    assert run_window(asked) == (datetime(2023, 12, 31, 22, tzinfo=UTC), datetime(2024, 2, 1, tzinfo=UTC))
    assert run_window(context(end="2024-06-01T00:00:00Z", start=None) | DAY)[1] == datetime(2024, 6, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("length", "hours"),
    [
        ({"days": 1}, [0, 24, 48, 60]),
        ({"days": 7, "minutes": None}, [0, 60]),
        ({"days": 1, "minutes": 20 * 60}, [0, 20, 40, 60]),
    ],
)
def test_a_backfill_cuts_its_range_into_windows_of_days_or_of_minutes(length, hours):
    asked = context(start="2024-05-01T00:00:00Z", end="2024-05-03T12:00:00Z", **length)
    edges = [datetime(2024, 5, 1, tzinfo=UTC) + timedelta(hours=hour) for hour in hours]
    assert backfill_windows(asked, "UTC") == list(pairwise(edges))


@pytest.mark.parametrize(
    ("zone", "start", "end", "hours"),
    [
        ("Europe/Berlin", "2024-10-25T00:00:00+02:00", "2024-10-29T00:00:00+01:00", [24, 24, 25, 24]),
        ("Europe/Berlin", "2024-03-29T00:00:00+01:00", "2024-04-02T00:00:00+02:00", [24, 24, 23, 24]),
        ("America/Sao_Paulo", "2019-02-15T00:00:00-02:00", "2019-02-18T00:00:00-03:00", [24, 25, 24]),
        ("America/Sao_Paulo", "2018-11-03T00:00:00-03:00", "2018-11-06T00:00:00-02:00", [24, 23, 24]),
    ],
)
def test_a_backfill_has_one_window_for_each_day_of_the_projects_calendar(project, zone, start, end, hours):
    project.write_text(project.read_text() + f'[project]\ntimezone = "{zone}"\n')
    call = build_call(context(config=str(project), start=start, end=end, days=1))
    windows = [[datetime.fromisoformat(moment) for moment in window] for window in run_task("windows", call)["windows"]]
    assert [(end - start) / timedelta(hours=1) for start, end in windows] == hours
    assert [end for _, end in windows[:-1]] == [start for start, _ in windows[1:]]
    assert (windows[0][0], windows[-1][1]) == (datetime.fromisoformat(start), datetime.fromisoformat(end))


@pytest.mark.parametrize(
    ("zone", "start", "end", "keys"),
    [
        ("UTC", "2024-05-01T03:00:00Z", "2024-05-02T03:00:00Z", ["2024-05-01"]),
        ("UTC", "2024-05-01T03:00:00Z", "2024-05-01T04:00:00Z", ["2024-05-01"]),
        ("UTC", "2024-05-31T00:00:00Z", "2024-06-02T12:00:00Z", ["2024-05-31", "2024-06-01", "2024-06-02"]),
        # Days of 25 and of 23 hours, and a day whose midnight does not exist.
        ("Europe/Berlin", "2024-10-26T22:00:00Z", "2024-10-27T23:00:00Z", ["2024-10-27"]),
        ("Europe/Berlin", "2024-03-30T23:00:00Z", "2024-04-01T22:00:00Z", ["2024-03-31", "2024-04-01"]),
        ("America/Sao_Paulo", "2018-11-04T03:00:00Z", "2018-11-05T02:00:00Z", ["2018-11-04"]),
        ("Pacific/Auckland", "2024-05-01T15:00:00Z", "2024-05-02T15:00:00Z", ["2024-05-02"]),
    ],
)
def test_the_partition_keys_of_a_window_are_its_local_days(zone, start, end, keys):
    assert partition_keys(datetime.fromisoformat(start), datetime.fromisoformat(end), zone) == keys


def test_a_schedule_of_another_time_zone_than_the_projects_is_refused(project):
    project.write_text(project.read_text() + '[project]\ntimezone = "Europe/Berlin"\n')
    interval = build_call(context(config=str(project), mode="causal") | DAY, stage="generate", timezone="UTC")
    with pytest.raises(SettingsError, match="the schedule is in UTC, the project in Europe/Berlin") as caught:
        run_task("events", interval)
    assert "SCALR_CONFIG" in caught.value.next_step
    asked = {"start": "2024-05-01T00:00:00Z", "end": "2024-05-02T00:00:00Z"}
    with pytest.raises(ScalrError) as caught:
        run_task("events", interval | {"params": interval["params"] | asked})
    assert "the schedule is in" not in str(caught.value)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "no window"),
        ({"start": "2024-05-02T00:00:00Z", "end": "2024-05-02T00:00:00Z"}, "no window"),
        ({"start": "2024-05-01T00:00:00", "end": "2024-05-02T00:00:00Z"}, "no time zone"),
        ({"start": "yesterday", "end": "2024-05-02T00:00:00Z"}, "not a timestamp"),
    ],
)
def test_a_run_without_a_window_says_how_to_give_it_one(params, message):
    with pytest.raises(SettingsError, match=message) as caught:
        run_window(context(**params))
    assert caught.value.next_step
    assert caught.value.where


def test_a_translator_learns_until_the_intervals_end_unless_told():
    assert training_cutoff(context() | DAY) == DAY["data_interval_end"]
    assert training_cutoff(context(trained_until="2024-03-01T00:00:00Z") | DAY) == datetime(2024, 3, 1, tzinfo=UTC)
    assert training_cutoff(context()) is None


def test_the_project_is_named_by_param_then_by_the_environment(project, monkeypatch, tmp_path):
    monkeypatch.setattr("scalr_prod.integrations.airflow.scheduling._airflow_variable", lambda _: None)
    monkeypatch.setenv("SCALR_CONFIG", str(tmp_path / "absent.toml"))
    assert load_project_settings(context(config=str(project))).domains.source.name == "gadgets"
    with pytest.raises(SettingsError, match="no such file"):
        load_project_settings(context())
    monkeypatch.setenv("SCALR_CONFIG", str(project))
    assert load_project_settings(context(), generation={"seed": 3}).generation.seed == 3
    monkeypatch.delenv("SCALR_CONFIG")
    with pytest.raises(SettingsError, match="no settings file") as caught:
        load_project_settings(context())
    assert "airflow variables set scalr_config" in str(caught.value)


def test_the_variable_goes_before_the_environment(project, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "scalr_prod.integrations.airflow.scheduling._airflow_variable", lambda name: asked.append(name) or str(project)
    )
    monkeypatch.setenv("SCALR_CONFIG", "elsewhere.toml")
    assert load_project_settings(context()).domains.target.name == "dishes"
    assert asked == ["scalr_config"]


def test_the_cutoff_is_the_latest_as_of_of_what_was_published(project, settings_with):
    early, late = {"as_of": "2024-05-02T00:00:00+00:00"}, {"as_of": "2024-05-09T00:00:00+00:00"}
    named = context(config=str(project))
    assert training_set_settings(named, [late, early, {}]).training_set.cutoff == datetime(2024, 5, 9, tzinfo=UTC)
    assert training_set_settings(named, []).training_set.cutoff is None
    asked = context(config=str(project), cutoff="2024-04-01T00:00:00Z", start="2024-03-01T00:00:00Z")
    options = training_set_settings(asked, [late]).training_set
    assert (options.cutoff, options.start) == (datetime(2024, 4, 1, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC))
    fixed = settings_with("[training_set]\ncutoff = 2024-02-01T00:00:00Z\n")
    assert training_set_settings(context(config=str(fixed)), [late]).training_set.cutoff == datetime(2024, 2, 1, tzinfo=UTC)


def test_the_training_set_is_of_the_project_that_published(project, tmp_path, monkeypatch):
    other = tmp_path / "other.toml"
    other.write_text(project.read_text())
    monkeypatch.setenv("SCALR_CONFIG", str(project))
    extras = [{"as_of": "2024-05-02T00:00:00+00:00", "config": str(other)}]
    assert config_path(context(), extras) == str(other)
    assert training_set_settings(context(), extras).base == tmp_path
    assert config_path(context()) == str(project)
    both = [*extras, {"config": str(project)}]
    with pytest.raises(SettingsError, match=r"several projects: .*other\.toml"):
        training_set_settings(context(), both)
    assert config_path(context(config=str(project)), both) == str(project)


RETRIED = {
    "UnreadableInput", "CommitFailed", "CommitOutcomeUnknown", "LedgerError", "FeatureStoreError", "ServingError",
    "ScoringError", "ServerUnreachable", "ModelNotReady", "ModelVersionMismatch", "MalformedResponse", "LeaseHeld",
    "LeaseLost", "QualityError", "DeadlineExceeded", "SchedulerUnreachable", "TrainingSetBusy",
}  # fmt: skip


@pytest.mark.parametrize("name", errors.__all__)
def test_what_may_pass_by_itself_is_retried_and_nothing_else(name):
    assert is_retryable(getattr(errors, name)("found")) is (name in RETRIED)


def test_a_training_set_is_checked_only_where_a_suite_is_named(project):
    call = build_call(context(config=str(project)), path="nowhere")
    assert run_task("check", call) == {"skipped": "[training_set] suite is not set"}
    project.write_text(project.read_text() + '\n[training_set]\nsuite = "training"\n')
    with pytest.raises(UnreadableInput, match="no such file"):
        run_task("check", call)


def test_a_call_holds_json_values_and_names_the_project(project, monkeypatch):
    monkeypatch.setenv("SCALR_CONFIG", "elsewhere.toml")
    extras = [{"as_of": "2024-05-02T00:00:00+00:00", "config": str(project)}]
    call = json.loads(json.dumps(build_call(context(start=None) | DAY, extras, path="v1")))
    assert call["params"] == {"start": None, "config": str(project)}
    assert (call["extras"], call["path"]) == (extras, "v1")
    assert (run_window(call), training_cutoff(call)) == (run_window(context() | DAY), DAY["data_interval_end"])
    assert training_set_settings(call, call["extras"]).training_set.cutoff == datetime(2024, 5, 2, tzinfo=UTC)


SCALR = shlex.join([sys.executable, "-c", "from scalr_prod.apps.cli import main; main()"])


@long
@pytest.mark.slow
def test_a_command_of_another_environment_does_the_same(project, monkeypatch):
    """Same outcomes, and errors of the same kind: the scheduler retries what it would retry."""
    call = build_call(context(config=str(project)), path="nowhere")
    assert run_task_in_subprocess(SCALR, "check", call) == run_task("check", call)
    project.write_text(project.read_text() + '\n[training_set]\nsuite = "training"\n')
    with pytest.raises(UnreadableInput) as here:
        run_task("check", call)
    with pytest.raises(UnreadableInput) as there:
        run_task_in_subprocess(SCALR, "check", call)
    assert (there.value.found, there.value.where) == (here.value.found, here.value.where)
    with pytest.raises(SettingsError, match="there is no task nothing") as caught:
        run_task_in_subprocess(SCALR, "nothing", call)
    assert all(task in caught.value.next_step for task in TASKS)


def test_a_command_that_is_not_there_is_named():
    with pytest.raises(SettingsError, match="SCALR_COMMAND = nowhere/scalr"):
        run_task_in_subprocess("nowhere/scalr", "maintain", {})


def test_a_command_that_dies_without_a_word_is_worth_a_retry():
    with pytest.raises(RuntimeError, match="exit code 7"):
        run_task_in_subprocess("sh -c 'cat > /dev/null; echo no; exit 7'", "maintain", {})


def test_a_command_ends_with_the_task_that_waits_for_it(tmp_path):
    """A scheduler that ends a task sends a signal, whose exception comes while the task waits."""
    script = tmp_path / "waits.py"
    script.write_text(
        "import os, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (open({str(tmp_path / 'ended')!r}, 'w').close(), sys.exit(143)))\n"
        "os.kill(os.getppid(), signal.SIGALRM)\n"
        "time.sleep(60)\n"
    )

    def end(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    try:
        with pytest.raises(TimeoutError):
            run_task_in_subprocess(shlex.join([sys.executable, str(script)]), "maintain", {})
    finally:
        signal.signal(signal.SIGALRM, before)
    assert (tmp_path / "ended").exists()


@pytest.mark.parametrize("text", ["", "x", "[]", "{}", '{"params": {}}', '{"params": {"config": 3}}'])
def test_what_is_no_call_is_refused(text):
    done = CliRunner().invoke(app, ["task", "maintain"], input=text)
    assert done.exit_code == 1
    assert json.loads(done.stdout)["where"] == "stdin"


def test_every_error_of_the_package_is_decided_on():
    found = {name for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ScalrError)}
    assert found == set(errors.__all__)


def test_errors_reach_the_scheduler_in_its_own_words():
    exceptions = pytest.importorskip("airflow.sdk.exceptions")
    with pytest.raises(exceptions.AirflowFailException, match=r"QualityGateFailed: .*3 rows") as caught, airflow_errors():
        raise QualityGateFailed("3 rows", where="gate.json", next_step="look")
    assert "next: look" in str(caught.value)
    with pytest.raises(exceptions.AirflowSkipException), airflow_errors():
        raise EmptyWindow("no source event")
    with pytest.raises(ServerUnreachable), airflow_errors():
        raise ServerUnreachable("nothing answers")
    with pytest.raises(ZeroDivisionError), airflow_errors():
        raise ZeroDivisionError


@pytest.mark.parametrize("zone", ["UTC", "Europe/Paris"])
def test_a_schedulers_instants_become_ordinary_ones(zone):
    """A scheduled run's data interval is of pendulum's DateTime, whose differences do not floor-divide by a timedelta."""
    pendulum = pytest.importorskip("pendulum", reason="comes with Airflow")
    start, end = pendulum.datetime(1969, 12, 31, 3, tz=zone), pendulum.datetime(2024, 5, 2, 0, 0, 0, 123457, tz=zone)
    given = context() | {"data_interval_start": start, "data_interval_end": end}
    found = (*run_window(given), training_cutoff(given))
    assert [type(moment) for moment in found] == [datetime] * 3
    assert found == (start, end, end)
    assert to_micros(end) == to_micros(datetime.fromisoformat(end.isoformat()))
    assert to_micros(start) == to_micros(datetime.fromisoformat(start.isoformat())) < 0
