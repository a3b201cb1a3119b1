# SPDX-License-Identifier: Apache-2.0
"""Quick verdict: whether synthetic events help with a run's default settings, and over which baseline.

It uses one cutoff, one family and two seeds. Nothing about synthetic events is chosen, so one translator is enough: that of the cutoff. The
baselines are tuned on the latest validation window, with its users as they are. Cheap parts come first: popularity, real events only, then
the information of source histories, then real+scalr. The test data is used once per arm, and no choice depends on it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from scalr_prod.evaluation.arms import CLUSTER_BASELINE, POPULARITY_BASELINE, REAL_ONLY, WITH_SYNTHETIC
from scalr_prod.evaluation.signal import Signal, classify_signal, describe_signal, measure_signal
from scalr_prod.evaluation.verdict_summary import summarize_verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scalr_prod.evaluation.evaluation_report import EvaluationReport
    from scalr_prod.evaluation.runner import EvaluationRunner
    from scalr_prod.evaluation.trial_cache import ValidationSplit

__all__ = ["run_quick_verdict"]

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
    scope = "" if limit is None else f", drawn for {limit:,} contexts at most"
    summary = summarize_verdict(report.to_json())
    logger.info("first verdict, with a run's default settings%s: %s %s", scope, summary.answer, summary.certainty)
    return report
