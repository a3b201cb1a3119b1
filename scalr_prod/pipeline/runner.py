# SPDX-License-Identifier: Apache-2.0
"""Runner: executes stages of the graph in order."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.atomic_io import read_json, write_json
from scalr_prod.core.logging import log_context
from scalr_prod.core.memory import peak_memory_mb, release_memory
from scalr_prod.core.progress import ProgressTracker, heartbeat, heartbeat_interval
from scalr_prod.core.signals import Interrupted, reraise_pending
from scalr_prod.errors import EvaluationError, ScalrError
from scalr_prod.ledger import run_folder
from scalr_prod.pipeline.context import SKIPPED_WITHOUT_EVENTS, PipelineContext, PipelineReport, StageState, rollback_reason
from scalr_prod.pipeline.graph import GRAPH
from scalr_prod.pipeline.hooks import StageScope, run_hooks, stage_hooks
from scalr_prod.pipeline.stale_outputs import describe_kept_translator, stale_stages

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from scalr_prod.config import Settings
    from scalr_prod.pipeline.context import Report, Stage, StageReport


logger = logging.getLogger(__name__)


#: Stage → the report's counts to show.
_COUNTS: Final[dict[str, tuple[str, ...]]] = {
    "generate": ("contexts", "events"),
    "validate": ("accepted", "quarantined"),
    "publish": ("rows",),
    "dataset": ("rows", "real", "synthetic", "negatives"),
}


def record_timings(settings: Settings, run_id: str, timings: Mapping[str, Mapping[str, Any]]) -> None:
    """Record stages' timings when they are first done; repeating a run changes nothing."""
    try:
        known = read_timings(settings, run_id)
        if known.keys() >= timings.keys():
            return
        folder = run_folder(settings.home, run_id)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "stages.json", dict(timings) | known)
    except OSError as error:
        logger.warning("the stage timings of %s could not be recorded: %s", run_id, error)


def read_timings(settings: Settings, run_id: str) -> dict[str, dict[str, Any]]:
    """Return ``seconds`` and ``memory_mb`` by stage: the process's peak MiB at the stage's end, None if unknown.

    In the order of stages; empty for runs of older versions.
    """
    from scalr_prod.pipeline.graph import GRAPH

    timings = read_json(run_folder(settings.home, run_id) / "stages.json")
    return {stage.name: timings[stage.name] for stage in GRAPH if stage.name in timings}


def row_counts(stage: str, report: Mapping[str, Any]) -> dict[str, int]:
    """Return the row counts of a stage by their names; empty for a stage that has none.

    Args:
        stage: The stage's name.
        report: Its report, as JSON values.
    """
    if stage == "ingest":
        domains = list(_domain_reports(report))
        return {"rows": sum(domain["rows"] for domain in domains), "added": sum(domain["rows_added"] for domain in domains)}
    if stage == "histories":
        return {"rows": sum(table["rows"] for table in report.values())}
    return {name: report[name] for name in _COUNTS.get(stage, ()) if name in report}


def _domain_reports(report: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the reports of the domains; those of several source domains are nested."""
    for value in report.values():
        if isinstance(value, dict):
            if "rows_added" in value:
                yield value
            else:
                yield from _domain_reports(value)


def stages_to(first: str | None = None, last: str = "dataset", *, exclude: Collection[str] = ()) -> tuple[Stage, ...]:
    """Return the stages that lead to a stage, in order.

    Args:
        first: Start with this stage, and include only stages that depend on it; None: from the beginning.
        last: The stage to reach.
        exclude: Stages to leave out.
    """
    names = required_stages(last) | {last}
    if first is not None:
        names = {name for name in names if name == first or first in required_stages(name)}
    return tuple(stage for stage in GRAPH if stage.name in names and stage.name not in exclude)


def with_light_prerequisites(*names: str) -> tuple[Stage, ...]:
    """Return the named stages, preceded by the light stages that they depend on, directly or through other light stages."""
    selected = set(names).union(*(_light_needs(name) for name in names))
    return tuple(stage for stage in GRAPH if stage.name in selected)


def execute_stages(context: PipelineContext, stages: Iterable[Stage]) -> PipelineContext:
    """Execute stages in order and return the context. Stages that the context skips are left out.

    Raises:
        ScalrError: Raised by a stage, with the stage and the run named.
    """
    context.publish_window = _publish_window
    lines = heartbeat_interval(context.settings.logging.heartbeat_s)
    with log_context(project=context.settings.project_name), lines, run_hooks():
        for stage in stages:
            if context.skips(stage.name):
                continue
            started = time.perf_counter()
            scope = StageScope(context.settings, stage.name, run_id=lambda: context.run_id, light=stage.light)
            with stage_hooks(scope), stage_context(stage.name, context.run_id), _keep_table_files(context.settings):
                report = stage.action(context)
                if report is not None:
                    context.reports[stage.name] = report
                if not stage.light:
                    context.seconds[stage.name] = round(time.perf_counter() - started, 2)
                    context.memory_mb[stage.name] = peak_memory_mb()
                    if context.run_id is not None:
                        record_timings(context.settings, context.run_id, context.stage_timings())
                    _log_end(stage.name, context.seconds[stage.name], report)
                    release_memory()  # before the next stage starts its workers and servers
    return context


def _keep_table_files(settings: Settings) -> AbstractContextManager[object]:
    """Keep the table versions that a stage may read from `scalr maintain`, which spares those of any staging folder in use."""
    from scalr_prod.workspace import is_home, staging_folder

    return staging_folder(settings, "stage") if is_home(settings.home) else nullcontext()


def _log_end(stage: str, seconds: float, report: StageReport | None) -> None:
    """Log the one line of a stage: its duration and row counts."""
    counts = {} if report is None else row_counts(stage, report.to_json())
    shown = ", ".join(f"{number:,} {name}" for name, number in counts.items())
    logger.info("%s done in %.1f s%s", stage, seconds, f": {shown}" if shown else "", extra={"seconds": seconds, **counts})


def execute_single(context: PipelineContext, stage: str, kind: type[Report]) -> Report:
    """Execute one stage, after the light stages that it needs, and return its report.

    Args:
        context: The options of the execution.
        stage: The stage's name.
        kind: The report's class.

    Raises:
        ScalrError: Raised by the stage, with the stage and the run named.
    """
    return execute_stages(context, with_light_prerequisites(stage)).require_report(stage, kind)


def _publish_window(context: PipelineContext) -> PipelineContext:
    return execute_stages(context, stages_to("plan", "publish"))


def resume_run(settings: Settings, run_id: str, *, progress: bool = False) -> PipelineReport:
    """Resume a run where it stopped: staged and verified partitions are kept, missing ones are generated.

    Raises:
        RunNotFound: No such run.
        ScalrError: Raised by a stage, with the stage and the run named.
    """
    return PipelineReport.from_context(
        execute_stages(PipelineContext.from_run(settings, run_id, progress=progress), stages_to("generate", "publish"))
    )


def stage_states(settings: Settings) -> list[StageState]:
    """Return the state of each stage, in order: done or not, why it is stale, and why `scalr run` skips it."""
    from scalr_prod.generation import why_not_generated

    rolled_back, kept = _latest_rollback_reason(settings), describe_kept_translator(settings)
    stale, skipped = stale_stages(settings), {}
    with suppress(EvaluationError):  # `scalr run` reports a broken policy
        if why := why_not_generated(settings):
            skipped = dict.fromkeys(SKIPPED_WITHOUT_EVENTS, why)
    stale = {name: reason for name, reason in stale.items() if name not in skipped}
    return [
        StageState(
            stage.name,
            stage.is_done(settings) and stage.name not in stale,
            stage.output,
            stage.command,
            stale.get(stage.name),
            kept if stage.name == "translator" and stage.name not in stale else None,
            skipped.get(stage.name),
            rolled_back if stage.name == "publish" else None,
        )
        for stage in GRAPH
    ]


def _latest_rollback_reason(settings: Settings) -> str | None:
    from scalr_prod.ledger import Ledger

    with Ledger.open(settings) as ledger:
        return next(map(rollback_reason, ledger.runs.find(limit=1)), None)


@contextmanager
def stage_context(name: str | None, run_id: str | None = None) -> Iterator[None]:
    """Report the progress of a stage; name it (and the run) in log lines, and in any `ScalrError` or `Interrupted`.

    A full or write-protected disk becomes a `ScalrError`.

    Args:
        name: The stage or command; None: unknown.
        run_id: The run, if there is one already.
    """
    from scalr_prod.core.disk_errors import translate_disk_errors

    try:
        progress = heartbeat(ProgressTracker(name)) if name is not None else nullcontext()
        with translate_disk_errors("the project's home"), log_context(stage=name, run_id=run_id), progress:
            reraise_pending()
            yield
    except (ScalrError, Interrupted) as error:
        error.add_context(stage=name, run_id=run_id)
        raise


def _find_stage(name: str) -> Stage:
    return next(stage for stage in GRAPH if stage.name == name)


def required_stages(name: str) -> set[str]:
    """Return all stages that a stage depends on."""
    direct = _find_stage(name).needs
    return set(direct).union(*(required_stages(stage) for stage in direct))


def _light_needs(name: str) -> set[str]:
    light = {stage for stage in _find_stage(name).needs if _find_stage(stage).light}
    return light.union(*(_light_needs(stage) for stage in light))
