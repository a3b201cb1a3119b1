# SPDX-License-Identifier: Apache-2.0
"""Normalized entropy and calibration of arms whose models give probabilities, overall and by segment, with intervals.

NE is log loss over the entropy of the base rate (He et al., ADKDD 2014). All arms share the rows, so the relative difference in NE
equals that in log loss. Users and items are resampled as for the rankings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.evaluation.arms import REAL_ONLY, WITH_SYNTHETIC
from scalr_prod.evaluation.ranking_metrics import calibration_metrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from scalr_prod.evaluation.evaluator import Outcome
    from scalr_prod.evaluation.statistics import TwoWayBootstrap
    from scalr_prod.evaluation.user_panel import UserPanel

    #: For each cutoff, the outcomes of every seed.
    OutcomesByCutoff = Sequence[Sequence[Outcome]]

__all__ = ["normalized_entropies"]


def normalized_entropies(
    panel: UserPanel, outcomes: Mapping[str, OutcomesByCutoff], bootstrap: TwoWayBootstrap
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return NE, calibration ratio, ECE, and NE relative to real events alone, for each arm with probabilities.

    Args:
        panel: Test cases.
        outcomes: Outcomes by arm.
        bootstrap: Bootstrap over the panel's cases and items.

    Returns:
        Arm → ``all`` and each segment → ``rows``, ``ne``, ``calibration``, ``ece``. Every arm but real events alone also has
        ``ne_vs_real_pct`` (negative is better), ``ne_ci95`` and ``ne_p_value``. Every arm but real events alone and real+scalr also has
        ``scalr_ne_vs_this_pct`` and ``scalr_ne_ci95``: NE of real+scalr relative to the arm's.
    """
    losses = {arm: loss for arm, found in outcomes.items() if (loss := panel.log_loss_contributions(found)) is not None}
    if REAL_ONLY not in losses:
        return {}
    parts = {"all": np.ones(len(panel.segment), dtype=bool)} | panel.segment_masks()
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for arm, loss in losses.items():
        table[arm] = {}
        for name, cases in parts.items():
            row = _entropy_figures(outcomes[arm], cases)
            if arm != REAL_ONLY:
                against = bootstrap.compare(loss, losses[REAL_ONLY], cases)
                row |= {"ne_vs_real_pct": against.lift_pct, "ne_ci95": list(against.ci95), "ne_p_value": against.p_value}
            if arm not in {REAL_ONLY, WITH_SYNTHETIC} and WITH_SYNTHETIC in losses:
                against = bootstrap.compare(losses[WITH_SYNTHETIC], loss, cases)
                row |= {"scalr_ne_vs_this_pct": against.lift_pct, "scalr_ne_ci95": list(against.ci95)}
            table[arm][name] = row
    return table


def _entropy_figures(found: OutcomesByCutoff, cases: NDArray[np.bool_]) -> dict[str, Any]:
    """Return row count and metrics of the given cases' rows over all cutoffs; means over seeds."""
    by_seed, rows = [], 0
    for seed in range(len(found[0])):
        probability, label, begin = [], [], 0
        for seeds in found:
            odds, size = seeds[seed].predictions, len(seeds[seed].ranking.ndcg)
            if odds is not None:
                counted = cases[begin + odds.rows.case]
                probability.append(odds.probability[counted])
                label.append(odds.rows.label[counted])
            begin += size
        by_seed.append(calibration_metrics(np.concatenate(probability), np.concatenate(label)))
        rows = sum(map(len, label))
    return {"rows": rows} | {name: float(np.mean([metrics[name] for metrics in by_seed])) for name in by_seed[0]}
