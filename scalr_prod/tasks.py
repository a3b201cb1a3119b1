# SPDX-License-Identifier: Apache-2.0
"""The tasks of a scheduler: what each does with its call, in its own process or by the `scalr` command of another environment."""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from scalr_prod import errors
from scalr_prod.errors import ScalrError, SettingsError
from scalr_prod.orchestration import open_project, trained_until_of, training_set_project, window_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scalr_prod.project import Project
    from scalr_prod.settings import Settings

__all__ = ["COMMAND", "TASKS", "perform", "perform_elsewhere"]

logger = logging.getLogger(__name__)

#: Names the `scalr` command of another environment, which does the tasks then.
COMMAND: Final = "SCALR_COMMAND"
#: How long a command that was told to end may take: it frees its lease and stops its servers.
_GRACE_S: Final = 60


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
            next_step="name the command of the environment that holds scalr_prod by its whole path: <environment>/bin/scalr",
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


def _not_generated(settings: Settings) -> dict[str, Any] | None:
    """The window, where no event is generated for it since λ is 0; it is announced, so that a training set of real events is built."""
    from scalr_prod.policy import why_not_generated

    why, window = why_not_generated(settings), settings.generation
    if why is None:
        return None
    logger.info("%s", why)
    return {"run_id": None} | {name: getattr(window, name).isoformat() for name in ("start", "end", "as_of")}


def _events(call: Mapping[str, Any]) -> dict[str, Any]:
    """A stage of the day's run; the last one tells of the windows that were published."""
    from scalr_prod.stages import OF_RUN

    stage, settings = call["stage"], _window_settings(call, *window_of(call))
    if stage in OF_RUN and call.get("run_id") is None and (window := _not_generated(settings)):
        return {"run_id": None, **({"announced": [window]} if stage == "late" else {})}
    job = _do_stages(call, settings, stage)
    report = job.reports.get(stage)
    done = {"run_id": job.run_id, **(report.to_json() if report else {})}
    if stage == "late":
        published = [*([job.spec] if job.spec else []), *(report.published if report else [])]
        done["announced"] = [_told(run) for run in published]
    return done


def _window(call: Mapping[str, Any]) -> dict[str, Any]:
    """A window of a backfill, as far as its publication. Nothing is done where λ is 0."""
    settings = _window_settings(call, *map(datetime.fromisoformat, call["window"]))
    if window := _not_generated(settings):
        return window
    return _told(_do_stages(call, settings, "generate", "validate", "publish").run())


def _translator(call: Mapping[str, Any]) -> dict[str, Any]:
    """A stage on the way to a translator version."""
    stage = call["stage"]
    until = trained_until_of(call) if stage == "translator" else None
    report: dict[str, Any] = _do_stages(call, open_project(call), stage, trained_until=until).reports[stage].to_json()
    return report


def _opened(settings: Settings) -> Project:
    from scalr_prod.project import Project

    return Project(settings)


def _evaluate(call: Mapping[str, Any]) -> dict[str, Any]:
    with _opened(open_project(call)) as project:
        project.evaluate_translator(call["version"])
    return {"version": call["version"]}


def _promote(call: Mapping[str, Any]) -> dict[str, Any]:
    with _opened(open_project(call)) as project:
        return project.promote_if_better(call["version"]).to_json()


def _maintain(call: Mapping[str, Any]) -> dict[str, Any]:
    with _opened(open_project(call)) as project:
        return project.maintain().to_json()


def _dataset(call: Mapping[str, Any]) -> dict[str, Any]:
    """A version of the training set of the project that published."""
    report: dict[str, Any] = (
        _do_stages(call, training_set_project(call, call["extras"]), "dataset").reports["dataset"].to_json()
    )
    return report


def _check(call: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict of the project's own suite on the version in the folder ``path``."""
    with _opened(training_set_project(call, call["extras"])) as project:
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
