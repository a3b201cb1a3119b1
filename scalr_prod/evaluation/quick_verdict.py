# SPDX-License-Identifier: Apache-2.0
"""Quick verdict: the earliest sound estimate of whether synthetic events help, and over which baseline.

It uses one cutoff, one family and two seeds. Cheap parts come first: recent popularity, real events alone, then the information of source
histories, then real+scalr with fewer choices tried than in the full evaluation. All choices are made on the latest validation window.
The test slice is used once per arm, and no choice depends on it.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scalr_prod.evaluation.arms import REAL_ONLY, WITH_SYNTHETIC, ArmDataBuilder
from scalr_prod.evaluation.budget import UNLIMITED, budget_for
from scalr_prod.evaluation.signal import describe_signal, measure_signal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scalr_prod.evaluation.cutoff_run import EvaluationRunner
    from scalr_prod.evaluation.evaluation_report import EvaluationReport
    from scalr_prod.evaluation.trial_cache import ValidationWindow

__all__ = ["run_quick_verdict", "with_budget"]

logger = logging.getLogger(__name__)


def run_quick_verdict(runner: EvaluationRunner, window: ValidationWindow) -> EvaluationReport:
    """Evaluate three arms, log each result as it comes, and write and return the report.

    Args:
        runner: A runner in quick mode, with one family and one cutoff.
        window: The latest validation window.

    Raises:
        TranslatorError: Too little to learn from.
    """
    (family,), (split,) = runner.settings.downstream.models, runner.splits
    runner.prepare_tuning([window])
    run = runner.prepare_cutoff(split)
    runner.evaluate_arm(run, family, "popular_lately")
    for arm in (REAL_ONLY, WITH_SYNTHETIC):
        if arm == WITH_SYNTHETIC:
            runner.signal = measure_signal(window)
            logger.info("signal beyond the trend: %s", describe_signal(runner.signal))
        runner.tune_arm(family, arm)
        runner.evaluate_arm(run, family, arm)
    report = runner.finish()
    scope = f"with fewer choices tried than in the whole evaluation{run.data_builder.budget.describe()}"
    logger.info("first verdict, %s: %s", scope, _describe_verdict(report, family))
    return report


def with_budget(window: ValidationWindow) -> ValidationWindow:
    """Return the window with a data builder that respects the budget; the window itself if no bound applies."""
    split = window.evaluator.split
    few = budget_for(split)
    return (
        window
        if few == UNLIMITED
        else replace(window, data_builder=ArmDataBuilder(split, on_training=window.data_builder.on_training, budget=few))
    )


def _describe_verdict(report: EvaluationReport, family: str) -> str:
    (found,), choice = report.verdict["models"], report.choices[family]
    if not choice["helps"]:
        refused = choice["validation"].get("refused")
        gain = f" beyond chance ({_format_percent(refused)} over real events alone)" if refused else ""
        return f"with {family}, ours does not help on the validation window{gain}: λ is 0, the best baseline {found['best_baseline']}"
    low, high = found["ci95"]
    shown = "helps" if low > 0 else "harms" if high < 0 else "is not shown to help"
    cold = f", for cold users {_format_percent(found['cold'], 'lift_over_best_pct')}" if "cold" in found else ""
    over = f"{found['best_baseline']}, the best baseline"
    return f"with {family}, ours {shown}: NDCG {_format_percent(found, 'lift_over_best_pct')} over {over}{cold}"


def _format_percent(found: Mapping[str, Any], name: str = "lift_pct") -> str:
    low, high = found["ci95"]
    return f"{found[name]:+.1f} % (95 %: {low:+.1f} … {high:+.1f})"
