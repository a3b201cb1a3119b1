# SPDX-License-Identifier: Apache-2.0
"""Types of the pipeline: stages, a pipeline execution's context, which decides what is skipped, and its reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import ScalrError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from scalr_prod.config import Settings
    from scalr_prod.ledger import Run, RunSpec


#: Stages that `scalr run` skips if λ is 0 for all users, so that no event is generated.
SKIPPED_WITHOUT_EVENTS: Final = ("plan", "generate", "validate", "publish", "late")
#: Stages that are skipped for a run that was rolled back; those after them continue without it.
_SKIPPED_AFTER_ROLLBACK: Final = ("generate", "validate", "publish")


class StageReport(Protocol):
    """Report of a stage."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""


Report = TypeVar("Report", bound=StageReport)


def _not_in_a_pipeline(_: PipelineContext) -> PipelineContext:
    raise ScalrError("this stage needs a runner", where="pipeline", next_step="call execute_stages()")


@dataclass
class PipelineContext:
    """Context of one pipeline execution: its options, and what its stages have made so far.

    Attributes:
        settings: The project's settings; the stage ``policy`` puts the home's policy in them.
        progress: Show progress bars on stderr.
        domain: Ingest only ``source``, ``target`` or ``sources.NAME``; None: all.
        replace_from: From this time on (UTC), ingest replaces the lake's events with those of the logs, or None if it adds missing events.
        trained_until: Exclusive upper time limit of the training data (UTC); None: by ``[generation] mode``.
        version: The translator version to generate with; ``translator`` sets it. None: the latest trained.
        cause: Why a run is planned, for the ledger's history.
        whole: Whether this executes all stages, as `scalr run` does. Only then is generation skipped if λ is 0 for all users.
        resume: Allow publishing a run that was rolled back. Set only if the user names the run.
        not_generated: Why no event is generated; the stage ``policy`` of a whole run sets it. None: events are generated.
        harmed_segments: One sentence for each segment of users whom synthetic events harm by the experiment; ``policy`` sets it.
        spec: The run; ``plan`` sets it.
        rolled_back: Why the run stays out of the view: it was rolled back. ``plan`` sets it. None if it is published.
        seconds: Wall-clock seconds by stage.
        memory_mb: Peak memory of this process at each stage's end, in MiB; None if unknown.
        reports: Each stage's own report.
        publish_window: Executes the stages from plan to publish for another window; the runner sets it.
    """

    settings: Settings
    progress: bool = False
    domain: str | None = None
    replace_from: datetime | None = None
    trained_until: datetime | None = None
    version: int | None = None
    cause: str = "planned"
    whole: bool = False
    resume: bool = False
    not_generated: str | None = None
    harmed_segments: list[str] = field(default_factory=list)
    spec: RunSpec | None = None
    rolled_back: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    memory_mb: dict[str, int | None] = field(default_factory=dict)
    reports: dict[str, StageReport] = field(default_factory=dict)
    publish_window: Callable[[PipelineContext], PipelineContext] = field(default=_not_in_a_pipeline, repr=False)

    @classmethod
    def from_run(cls, settings: Settings, run_id: str, *, resume: bool = True, progress: bool = False) -> PipelineContext:
        """Return a context that continues a run of the ledger.

        Args:
            settings: The project's settings.
            run_id: The run.
            resume: Allow publishing the run again after a rollback; schedulers pass False.
            progress: Show progress bars on stderr.

        Raises:
            RunNotFound: No such run.
        """
        from scalr_prod.ledger import Ledger

        with Ledger.open(settings) as ledger:
            run = ledger.runs.get(run_id)
        return cls(
            settings, progress=progress, resume=resume, spec=run.spec, rolled_back=None if resume else rollback_reason(run)
        )

    def skips(self, stage: str) -> bool:
        """Return whether a stage is skipped: no event is generated, or the run was rolled back."""
        return bool(
            (self.not_generated and stage in SKIPPED_WITHOUT_EVENTS) or (self.rolled_back and stage in _SKIPPED_AFTER_ROLLBACK)
        )

    @property
    def run_id(self) -> str | None:
        """Return the run's id; None before the run is planned."""
        return self.spec.run_id if self.spec else None

    def stage_timings(self) -> dict[str, dict[str, float | None]]:
        """Return ``seconds`` and ``memory_mb`` of every stage so far."""
        return {name: {"seconds": seconds, "memory_mb": self.memory_mb.get(name)} for name, seconds in self.seconds.items()}

    def require_report(self, stage: str, kind: type[Report]) -> Report:
        """Return the report of a stage that was executed.

        Args:
            stage: The stage's name.
            kind: The report's class.

        Raises:
            TypeError: The stage returned another report.
        """
        report = self.reports[stage]
        if not isinstance(report, kind):
            raise TypeError(f"the stage {stage} returned {type(report).__name__}, not {kind.__name__}")
        return report

    def require_spec(self) -> RunSpec:
        """Return the run's specification.

        Raises:
            ScalrError: No run is planned yet.
        """
        if self.spec is None:
            raise ScalrError("no run is planned", where="pipeline", next_step="execute the stage plan first")
        return self.spec


@dataclass(frozen=True)
class Stage:
    """A node of the graph.

    Attributes:
        name: Name in logs, errors and reports.
        needs: Stages to execute before it.
        output: Description of its output.
        command: The command that executes only this stage.
        action: Executes it and returns its report, or None.
        is_done: Returns whether its output exists.
        light: Whether it takes no time if nothing has changed.
    """

    name: str
    needs: tuple[str, ...]
    output: str
    command: str
    action: Callable[[PipelineContext], StageReport | None]
    is_done: Callable[[Settings], bool]
    light: bool = False


@dataclass(frozen=True)
class StageState(Jsonable):
    """Describe whether a stage is done.

    Attributes:
        stage: The stage's name.
        done: Whether its output exists, as of the latest run.
        makes: Description of its output.
        command: The command that executes it.
        stale: Why the existing output is out of date; None if it is not.
        kept: Why `scalr run` keeps the translator, and when the next training is due. None if it does not, or for other stages.
        not_generated: Why `scalr run` skips the stage, or None if it does not.
        rolled_back: Why the latest run stays out of the feature view: it was rolled back.
    """

    stage: str
    done: bool
    makes: str
    command: str
    stale: str | None = None
    kept: str | None = None
    not_generated: str | None = None
    rolled_back: str | None = None


@dataclass(frozen=True)
class PipelineReport(Jsonable):
    """Report of a complete run.

    Attributes:
        run_id: The run, or None if no event was generated.
        seconds: Wall-clock seconds by stage.
        stages: Each stage's own report.
        not_generated: Why no event was generated; None: events were.
        rolled_back: Why the run was not published: it was rolled back earlier.
        harmed_segments: One sentence for each segment of users whom synthetic events harm by the experiment.
    """

    run_id: str | None
    seconds: dict[str, float]
    stages: dict[str, dict[str, Any]] = field(repr=False)
    not_generated: str | None = None
    rolled_back: str | None = None
    harmed_segments: list[str] = field(default_factory=list)

    @classmethod
    def from_context(cls, context: PipelineContext) -> PipelineReport:
        """Build the report of a finished execution.

        Args:
            context: The context, with the reports of its stages.

        Returns:
            The run's id, and each stage's report.
        """
        reports = {name: report.to_json() for name, report in context.reports.items()}
        run_id = None if context.not_generated else context.require_spec().run_id
        return cls(run_id, dict(context.seconds), reports, context.not_generated, context.rolled_back, context.harmed_segments)

    def to_summary(self) -> dict[str, Any]:
        """Return a summary of one line per step. `to_json` and the page of ``scalr report`` have all details."""
        facts: dict[str, Any] = {"no events": self.not_generated} if self.not_generated else {"run_id": self.run_id}
        for side, log in self.stages.get("ingest", {}).items():
            if side == "common_users":
                facts["users of both"] = log
            else:
                facts[side] = f"{log['rows']} events of {log['users']} users on {log['items']} items ({log['rows_added']} new)"
        if (made := self.stages.get("translator")) is not None:
            outcome = f"kept: {made['kept']}" if made["kept"] else "as it was" if made["reused"] else "trained"
            dropped = (
                f", without {made['recommended_events']} events that a recommendation led to"
                if made["recommended_events"]
                else ""
            )
            facts["translator"] = f"version {made['version']}, {outcome}{dropped}"
        if (made := self.stages.get("generate")) is not None:
            origin = "" if made["contexts"] == made["users"] else f", from {made['contexts']} source events"
            facts["generated"] = f"{made['events']} events for {made['users']} users{origin}"
        if (made := self.stages.get("validate")) is not None:
            facts["quality gate"] = f"{made['accepted']} accepted, {made['quarantined']} in quarantine"
            facts["data docs"] = made["docs"]
        if (made := self.stages.get("publish")) is not None:
            facts["published"] = f"{made['rows']} rows in {made['table']} ({made['outcome']})"
        if self.rolled_back:
            facts["not published"] = self.rolled_back
        if (made := self.stages.get("dataset")) is not None:
            kinds = f"{made['real']} real, {made['synthetic']} synthetic, {made['negatives']} negatives"
            facts["training set"] = f"version {made['version']}, {made['rows']} rows: {kinds}"
            facts["its folder"] = made["path"]
        if self.harmed_segments:
            facts["experiment"] = ". ".join(self.harmed_segments)
        return facts | {"seconds": round(sum(self.seconds.values()), 1), "next": self._next_step()}

    def _next_step(self) -> str:
        if self.not_generated:
            return "scalr evaluate, once there are more events"
        if "publish" in self.stages and "dataset" not in self.stages:  # the run was resumed
            return "scalr dataset build, for a training set with its events"
        is_evaluated = self.stages.get("policy", {}).get("is_applied")
        return "scalr report" if is_evaluated else "scalr report; scalr evaluate --quick, to find out whether it helps"


def rollback_reason(run: Run) -> str | None:
    """Return why a run stays out of the feature view: it was rolled back. None if it was not."""
    from scalr_prod.ledger import RunState

    if run.state is not RunState.ROLLED_BACK:
        return None
    return (
        f"{run.run_id} was rolled back and stays out of the feature view; to publish it again: scalr runs resume {run.run_id}"
    )
