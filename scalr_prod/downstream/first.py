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

from scalr_prod.downstream.arms import BASE, OURS, Maker
from scalr_prod.downstream.few import ALL, few_of
from scalr_prod.downstream.signal import signal_of, signal_sentence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scalr_prod.downstream.bench import Bench
    from scalr_prod.downstream.report import EvaluationReport
    from scalr_prod.downstream.trials import Stage

__all__ = ["first_verdict", "with_few"]

logger = logging.getLogger(__name__)


def first_verdict(bench: Bench, stage: Stage) -> EvaluationReport:
    """Evaluate three arms, log each result as it comes, and write and return the report.

    Args:
        bench: A runner in quick mode, with one family and one cutoff.
        stage: The latest validation window.

    Raises:
        TranslatorError: Too little to learn from.
    """
    (family,), (split,) = bench.settings.downstream.models, bench.scenes
    bench.begin([stage])
    run = bench.at(split)
    bench.judge_arm(run, family, "popular_lately")
    for arm in (BASE, OURS):
        if arm == OURS:
            bench.signal = signal_of(stage)
            logger.info("signal beyond the trend: %s", signal_sentence(bench.signal))
        bench.choose_arm(family, arm)
        bench.judge_arm(run, family, arm)
    report = bench.finish()
    scope = f"with fewer choices tried than in the whole evaluation{run.maker.few.told()}"
    logger.info("first verdict, %s: %s", scope, _sentence(report, family))
    return report


def with_few(stage: Stage) -> Stage:
    """Return the window with a data builder that respects the budget; the window itself if no bound applies."""
    split = stage.judge.scene
    few = few_of(split)
    return stage if few == ALL else replace(stage, maker=Maker(split, begun=stage.maker.begun, few=few))


def _sentence(report: EvaluationReport, family: str) -> str:
    (found,), choice = report.verdict["models"], report.choices[family]
    if not choice["helps"]:
        refused = choice["validation"].get("refused")
        gain = f" beyond chance ({_percent(refused)} over real events alone)" if refused else ""
        return f"with {family}, ours does not help on the validation window{gain}: λ is 0, the best baseline {found['best_baseline']}"
    low, high = found["ci95"]
    shown = "helps" if low > 0 else "harms" if high < 0 else "is not shown to help"
    cold = f", for cold users {_percent(found['cold'], 'lift_over_best_pct')}" if "cold" in found else ""
    over = f"{found['best_baseline']}, the best baseline"
    return f"with {family}, ours {shown}: NDCG {_percent(found, 'lift_over_best_pct')} over {over}{cold}"


def _percent(found: Mapping[str, Any], name: str = "lift_pct") -> str:
    low, high = found["ci95"]
    return f"{found[name]:+.1f} % (95 %: {low:+.1f} … {high:+.1f})"
