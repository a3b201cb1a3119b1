# SPDX-License-Identifier: Apache-2.0
"""Runner: executes stages of the graph in order."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from scalr_prod.core.logging import log_context
from scalr_prod.core.memory import peak_memory_mb, release_memory
from scalr_prod.core.progress import ProgressTracker, heartbeat, heartbeat_interval
from scalr_prod.core.signals import Interrupted, reraise_pending
from scalr_prod.errors import EvaluationError, ScalrError
from scalr_prod.pipeline.context import OF_RUN, PipelineContext, PipelineReport, StageState
from scalr_prod.pipeline.graph import GRAPH
from scalr_prod.pipeline.hooks import StageScope, run_hooks, stage_hooks
from scalr_prod.pipeline.stale_outputs import stale_stages
from scalr_prod.pipeline.timings import record_timings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from scalr_prod.config import Settings
    from scalr_prod.pipeline.context import Stage

__all__ = ["execute_stages", "required_stages", "resume_run", "single_stage", "stage_context", "stage_states", "stages_to"]

logger = logging.getLogger(__name__)


def stages_to(first: str | None = None, last: str = "dataset", *, exclude: Collection[str] = ()) -> tuple[Stage, ...]:
    """The stages that lead to one of them, in their order.

    Args:
        first: Begin with this stage, and take only what comes after it; None: from the beginning.
        last: The stage to reach.
        exclude: Stages that are left out.
    """
    wanted = required_stages(last) | {last}
    if first is not None:
        wanted = {name for name in wanted if name == first or first in required_stages(name)}
    return tuple(stage for stage in GRAPH if stage.name in wanted and stage.name not in exclude)


def single_stage(*names: str) -> tuple[Stage, ...]:
    """One stage or several, after the light ones that they need directly, or through light ones alone."""
    wanted = set(names).union(*(_light_needs(name) for name in names))
    return tuple(stage for stage in GRAPH if stage.name in wanted)


def execute_stages(context: PipelineContext, stages: Iterable[Stage]) -> PipelineContext:
    """Do stages, one after the other; gives the job back. Those of a run are left out where the job generates no event.

    Raises:
        ScalrError: Any stage's, with the stage and the run named.
    """
    context.publish_window = _publish_window
    lines = heartbeat_interval(context.settings.logging.heartbeat_s, with_bars=context.progress)
    with log_context(project=context.settings.project_name), lines, run_hooks():
        for stage in stages:
            if context.not_generated and stage.name in OF_RUN:
                continue
            started = time.perf_counter()
            scope = StageScope(context.settings, stage.name, run_id=lambda: context.run_id, light=stage.light)
            with stage_hooks(scope), stage_context(stage.name, context.run_id):
                report = stage.action(context)
                if report is not None:
                    context.reports[stage.name] = report
                if not stage.light:
                    context.seconds[stage.name] = round(time.perf_counter() - started, 2)
                    context.memory_mb[stage.name] = peak_memory_mb()
                    if context.run_id is not None:
                        record_timings(context.settings, context.run_id, context.stage_timings())
                    logger.info("%s done in %.1f s", stage.name, context.seconds[stage.name])
                    release_memory()  # workers and servers of the next stage stand beside what this process holds
    return context


def _publish_window(job: PipelineContext) -> PipelineContext:
    return execute_stages(job, stages_to("plan", "publish"))


def resume_run(settings: Settings, run_id: str, *, progress: bool = False) -> PipelineReport:
    """Go on with a run from where it stopped: what is staged and verified is kept, what is missing is made.

    Raises:
        RunNotFound: No such run.
        ScalrError: Any stage's, with the stage and the run named.
    """
    return PipelineReport.from_context(
        execute_stages(PipelineContext.from_run(settings, run_id, progress=progress), stages_to("generate", "publish"))
    )


def stage_states(settings: Settings) -> list[StageState]:
    """Which stages are done, in their order; why what is there is stale, where it is; and why `scalr run` leaves a stage out."""
    from scalr_prod.generation import why_not_generated

    stale, left_out = stale_stages(settings), {}
    with suppress(EvaluationError):  # `scalr run` reports a broken policy
        if why := why_not_generated(settings):
            left_out = dict.fromkeys(OF_RUN, why)
    stale = {name: reason for name, reason in stale.items() if name not in left_out}
    return [
        StageState(
            stage.name,
            stage.is_done(settings) and stage.name not in stale,
            stage.output,
            stage.command,
            stale.get(stage.name),
            left_out.get(stage.name),
        )
        for stage in GRAPH
    ]


@contextmanager
def stage_context(name: str | None, run_id: str | None = None) -> Iterator[None]:
    """Tell of the stage while it is at work; name it (and the run) in log lines, and in any `ScalrError` or `Interrupted`.

    A full or write-protected disk becomes a `ScalrError`.

    Args:
        name: The stage, or the command; None: not known here.
        run_id: The run, where there is one already.
    """
    from scalr_prod.core.disk_errors import translate_disk_errors

    try:
        telling = heartbeat(ProgressTracker(name)) if name is not None else nullcontext()
        with translate_disk_errors("the project's home"), log_context(stage=name, run_id=run_id), telling:
            reraise_pending()
            yield
    except (ScalrError, Interrupted) as error:
        error.add_context(stage=name, run_id=run_id)
        raise


def _find_stage(name: str) -> Stage:
    return next(stage for stage in GRAPH if stage.name == name)


def required_stages(name: str) -> set[str]:
    """All stages that come before one."""
    direct = _find_stage(name).needs
    return set(direct).union(*(required_stages(one) for one in direct))


def _light_needs(name: str) -> set[str]:
    light = {one for one in _find_stage(name).needs if _find_stage(one).light}
    return light.union(*(_light_needs(one) for one in light))
