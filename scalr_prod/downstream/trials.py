"""Fits of one family on the validation scenes, each made once, with their count.

A family is chosen by NDCG, or by what its probabilities tell of the labelled rows where its class says ``chosen_by = "information"``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.downstream.models import measure_of
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
    """A validation scene's judge and maker."""

    judge: Judge
    maker: Maker


class Trials:
    """What arms and choices reach, by validation user.

    Attributes:
        fits: Models fitted by arm.
        rankings: Fitted models ranked by arm; a boost needs no fit of its own.
        tried: Every choice with its mean figure, in order.
        measure: ``ndcg``, or ``information``: nats a row over the base rate, calibrated; what choices are made by.

    Args:
        family: The model.
        stages: The validation scenes.
        half_life: Days, of the popularity that a boost adds.
        done: Called with a description and 1 after every fit.
    """

    def __init__(self, family: str, stages: Sequence[Stage], half_life: float, done: Callable[[str, int], None]) -> None:
        self.fits: Counter[str] = Counter()
        self.rankings: Counter[str] = Counter()
        self.tried: list[dict[str, Any]] = []
        self.measure = measure_of(family)
        self._family, self._stages, self._half_life, self._done = family, stages, half_life, done
        self._models: dict[Any, list[DownstreamModel]] = {}
        self._ndcg: dict[Any, NDArray[np.float64]] = {}
        self._information: dict[Any, NDArray[np.float64]] = {}

    def value(self, arm: str, choice: Choice) -> float:
        """Mean of `by_user`."""
        return float(self.by_user(arm, choice).mean())

    def by_user(self, arm: str, choice: Choice) -> NDArray[np.float64]:
        """What counts, by user of all scenes [V]: NDCG, or information, which no boost changes."""
        return self.ndcg(arm, choice) if self.measure == "ndcg" else self._told(arm, choice)

    def outcomes(self, arm: str, choice: Choice) -> list[list[Outcome]]:
        """The ranking of each scene's users, as `Panel` takes them."""
        models = self._fitted(arm, choice)
        return [
            [stage.judge.judge(model, boost=choice.boost, half_life=self._half_life)]
            for stage, model in zip(self._stages, models, strict=True)
        ]

    def ndcg(self, arm: str, choice: Choice) -> NDArray[np.float64]:
        """NDCG [V] of the users of all scenes."""
        key = (arm, choice.fitted_by(), choice.boost)
        if key not in self._ndcg:
            self._ndcg[key] = np.concatenate([one.ranking.ndcg for (one,) in self.outcomes(arm, choice)])
            self.rankings[arm] += len(self._stages)
            self._note(arm, choice, ndcg=float(self._ndcg[key].mean()))
        return self._ndcg[key]

    def scale(self, arm: str, choice: Choice) -> LogitMap | None:
        """What calibrates the probabilities of an arm's models, from the real events of all scenes; None where there are none."""
        predicted = self._predicted(arm, choice)
        return LogitMap.fit(*zip(*predicted, strict=True)) if predicted else None

    def forget(self, arm: str) -> None:
        """Drop an arm's fitted models; its figures stay."""
        self._models = {key: models for key, models in self._models.items() if key[0] != arm}

    def _told(self, arm: str, choice: Choice) -> NDArray[np.float64]:
        """Information [V]; see `Odds.information`."""
        key = (arm, choice.fitted_by())
        if key not in self._information:
            predicted = self._predicted(arm, choice)
            scale = LogitMap.fit(*zip(*predicted, strict=True))
            self._information[key] = np.concatenate([Odds(rows, scale(p, rows.segment)).information() for rows, p in predicted])
            self._note(arm, choice, information=float(self._information[key].mean()))
        return self._information[key]

    def _predicted(self, arm: str, choice: Choice) -> list[tuple[LabelledRows, NDArray[np.float64]]]:
        """The labelled rows of every scene, and an arm's probabilities before calibration; empty where its models have none."""
        models = self._fitted(arm, choice)
        found = []
        for stage, model in zip(self._stages, models, strict=True):
            if isinstance(model, Probabilistic):
                rows = stage.judge.rows(model.negatives)
                found.append((rows, rows.predicted(model)))
        return found

    def _note(self, arm: str, choice: Choice, **figure: float) -> None:
        self.tried.append(
            {"arm": arm, "options": choice.options, "draw": choice.draw.to_json(), "weights": list(choice.weights),
             "source_weight": choice.source_weight, "boost": list(choice.boost), **figure}
        )  # fmt: skip

    def _fitted(self, arm: str, choice: Choice) -> list[DownstreamModel]:
        key = (arm, choice.fitted_by())
        if key not in self._models:
            self._models[key] = []
            for stage in self._stages:
                events = stage.maker.events(arm, choice, 0)
                self._models[key].append(stage.judge.fit(self._family, choice.options, events, seed=0))
                self.fits[arm] += 1
                self._done(f"{self._family} {arm}", 1)
        return self._models[key]
