# SPDX-License-Identifier: Apache-2.0
"""Tasks of a scheduler, run in this process or with the `scalr` command of another environment."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from scalr_prod import errors
from scalr_prod.errors import ScalrError, SettingsError
from scalr_prod.integrations.airflow.scheduling import (
    backfill_windows,
    ensure_same_timezone,
    load_project_settings,
    partition_keys,
    run_window,
    training_cutoff,
    training_set_settings,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scalr_prod.config import Settings
    from scalr_prod.generation import LateWindow
    from scalr_prod.ledger import RunSpec
    from scalr_prod.pipeline import PipelineContext
    from scalr_prod.project import Project


logger = logging.getLogger(__name__)

#: Environment variable with the `scalr` command of another environment that runs the tasks.
COMMAND_VARIABLE: Final = "SCALR_COMMAND"
#: Seconds that a terminated command may take to release its lease and stop its servers.
_TERMINATE_TIMEOUT_S: Final = 60


def run_task(task: str, call: Mapping[str, Any]) -> dict[str, Any]:
    """Run a task in this process.

    Args:
        task: A name in `TASKS`.
        call: See `build_call`.

    Returns:
        JSON values; ``skipped`` is the reason if there was nothing to do.

    Raises:
        SettingsError: There is no such task, or the call names no project.
        ScalrError: Raised by the task itself.
    """
    from scalr_prod.core.signals import graceful_shutdown

    if task not in TASKS:
        raise SettingsError(f"there is no task {task}", where="scalr task", next_step=f"one of {', '.join(TASKS)}")
    with graceful_shutdown():
        return TASKS[task](call)


def dispatch_task(task: str, call: Mapping[str, Any]) -> dict[str, Any]:
    """Run a task in this process, or with the command in SCALR_COMMAND.

    Args:
        task: See `run_task`.
        call: See `run_task`.

    Raises:
        ScalrError: See `run_task_in_subprocess`.
        RuntimeError: See `run_task_in_subprocess`.
    """
    command = os.environ.get(COMMAND_VARIABLE)
    return run_task_in_subprocess(command, task, call) if command else run_task(task, call)


def run_task_in_subprocess(command: str, task: str, call: Mapping[str, Any]) -> dict[str, Any]:
    """Run a task with the `scalr` command of another environment; its log goes to this process's stderr.

    If this process is interrupted, the command is terminated.

    Args:
        command: The command with its options, in shell syntax.
        task: See `run_task`.
        call: See `run_task`.

    Raises:
        SettingsError: The command cannot be started.
        ScalrError: The task's error, with its original type.
        RuntimeError: The command failed without an error of this package, for example by a signal; Airflow retries the task.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - set in the scheduler's environment
            [*shlex.split(command), "task", task], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    except OSError as error:
        raise SettingsError(
            f"the command cannot be started: {error}",
            where=f"{COMMAND_VARIABLE} = {command}",
            next_step="give the full path of the command in the environment that has scalr_prod: <environment>/bin/scalr",
        ) from error
    try:
        output, _ = process.communicate(json.dumps(call))
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_TERMINATE_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    result = _last_json_object(output)
    if process.returncode == 0:
        return result
    if result.get("error") not in errors.__all__:
        raise RuntimeError(f"{command} task {task} ended with exit code {process.returncode}")
    failure: ScalrError = getattr(errors, result["error"])(
        result["found"], where=result["where"], next_step=result["next_step"]
    )
    raise failure.add_context(stage=result["stage"], run_id=result["run_id"])


def _last_json_object(text: str) -> dict[str, Any]:
    """Return the last JSON object that a command printed; empty without one."""
    for line in reversed(text.splitlines()):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return {}


def _run_stages(
    call: Mapping[str, Any], settings: Settings, *names: str, trained_until: datetime | None = None
) -> PipelineContext:
    """Run stages, after the light stages that they need; return their context."""
    from scalr_prod.pipeline import PipelineContext, execute_stages, with_light_prerequisites

    run_id: str | None = call.get("run_id")
    context = (
        PipelineContext(settings, trained_until=trained_until)
        if run_id is None
        else PipelineContext.from_run(settings, run_id, resume=False)
    )
    return execute_stages(context, with_light_prerequisites(*names))


def _load_window_settings(call: Mapping[str, Any], start: datetime, end: datetime) -> Settings:
    window = {"mode": call["params"]["mode"], "start": start, "end": end, "as_of": end}
    return load_project_settings(call, generation=window)


def _window_payload(window: RunSpec | LateWindow, timezone: str) -> dict[str, Any]:
    """Return the data of asset events for a run or a republished window; ``days`` are its partition keys."""
    return {
        "run_id": window.run_id,
        "start": window.start.isoformat(),
        "end": window.end.isoformat(),
        "as_of": window.as_of.isoformat(),
        "days": partition_keys(window.start, window.end, timezone),
    }


def _run_payload(context: PipelineContext) -> dict[str, Any]:
    """Return the data of asset events for a context's run; without its id if it was rolled back, and so is not in the view."""
    payload = _window_payload(context.require_spec(), context.settings.project.timezone)
    return payload | {"run_id": None} if context.rolled_back else payload


def _not_generated(settings: Settings) -> dict[str, Any] | None:
    """Return the window if no event is generated for it because λ is 0; it is announced, so that a training set of real events is built."""
    from scalr_prod.generation import why_not_generated

    why, window = why_not_generated(settings), settings.generation
    if why is None:
        return None
    logger.info("%s", why)
    moments = {name: getattr(window, name) for name in ("start", "end", "as_of")}
    return {
        "run_id": None,
        **{name: moment.isoformat() for name, moment in moments.items()},
        "days": partition_keys(moments["start"], moments["end"], settings.project.timezone),
    }


def _events(call: Mapping[str, Any]) -> dict[str, Any]:
    """Run a stage of the daily run; the last stage also returns the published windows."""
    from scalr_prod.generation import LateReport
    from scalr_prod.pipeline import SKIPPED_WITHOUT_EVENTS

    stage, settings = call["stage"], _load_window_settings(call, *run_window(call))
    ensure_same_timezone(call, settings.project.timezone)
    if stage in SKIPPED_WITHOUT_EVENTS and call.get("run_id") is None and (window := _not_generated(settings)):
        return {"run_id": None, **({"announced": [window]} if stage == "late" else {})}
    context = _run_stages(call, settings, stage)
    report = context.reports.get(stage)
    done = {"run_id": context.run_id, **(report.to_json() if report else {})}
    if context.rolled_back:
        done["rolled_back"] = context.rolled_back
    if stage == "late":
        republished = report.published if isinstance(report, LateReport) else []
        own = [_run_payload(context)] if context.spec else []
        done["announced"] = [*own, *(_window_payload(window, settings.project.timezone) for window in republished)]
    return done


def _windows(call: Mapping[str, Any]) -> dict[str, Any]:
    """Cut a backfill's range into windows."""
    windows = backfill_windows(call, load_project_settings(call).project.timezone)
    return {"windows": [[start.isoformat(), end.isoformat()] for start, end in windows]}


def _window(call: Mapping[str, Any]) -> dict[str, Any]:
    """Generate, validate and publish one window of a backfill; do nothing if λ is 0 for all users."""
    settings = _load_window_settings(call, *map(datetime.fromisoformat, call["window"]))
    if window := _not_generated(settings):
        return window
    return _run_payload(_run_stages(call, settings, "generate", "validate", "publish"))


def _translator(call: Mapping[str, Any]) -> dict[str, Any]:
    """Run a stage of the translator's training."""
    stage = call["stage"]
    until = training_cutoff(call) if stage == "translator" else None
    return _run_stages(call, load_project_settings(call), stage, trained_until=until).reports[stage].to_json()


def _open(settings: Settings) -> Project:
    from scalr_prod.project import Project

    return Project(settings)


def _evaluate(call: Mapping[str, Any]) -> dict[str, Any]:
    with _open(load_project_settings(call)) as project:
        project.evaluate_translator(call["version"])
    return {"version": call["version"]}


def _promote(call: Mapping[str, Any]) -> dict[str, Any]:
    with _open(load_project_settings(call)) as project:
        return project.promote_if_better(call["version"]).to_json()


def _maintain(call: Mapping[str, Any]) -> dict[str, Any]:
    with _open(load_project_settings(call)) as project:
        return project.maintain().to_json()


def _dataset(call: Mapping[str, Any]) -> dict[str, Any]:
    """Build a version of the publishing project's training set."""
    return _run_stages(call, training_set_settings(call, call["extras"]), "dataset").reports["dataset"].to_json()


def _check(call: Mapping[str, Any]) -> dict[str, Any]:
    """Check the training set version in the folder ``path`` with the project's suite."""
    with _open(training_set_settings(call, call["extras"])) as project:
        if project.settings.training_set.suite is None:
            return {"skipped": "[training_set] suite is not set"}
        return project.check_quality(call["path"]).to_json()


#: Tasks by name; each takes a call and returns JSON values.
TASKS: Final[Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "events": _events,
    "windows": _windows,
    "window": _window,
    "translator": _translator,
    "evaluate": _evaluate,
    "promote": _promote,
    "dataset": _dataset,
    "check": _check,
    "maintain": _maintain,
}
