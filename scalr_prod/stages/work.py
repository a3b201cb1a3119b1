"""The work of each stage. Heavy rooms are imported when their stage is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scalr_prod.stages.job import Job, Report


def serving(job: Job) -> None:
    """Ask for the environment that Triton runs in: it is needed last, after minutes of work."""
    from scalr_prod.serving import require_environment

    require_environment(job.settings)


def ingest(job: Job) -> Report:
    """Logs → events and catalogues."""
    from scalr_prod.ingest import ingest

    return ingest(job.settings, domain=job.domain, progress=job.progress)


def histories(job: Job) -> Report:
    """Events → histories and item statistics."""
    from scalr_prod.histories import build_histories

    return build_histories(job.settings, progress=job.progress)


def feast(job: Job) -> None:
    """Bring the feature views up to date."""
    from scalr_prod.feast_store import apply_feature_repo

    apply_feature_repo(job.settings)


def policy(job: Job) -> Report | None:
    """Put the home's policy in the settings."""
    from scalr_prod.policy import follow_policy

    job.settings, followed = follow_policy(job.settings)
    return followed


def translator(job: Job) -> Report:
    """Train a version, or find the one of the same inputs."""
    from scalr_prod.translator import train

    report = train(job.settings, trained_until=job.trained_until, progress=job.progress)
    job.version = report.version
    return report


def plan(job: Job) -> None:
    """Write the run of the settings' window to the ledger."""
    from scalr_prod.generation import plan_run

    job.spec = plan_run(job.settings, version=job.version, cause=job.cause)


def generate(job: Job) -> Report:
    """Draw the run's events, with its translator served for as long as it takes."""
    from functools import partial

    from scalr_prod.generation import generate
    from scalr_prod.serving import guarded_serving, stop_unused

    spec = job.run()
    serving = partial(guarded_serving, job.settings, spec.translator_version)
    report = generate(job.settings, spec, serving=serving, progress=job.progress)
    stop_unused(job.settings)
    return report


def validate(job: Job) -> Report:
    """Put the run before the gate."""
    from scalr_prod.quality import validate_run

    return validate_run(job.settings, job.run().run_id, progress=job.progress)


def publish(job: Job) -> Report:
    """Publish the run, in one commit."""
    from scalr_prod.publication import publish

    return publish(job.settings, job.run().run_id)


def late(job: Job) -> Report | None:
    """Publish again the earlier windows that source events arrived late in, within the look-back."""
    from dataclasses import replace

    from scalr_prod.generation.late import LateReport, late_windows
    from scalr_prod.stages.job import Job
    from scalr_prod.stages.walking import path, walk

    if not job.settings.generation.lookback:
        return None
    windows, too_late = late_windows(job.settings, job.run())
    again = []
    for window in windows:
        sections = {"start": window.start, "end": window.end, "as_of": window.as_of}
        generation = job.settings.generation.model_copy(update=sections)
        settings = job.settings.model_copy(update={"generation": generation})
        cause = f"{window.events} source events arrived after {window.published_by}"
        made = walk(Job(settings, progress=job.progress, cause=cause), path("plan", "publish"))
        again.append(replace(window, run_id=made.run_id))
    return LateReport(again, too_late)


def dataset(job: Job) -> Report:
    """Build the training set."""
    from scalr_prod.training_set import build_training_set

    return build_training_set(job.settings, progress=job.progress)
