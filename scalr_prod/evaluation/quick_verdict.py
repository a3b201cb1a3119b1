# SPDX-License-Identifier: Apache-2.0
"""Quick verdict: the earliest sound estimate of whether synthetic events help, and over which baseline.

It uses one cutoff, one family and two seeds. Cheap parts come first: the popularity baseline, real events only, then the information of
source histories, then real+scalr with fewer settings tried than in the full evaluation. All settings are chosen on the latest validation
window. The test data is used once per arm, and no choice depends on it.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from scalr_prod.evaluation.arms import POPULARITY_BASELINE, REAL_ONLY, WITH_SYNTHETIC, ArmDataBuilder
from scalr_prod.evaluation.plan import quick_context_limit
from scalr_prod.evaluation.signal import describe_signal, measure_signal
from scalr_prod.evaluation.verdict_summary import summarize_verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scalr_prod.evaluation.evaluation_report import EvaluationReport
    from scalr_prod.evaluation.runner import EvaluationRunner
    from scalr_prod.evaluation.trial_cache import ValidationSplit

__all__ = ["limit_contexts", "run_quick_verdict"]

logger = logging.getLogger(__name__)


def run_quick_verdict(runner: EvaluationRunner, window: Sequence[ValidationSplit]) -> EvaluationReport:
    """Evaluate three arms, log each result as it comes, and write and return the report.

    Args:
        runner: A runner of a quick plan, with one family and one cutoff.
        window: The splits of the latest validation window; their number of contexts is limited.

    Raises:
        TranslatorError: Too little to learn from.
    """
    window = limit_contexts(window)
    runner.prepare_tuning(window)
    (family,), (split,) = runner.families.values(), runner.plan.splits
    run = runner.prepare_cutoff(split)
    runner.evaluate_arm(run, family, POPULARITY_BASELINE)
    for arm in (REAL_ONLY, WITH_SYNTHETIC):
        if arm == WITH_SYNTHETIC:
            runner.signal = measure_signal(window[0])
            logger.info("signal beyond popularity: %s", describe_signal(runner.signal))
        runner.tune_arm(family, arm)
        runner.evaluate_arm(run, family, arm)
    report = runner.finish()
    limit = run.data_builder.max_contexts
    scope = "" if limit is None else f", drawn for {limit:,} contexts at most"
    summary = summarize_verdict(report.to_json())
    message = "first verdict, with fewer settings tried than in the full evaluation%s: %s %s"
    logger.info(message, scope, summary.answer, summary.certainty)
    return report


def limit_contexts(window: Sequence[ValidationSplit]) -> Sequence[ValidationSplit]:
    """Return a window's splits with a limited number of contexts; the splits themselves if they have no more."""
    whole, *folds = window
    limit = quick_context_limit(whole.evaluator.split)
    if limit is None:
        return window
    builder = ArmDataBuilder(whole.evaluator.split, on_training=whole.data_builder.on_training, max_contexts=limit)
    new = [replace(fold, data_builder=builder.with_new_users(fold.evaluator.split)) for fold in folds]
    return [replace(whole, data_builder=builder), *new]
