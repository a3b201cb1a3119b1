# SPDX-License-Identifier: Apache-2.0
"""Helpers of scheduled tasks: the call, its project and window, and Airflow exceptions for errors.

DAG files contain no logic, so that this module and `tasks` can be tested without a scheduler.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from zoneinfo import ZoneInfo

from scalr_prod.core.calendar import day_windows
from scalr_prod.core.timestamps import micros_to_datetime, to_micros
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

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from scalr_prod.config import Settings


#: Airflow Variable with the path of scalr.toml; it overrides the environment variable SCALR_CONFIG.
CONFIG_VARIABLE: Final = "scalr_config"

#: Errors that may pass within minutes, for example a service that is unreachable or slow. An unreadable input is one of them, since a
#: file may not have arrived completely. All other errors (settings, values, order of stages, the gate) need a person.
_TRANSIENT_ERRORS: Final = (
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


#: A value of a call, which may be sent to another process.
JsonValue: TypeAlias = "str | int | float | bool | Sequence[JsonValue] | Mapping[str, JsonValue] | None"


def is_retryable(error: ScalrError) -> bool:
    """Return whether the same task may succeed later without intervention."""
    return isinstance(error, _TRANSIENT_ERRORS) and not isinstance(error, RunNotFound | RequestTooLarge | InvalidRequest)


@contextmanager
def airflow_errors() -> Iterator[None]:
    """Convert errors inside an Airflow task: fail without retry, skip, or let the scheduler retry.

    Raises:
        AirflowSkipException: The window has no source event, which is not a failure.
        AirflowFailException: A retry would fail again.
        ScalrError: A temporary error; the scheduler retries.
    """
    try:
        yield
    except EmptyWindow as error:
        from airflow.sdk.exceptions import AirflowSkipException

        raise AirflowSkipException(str(error)) from error
    except ScalrError as error:
        if is_retryable(error):
            raise
        from airflow.sdk.exceptions import AirflowFailException

        raise AirflowFailException(f"{type(error).__name__}: {error}") from error


def build_call(
    context: Mapping[str, Any], extras: Iterable[Mapping[str, JsonValue]] = (), **arguments: JsonValue
) -> dict[str, Any]:
    """Build a task's call, which has JSON values only.

    Args:
        context: The task's context: ``params``, ``data_interval_start`` and ``data_interval_end``.
        extras: The ``extra`` of the asset events that triggered the run.
        arguments: Further arguments of the task.

    Raises:
        SettingsError: See `config_path`.
    """
    extras = [dict(extra) for extra in extras]
    interval = {name: context.get(name) for name in ("data_interval_start", "data_interval_end")}
    return {
        "params": {**context["params"], "config": config_path(context, extras)},
        **{name: moment and moment.isoformat() for name, moment in interval.items()},
        "extras": extras,
        **arguments,
    }


def config_path(context: Mapping[str, Any], extras: Iterable[Mapping[str, Any]] = ()) -> str:
    """Return a task's settings file: param ``config``, publishing project, Variable ``scalr_config`` or ``SCALR_CONFIG``, in this order.

    Args:
        context: The task's context.
        extras: The ``extra`` of the asset events that triggered the run; ``config`` is the publishing project's file.

    Raises:
        SettingsError: None of them names a file, or several projects published.
    """
    published = sorted({extra["config"] for extra in extras if extra.get("config")})
    param = context["params"].get("config")
    if len(published) > 1 and not param:
        raise SettingsError(
            f"the events that triggered this run were published by several projects: {', '.join(published)}",
            where="asset synthetic_target_events",
            next_step="trigger the DAG once per project, with the param config",
        )
    path: str | None = (
        param or next(iter(published), None) or _airflow_variable(CONFIG_VARIABLE) or os.environ.get("SCALR_CONFIG")
    )
    if not path:
        raise SettingsError(
            "no settings file is named",
            where=f"param config, Airflow Variable {CONFIG_VARIABLE}, environment SCALR_CONFIG",
            next_step=f"airflow variables set {CONFIG_VARIABLE} /path/to/scalr.toml",
        )
    return path


def load_project_settings(
    context: Mapping[str, Any], *, extras: Iterable[Mapping[str, Any]] = (), **overrides: Mapping[str, Any]
) -> Settings:
    """Load the settings of a task's project.

    Args:
        context: The task's context.
        extras: See `config_path`.
        overrides: Sections of settings, merged over those of the file.

    Raises:
        SettingsError: No file is named, or it is invalid.
    """
    from scalr_prod.config import load_settings

    return load_settings(config_path(context, extras), **overrides)


def run_window(context: Mapping[str, Any]) -> tuple[datetime, datetime]:
    """Return the run's window ``[start, end)`` in UTC: its params if given, else its data interval.

    Raises:
        SettingsError: The run has neither, a time has no zone, or the window is empty.
    """
    start, end = (
        _parse_timestamp(context["params"].get(name) or context.get(f"data_interval_{name}"), name) for name in ("start", "end")
    )
    if start is None or end is None or start >= end:
        raise SettingsError(
            f"the run has no window: start {start}, end {end}",
            where="params start, end",
            next_step='trigger it with a logical date, or with --conf \'{"start": "2024-05-01T00:00:00Z", "end": "…"}\'',
        )
    return _to_stdlib_datetime(start), _to_stdlib_datetime(end)


def ensure_same_timezone(call: Mapping[str, Any], timezone: str) -> None:
    """Check that the schedule whose data interval is a run's window has the project's time zone.

    Args:
        call: A task's call; its ``timezone`` is that of the schedule.
        timezone: The project's time zone.

    Raises:
        SettingsError: The schedule is in another time zone.
    """
    named = all(call["params"].get(name) for name in ("start", "end"))
    schedule = call.get("timezone")
    if schedule is not None and schedule != timezone and not named:
        raise SettingsError(
            f"the schedule is in {schedule}, the project in {timezone}",
            where="[project] timezone",
            next_step="set SCALR_CONFIG (or SCALR_PROJECTS) in the environment of the DAG processor, or give the run a start and end",
        )


def backfill_windows(context: Mapping[str, Any], timezone: str) -> list[tuple[datetime, datetime]]:
    """Return the consecutive windows of a backfill's range; the last ends with the range.

    The param ``minutes`` sets their length, else ``days``, which are days of the project's calendar.

    Args:
        context: A task's context or call.
        timezone: The project's time zone.

    Raises:
        SettingsError: See `run_window`.
    """
    start, end = run_window(context)
    minutes = context["params"].get("minutes")
    if not minutes:
        return day_windows(start, end, timezone, days=context["params"]["days"])
    step = timedelta(minutes=minutes)
    starts = [start + number * step for number in range(-((start - end) // step))]
    return [(first, min(first + step, end)) for first in starts]


def partition_keys(start: datetime, end: datetime, timezone: str) -> list[str]:
    """Return the partition keys of a window: the local dates on which its days begin, as ISO dates.

    A day of the schedule has one key, the date of its start, at whatever hour it starts. A longer window has one key for each of its
    days; a shorter one has that of the date on which it starts.

    Args:
        start: Start of the window.
        end: End of the window (exclusive).
        timezone: The project's time zone.
    """
    zone = ZoneInfo(timezone)
    return [first.astimezone(zone).date().isoformat() for first, _ in day_windows(start, end, timezone)]


def _to_stdlib_datetime(moment: datetime) -> datetime:
    """Return the same time as a standard datetime (UTC): differences of Airflow's pendulum datetimes are no plain timedelta."""
    return micros_to_datetime(to_micros(moment))


def training_cutoff(context: Mapping[str, Any]) -> datetime | None:
    """Return the end of a translator's training data: param ``trained_until``, else the data interval's end (UTC); None: unbounded."""
    moment = _parse_timestamp(context["params"].get("trained_until") or context.get("data_interval_end"), "trained_until")
    return _to_stdlib_datetime(moment) if moment else None


def training_set_settings(context: Mapping[str, Any], extras: Iterable[Mapping[str, Any]]) -> Settings:
    """Load the settings with the window of a training set.

    The cutoff is that of the param, else of scalr.toml, else the latest ``as_of`` of the published windows, so that all published
    events are known.

    Args:
        context: The task's context.
        extras: The ``extra`` of the asset events: ``start``, ``end``, ``as_of``, ``run_id``, ``config``.
    """
    extras = list(extras)
    settings = load_project_settings(context, extras=extras)
    bounds = {name: _parse_timestamp(context["params"].get(name), name) for name in ("start", "cutoff")}
    if settings.training_set.cutoff is None and bounds["cutoff"] is None:
        published = [datetime.fromisoformat(extra["as_of"]) for extra in extras if extra.get("as_of")]
        bounds["cutoff"] = max(published, default=None)
    return load_project_settings(
        context, extras=extras, training_set={name: moment for name, moment in bounds.items() if moment}
    )


def _parse_timestamp(value: datetime | str | None, name: str) -> datetime | None:
    if not value or isinstance(value, datetime):
        return value or None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise SettingsError(
            f"{value!r} is not a timestamp", where=f"param {name}", next_step="write it as 2024-05-01T00:00:00Z"
        ) from error
    if moment.tzinfo is None:
        raise SettingsError(
            f"{value!r} has no time zone", where=f"param {name}", next_step="add the zone, for example 2024-05-01T00:00:00Z"
        )
    return moment


def _airflow_variable(name: str) -> str | None:
    from airflow.sdk import Variable

    value: str | None = Variable.get(name, default=None)
    return value
