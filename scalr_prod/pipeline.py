"""The whole job in order, and the two places where stages have to meet: the command line and the DAGs call the same functions.

ingest → histories → feast apply → translator → serve → generate → validate → publish → training set
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from scalr_prod.errors import ScalrError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scalr_prod.generation import GenerationReport
    from scalr_prod.ledger import RunSpec
    from scalr_prod.settings import Settings

__all__ = ["PipelineReport", "PromotionDecision", "generate_run", "promote_if_better", "resume_run", "run_pipeline", "stage"]

logger = logging.getLogger(__name__)


class Report(Protocol):
    """What every stage returns."""

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""


Outcome = TypeVar("Outcome", bound=Report)


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

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"run_id": self.run_id, "seconds": self.seconds, "stages": self.stages}


@dataclass(frozen=True)
class PromotionDecision:
    """Whether a new translator took the served one's place, and why.

    Attributes:
        version: The new version.
        served: The version that is served from now on.
        promoted: Whether the new one is.
        reason: In one sentence.
        comparison: Both versions on the same events; None where there was nothing to compare with.
    """

    version: int
    served: int
    promoted: bool
    reason: str
    comparison: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """The decision as JSON values."""
        return dict(self.__dict__)


@contextmanager
def stage(name: str | None, run_id: str | None = None) -> Iterator[None]:
    """Name the stage (and run) in any `ScalrError` that comes out of it; a full or write-protected disk becomes one.

    Args:
        name: The stage, as the command line calls it; None: not known here.
        run_id: The run, where there is one already.
    """
    from scalr_prod.duck import disk_errors

    try:
        with disk_errors("the project's home"):
            yield
    except ScalrError as error:
        error.at(stage=name, run_id=run_id)
        raise


def generate_run(settings: Settings, *, version: int | None = None, progress: bool = False) -> GenerationReport:
    """Plan the run of the settings' window and generate its events, with the translator served for as long as it takes.

    Args:
        settings: The project's settings.
        version: Translator version; default: the latest trained.
        progress: Show a progress bar on stderr.

    Raises:
        ScalrError: Any stage's, with the stage and the run named.
    """
    from scalr_prod.feast_store import apply_feature_repo
    from scalr_prod.generation import plan_run
    from scalr_prod.policy import follow_policy

    with stage("generate"):
        settings, _ = follow_policy(settings)
        apply_feature_repo(settings)
        spec = plan_run(settings, version=version)
    return _generate(settings, spec, progress=progress)


def promote_if_better(settings: Settings, version: int, *, progress: bool = False) -> PromotionDecision:
    """Serve a new version if none is served, or if it is no worse than the served one on events that neither learned from.

    Args:
        settings: The project's settings.
        version: The new version.
        progress: Show a progress bar on stderr.

    Raises:
        ScalrError: The version is not there, or it does not answer once it is loaded.
    """
    from scalr_prod.serving import promote, served_version
    from scalr_prod.translator.comparison import compare

    with stage("translator promote"):
        served = served_version(settings)
        if served == version:
            return PromotionDecision(version, version, promoted=False, reason="it is served already", comparison=None)
        if served is None:
            promote(settings, version)
            return PromotionDecision(version, version, promoted=True, reason="none was served", comparison=None)
        found = compare(settings, version, served, progress=progress)
        facts = f"NLL {found.candidate_nll} against {found.served_nll} on {found.events} events from {found.since} on"
        if found.fit_to_serve:
            promote(settings, version)
            return PromotionDecision(version, version, promoted=True, reason=facts, comparison=found.to_json())
        reason = facts if found.events else f"too few events between {found.since} and {found.until} to compare on"
        return PromotionDecision(version, served, promoted=False, reason=reason, comparison=found.to_json())


def resume_run(settings: Settings, run_id: str, *, progress: bool = False) -> PipelineReport:
    """Go on with a run from where it stopped: what is staged and verified is kept, what is missing is made.

    Raises:
        RunNotFound: No such run.
        ScalrError: Any stage's, with the stage and the run named.
    """
    from scalr_prod.ledger import Ledger

    spec = Ledger.open(settings).run(run_id).spec
    record = _Record()
    _finish(settings, spec, record, progress=progress)
    return PipelineReport(run_id, record.seconds, record.reports)


def run_pipeline(settings: Settings, *, progress: bool = False) -> PipelineReport:
    """Everything, from two logs on disk to a published feature view and a training set beside it.

    Each step finds what it has done before and does only what is missing, so that a second call with the same input changes
    nothing.

    Args:
        settings: The project's settings.
        progress: Show progress bars on stderr.

    Raises:
        ScalrError: Any stage's, with the stage and the run named.
    """
    from scalr_prod.serving import require_environment

    with stage("serving"):  # it is needed last, after minutes of work: asked for before seconds of imports
        require_environment(settings)

    from scalr_prod.feast_store import apply_feature_repo
    from scalr_prod.generation import plan_run
    from scalr_prod.histories import build_histories
    from scalr_prod.ingest import ingest
    from scalr_prod.policy import follow_policy
    from scalr_prod.training_set import build_training_set
    from scalr_prod.translator import train

    record = _Record()
    record.do("ingest", lambda: ingest(settings, progress=progress))
    record.do("histories", lambda: build_histories(settings, progress=progress))
    with stage("policy"):
        settings, followed = follow_policy(settings)
    if followed:
        record.reports["policy"] = followed.to_json()
    with stage("feast"):
        apply_feature_repo(settings)
    translator = record.do("translator", lambda: train(settings, progress=progress))
    with stage("plan"):
        spec = plan_run(settings, version=translator.version)
    _finish(settings, spec, record, progress=progress)
    record.do("dataset", lambda: build_training_set(settings, progress=progress))
    return PipelineReport(spec.run_id, record.seconds, record.reports)


def _finish(settings: Settings, spec: RunSpec, record: _Record, *, progress: bool) -> None:
    """The part of a run that `resume_run` repeats."""
    from scalr_prod.publication import publish
    from scalr_prod.quality import validate_run

    run_id = spec.run_id
    record.do("generate", lambda: _generate(settings, spec, progress=progress), run_id)
    record.do("validate", lambda: validate_run(settings, run_id, progress=progress), run_id)
    record.do("publish", lambda: publish(settings, run_id), run_id)


def _generate(settings: Settings, spec: RunSpec, *, progress: bool) -> GenerationReport:
    from functools import partial

    from scalr_prod.generation import generate
    from scalr_prod.serving import guarded_serving, stop_unused

    serving = partial(guarded_serving, settings, spec.translator_version)
    with stage("generate", spec.run_id):
        report = generate(settings, spec, serving=serving, progress=progress)
        stop_unused(settings)
    return report


class _Record:
    """Stage by stage: how long it took and what it reported."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.reports: dict[str, dict[str, Any]] = {}

    def do(self, name: str, work: Callable[[], Outcome], run_id: str | None = None) -> Outcome:
        started = time.perf_counter()
        with stage(name, run_id):
            outcome = work()
        self.seconds[name] = round(time.perf_counter() - started, 2)
        self.reports[name] = outcome.to_json()
        logger.info("%s done in %.1f s", name, self.seconds[name])
        return outcome
