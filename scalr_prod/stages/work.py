# SPDX-License-Identifier: Apache-2.0
"""The work of each stage. Heavy rooms are imported when their stage is done."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from scalr_prod.errors import EmptyWindow, QualityGateFailed, TranslatorError
from scalr_prod.stages.job import Job
from scalr_prod.stages.stale import CorrectedWindow, stale_publications, stale_version

if TYPE_CHECKING:
    from scalr_prod.ledger import Publication, RunSpec
    from scalr_prod.settings import Settings
    from scalr_prod.stages.job import Report

logger = logging.getLogger(__name__)


def serving(job: Job) -> None:
    """Ask for the environment that Triton runs in: it is needed last, after minutes of work."""
    from scalr_prod.serving import require_environment

    require_environment(job.settings)


def features(job: Job) -> None:
    """Look for the user's own features, which the training set needs last."""
    if job.settings.training_set.features:
        from scalr_prod.feast_store import check_own_features

        check_own_features(job.settings)


def ingest(job: Job) -> Report:
    """Logs → events and catalogues."""
    from scalr_prod.ingest import ingest

    return ingest(job.settings, domain=job.domain, replace=job.replace, progress=job.progress)


def histories(job: Job) -> Report:
    """Events → histories and item statistics."""
    from scalr_prod.histories import build_histories

    return build_histories(job.settings, progress=job.progress)


def feast(job: Job) -> None:
    """Bring the feature views up to date."""
    from scalr_prod.feast_store import apply_feature_repo

    apply_feature_repo(job.settings)


def policy(job: Job) -> Report | None:
    """Put the home's policy in the settings; a whole run looks whether any event would weigh something."""
    from scalr_prod.policy import follow_policy, why_not_generated

    job.settings, followed = follow_policy(job.settings)
    if job.whole:
        job.not_generated = why_not_generated(job.settings)
        if job.not_generated:
            logger.info("%s", job.not_generated)
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

    if job.spec is not None:  # it goes on with a run
        return
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
    """Publish again the earlier windows whose events were replaced, and those in the look-back that source events arrived late in.

    A window that cannot be published again, since the gate refuses it or no translator fits, is reported; the others go on.
    """
    from dataclasses import replace

    from scalr_prod.generation.late import LateReport, late_windows, settings_again

    corrected = [_correct(job, one, spec) for one, spec in stale_publications(job.settings) if one.run_id != job.run_id]
    window = job.spec or job.settings.generation  # on a day without source events there is no run
    if not job.settings.generation.lookback or window.start is None or window.end is None:
        return LateReport(corrected=corrected) if corrected else None
    found = late_windows(job.settings, window.start, window.end, window.as_of or window.end)
    done = []
    for one in found.windows:
        try:
            cause = f"{one.events} source events arrived after {one.published_by}"
            run_id = _publish_again(job, *settings_again(job.settings, one), cause) if one.events else None
            done.append(replace(one, run_id=run_id))
        except (QualityGateFailed, TranslatorError) as error:
            logger.exception("the window from %s on could not be published again", one.start.isoformat())
            done.append(replace(one, error=f"{type(error).__name__}: {error.found}"))
    return LateReport(done, found.too_late, corrected)


def _correct(job: Job, publication: Publication, spec: RunSpec) -> CorrectedWindow:
    """Publish a window anew whose events were replaced; what lies in the window of the walk's run, or has no events, is taken out."""
    from scalr_prod.generation.late import LateWindow, settings_again
    from scalr_prod.publication import rollback_run
    from scalr_prod.translator import train

    start, end, run_id = publication.start, publication.end, None
    covered = job.spec is not None and start < job.spec.end and job.spec.start < end
    try:
        if not covered:
            window = LateWindow(start, end, spec.as_of, publication.run_id, 0, 0)
            again, version = settings_again(job.settings, window)
            if version is None or stale_version(job.settings, version):
                version = train(again, trained_until=spec.translator_trained_until, progress=job.progress).version
            run_id = _publish_again(job, again, version, f"events of {publication.run_id} were replaced")
    except EmptyWindow:
        logger.info("%s has no source event any more", publication.run_id)
    except (QualityGateFailed, TranslatorError) as error:
        logger.exception("the window from %s on could not be published anew", start.isoformat())
        return CorrectedWindow(start, end, publication.run_id, error=f"{type(error).__name__}: {error.found}")
    if run_id is None:
        rollback_run(job.settings, publication.run_id)
    return CorrectedWindow(start, end, publication.run_id, run_id)


def _publish_again(job: Job, settings: Settings, version: int | None, cause: str) -> str | None:
    return job.publish_window(Job(settings, progress=job.progress, version=version, cause=cause)).run_id


def dataset(job: Job) -> Report:
    """Build the training set."""
    from scalr_prod.training_set import build_training_set

    return build_training_set(job.settings, progress=job.progress)
