# SPDX-License-Identifier: Apache-2.0
"""The first verdict: does it help, and over what, as soon as that can honestly be said.

One cutoff, one family, two seeds. What is cheap comes first: the list of what is popular lately, real events alone, then what source
histories say, then ours with fewer choices tried than in the whole evaluation. All choices are made on the latest validation window; the
test slice is looked at once for each arm, and decides nothing.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from scalr_prod.downstream.arms import BASE, OURS
from scalr_prod.downstream.signal import signal_of, signal_sentence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scalr_prod.downstream.bench import Bench
    from scalr_prod.downstream.report import EvaluationReport
    from scalr_prod.downstream.trials import Stage

__all__ = ["first_verdict"]

logger = logging.getLogger(__name__)


def first_verdict(bench: Bench, stage: Stage) -> EvaluationReport:
    """Tell what is known as it comes, then the verdict; on disk as well.

    Args:
        bench: A quick one, with one family and one cutoff.
        stage: The latest validation window.

    Raises:
        TranslatorError: Too little to learn from.
    """
    (family,), (scene,) = bench.settings.downstream.models, bench.scenes
    bench.begin([stage])
    here = bench.at(scene)
    bench.judge_arm(here, family, "popular_lately")
    for arm in (BASE, OURS):
        if arm == OURS:
            bench.signal = signal_of(stage)
            logger.info("signal beyond the trend: %s", signal_sentence(bench.signal))
        bench.choose_arm(family, arm)
        bench.judge_arm(here, family, arm)
    report = bench.finish()
    made_of = f"with fewer choices tried than in the whole evaluation{here.maker.few.told()}"
    logger.info("first verdict, %s: %s", made_of, _sentence(report, family))
    return report


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
