# SPDX-License-Identifier: Apache-2.0
"""The tasks of a scheduler: what each does with its call, which holds JSON values alone, and errors in the scheduler's words.

The DAG files hold no logic; what little there is stands here, where it can be tested without a scheduler. A task is done in the
scheduler's own process, or by `scalr task` where the package lives in another environment.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from scalr_prod import errors
from scalr_prod.errors import (
    CommitFailed,
    CommitOutcomeUnknown,
    EmptyWindow,
    FeatureStoreError,
    InvalidRequest,
    LedgerError,
    QualityError,
    RequestTooLarge,
    RunNotFound,
    ScalrError,
    SchedulerUnreachable,
    ScoringError,
    ServingError,
    SettingsError,
    TrainingSetBusy,
    UnreadableInput,
)
from scalr_prod.instants import datetime_of, micros

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from scalr_prod.settings import Settings

__all__ = [
    "COMMAND",
    "CONFIG_VARIABLE",
    "TASKS",
    "call_of",
    "config_of",
    "open_project",
    "perform",
    "perform_elsewhere",
    "scheduler_errors",
    "trained_until_of",
    "training_set_project",
    "window_of",
    "windows_of",
    "worth_a_retry",
]

#: Airflow Variable that names scalr.toml; the environment's SCALR_CONFIG comes after it.
CONFIG_VARIABLE: Final = "scalr_config"

#: Names the `scalr` command of another environment, which does the tasks then.
COMMAND: Final = "SCALR_COMMAND"
#: How long a command that was told to end may take: it frees its lease and stops its servers.
_GRACE_S: Final = 60

#: What may be over in a few minutes: something was not there, or answered late. An unreadable input is among them, since a file
#: may not have arrived, or not whole. All else (settings, values, order of stages, the gate) stays until a person acts.
_PASSING: Final = (
    UnreadableInput,
    CommitFailed,
    CommitOutcomeUnknown,
    LedgerError,
    FeatureStoreError,
    QualityError,
    ServingError,
    ScoringError,
    SchedulerUnreachable,
    TrainingSetBusy,
)


def worth_a_retry(error: ScalrError) -> bool:
    """Whether the same task may succeed later without anybody's help."""
    return isinstance(error, _PASSING) and not isinstance(error, RunNotFound | RequestTooLarge | InvalidRequest)


@contextmanager
def scheduler_errors() -> Iterator[None]:
    """Inside of an Airflow task: fail for good, skip, or let the scheduler retry.

    Raises:
        AirflowSkipException: The window holds no source event: a quiet day, not a failure.
        AirflowFailException: A retry would fail alike.
        ScalrError: Otherwise; the scheduler retries.
    """
    try:
        yield
    except EmptyWindow as error:
        from airflow.sdk.exceptions import AirflowSkipException

        raise AirflowSkipException(str(error)) from error
    except ScalrError as error:
        if worth_a_retry(error):
            raise
        from airflow.sdk.exceptions import AirflowFailException

        raise AirflowFailException(f"{type(error).__name__}: {error}") from error


def call_of(context: Mapping[str, Any], extras: Iterable[Mapping[str, Any]] = (), **asked: Any) -> dict[str, Any]:
    """A task's call, of JSON values alone.

    Args:
        context: The task's context: ``params``, ``data_interval_start`` and ``data_interval_end``.
        extras: What the asset's events carry that triggered the run.
        asked: What else the task is asked for.

    Raises:
        SettingsError: See `config_of`.
    """
    extras = [dict(extra) for extra in extras]
    interval = {name: context.get(name) for name in ("data_interval_start", "data_interval_end")}
    return {
        "params": {**context["params"], "config": config_of(context, extras)},
        **{name: moment and moment.isoformat() for name, moment in interval.items()},
        "extras": extras,
        **asked,
    }


def perform(task: str, call: Mapping[str, Any]) -> dict[str, Any]:
    """Do a task here.

    Args:
        task: A name in `TASKS`.
        call: See `call_of`.

    Returns:
        JSON values; ``skipped`` says why there was nothing to do.

    Raises:
        SettingsError: There is no such task, or the call names no project.
        ScalrError: What the task's work raises.
    """
    from scalr_prod.interrupts import ending_in_order

    if task not in TASKS:
        raise SettingsError(f"there is no task {task}", where="scalr task", next_step=f"one of {', '.join(TASKS)}")
    with ending_in_order():
        return TASKS[task](call)


def perform_elsewhere(command: str, task: str, call: Mapping[str, Any]) -> dict[str, Any]:
    """Have a task done by the `scalr` command of another environment; its log lines go to this process's stderr.

    Where this process is told to end, so is the command.

    Args:
        command: The command, with options if any, as a shell would split it.
        task: See `perform`.
        call: See `perform`.

    Raises:
        SettingsError: The command is not there.
        ScalrError: The task's own error, of its own kind.
        RuntimeError: The command ended otherwise, by a signal for one; the scheduler retries.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - the environment of the scheduler names it
            [*shlex.split(command), "task", task], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    except OSError as error:
        raise SettingsError(
            f"the command cannot be started: {error}",
            where=f"{COMMAND} = {command}",
            next_step="name the scalr command of the environment that holds scalr_prod, by its whole path",
        ) from error
    try:
        told, _ = process.communicate(json.dumps(call))
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    found = _last_object(told)
    if process.returncode == 0:
        return found
    if found.get("error") not in errors.__all__:
        raise RuntimeError(f"{command} task {task} ended with exit code {process.returncode}")
    raised: ScalrError = getattr(errors, found["error"])(found["found"], where=found["where"], next_step=found["next_step"])
    raise raised.at(stage=found["stage"], run_id=found["run_id"])


def _last_object(text: str) -> dict[str, Any]:
    """The JSON object that a command printed last; empty where it printed none."""
    for line in reversed(text.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {}


def config_of(context: Mapping[str, Any], extras: Iterable[Mapping[str, Any]] = ()) -> str:
    """A task's settings file: the run's param ``config``, the one that published, the Variable ``scalr_config``, or ``SCALR_CONFIG``.

    Args:
        context: The task's context.
        extras: What the asset's events carry that triggered the run; ``config`` is the file that published.

    Raises:
        SettingsError: None of them names a file, or several projects published.
    """
    published = sorted({extra["config"] for extra in extras if extra.get("config")})
    asked = context["params"].get("config")
    if len(published) > 1 and not asked:
        raise SettingsError(
            f"the events that triggered this run were published by several projects: {', '.join(published)}",
            where="asset synthetic_target_events",
            next_step="trigger the DAG once for each, with the param config",
        )
    path: str | None = asked or next(iter(published), None) or _variable(CONFIG_VARIABLE) or os.environ.get("SCALR_CONFIG")
    if not path:
        raise SettingsError(
            "no settings file is named",
            where=f"param config, Airflow Variable {CONFIG_VARIABLE}, environment SCALR_CONFIG",
            next_step=f"airflow variables set {CONFIG_VARIABLE} /path/to/scalr.toml",
        )
    return path


def open_project(context: Mapping[str, Any], *, extras: Iterable[Mapping[str, Any]] = (), **overrides: Any) -> Settings:
    """The settings of a task's project.

    Args:
        context: The task's context.
        extras: See `config_of`.
        overrides: Whole sections of settings, merged over the file's.

    Raises:
        SettingsError: No file is named, or it holds something impossible.
    """
    from scalr_prod.settings import load_settings

    return load_settings(config_of(context, extras), **overrides)


def _do_stages(call: Mapping[str, Any], settings: Settings, *names: str, **asked: Any) -> Any:
    """The job in which these stages were done, after the light ones that they need."""
    from scalr_prod.stages import Job, step, walk

    run_id = call.get("run_id")
    return walk(Job(settings, **asked) if run_id is None else Job.of_run(settings, run_id), step(*names))


def _window_settings(call: Mapping[str, Any], start: datetime, end: datetime) -> Settings:
    window = {"mode": call["params"]["mode"], "start": start, "end": end, "as_of": end}
    return open_project(call, generation=window)


def _told(run: Any) -> dict[str, str]:
    """What the asset carries of a run, or of a window that was published again."""
    return {"run_id": run.run_id, **{name: getattr(run, name).isoformat() for name in ("start", "end", "as_of")}}


def _events(call: Mapping[str, Any]) -> dict[str, Any]:
    """A stage of the day's run; the last one tells of the windows that were published."""
    stage = call["stage"]
    job = _do_stages(call, _window_settings(call, *window_of(call)), stage)
    report = job.reports.get(stage)
    done = {"run_id": job.run_id, **(report.to_json() if report else {})}
    if stage == "late":
        published = [*([job.spec] if job.spec else []), *(report.published if report else [])]
        done["announced"] = [_told(run) for run in published]
    return done


def _window(call: Mapping[str, Any]) -> dict[str, Any]:
    """A window of a backfill, as far as its publication."""
    settings = _window_settings(call, *map(datetime.fromisoformat, call["window"]))
    return _told(_do_stages(call, settings, "generate", "validate", "publish").run())


def _translator(call: Mapping[str, Any]) -> dict[str, Any]:
    """A stage on the way to a translator version."""
    stage = call["stage"]
    until = trained_until_of(call) if stage == "translator" else None
    report: dict[str, Any] = _do_stages(call, open_project(call), stage, trained_until=until).reports[stage].to_json()
    return report


def _evaluate(call: Mapping[str, Any]) -> dict[str, Any]:
    from scalr_prod.project import Project

    with Project(open_project(call)) as project:
        project.evaluate_translator(call["version"])
    return {"version": call["version"]}


def _promote(call: Mapping[str, Any]) -> dict[str, Any]:
    from scalr_prod.project import Project

    with Project(open_project(call)) as project:
        return project.promote_if_better(call["version"]).to_json()


def _maintain(call: Mapping[str, Any]) -> dict[str, Any]:
    from scalr_prod.project import Project

    with Project(open_project(call)) as project:
        return project.maintain().to_json()


def _dataset(call: Mapping[str, Any]) -> dict[str, Any]:
    """A version of the training set of the project that published."""
    report: dict[str, Any] = (
        _do_stages(call, training_set_project(call, call["extras"]), "dataset").reports["dataset"].to_json()
    )
    return report


def _check(call: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict of the project's own suite on the version in the folder ``path``."""
    from scalr_prod.project import Project

    with Project(training_set_project(call, call["extras"])) as project:
        if project.settings.training_set.suite is None:
            return {"skipped": "[training_set] suite names no suite"}
        return project.check_quality(call["path"]).to_json()


#: What each task does with its call.
TASKS: Final[Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "events": _events,
    "window": _window,
    "translator": _translator,
    "evaluate": _evaluate,
    "promote": _promote,
    "dataset": _dataset,
    "check": _check,
    "maintain": _maintain,
}


def window_of(context: Mapping[str, Any]) -> tuple[datetime, datetime]:
    """The run's window ``[start, end)``: its params, where given, else its data interval (UTC).

    Raises:
        SettingsError: It has neither, or they are naive, or no window.
    """
    start, end = (
        _instant(context["params"].get(name) or context.get(f"data_interval_{name}"), name) for name in ("start", "end")
    )
    if start is None or end is None or start >= end:
        raise SettingsError(
            f"the run has no window: start {start}, end {end}",
            where="params start, end",
            next_step='trigger it with a logical date, or with --conf \'{"start": "2024-05-01T00:00:00Z", "end": "…"}\'',
        )
    return _plain(start), _plain(end)


def windows_of(context: Mapping[str, Any]) -> list[tuple[datetime, datetime]]:
    """The windows of a backfill's range, one after the other; the last ends with the range.

    Each is as long as the param ``minutes`` says, else ``days``.

    Raises:
        SettingsError: See `window_of`.
    """
    start, end = window_of(context)
    minutes = context["params"].get("minutes")
    step = timedelta(minutes=minutes) if minutes else timedelta(days=context["params"]["days"])
    begins = [start + number * step for number in range(-((start - end) // step))]
    return [(begin, min(begin + step, end)) for begin in begins]


def _plain(moment: datetime) -> datetime:
    """The same instant as an ordinary datetime (UTC): Airflow hands out pendulum's, whose differences behave unlike a timedelta."""
    return datetime_of(micros(moment))


def trained_until_of(context: Mapping[str, Any]) -> datetime | None:
    """Until when a translator may learn: the param ``trained_until``, else the data interval's end (UTC); None: no bound."""
    moment = _instant(context["params"].get("trained_until") or context.get("data_interval_end"), "trained_until")
    return _plain(moment) if moment else None


def training_set_project(context: Mapping[str, Any], extras: Iterable[Mapping[str, Any]]) -> Settings:
    """The settings with the window of a training set.

    The cutoff is the param's, else that of scalr.toml, else the latest ``as_of`` of the published windows, so that all they
    published is known.

    Args:
        context: The task's context.
        extras: What the asset's events carry: ``start``, ``end``, ``as_of``, ``run_id``, ``config``.
    """
    extras = list(extras)
    settings = open_project(context, extras=extras)
    asked = {name: _instant(context["params"].get(name), name) for name in ("start", "cutoff")}
    if settings.training_set.cutoff is None and asked["cutoff"] is None:
        published = [datetime.fromisoformat(extra["as_of"]) for extra in extras if extra.get("as_of")]
        asked["cutoff"] = max(published, default=None)
    return open_project(context, extras=extras, training_set={name: moment for name, moment in asked.items() if moment})


def _instant(given: datetime | str | None, name: str) -> datetime | None:
    if not given or isinstance(given, datetime):
        return given or None
    try:
        moment = datetime.fromisoformat(given)
    except ValueError as error:
        raise SettingsError(
            f"{given!r} is no time", where=f"param {name}", next_step="write it as 2024-05-01T00:00:00Z"
        ) from error
    if moment.tzinfo is None:
        raise SettingsError(
            f"{given!r} is a naive timestamp", where=f"param {name}", next_step="add its zone, for example 2024-05-01T00:00:00Z"
        )
    return moment


def _variable(name: str) -> str | None:
    from airflow.sdk import Variable

    found: str | None = Variable.get(name, default=None)
    return found
