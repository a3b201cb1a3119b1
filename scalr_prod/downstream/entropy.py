# SPDX-License-Identifier: Apache-2.0
"""Normalised entropy and calibration of arms whose models give probabilities, for all test users and by segment, with intervals.

NE is log loss over the entropy of the base rate (He et al., ADKDD 2014). All arms are judged on the same rows, so the relative
difference in NE is that in log loss, and users and items are resampled as for the rankings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.downstream.arms import BASE, OURS
from scalr_prod.downstream.metrics import calibration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from scalr_prod.downstream.panel import Panel
    from scalr_prod.downstream.statistics import TwoWayBootstrap
    from scalr_prod.downstream.trial import Outcome

    #: For each cutoff, the outcomes of every seed.
    Found = Sequence[Sequence[Outcome]]

__all__ = ["entropies"]


def entropies(panel: Panel, outcomes: Mapping[str, Found], bootstrap: TwoWayBootstrap) -> dict[str, dict[str, dict[str, Any]]]:
    """NE, calibration ratio, ECE, and NE relative to real events alone, for each arm with probabilities.

    Args:
        panel: The test cases.
        outcomes: Arm → its outcomes.
        bootstrap: Of the panel's cases and items.

    Returns:
        Arm → ``all`` and each segment → ``rows``, ``ne``, ``calibration``, ``ece``; except for real events alone: ``ne_vs_real_pct``, its
        ``ne_ci95`` and ``ne_p_value``, where less than 0 is better. For what is neither those nor ours also
        ``scalr_ne_vs_this_pct`` and ``scalr_ne_ci95``: NE of ours relative to the arm's.
    """
    losses = {arm: found for arm, one in outcomes.items() if (found := panel.losses(one)) is not None}
    if BASE not in losses:
        return {}
    parts = {"all": np.ones(len(panel.segment), dtype=bool)} | panel.parts()
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for arm, loss in losses.items():
        table[arm] = {}
        for name, cases in parts.items():
            row = _figures(outcomes[arm], cases)
            if arm != BASE:
                against = bootstrap.compare(loss, losses[BASE], cases)
                row |= {"ne_vs_real_pct": against.lift_pct, "ne_ci95": list(against.ci95), "ne_p_value": against.p_value}
            if arm not in {BASE, OURS} and OURS in losses:
                against = bootstrap.compare(losses[OURS], loss, cases)
                row |= {"scalr_ne_vs_this_pct": against.lift_pct, "scalr_ne_ci95": list(against.ci95)}
            table[arm][name] = row
    return table


def _figures(found: Found, cases: NDArray[np.bool_]) -> dict[str, Any]:
    """Of the rows of some cases, at all cutoffs together; means over seeds."""
    by_seed, rows = [], 0
    for seed in range(len(found[0])):
        probability, label, begin = [], [], 0
        for seeds in found:
            odds, size = seeds[seed].odds, len(seeds[seed].ranking.ndcg)
            if odds is not None:
                kept = cases[begin + odds.rows.case]
                probability.append(odds.probability[kept])
                label.append(odds.rows.label[kept])
            begin += size
        by_seed.append(calibration(np.concatenate(probability), np.concatenate(label)))
        rows = sum(map(len, label))
    return {"rows": rows} | {name: float(np.mean([one[name] for one in by_seed])) for name in by_seed[0]}
