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

from scalr_prod.evaluation.acceptance import describe_acceptance
from scalr_prod.evaluation.arms import POPULARITY_BASELINE, REAL_ONLY, WITH_SYNTHETIC, ArmDataBuilder, describe_baseline
from scalr_prod.evaluation.budget import UNLIMITED, budget_for
from scalr_prod.evaluation.evaluation_report import format_percent
from scalr_prod.evaluation.signal import describe_signal, measure_signal

if TYPE_CHECKING:
    from scalr_prod.evaluation.evaluation_report import EvaluationReport
    from scalr_prod.evaluation.runner import EvaluationRunner
    from scalr_prod.evaluation.trial_cache import ValidationWindow

__all__ = ["run_quick_verdict", "with_budget"]

logger = logging.getLogger(__name__)


def run_quick_verdict(runner: EvaluationRunner, window: ValidationWindow) -> EvaluationReport:
    """Evaluate three arms, log each result as it comes, and write and return the report.

    Args:
        runner: A runner of a quick plan, with one family and one cutoff.
        window: The latest validation window; its data builder is limited to the budget.

    Raises:
        TranslatorError: Too little to learn from.
    """
    window = with_budget(window)
    runner.prepare_tuning([window])
    (family,), (split,) = runner.families.values(), runner.plan.splits
    run = runner.prepare_cutoff(split)
    runner.evaluate_arm(run, family, POPULARITY_BASELINE)
    for arm in (REAL_ONLY, WITH_SYNTHETIC):
        if arm == WITH_SYNTHETIC:
            runner.signal = measure_signal(window)
            logger.info("signal beyond popularity: %s", describe_signal(runner.signal))
        runner.tune_arm(family, arm)
        runner.evaluate_arm(run, family, arm)
    report = runner.finish()
    scope = f"with fewer settings tried than in the full evaluation{run.data_builder.budget.describe()}"
    logger.info("first verdict, %s: %s", scope, _describe_verdict(report, family.name))
    return report


def with_budget(window: ValidationWindow) -> ValidationWindow:
    """Return the window with a data builder that respects the budget; the window itself if no bound applies."""
    split = window.evaluator.split
    budget = budget_for(split)
    if budget == UNLIMITED:
        return window
    return replace(window, data_builder=ArmDataBuilder(split, on_training=window.data_builder.on_training, budget=budget))


def _describe_verdict(report: EvaluationReport, family: str) -> str:
    (verdict,), choice = report.verdict["models"], report.choices[family]
    best_baseline = describe_baseline(verdict["best_baseline"])
    if not choice["helps"]:
        decision = describe_acceptance(tuple(choice["lambda"].values()), choice["validation"].get("bar"))
        return f"with {family}, synthetic augmentation is {decision}; the best baseline is {best_baseline}"
    low, high = verdict["ci95"]
    effect = "helps" if low > 0 else "harms" if high < 0 else "is not shown to help"
    cold = f", for cold users {format_percent(verdict['cold'], 'lift_over_best_pct')}" if "cold" in verdict else ""
    lift = format_percent(verdict, "lift_over_best_pct")
    return f"with {family}, synthetic augmentation {effect}: NDCG {lift} over {best_baseline}, the best baseline{cold}"
