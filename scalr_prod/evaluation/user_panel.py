# SPDX-License-Identifier: Apache-2.0
"""Test cases of all cutoffs in one panel with common user and item numbers; a test case is a user at a cutoff."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scalr_prod.core.id_index import index_in
from scalr_prod.evaluation.statistics import MetricContributions
from scalr_prod.generation import SEGMENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scalr_prod.evaluation.evaluator import Outcome
    from scalr_prod.evaluation.split import EvaluationSplit

    #: For each cutoff, the outcomes of every seed.
    OutcomesByCutoff = Sequence[Sequence[Outcome]]


@dataclass(frozen=True)
class UserPanel:
    """Test cases, ordered by cutoff.

    Attributes:
        user: int64 [R]. User number of each case.
        segment: int8 [R]. 0 cold, 1 sparse, 2 dense, at the case's cutoff.
        item_number: For each cutoff int64 [N]: panel number of each item. Items of the last cutoff keep their numbers; others follow.
        n_items: Number of numbered items.
        n_cases: Number of cases of each cutoff.
    """

    user: NDArray[np.int64]
    segment: NDArray[np.int8]
    item_number: tuple[NDArray[np.int64], ...]
    n_items: int
    n_cases: tuple[int, ...]

    @classmethod
    def from_splits(cls, splits: Sequence[EvaluationSplit]) -> UserPanel:
        """Build the panel from splits of one project, in order of time."""
        last = splits[-1].numbering.items
        numbers = []
        n_items = len(last)
        for split in splits:
            number = index_in(split.numbering.items, last).astype(np.int64)
            missing = number < 0
            number[missing] = n_items + np.arange(missing.sum())
            n_items += int(missing.sum())
            numbers.append(number)
        return cls(
            user=np.concatenate([split.users for split in splits]),
            segment=np.concatenate([split.segments()[split.users] for split in splits]),
            item_number=tuple(numbers),
            n_items=n_items,
            n_cases=tuple(len(split.users) for split in splits),
        )

    def segment_masks(self) -> dict[str, NDArray[np.bool_]]:
        """Return a mask bool [R] of each segment's cases by name; empty segments are left out."""
        masks = {name: self.segment == number for number, name in enumerate(SEGMENTS)}
        return {name: cases for name, cases in masks.items() if cases.any()}

    def mean_metric(self, outcomes: OutcomesByCutoff, name: str) -> NDArray[np.float64]:
        """Return a ranking metric of each case, averaged over seeds: float64 [R].

        Args:
            outcomes: For each cutoff, the outcomes of every seed.
            name: Name of the metric, an attribute of `Ranking`.
        """
        return np.concatenate([np.mean([getattr(outcome.ranking, name) for outcome in seeds], axis=0) for seeds in outcomes])

    def ndcg_contributions(self, outcomes: OutcomesByCutoff) -> MetricContributions:
        """Return what each rank of every seed contributes; a case's contributions sum to its mean NDCG."""
        return self.renumber(
            [
                MetricContributions.concat([outcome.ranking.hits().weighted(1 / len(seeds)) for outcome in seeds])
                for seeds in outcomes
            ]
        )

    def renumber(self, contributions: Sequence[MetricContributions]) -> MetricContributions:
        """Join contributions by cutoff, whose cases and items have the numbers of the cutoff's split."""
        first_case = np.cumsum([0, *self.n_cases[:-1]])
        return MetricContributions.concat(
            [
                MetricContributions(first + one.case, number[one.item], one.gain)
                for first, number, one in zip(first_case, self.item_number, contributions, strict=False)
            ]
        )

    def log_loss_contributions(self, outcomes: OutcomesByCutoff) -> MetricContributions | None:
        """Return the log loss (nats) of every labelled row, averaged over seeds; None for models without probabilities."""
        case, item, loss = [], [], []
        first_case = 0
        for number, seeds in zip(self.item_number, outcomes, strict=True):
            predictions = [outcome.predictions for outcome in seeds if outcome.predictions is not None]
            if not predictions:
                return None
            rows = predictions[0].rows
            case.append(first_case + rows.case)
            item.append(number[rows.item])
            loss.append(np.mean([one.log_loss for one in predictions], axis=0))
            first_case += len(seeds[0].ranking.ndcg)
        return MetricContributions(case=np.concatenate(case), item=np.concatenate(item), gain=np.concatenate(loss))
