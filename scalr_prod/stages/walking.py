# SPDX-License-Identifier: Apache-2.0
"""Ways over the graph."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from scalr_prod.errors import EvaluationError, ScalrError
from scalr_prod.interrupts import Interrupted, raise_what_was_lost
from scalr_prod.logs import about
from scalr_prod.progress import Heartbeat, beating, lines_every
from scalr_prod.resident import give_back, peak_mb
from scalr_prod.stages.graph import GRAPH
from scalr_prod.stages.hooks import StageScope, run_hooks, stage_hooks
from scalr_prod.stages.job import OF_RUN, Job, PipelineReport, StageState
from scalr_prod.stages.spent import note_spent
from scalr_prod.stages.stale import stale_stages

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from scalr_prod.settings import Settings
    from scalr_prod.stages.job import Stage

__all__ = ["at_stage", "needed", "path", "resume_run", "states", "step", "walk"]

logger = logging.getLogger(__name__)


def path(first: str | None = None, last: str = "dataset", *, without: Collection[str] = ()) -> tuple[Stage, ...]:
    """The stages that lead to one of them, in their order.

    Args:
        first: Begin with this stage, and take only what comes after it; None: from the beginning.
        last: The stage to reach.
        without: Stages that are left out.
    """
    wanted = needed(last) | {last}
    if first is not None:
        wanted = {name for name in wanted if name == first or first in needed(name)}
    return tuple(stage for stage in GRAPH if stage.name in wanted and stage.name not in without)


def step(*names: str) -> tuple[Stage, ...]:
    """One stage or several, after the light ones that they need directly, or through light ones alone."""
    wanted = set(names).union(*(_light_needs(name) for name in names))
    return tuple(stage for stage in GRAPH if stage.name in wanted)


def walk(job: Job, stages: Iterable[Stage]) -> Job:
    """Do stages, one after the other; gives the job back. Those of a run are left out where the job generates no event.

    Raises:
        ScalrError: Any stage's, with the stage and the run named.
    """
    job.publish_window = _publish_window
    lines = lines_every(job.settings.logging.heartbeat_s, bars=job.progress)
    with about(project=job.settings.project_name), lines, run_hooks():
        for stage in stages:
            if job.not_generated and stage.name in OF_RUN:
                continue
            started = time.perf_counter()
            scope = StageScope(job.settings, stage.name, run_id=lambda: job.run_id, light=stage.light)
            with stage_hooks(scope), at_stage(stage.name, job.run_id):
                report = stage.work(job)
                if report is not None:
                    job.reports[stage.name] = report
                if not stage.light:
                    job.seconds[stage.name] = round(time.perf_counter() - started, 2)
                    job.memory_mb[stage.name] = peak_mb()
                    if job.run_id is not None:
                        note_spent(job.settings, job.run_id, job.spent())
                    logger.info("%s done in %.1f s", stage.name, job.seconds[stage.name])
                    give_back()  # workers and servers of the next stage stand beside what this process holds
    return job


def _publish_window(job: Job) -> Job:
    return walk(job, path("plan", "publish"))


def resume_run(settings: Settings, run_id: str, *, progress: bool = False) -> PipelineReport:
    """Go on with a run from where it stopped: what is staged and verified is kept, what is missing is made.

    Raises:
        RunNotFound: No such run.
        ScalrError: Any stage's, with the stage and the run named.
    """
    return PipelineReport.of(walk(Job.of_run(settings, run_id, progress=progress), path("generate", "publish")))


def states(settings: Settings) -> list[StageState]:
    """Which stages are done, in their order; why what is there is stale, where it is; and why `scalr run` leaves a stage out."""
    from scalr_prod.policy import why_not_generated

    stale, left_out = stale_stages(settings), {}
    with suppress(EvaluationError):  # `scalr run` reports a broken policy
        if why := why_not_generated(settings):
            left_out = dict.fromkeys(OF_RUN, why)
    stale = {name: reason for name, reason in stale.items() if name not in left_out}
    return [
        StageState(
            stage.name,
            stage.done(settings) and stage.name not in stale,
            stage.makes,
            stage.command,
            stale.get(stage.name),
            left_out.get(stage.name),
        )
        for stage in GRAPH
    ]


@contextmanager
def at_stage(name: str | None, run_id: str | None = None) -> Iterator[None]:
    """Tell of the stage while it is at work; name it (and the run) in log lines, and in any `ScalrError` or `Interrupted`.

    A full or write-protected disk becomes a `ScalrError`.

    Args:
        name: The stage, or the command; None: not known here.
        run_id: The run, where there is one already.
    """
    from scalr_prod.disk import disk_errors

    try:
        telling = beating(Heartbeat(name)) if name is not None else nullcontext()
        with disk_errors("the project's home"), about(stage=name, run_id=run_id), telling:
            raise_what_was_lost()
            yield
    except (ScalrError, Interrupted) as error:
        error.at(stage=name, run_id=run_id)
        raise


def _stage(name: str) -> Stage:
    return next(stage for stage in GRAPH if stage.name == name)


def needed(name: str) -> set[str]:
    """All stages that come before one."""
    direct = _stage(name).needs
    return set(direct).union(*(needed(one) for one in direct))


def _light_needs(name: str) -> set[str]:
    light = {one for one in _stage(name).needs if _stage(one).light}
    return light.union(*(_light_needs(one) for one in light))
