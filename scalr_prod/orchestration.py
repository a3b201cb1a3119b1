# SPDX-License-Identifier: Apache-2.0
"""What a scheduled task needs besides its work: its call, project and window, and errors in the scheduler's words.

The DAG files hold no logic; what little there is stands here and in `tasks`, where it can be tested without a scheduler.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

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
    from collections.abc import Iterable, Iterator, Mapping

    from scalr_prod.settings import Settings

__all__ = [
    "CONFIG_VARIABLE",
    "call_of",
    "config_of",
    "open_project",
    "scheduler_errors",
    "trained_until_of",
    "training_set_project",
    "window_of",
    "windows_of",
    "worth_a_retry",
]

#: Airflow Variable that names scalr.toml; the environment's SCALR_CONFIG comes after it.
CONFIG_VARIABLE: Final = "scalr_config"

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
