# SPDX-License-Identifier: Apache-2.0
"""Validation results of one family: each choice is fitted once on every window, and fits are counted.

The selection metric is NDCG, or the information gain of the probabilities if the model class sets ``chosen_by = "information"``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.downstream.arms import BASE, RIVAL
from scalr_prod.downstream.kept import ARRAY, FACTS, FORGETFUL, Kept, family_code, outcomes_of
from scalr_prod.downstream.models import knows_before, measure_of
from scalr_prod.downstream.odds import LogitMap, Odds
from scalr_prod.downstream.protocol import Probabilistic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from scalr_prod.downstream.arms import Choice, Maker
    from scalr_prod.downstream.odds import LabelledRows
    from scalr_prod.downstream.protocol import DownstreamModel
    from scalr_prod.downstream.trial import Judge, Outcome

__all__ = ["Stage", "Trials"]


@dataclass(frozen=True, eq=False)
class Stage:
    """A validation window: its evaluator, its data builder, and its cached results."""

    judge: Judge
    maker: Maker
    kept: Kept = FORGETFUL


class Trials:
    """Scores of arms and choices by validation user. Results cached by an earlier command are reused, not fitted again.

    Attributes:
        fits: Number of models needed by arm, whether fitted now or cached.
        rankings: Number of rankings by arm, counted the same way; a boost needs no fit of its own.
        tried: Every choice with its mean score, in order.
        measure: Selection metric: ``ndcg``, or ``information`` (nats per row over the base rate, calibrated).

    Args:
        family: Model family.
        stages: Validation windows.
        half_life: Half-life in days of the popularity that a boost adds.
        done: Called with a description and 1 after every fit.
    """

    def __init__(self, family: str, stages: Sequence[Stage], half_life: float, done: Callable[[str, int], None]) -> None:
        self.fits: Counter[str] = Counter()
        self.rankings: Counter[str] = Counter()
        self.tried: list[dict[str, Any]] = []
        self.measure = measure_of(family)
        self._family, self._stages, self._half_life, self._done = family, stages, half_life, done
        self._code = family_code(family)
        self._counted: set[Any] = set()
        self._models: dict[Any, DownstreamModel] = {}
        self._ndcg: dict[Any, NDArray[np.float64]] = {}
        self._information: dict[Any, NDArray[np.float64]] = {}

    def value(self, arm: str, choice: Choice) -> float:
        """Return the mean score over the users of all windows."""
        return float(self.by_user(arm, choice).mean())

    def by_user(self, arm: str, choice: Choice) -> NDArray[np.float64]:
        """Return the selection metric of each user of all windows [V]; a boost changes NDCG but not information."""
        return self.ndcg(arm, choice) if self.measure == "ndcg" else self._told(arm, choice)

    def outcomes(self, arm: str, choice: Choice) -> list[list[Outcome]]:
        """Return the outcome of each window, nested as `Panel` expects."""
        self._count(arm, choice)
        return [
            [
                window.kept.once(
                    self._key("outcome", arm, choice), partial(self._judged, number, arm, choice), outcomes_of(window.judge)
                )
            ]
            for number, window in enumerate(self._stages)
        ]

    def ndcg(self, arm: str, choice: Choice) -> NDArray[np.float64]:
        """Return NDCG of each user of all windows: [V]."""
        key = (arm, choice.fitted_by(), choice.boost)
        if key not in self._ndcg:
            self._count(arm, choice)
            ranked = [
                window.kept.once(self._key("ndcg", arm, choice), partial(self._ranked, number, arm, choice), ARRAY)
                for number, window in enumerate(self._stages)
            ]
            self._ndcg[key] = np.concatenate(ranked)
            self.rankings[arm] += len(self._stages)
            self._note(arm, choice, ndcg=float(self._ndcg[key].mean()))
        return self._ndcg[key]

    def scale(self, arm: str, choice: Choice) -> LogitMap | None:
        """Fit the calibration of an arm's probabilities on real events of all windows; None for models without probabilities."""

        def fit() -> dict[str, Any] | None:
            predicted = self._predicted(arm, choice)
            return LogitMap.fit(*zip(*predicted, strict=True)).to_json() if predicted else None

        self._count(arm, choice)
        found = self._stages[0].kept.once(self._key("scale", arm, choice, together=True), fit, FACTS)
        return None if found is None else LogitMap(tuple(found["slope"]), tuple(found["offset"]))

    def forget(self, arm: str) -> None:
        """Drop an arm's fitted models to free memory; its scores stay."""
        self._models = {key: model for key, model in self._models.items() if key[0] != arm}
        self._counted = {key for key in self._counted if key[0] != arm}

    def _told(self, arm: str, choice: Choice) -> NDArray[np.float64]:
        """Return the information gain of each user: [V]."""

        def compute() -> NDArray[np.float64]:
            predicted = self._predicted(arm, choice)
            scale = LogitMap.fit(*zip(*predicted, strict=True))
            return np.concatenate([Odds(rows, scale(p, rows.segment)).information() for rows, p in predicted])

        key = (arm, choice.fitted_by())
        if key not in self._information:
            self._count(arm, choice)
            kept = self._stages[0].kept
            self._information[key] = kept.once(self._key("information", arm, choice, together=True), compute, ARRAY)
            self._note(arm, choice, information=float(self._information[key].mean()))
        return self._information[key]

    def _judged(self, number: int, arm: str, choice: Choice) -> Outcome:
        model = self._fitted(number, arm, choice)
        return self._stages[number].judge.judge(model, boost=choice.boost, half_life=self._half_life)

    def _ranked(self, number: int, arm: str, choice: Choice) -> NDArray[np.float64]:
        return self._judged(number, arm, choice).ranking.ndcg

    def _predicted(self, arm: str, choice: Choice) -> list[tuple[LabelledRows, NDArray[np.float64]]]:
        """Return each window's labelled rows with an arm's uncalibrated probabilities; empty for models without probabilities."""
        found = []
        for number, window in enumerate(self._stages):
            model = self._fitted(number, arm, choice)
            if isinstance(model, Probabilistic):
                rows = window.judge.rows(model.negatives)
                found.append((rows, rows.predicted(model)))
        return found

    def _note(self, arm: str, choice: Choice, **figure: float) -> None:
        self.tried.append({"arm": arm} | choice.to_json() | figure)

    def _key(self, what: str, arm: str, choice: Choice, *, together: bool = False) -> tuple[Any, ...]:
        """Return the cache key of a result; results over all windows also depend on each window's fingerprint."""
        fingerprints = [window.kept.fingerprint for window in self._stages] if together else []
        budgets = [window.maker.few.to_json() for window in self._stages] if arm not in {BASE, RIVAL} else []
        return (what, self._family, self._code, arm, choice.to_json(), self._half_life, fingerprints, budgets)

    def _count(self, arm: str, choice: Choice) -> None:
        """Count the fits of a choice once, also if its results are cached, until the arm's models are dropped."""
        key = (arm, choice.fitted_by())
        if key not in self._counted:
            self._counted.add(key)
            self.fits[arm] += len(self._stages)

    def _fitted(self, number: int, arm: str, choice: Choice) -> DownstreamModel:
        key = (arm, choice.fitted_by(), number)
        if key not in self._models:
            window = self._stages[number]
            events = window.maker.events(arm, choice, 0)
            if knows_before(self._family):
                events = window.maker.with_before(events, arm, choice, 0)
            self._models[key] = window.judge.fit(self._family, choice.options, events, seed=0)
            self._done(f"{self._family} {arm}", 1)
        return self._models[key]
