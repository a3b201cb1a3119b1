# SPDX-License-Identifier: Apache-2.0
"""Airflow DAGs of one project or of each project in a list; their tasks are the pipeline's stages.

The only module that imports Airflow when it is loaded. Heavy imports wait until a task runs, and are not needed at all if SCALR_COMMAND
names the `scalr` command of another environment.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk import Asset, CronDataIntervalTimetable, Param, chain, dag, get_current_context, task

from scalr_prod.config import load_settings
from scalr_prod.errors import SettingsError
from scalr_prod.pipeline import stages_to

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from airflow.sdk import XComArg
    from airflow.sdk.execution_time.context import InletEventsAccessors, OutletEventAccessors

    from scalr_prod.integrations.airflow.scheduling import JsonValue


#: Daily runs use the current translator; the weekly DAG trains a new one.
DAILY_STAGES: Final = tuple(stage.name for stage in stages_to(last="late", exclude=("translator",)) if not stage.light)
WEEKLY_STAGES: Final = tuple(stage.name for stage in stages_to(last="translator") if not stage.light)

_TIMESTAMP_PARAM: Final = {"type": ["null", "string"], "format": "date-time"}
#: The most partitions that one run emits, one event each; a run of more days emits one event without a partition.
_MAX_PARTITIONS: Final = 366


@dataclass(frozen=True)
class PublishedAssets:
    """The assets that a project's publications emit.

    There are two because Airflow starts no DAG without partitions for an event that has a partition key.

    Attributes:
        events: Emitted once by each run that published, without a partition.
        days: Emitted once for each day that a run published; the day is the partition key.
    """

    events: Asset
    days: Asset

    @classmethod
    def from_project_name(cls, name: str | None) -> PublishedAssets:
        """Return the assets of a listed project; None: of the project that each run names."""
        suffix = "" if name is None else f"_{name}"
        return cls(Asset(f"synthetic_target_events{suffix}"), Asset(f"daily_synthetic_target_events{suffix}"))


@dataclass(frozen=True)
class ListedProject:
    """A project in the list.

    Attributes:
        name: Its name, or a name derived from the path if the file cannot be read.
        config: Path of its scalr.toml.
        timezone: Its time zone, in which its DAGs are scheduled.
        error: Why the file cannot be read; None if it can.
    """

    name: str
    config: str
    timezone: str = "UTC"
    error: str | None = None


def list_projects(listing: str) -> list[ListedProject]:
    """Return the projects of a list.

    Args:
        listing: Paths of settings files, separated by the system's path separator; a folder stands for its ``*.toml`` files and
            for the ``scalr.toml`` of each folder in it.

    Raises:
        SettingsError: There is no settings file, or two files are of one project.
    """
    files: list[Path] = []
    for entry in filter(None, listing.split(os.pathsep)):
        location = Path(entry)
        files += sorted([*location.glob("*.toml"), *location.glob("*/scalr.toml")]) if location.is_dir() else [location]
    projects = [_read_listed_project(file.resolve()) for file in files]
    if not projects:
        raise SettingsError(
            "contains no settings file", where=f"SCALR_PROJECTS = {listing}", next_step="name files or a folder"
        )
    names: dict[str, str] = {}
    for project in projects:
        if project.name in names:
            raise SettingsError(
                f"{names[project.name]} and {project.config} are of one project, {project.name}",
                where="SCALR_PROJECTS",
                next_step="give one of them another [project] name, or leave it out",
            )
        names[project.name] = project.config
    return projects


def make_dags(listing: str | None = None) -> None:
    """Create the DAGs; Airflow finds them in the file that calls this.

    Args:
        listing: See `list_projects`; None: one set of DAGs, whose project is named by each run's param, a Variable or the environment.
    """
    if not listing:
        _make_project_dags("scalr", None)
        return
    for project in list_projects(listing):
        if project.error:
            _broken_dag(project)
        else:
            _make_project_dags(f"scalr_{project.name}", project)


def _make_project_dags(prefix: str, project: ListedProject | None) -> None:
    assets = PublishedAssets.from_project_name(None if project is None else project.name)
    config = {"config": _config_param(project)}
    timezone = _default_timezone() if project is None else project.timezone
    _translator_dag(f"{prefix}_translator", config, timezone)
    _events_dag(f"{prefix}_events", config, assets, timezone)
    _backfill_dag(f"{prefix}_backfill", config, assets)
    _training_set_dag(f"{prefix}_training_set", config, assets.events)
    _maintenance_dag(f"{prefix}_maintenance", config, timezone)


def _read_listed_project(file: Path) -> ListedProject:
    try:
        settings = load_settings(file)
    except SettingsError as error:
        # The digest tells projects in folders of the same name apart.
        digest = hashlib.sha256(str(file).encode()).hexdigest()[:6]
        return ListedProject(re.sub(r"\W+", "_", f"{file.parent.name}_{file.stem}_{digest}"), str(file), error=str(error))
    return ListedProject(settings.project_name, str(file), settings.project.timezone)


def _default_timezone() -> str:
    """Return the time zone of the project that SCALR_CONFIG names; a run of a project in another one fails (`ensure_same_timezone`)."""
    config = os.environ.get("SCALR_CONFIG")
    try:
        return load_settings(config).project.timezone if config else "UTC"
    except SettingsError:
        return "UTC"  # the tasks say what is wrong


def _config_param(project: ListedProject | None) -> Param:
    if project is None:
        return Param(None, type=["null", "string"], description="scalr.toml; default: Variable scalr_config, SCALR_CONFIG")
    return Param(project.config, const=project.config, description="scalr.toml of the project")


def _common_options(timeout_hours: int) -> dict[str, Any]:
    return {
        "start_date": datetime(2024, 1, 1, tzinfo=UTC),
        "catchup": False,
        "max_active_runs": 1,
        "default_args": {
            "owner": "scalr",
            "retries": int(os.environ.get("SCALR_AIRFLOW_RETRIES", "3")),
            # Airflow waits one to two delays and doubles that after each retry: a killed task restarts within a minute.
            "retry_delay": timedelta(seconds=10),
            "retry_exponential_backoff": 2.0,
            "max_retry_delay": timedelta(minutes=30),
            "execution_timeout": timedelta(hours=timeout_hours),
            "pool": os.environ.get("SCALR_AIRFLOW_POOL", "default_pool"),
        },
        "tags": ["scalr"],
    }


def _cron_timetable(variable: str, default: str, timezone: str) -> CronDataIntervalTimetable:
    return CronDataIntervalTimetable(os.environ.get(variable, default), timezone=timezone)


def _run_task(name: str, extras: Iterable[Mapping[str, JsonValue]] = (), **arguments: JsonValue) -> dict[str, Any]:
    """Run one of `tasks.TASKS` for the current Airflow task, here or with the command in SCALR_COMMAND.

    Raises:
        AirflowSkipException: There was nothing to do.
        AirflowFailException: A retry would fail again.
        ScalrError: A temporary error; the scheduler retries.
    """
    from scalr_prod.integrations.airflow.scheduling import airflow_errors, build_call
    from scalr_prod.integrations.airflow.tasks import dispatch_task

    with airflow_errors():
        done = dispatch_task(name, build_call(get_current_context(), extras, **arguments))
    if "skipped" in done:
        _skip(done["skipped"])
    return done


def _skip(reason: str) -> None:
    from airflow.sdk.exceptions import AirflowSkipException

    raise AirflowSkipException(reason)


def _emit_asset_events(outlet_events: OutletEventAccessors, assets: PublishedAssets, windows: list[dict[str, Any]]) -> None:
    """Emit an asset event with the latest published window, and one for each day of the published windows.

    Raises:
        AirflowSkipException: No window was published.
    """
    from scalr_prod.integrations.airflow.scheduling import config_path

    if not windows:
        _skip("no window was published")
    latest = max(windows, key=lambda window: datetime.fromisoformat(window["as_of"]))
    config = config_path(get_current_context())
    outlet_events[assets.events].extra = {"config": config} | {key: value for key, value in latest.items() if key != "days"}
    outlet_events[assets.days].extra = {"config": config, "as_of": latest["as_of"]}
    days = sorted({day for window in windows for day in window["days"]})
    if len(days) <= _MAX_PARTITIONS:
        outlet_events[assets.days].add_partitions(days)


def _events_dag(name: str, config: dict[str, Param], assets: PublishedAssets, timezone: str) -> None:
    @dag(
        name,
        schedule=_cron_timetable("SCALR_EVENTS_CRON", "0 3 * * *", timezone),
        params={
            **config,
            "start": Param(None, **_TIMESTAMP_PARAM, description="start of the window; default: start of the data interval"),
            "end": Param(
                None, **_TIMESTAMP_PARAM, description="end of the window (exclusive); default: end of the data interval"
            ),
            "mode": Param("causal", enum=["causal", "backfill"], description="data that the translator may be trained on"),
        },
        **_common_options(timeout_hours=6),
    )
    def events() -> None:
        """Generate and publish synthetic target events for each day's source events.

        ingest → histories → generate → validate → publish → late, for the run's data interval (or its params start and end). A
        run reads nothing that became known after its window's end, so that a delayed run gives the same result as one on time.
        ``late`` republishes earlier windows within ``[generation] lookback`` that got late source events, and emits the assets.
        """

        @task
        def work(
            stage: str, run: dict[str, Any] | None = None, *, outlet_events: OutletEventAccessors = None
        ) -> dict[str, Any]:
            done = _run_task("events", stage=stage, run_id=run["run_id"] if run else None, timezone=timezone)
            if stage == DAILY_STAGES[-1]:
                _emit_asset_events(outlet_events, assets, done["announced"])
            return done

        done: list[XComArg] = []
        run: XComArg | None = None
        for stage in DAILY_STAGES:
            # The last stage also runs on a day without source events: earlier windows may have got some.
            last = {"outlets": [assets.events, assets.days], "trigger_rule": "none_failed"} if stage == DAILY_STAGES[-1] else {}
            done.append(work.override(task_id=stage, **last)(stage, run))
            run = done[-1] if stage == "generate" else run
        chain(*done)

    events()


def _backfill_dag(name: str, config: dict[str, Param], assets: PublishedAssets) -> None:
    @dag(
        name,
        schedule=None,
        params={
            **config,
            "start": Param(None, **_TIMESTAMP_PARAM, description="start of the first window"),
            "end": Param(None, **_TIMESTAMP_PARAM, description="end of the last window (exclusive)"),
            "days": Param(1, type="integer", minimum=1, description="length of a window, in days of the project's calendar"),
            "minutes": Param(None, type=["null", "integer"], minimum=1, description="length of a window, overrides days"),
            "mode": Param("causal", enum=["causal", "backfill"], description="data that the translator may be trained on"),
        },
        **_common_options(timeout_hours=24),
    )
    def backfill() -> None:
        """Generate and publish the windows of a range one after the other, from the events as last ingested.

        Safe to run at the same time as the daily DAG: only one task works on a run at a time, and a published window is left as it is
        unless its inputs have changed. The assets are emitted at the end, for the windows that were published; ``finish`` then fails
        the run if another window failed.
        """

        @task
        def windows() -> list[list[str]]:
            found: list[list[str]] = _run_task("windows")["windows"]
            return found

        @task(max_active_tis_per_dagrun=1)
        def translate(window: list[str]) -> dict[str, Any]:
            return _run_task("window", window=window)

        @task(outlets=[assets.events, assets.days], trigger_rule="all_done")
        def announce(published: Iterable[dict[str, Any]] | None, *, outlet_events: OutletEventAccessors = None) -> int:
            done = [window for window in published or () if window]
            _emit_asset_events(outlet_events, assets, done)
            return len(done)

        @task(trigger_rule="none_failed")
        def finish() -> None:
            """End the run; its state is that of its last task, which does not run if a window failed."""

        translated = translate.expand(window=windows())
        [translated, announce(translated)] >> finish()

    backfill()


def _translator_dag(name: str, config: dict[str, Param], timezone: str) -> None:
    @dag(
        name,
        schedule=_cron_timetable("SCALR_TRANSLATOR_CRON", "0 1 * * 0", timezone),
        params={
            **config,
            "trained_until": Param(
                None, **_TIMESTAMP_PARAM, description="train on earlier events only; default: end of the data interval"
            ),
        },
        **_common_options(timeout_hours=12),
    )
    def translator() -> None:
        """Train a translator on all events known by the data interval's end, and serve the new version if it is better.

        ingest → histories → train → evaluate → promote if better: if no version is served yet, or if the new version's recipe has no
        higher negative log-likelihood than the served version on events that neither was trained on (within two standard
        errors).
        """

        @task
        def work(stage: str) -> dict[str, Any]:
            return _run_task("translator", stage=stage)

        @task
        def evaluate(trained: dict[str, Any]) -> int:
            return int(_run_task("evaluate", version=trained["version"])["version"])

        @task
        def promote_if_better(version: int) -> dict[str, Any]:
            return _run_task("promote", version=version)

        done = [work.override(task_id="train" if stage == "translator" else stage)(stage) for stage in WEEKLY_STAGES]
        chain(*done)
        promote_if_better(evaluate(done[-1]))

    translator()


def _training_set_dag(name: str, config: dict[str, Param], asset: Asset) -> None:
    @dag(
        name,
        schedule=[asset],
        params={
            **config,
            "start": Param(None, **_TIMESTAMP_PARAM, description="time of the first label"),
            "cutoff": Param(None, **_TIMESTAMP_PARAM, description="use no label, feature or row after this time"),
        },
        **_common_options(timeout_hours=6),
    )
    def training_set() -> None:
        """Rebuild and check the training set whenever synthetic events are published.

        The training set is that of the publishing project. Its cutoff is the latest ``as_of`` among the asset's events, so that all
        published events are known; the param and ``[training_set] cutoff`` override it. ``check`` runs ``[training_set] suite``.
        """

        @task(inlets=[asset])
        def build(*, inlet_events: InletEventsAccessors = None) -> dict[str, Any]:
            return _run_task("dataset", [event.extra for event in inlet_events[asset]])

        @task(inlets=[asset])
        def check(built: dict[str, Any], *, inlet_events: InletEventsAccessors = None) -> dict[str, Any]:
            return _run_task("check", [event.extra for event in inlet_events[asset]], path=built["path"])

        check(build())

    training_set()


def _maintenance_dag(name: str, config: dict[str, Param], timezone: str) -> None:
    @dag(
        name,
        schedule=_cron_timetable("SCALR_MAINTENANCE_CRON", "0 5 * * 6", timezone),
        params=config,
        **_common_options(timeout_hours=6),
    )
    def maintenance() -> None:
        """Remove what ``[retention]`` no longer keeps: staged parts, old training sets and translators, unused table files."""

        @task
        def maintain() -> dict[str, Any]:
            return _run_task("maintain")

        maintain()

    maintenance()


def _broken_dag(project: ListedProject) -> None:
    """Create a DAG that fails daily for a project whose settings cannot be read; other projects are not affected."""

    @dag(
        f"scalr_{project.name}",
        schedule=_cron_timetable("SCALR_EVENTS_CRON", "0 3 * * *", project.timezone),
        **_common_options(timeout_hours=1),
    )
    def broken() -> None:
        """Fail because the project's settings cannot be read; the task shows why."""

        @task(retries=0)
        def settings() -> None:
            from scalr_prod.integrations.airflow.scheduling import airflow_errors

            with airflow_errors():
                load_settings(project.config)
            raise SettingsError(
                "could not be read when the DAGs were created, but can be read now",
                where=project.config,
                next_step="wait until the DAG processor reads the list again",
            )

        settings()

    broken()
