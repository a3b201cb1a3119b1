# SPDX-License-Identifier: Apache-2.0
"""The pipeline's stages as Dagster assets, which run the same tasks as Airflow's.

Light stages, which take no time, are no assets: executing a stage executes the light ones that it needs. Events have a partition for each
hour, day or week of the project's calendar, translators one for each week: a window is translated by the translator of the week before.
"""

# Annotations are not postponed: Dagster reads that of `context`.
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Final, Self

import dagster as dg

from scalr_prod.config import Settings, load_settings
from scalr_prod.errors import EmptyWindow, RunNotFound, ScalrError, SettingsError
from scalr_prod.integrations.airflow.scheduling import is_retryable
from scalr_prod.integrations.airflow.tasks import dispatch_task
from scalr_prod.pipeline import GRAPH, Stage, row_counts

_WINDOWED: Final = ("generate", "validate", "publish", "late")
_WEEKLY: Final = ("translator",)
#: Of a window's length: its schedule, the form of its keys, and how many of it a week has.
_WINDOWS: Final = {
    "hourly": ("0 * * * *", "%Y-%m-%d-%H:%M", 168),
    "daily": ("0 0 * * *", "%Y-%m-%d", 7),
    "weekly": ("0 0 * * 1", "%Y-%m-%d", 1),
}
#: As Airflow's tasks: a killed stage restarts within a minute.
_RETRIES: Final = dg.RetryPolicy(max_retries=3, delay=15, backoff=dg.Backoff.EXPONENTIAL)


def scalr_definitions(config: str | Path, *, first_day: str, windows: str = "daily") -> dg.Definitions:
    """Return a project's assets, and the jobs and schedules of its events and its weekly translators.

    Args:
        config: The project's scalr.toml.
        first_day: The first day that has a partition, as an ISO date.
        windows: Length of the windows of events: ``hourly``, ``daily`` or ``weekly``.

    Raises:
        SettingsError: The settings file is invalid, ``first_day`` is no date, or ``windows`` no such length.
    """
    project = _DagsterProject.from_first_day(load_settings(config), str(Path(config).resolve()), first_day, windows)
    assets = {stage.name: _make_asset(project, stage) for stage in GRAPH if not stage.light}
    events = [assets[name] for name in assets if name not in _WEEKLY]
    translator = [assets[name] for name in ("ingest", "histories", *_WEEKLY)]
    jobs = [
        dg.define_asset_job(f"scalr_{project.name}_{name}", selection=dg.AssetSelection.assets(*selected))
        for name, selected in (("events", events), ("translator", translator))
    ]
    moments = ({"minute_of_hour": 30} if windows == "hourly" else {"hour_of_day": 3}, {"hour_of_day": 1})
    schedules = [dg.build_schedule_from_partitioned_job(job, **at) for job, at in zip(jobs, moments, strict=True)]
    return dg.Definitions(assets=list(assets.values()), jobs=jobs, schedules=schedules)


@dataclass(frozen=True)
class _DagsterProject:
    """A project and its partitions.

    Attributes:
        name: Its name: the prefix of its assets' keys, their group and their pool.
        config: Path of its scalr.toml.
        windows: Partitions of events, by its calendar.
        a_week: Number of windows in a week.
        weeks: Partitions of translators: each is trained until the end of its week.
    """

    name: str
    config: str
    windows: dg.TimeWindowPartitionsDefinition
    a_week: int
    weeks: dg.WeeklyPartitionsDefinition

    @classmethod
    def from_first_day(cls, settings: Settings, config: str, first_day: str, windows: str) -> Self:
        try:
            (cron, form, a_week), first = _WINDOWS[windows], datetime.combine(date.fromisoformat(first_day), time())
        except (KeyError, ValueError) as error:
            if windows not in _WINDOWS:
                told = f"write windows as one of: {', '.join(_WINDOWS)}"
                raise SettingsError(f"{windows!r} is no length of windows", where="windows", next_step=told) from error
            told = "write first_day as 2024-05-01"
            raise SettingsError(f"{first_day!r} is not a date", where="first_day", next_step=told) from error
        # The week before that of the first day is a partition, too: weeks begin at the first Monday from their start date on.
        weeks = dg.WeeklyPartitionsDefinition(first - timedelta(weeks=2), timezone=settings.project.timezone, day_offset=1)
        events = dg.TimeWindowPartitionsDefinition(first, form, timezone=settings.project.timezone, cron_schedule=cron)
        return cls(settings.project_name, config, events, a_week, weeks)

    def key(self, stage: str) -> dg.AssetKey:
        return dg.AssetKey([self.name, stage])

    def partitions(self, stage: str) -> dg.TimeWindowPartitionsDefinition | None:
        return self.windows if stage in _WINDOWED else self.weeks if stage in _WEEKLY else None

    def call(self, **arguments: Any) -> dict[str, Any]:
        """Return a task's call; see `scalr_prod.integrations.airflow.scheduling.build_call`."""
        return {"params": {"config": self.config, "mode": "causal"}, "extras": [], **arguments}


def _make_asset(project: _DagsterProject, stage: Stage) -> dg.AssetsDefinition:
    @dg.asset(
        key=project.key(stage.name),
        deps=[_dependency(project, stage.name, need) for need in _heavy_needs(stage)],
        partitions_def=project.partitions(stage.name),
        description=stage.output,
        group_name=project.name,
        pool=f"scalr_{project.name}",
        retry_policy=_RETRIES,
    )
    def stage_asset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        with dagster_failures():
            return dg.MaterializeResult(metadata=_metadata(stage.name, _run_stage(context, project, stage.name)))

    return stage_asset


def _heavy_needs(stage: Stage) -> list[str]:
    """Return the stages that a stage needs directly or through light stages, in order."""
    by_name = {one.name: one for one in GRAPH}
    found = {name for need in stage.needs for name in (_heavy_needs(by_name[need]) if by_name[need].light else [need])}
    return [name for name in by_name if name in found]


def _dependency(project: _DagsterProject, stage: str, need: str) -> dg.AssetDep:
    """Return a dependency on a stage; a window's is on the translator of the week before, which knows nothing of the window."""
    week_before = dg.TimeWindowPartitionMapping(start_offset=-project.a_week, end_offset=-project.a_week)
    return dg.AssetDep(project.key(need), partition_mapping=week_before if stage in _WINDOWED and need in _WEEKLY else None)


def _run_stage(context: dg.AssetExecutionContext, project: _DagsterProject, stage: str) -> dict[str, Any]:
    """Run a stage for the partition, if it has any, and return its report; ``skipped``: why there was nothing to do."""
    if stage in _WINDOWED:
        return _run_windowed_stage(context, project, stage)
    if stage == "dataset":
        published = context.instance.get_materialized_partitions(project.key("late"))
        ends = [project.windows.time_window_for_partition_key(max(published)).end] if published else []
        extras = [{"config": project.config, "as_of": end.isoformat()} for end in ends]
        return dispatch_task("dataset", project.call(extras=extras))
    interval = {"data_interval_end": context.partition_time_window.end.isoformat()} if stage in _WEEKLY else {}
    return dispatch_task("translator", project.call(stage=stage, **interval))


def _run_windowed_stage(context: dg.AssetExecutionContext, project: _DagsterProject, stage: str) -> dict[str, Any]:
    run_id = None if stage == "generate" else _generated_run(context, project)
    if stage in {"validate", "publish"} and run_id is None:
        return {"run_id": None, "skipped": "no event was generated for this window"}
    window = context.partition_time_window
    interval = {"data_interval_start": window.start.isoformat(), "data_interval_end": window.end.isoformat()}
    try:
        return dispatch_task("events", project.call(stage=stage, run_id=run_id, **interval))
    except EmptyWindow as error:
        return {"run_id": None, "skipped": error.found}


def _generated_run(context: dg.AssetExecutionContext, project: _DagsterProject) -> str | None:
    """Return the run that the partition's ``generate`` last made, or None if there was nothing to generate."""
    wanted = dg.AssetRecordsFilter(asset_key=project.key("generate"), asset_partitions=[context.partition_key])
    for record in context.instance.fetch_materializations(wanted, limit=1).records:
        run_id: str | None = record.asset_materialization.metadata["run_id"].value
        return run_id
    raise RunNotFound(
        "no events have been generated for this window",
        where=f"partition {context.partition_key}",
        next_step=f"materialize {project.key('generate').to_user_string()} for this partition first",
    )


@contextmanager
def dagster_failures() -> Iterator[None]:
    """Convert this package's errors to Dagster failures, which are retried only if the same stage may succeed later.

    Raises:
        Failure: A stage failed with an error of this package.
    """
    try:
        yield
    except ScalrError as error:
        facts = {name: value for name, value in error.to_json().items() if value is not None}
        raise dg.Failure(f"{type(error).__name__}: {error}", metadata=dict(facts), allow_retries=is_retryable(error)) from error


def _metadata(stage: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a materialization: the report, and its counts, verdicts and run on their own."""
    counts = row_counts(stage, report)
    plain = {name: value for name, value in report.items() if isinstance(value, str | int | float | bool)}
    rows = {"dagster/row_count": counts["rows"]} if "rows" in counts else {}
    return {"run_id": None, **plain, **counts, **rows, "report": dg.MetadataValue.json(dict(report))}
