# SPDX-License-Identifier: Apache-2.0
"""Entry point of `scalr evaluate`: the quick verdict, tuning on validation windows, and the test at every cutoff."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from scalr_prod.errors import EvaluationError, TranslatorError
from scalr_prod.evaluation.arms import CLUSTER_BASELINE, POPULARITY_BASELINE, REAL_ONLY, WITH_SYNTHETIC, ArmDataBuilder
from scalr_prod.evaluation.evaluation_runner import EvaluationRunner
from scalr_prod.evaluation.plan import EvaluationPlan
from scalr_prod.evaluation.progress import evaluation_progress
from scalr_prod.evaluation.signal import Signal, classify_signal, describe_signal, measure_signal
from scalr_prod.evaluation.trial_cache import validation_splits
from scalr_prod.evaluation.verdict_summary import summarize_verdict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from scalr_prod.config import Settings
    from scalr_prod.evaluation.evaluation_report import EvaluationReport
    from scalr_prod.evaluation.plan import EvaluationRequest
    from scalr_prod.evaluation.progress import EvaluationProgress
    from scalr_prod.evaluation.split import EvaluationSplit
    from scalr_prod.evaluation.trial_cache import ValidationSplit


logger = logging.getLogger(__name__)


def run_quick_verdict(runner: EvaluationRunner, window: Sequence[ValidationSplit]) -> EvaluationReport:
    """Evaluate the arms of a quick plan, log each result as it comes, and write and return the report.

    λ is 0 if source histories have no signal, as the quality gate then refuses a run.

    Args:
        runner: A runner of a quick plan, with one family and one cutoff.
        window: The splits of the latest validation window.

    Raises:
        TranslatorError: Too little to learn from.
    """
    runner.prepare_tuning(window[:1])
    (family,), (split,) = runner.families.values(), runner.plan.splits
    run = runner.prepare_cutoff(split)
    for arm in (POPULARITY_BASELINE, CLUSTER_BASELINE):
        runner.evaluate_arm(run, family, arm)
    runner.tune_arm(family, REAL_ONLY)
    runner.evaluate_arm(run, family, REAL_ONLY)
    runner.signal = measure_signal(run.cache, run.data_builder)
    logger.info("signal beyond popularity: %s", describe_signal(runner.signal))
    runner.use_defaults(family, has_signal=classify_signal(runner.signal) is not Signal.ABSENT)
    runner.evaluate_arm(run, family, WITH_SYNTHETIC)
    report = runner.finish()
    limit = run.data_builder.max_contexts
    scope = "" if limit is None else f" (of {limit:,} sampled contexts)"
    summary = summarize_verdict(report.to_json())
    logger.info("quick verdict%s: %s %s", scope, summary.answer, summary.by_group)
    return report


def evaluate(settings: Settings, request: EvaluationRequest, *, progress: bool = False) -> EvaluationReport:
    """Train models with and without synthetic events up to a cutoff and evaluate them on later events.

    A quick verdict comes first. Results are cached in the isolated homes: an interrupted call resumes when it is repeated, and gives the
    same report except for `EvaluationReport.seconds`.

    Everything that learns reads an isolated home. Each arm is tuned on validation windows within the training period of the first
    cutoff, each in a home of its own: its last fifth of events, the last fifth of the rest, and so on. Later cutoffs are tested with the
    same choices. The result is written to the project as a policy, which runs apply.

    Args:
        settings: The project's settings; missing logs are ingested first.
        request: Arms and cutoffs, and how thoroughly to evaluate.
        progress: Show a progress bar on stderr; otherwise progress is logged.

    Raises:
        EvaluationError: Too few test users, an unknown arm, or an unusable model.
    """
    with evaluation_progress(show_bar=progress) as reporter:
        reporter.start_task("reading the logs")
        plan = EvaluationPlan.from_request(settings, request)
        latest = _validation_window(plan.splits[0], 0, None, reporter)
        verdict = run_quick_verdict(EvaluationRunner(plan.quick_plan(), reporter), latest)
        if request.quick:
            return verdict
        runner = EvaluationRunner(plan, reporter)
        runner.tune_arms(_validation_windows(latest, plan.splits[0], reporter))
        for split in plan.splits:
            runner.evaluate_split(split)
        return runner.finish()


def _validation_window(
    split: EvaluationSplit, number: int, end: datetime | None, progress: EvaluationProgress
) -> list[ValidationSplit]:
    """Create a validation window within a split's training period: its users as they are, and then each half as if they were new.

    Raises:
        EvaluationError: It has too few users.
    """
    earlier = split.earlier(number, end=end, cold_fraction=0.0)
    data_builder = ArmDataBuilder(
        earlier, on_training=lambda: progress.start_task(f"training the translator of validation window {number + 1}")
    )
    return validation_splits(data_builder, split.settings.downstream.k)


def _validation_windows(
    latest: list[ValidationSplit], split: EvaluationSplit, progress: EvaluationProgress
) -> list[ValidationSplit]:
    """Create the splits of all validation windows, latest first; fewer windows than configured if the log is too short.

    Args:
        latest: The latest window.
        split: The split whose training period they lie in.
        progress: Progress reporting.
    """
    windows = [latest]
    for number in range(1, split.settings.downstream.windows):
        try:
            window = _validation_window(split, number, windows[-1][0].evaluator.split.cutoff, progress)
            # Trains the translator, which fails if there is too little data.
            measure_signal(window[0].cache, window[0].data_builder)
        except (EvaluationError, TranslatorError) as error:
            logger.warning("validation uses %d of %d windows: %s", number, split.settings.downstream.windows, error)
            break
        windows.append(window)
    return [one for window in windows for one in window]
