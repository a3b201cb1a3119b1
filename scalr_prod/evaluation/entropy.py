# SPDX-License-Identifier: Apache-2.0
"""Normalized entropy and calibration of arms whose models give probabilities, overall and by segment, with intervals.

NE is log loss over the entropy of the base rate (He et al., ADKDD 2014). All arms share the rows, so the relative difference in NE
equals that in log loss. Errors are clustered by user and item, as for the rankings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.evaluation.arms import REAL_ONLY, WITH_SYNTHETIC
from scalr_prod.evaluation.ranking_metrics import calibration_metrics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from scalr_prod.evaluation.statistics import TwoWayClusters
    from scalr_prod.evaluation.user_panel import OutcomesByCutoff, UserPanel

__all__ = ["normalized_entropies"]


def normalized_entropies(
    panel: UserPanel, outcomes: Mapping[str, OutcomesByCutoff], clusters: TwoWayClusters
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return NE, calibration ratio, ECE, and NE relative to real events only, for each arm with probabilities.

    Args:
        panel: Test cases.
        outcomes: Outcomes by arm.
        clusters: Users and items of the panel's cases.

    Returns:
        Arm → ``all`` and each segment → ``rows``, ``ne``, ``calibration``, ``ece``. Every arm but real events only also has
        ``ne_vs_real_pct`` (negative is better), ``ne_ci95`` and ``ne_p_value``. Every arm but real events only and real+scalr also has
        ``scalr_ne_vs_this_pct`` and ``scalr_ne_ci95``: NE of real+scalr relative to the arm's.
    """
    losses = {arm: loss for arm, by_cutoff in outcomes.items() if (loss := panel.log_loss_contributions(by_cutoff)) is not None}
    if REAL_ONLY not in losses:
        return {}
    parts = {"all": np.ones(len(panel.segment), dtype=bool)} | panel.segment_masks()
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for arm, loss in losses.items():
        table[arm] = {}
        for name, cases in parts.items():
            row = _entropy_metrics(outcomes[arm], cases)
            if arm != REAL_ONLY:
                over_real = clusters.compare(loss, losses[REAL_ONLY], cases)
                row |= {
                    "ne_vs_real_pct": over_real.lift_pct,
                    "ne_ci95": list(over_real.ci95),
                    "ne_p_value": over_real.p_value,
                }
            if arm not in {REAL_ONLY, WITH_SYNTHETIC} and WITH_SYNTHETIC in losses:
                over_arm = clusters.compare(losses[WITH_SYNTHETIC], loss, cases)
                row |= {"scalr_ne_vs_this_pct": over_arm.lift_pct, "scalr_ne_ci95": list(over_arm.ci95)}
            table[arm][name] = row
    return table


def _entropy_metrics(by_cutoff: OutcomesByCutoff, cases: NDArray[np.bool_]) -> dict[str, Any]:
    """Return row count and metrics of the given cases' rows over all cutoffs; means over seeds."""
    by_seed, rows = [], 0
    for seed in range(len(by_cutoff[0])):
        probability, label, first_case = [], [], 0
        for outcomes in by_cutoff:
            predictions = outcomes[seed].predictions
            if predictions is not None:
                included = cases[first_case + predictions.rows.case]
                probability.append(predictions.probability[included])
                label.append(predictions.rows.label[included])
            first_case += len(outcomes[seed].ranking.ndcg)
        by_seed.append(calibration_metrics(np.concatenate(probability), np.concatenate(label)))
        rows = sum(map(len, label))
    return {"rows": rows} | {name: float(np.mean([metrics[name] for metrics in by_seed])) for name in by_seed[0]}
