# SPDX-License-Identifier: Apache-2.0
"""The action of each stage. Heavy packages are imported when their stage is executed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from scalr_prod.errors import EmptyWindow, QualityGateFailed, TranslatorError
from scalr_prod.pipeline.context import PipelineContext
from scalr_prod.pipeline.stale_outputs import CorrectedWindow, is_version_stale, stale_publications

if TYPE_CHECKING:
    from datetime import datetime

    from scalr_prod.config import Settings
    from scalr_prod.ledger import Publication, RunSpec
    from scalr_prod.pipeline.context import StageReport

logger = logging.getLogger(__name__)


def serving(context: PipelineContext) -> None:
    """Check the environment in which Triton runs; it is needed only after minutes of work."""
    from scalr_prod.serving import require_environment

    require_environment(context.settings)


def features(context: PipelineContext) -> None:
    """Check the user's external features, which only the last stage needs."""
    if context.settings.training_set.features:
        from scalr_prod.features import check_external_features

        check_external_features(context.settings)


def ingest(context: PipelineContext) -> StageReport:
    """Logs → events and catalogues."""
    from scalr_prod.ingest import ingest

    return ingest(context.settings, domain=context.domain, replace=context.replace_from, progress=context.progress)


def histories(context: PipelineContext) -> StageReport:
    """Events → histories and item statistics."""
    from scalr_prod.histories import build_histories

    return build_histories(context.settings, progress=context.progress)


def feast(context: PipelineContext) -> None:
    """Update the feature views."""
    from scalr_prod.features import apply_feature_repo

    apply_feature_repo(context.settings)


def policy(context: PipelineContext) -> StageReport | None:
    """Apply the home's policy, and what the experiment found, to the settings; a whole run skips generation if every weight is 0.

    A whole run whose events could not be in the training set is refused here, before any training.
    """
    from scalr_prod.generation import apply_policy, describe_harmed_segments, record_dropped_segments, why_not_generated
    from scalr_prod.training_set import ensure_run_fits_splits

    context.harmed_segments = describe_harmed_segments(context.settings)
    not_generated = why_not_generated(context.settings)  # of the settings as written, so that the reason names where λ is set
    context.settings, status = apply_policy(context.settings)
    if context.whole:
        record_dropped_segments(context.settings)
        context.not_generated = not_generated
        if context.not_generated:
            logger.info("%s", context.not_generated)
        else:
            ensure_run_fits_splits(context.settings)
    return status


def translator(context: PipelineContext) -> StageReport:
    """Train a version, or return the one with the same inputs; a whole run keeps one by ``[translator] pin`` or ``retrain_every``."""
    from scalr_prod.translator import TrainReport, find_kept_version, record_version

    kept = find_kept_version(context.settings) if context.whole else None
    if kept is not None:
        logger.info("translator version %d is kept: %s", kept.version.version, kept.reason)
        # A driver may have died between writing the version and recording it.
        record_version(context.settings, kept.version, only_if_missing=True)
        report = TrainReport.from_version(kept.version, reused=True, kept=kept.reason)
    else:
        from scalr_prod.translator import train

        report = train(context.settings, trained_until=context.trained_until, progress=context.progress)
    context.version = report.version
    return report


def plan(context: PipelineContext) -> None:
    """Record the run of the settings' window in the ledger. If it was rolled back, generate, validate and publish are skipped."""
    from scalr_prod.generation import plan_run

    if context.spec is not None:  # a run is resumed
        return
    spec = plan_run(context.settings, version=context.version, cause=context.cause)
    planned = PipelineContext.from_run(context.settings, spec.run_id, resume=context.resume)
    context.spec, context.rolled_back = planned.spec, planned.rolled_back
    if context.rolled_back:
        logger.warning("%s", context.rolled_back)


def generate(context: PipelineContext) -> StageReport:
    """Generate the run's events, with its translator served meanwhile."""
    from functools import partial

    from scalr_prod.generation import generate
    from scalr_prod.serving import serve_with_watchdog, stop_unused_server

    spec = context.require_spec()
    serving = partial(serve_with_watchdog, context.settings, spec.translator_version)
    report = generate(context.settings, spec, serving=serving, progress=context.progress)
    stop_unused_server(context.settings)
    return report


def validate(context: PipelineContext) -> StageReport:
    """Run the quality gate."""
    from scalr_prod.quality import validate_run

    return validate_run(context.settings, context.require_spec().run_id, progress=context.progress)


def publish(context: PipelineContext) -> StageReport:
    """Publish the run, in one commit."""
    from scalr_prod.publication import publish

    return publish(context.settings, context.require_spec().run_id)


def late(context: PipelineContext) -> StageReport | None:
    """Republish earlier windows whose events were replaced, and windows in the look-back with late source events.

    A window that cannot be republished, because the gate rejects it or there is no translator, is reported; the others continue.
    """
    from dataclasses import replace

    from scalr_prod.generation import LateReport, late_windows, replay_settings

    corrected = [
        window
        for publication, spec in stale_publications(context.settings)
        if publication.run_id != context.run_id
        for window in _republish_corrected(context, publication, spec)
    ]
    window = context.spec or context.settings.generation  # on a day without source events there is no run
    if not context.settings.generation.lookback or window.start is None or window.end is None:
        return LateReport(corrected=corrected) if corrected else None
    late_events = late_windows(context.settings, window.start, window.end, window.as_of or window.end)
    windows = []
    for late_window in late_events.windows:
        try:
            cause = f"{late_window.events} source events arrived after {late_window.published_by}"
            run_id = None
            if late_window.events:
                settings, version = replay_settings(context.settings, late_window)
                run_id = _republish(context, settings, version, cause)
            windows.append(replace(late_window, run_id=run_id))
        except (QualityGateFailed, TranslatorError) as error:
            logger.exception("the window from %s on could not be republished", late_window.start.isoformat())
            windows.append(replace(late_window, error=f"{type(error).__name__}: {error.found}"))
    return LateReport(windows, late_events.too_late, corrected)


def _republish_corrected(context: PipelineContext, publication: Publication, spec: RunSpec) -> list[CorrectedWindow]:
    """Republish a window whose events were replaced, where the current run does not cover it; remove what is left of its rows."""
    from scalr_prod.publication import rollback_run

    start, end = publication.start, publication.end
    remaining = [(start, end)] if context.spec is None else _outside(start, end, context.spec)
    windows = [_republish_window(context, publication, spec, *bounds) for bounds in remaining]
    windows = windows or [CorrectedWindow(start, end, publication.run_id)]  # the current run has replaced all of it
    if not any(window.error for window in windows) and not all(window.run_id for window in windows):
        rollback_run(context.settings, publication.run_id)
    return windows


def _outside(start: datetime, end: datetime, run: RunSpec) -> list[tuple[datetime, datetime]]:
    """Return the parts of a window before and after that of a run; all of it if they do not overlap."""
    return [(first, last) for first, last in ((start, min(end, run.start)), (max(start, run.end), end)) if first < last]


def _republish_window(
    context: PipelineContext, publication: Publication, spec: RunSpec, start: datetime, end: datetime
) -> CorrectedWindow:
    """Republish a window, or part of one, with the settings of its run; it has no run id if no source event is left."""
    from scalr_prod.generation import LateWindow, replay_settings
    from scalr_prod.translator import train

    try:
        again, version = replay_settings(context.settings, LateWindow(start, end, spec.as_of, publication.run_id, 0, 0))
        if version is None or is_version_stale(context.settings, version):
            version = train(again, trained_until=spec.translator_trained_until, progress=context.progress).version
        run_id = _republish(context, again, version, f"events of {publication.run_id} were replaced")
    except EmptyWindow:
        logger.info("%s no longer has any source event from %s on", publication.run_id, start.isoformat())
        return CorrectedWindow(start, end, publication.run_id)
    except (QualityGateFailed, TranslatorError) as error:
        logger.exception("the window from %s on could not be republished", start.isoformat())
        return CorrectedWindow(start, end, publication.run_id, error=f"{type(error).__name__}: {error.found}")
    return CorrectedWindow(start, end, publication.run_id, run_id)


def _republish(context: PipelineContext, settings: Settings, version: int | None, cause: str) -> str | None:
    """Republish a window and return its run; None if that run was rolled back and stays out."""
    done = context.publish_window(PipelineContext(settings, progress=context.progress, version=version, cause=cause))
    return None if done.rolled_back else done.run_id


def dataset(context: PipelineContext) -> StageReport:
    """Build the training set."""
    from scalr_prod.training_set import build_training_set

    return build_training_set(context.settings, progress=context.progress)
