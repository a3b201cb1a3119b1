"""The one graph of stages: what each of them needs and makes, whether it is done, and its work.

The command line, the DAGs, an evaluation's isolated runs, `runs resume` and `Project` all walk it::

    serving ───────────────────────────────┐
    ingest → histories → feast → translator ┼→ plan → generate → validate → publish → dataset
                  └────→ policy ────────────┘

Each stage finds what it has done before and does only what is missing, so that a stage repeated with the same input changes
nothing. A *light* stage takes no time where nothing has changed; whoever does one stage alone does the light ones that it needs
before it.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from scalr_prod.errors import ScalrError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from datetime import datetime

    from scalr_prod.ledger import RunSpec
    from scalr_prod.settings import Settings

__all__ = [
    "GRAPH",
    "Job",
    "PipelineReport",
    "Report",
    "Stage",
    "StageState",
    "at_stage",
    "path",
    "resume_run",
    "states",
    "step",
    "walk",
]

logger = logging.getLogger(__name__)


class Report(Protocol):
    """What every stage returns."""

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""


@dataclass
class Job:
    """One walk over the graph: what it was asked for, and what its stages have made so far.

    Attributes:
        settings: The project's settings; the stage ``policy`` puts the home's policy in them.
        progress: Show progress bars on stderr.
        domain: ``source``, ``target`` or ``sources.NAME``: ingest this one alone; None: all.
        trained_until: The translator reads nothing from then on (UTC); None: by ``[generation] mode``.
        version: The translator version to generate with; ``translator`` sets it. None: the latest trained.
        spec: The run; ``plan`` sets it.
        seconds: Wall-clock seconds by stage.
        reports: Each stage's own report.
    """

    settings: Settings
    progress: bool = False
    domain: str | None = None
    trained_until: datetime | None = None
    version: int | None = None
    spec: RunSpec | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    reports: dict[str, Report] = field(default_factory=dict)

    @classmethod
    def of_run(cls, settings: Settings, run_id: str, *, progress: bool = False) -> Job:
        """A job that goes on with a run of the ledger.

        Raises:
            RunNotFound: No such run.
        """
        from scalr_prod.ledger import Ledger

        with Ledger.open(settings) as ledger:
            return cls(settings, progress=progress, spec=ledger.run(run_id).spec)

    @property
    def run_id(self) -> str | None:
        """The run, once there is one."""
        return self.spec.run_id if self.spec else None

    def run(self) -> RunSpec:
        """The run.

        Raises:
            ScalrError: There is none yet.
        """
        if self.spec is None:
            raise ScalrError("no run is planned", where="job", next_step="do the stage plan first")
        return self.spec


@dataclass(frozen=True)
class Stage:
    """A node of the graph.

    Attributes:
        name: As logs, errors and reports call it.
        needs: The stages that come before it.
        makes: What it makes, in words.
        command: The command that does it alone.
        work: Does it, and returns its report; None: it has none.
        done: Whether what it makes is there.
        light: It takes no time where nothing has changed.
    """

    name: str
    needs: tuple[str, ...]
    makes: str
    command: str
    work: Callable[[Job], Report | None]
    done: Callable[[Settings], bool]
    light: bool = False


@dataclass(frozen=True)
class StageState:
    """Whether a stage is done.

    Attributes:
        stage: Its name.
        done: Whether what it makes is there, as of the latest run.
        makes: What that is.
        command: The command that does it.
    """

    stage: str
    done: bool
    makes: str
    command: str

    def to_json(self) -> dict[str, Any]:
        """The state as JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class PipelineReport:
    """What one whole run came to.

    Attributes:
        run_id: The run.
        seconds: Wall-clock seconds by stage.
        stages: Each stage's own report.
    """

    run_id: str
    seconds: dict[str, float]
    stages: dict[str, dict[str, Any]] = field(repr=False)

    @classmethod
    def of(cls, job: Job) -> PipelineReport:
        """Of a job whose run is done."""
        return cls(job.run().run_id, dict(job.seconds), {name: report.to_json() for name, report in job.reports.items()})

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"run_id": self.run_id, "seconds": self.seconds, "stages": self.stages}


def path(first: str | None = None, last: str = "dataset", *, without: Collection[str] = ()) -> tuple[Stage, ...]:
    """The stages that lead to one of them, in their order.

    Args:
        first: Begin with this stage, and take only what comes after it; None: from the beginning.
        last: The stage to reach.
        without: Stages that are left out.
    """
    wanted = _needed(last) | {last}
    if first is not None:
        wanted = {name for name in wanted if name == first or first in _needed(name)}
    return tuple(stage for stage in GRAPH if stage.name in wanted and stage.name not in without)


def step(name: str) -> tuple[Stage, ...]:
    """One stage, after the light ones that it needs."""
    needed = _needed(name)
    return tuple(stage for stage in GRAPH if stage.name == name or (stage.light and stage.name in needed))


def walk(job: Job, stages: Iterable[Stage]) -> Job:
    """Do stages, one after the other; gives the job back.

    Raises:
        ScalrError: Any stage's, with the stage and the run named.
    """
    for stage in stages:
        started = time.perf_counter()
        with at_stage(stage.name, job.run_id):
            report = stage.work(job)
        if report is not None:
            job.reports[stage.name] = report
        if not stage.light:
            job.seconds[stage.name] = round(time.perf_counter() - started, 2)
            logger.info("%s done in %.1f s", stage.name, job.seconds[stage.name])
    return job


def resume_run(settings: Settings, run_id: str, *, progress: bool = False) -> PipelineReport:
    """Go on with a run from where it stopped: what is staged and verified is kept, what is missing is made.

    Raises:
        RunNotFound: No such run.
        ScalrError: Any stage's, with the stage and the run named.
    """
    return PipelineReport.of(walk(Job.of_run(settings, run_id, progress=progress), path("generate", "publish")))


def states(settings: Settings) -> list[StageState]:
    """Which stages are done, in their order."""
    return [StageState(stage.name, stage.done(settings), stage.makes, stage.command) for stage in GRAPH]


@contextmanager
def at_stage(name: str | None, run_id: str | None = None) -> Iterator[None]:
    """Name the stage (and run) in any `ScalrError` that comes out of it; a full or write-protected disk becomes one.

    Args:
        name: The stage, or the command; None: not known here.
        run_id: The run, where there is one already.
    """
    from scalr_prod.duck import disk_errors

    try:
        with disk_errors("the project's home"):
            yield
    except ScalrError as error:
        error.at(stage=name, run_id=run_id)
        raise


def _needed(name: str) -> set[str]:
    """All stages that come before one."""
    direct = next(stage for stage in GRAPH if stage.name == name).needs
    return set(direct).union(*(_needed(one) for one in direct))


# --- the work of each stage; heavy rooms are imported when their stage is done


def _serving(job: Job) -> None:
    from scalr_prod.serving import require_environment

    require_environment(job.settings)


def _ingest(job: Job) -> Report:
    from scalr_prod.ingest import ingest

    return ingest(job.settings, domain=job.domain, progress=job.progress)


def _histories(job: Job) -> Report:
    from scalr_prod.histories import build_histories

    return build_histories(job.settings, progress=job.progress)


def _feast(job: Job) -> None:
    from scalr_prod.feast_store import apply_feature_repo

    apply_feature_repo(job.settings)


def _policy(job: Job) -> Report | None:
    from scalr_prod.policy import follow_policy

    job.settings, followed = follow_policy(job.settings)
    return followed


def _translator(job: Job) -> Report:
    from scalr_prod.translator import train

    report = train(job.settings, trained_until=job.trained_until, progress=job.progress)
    job.version = report.version
    return report


def _plan(job: Job) -> None:
    from scalr_prod.generation import plan_run

    job.spec = plan_run(job.settings, version=job.version)


def _generate(job: Job) -> Report:
    from functools import partial

    from scalr_prod.generation import generate
    from scalr_prod.serving import guarded_serving, stop_unused

    spec = job.run()
    serving = partial(guarded_serving, job.settings, spec.translator_version)
    report = generate(job.settings, spec, serving=serving, progress=job.progress)
    stop_unused(job.settings)
    return report


def _validate(job: Job) -> Report:
    from scalr_prod.quality import validate_run

    return validate_run(job.settings, job.run().run_id, progress=job.progress)


def _publish(job: Job) -> Report:
    from scalr_prod.publication import publish

    return publish(job.settings, job.run().run_id)


def _dataset(job: Job) -> Report:
    from scalr_prod.training_set import build_training_set

    return build_training_set(job.settings, progress=job.progress)


# --- whether it is done


def _served(settings: Settings) -> bool:
    from scalr_prod.serving import require_environment

    try:
        require_environment(settings)
    except ScalrError:
        return False
    return True


def _ingested(settings: Settings) -> bool:
    from scalr_prod.contracts import Table
    from scalr_prod.lake import Lake

    lake = Lake.open(settings)
    return all(lake.exists(table) for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS))


def _built(settings: Settings) -> bool:
    from scalr_prod.histories import histories_built

    return histories_built(settings)


def _applied(settings: Settings) -> bool:
    return (settings.feast_repo / "feature_store.yaml").is_file()


def _trained(settings: Settings) -> bool:
    from scalr_prod.ledger import Ledger

    with Ledger.open(settings) as ledger:
        return bool(ledger.model_versions())


def _reached(*left_behind: str) -> Callable[[Settings], bool]:
    """Whether the latest run is past these states."""

    def done(settings: Settings) -> bool:
        from scalr_prod.ledger import Ledger

        with Ledger.open(settings) as ledger:
            latest = ledger.runs(limit=1)
        return bool(latest) and latest[0].state.value not in left_behind

    return done


def _data_set(settings: Settings) -> bool:
    from scalr_prod.ledger import Ledger

    with Ledger.open(settings) as ledger:
        return bool(ledger.datasets())


def _always(_: Settings) -> bool:
    return True


GRAPH: Final[tuple[Stage, ...]] = (
    Stage(
        "serving", (), "the environment that a local Triton runs in", "scalr serving install", _serving, _served, light=True
    ),  # needed late, after minutes of work: asked for first
    Stage("ingest", (), "source_events, target_events, catalogues", "scalr ingest", _ingest, _ingested),
    Stage(
        "histories",
        ("ingest",),
        "source_user_history, target_user_history, target_item_stats",
        "scalr histories",
        _histories,
        _built,
    ),
    Stage("policy", ("histories",), "the settings that an evaluation chose", "scalr evaluate", _policy, _always, light=True),
    Stage("feast", ("histories",), "feature views and services", "scalr histories", _feast, _applied, light=True),
    Stage("translator", ("feast",), "a translator version", "scalr translator train", _translator, _trained),
    Stage("plan", ("serving", "policy", "translator"), "a run in the ledger", "scalr generate", _plan, _reached(), light=True),
    Stage("generate", ("plan",), "staged synthetic events", "scalr generate", _generate, _reached("planned", "generating")),
    Stage(
        "validate",
        ("generate",),
        "accepted events, data docs",
        "scalr validate RUN",
        _validate,
        _reached("planned", "generating", "generated", "rejected"),
    ),
    Stage(
        "publish",
        ("validate",),
        "synthetic_target_events",
        "scalr publish RUN",
        _publish,
        _reached("planned", "generating", "generated", "rejected", "validated", "rolled_back"),
    ),
    Stage("dataset", ("feast", "publish"), "a training set", "scalr dataset build", _dataset, _data_set),
)
