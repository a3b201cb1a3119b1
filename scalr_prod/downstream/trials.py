"""Fits of one family on the validation scenes, each made once, with their count."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.downstream.odds import LogitMap
from scalr_prod.downstream.protocol import Probabilistic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from scalr_prod.downstream.arms import Choice, Maker
    from scalr_prod.downstream.protocol import Recommender
    from scalr_prod.downstream.trial import Judge

__all__ = ["Stage", "Trials"]


@dataclass(frozen=True, eq=False)
class Stage:
    """A validation scene's judge and maker."""

    judge: Judge
    maker: Maker


class Trials:
    """NDCG of arms and choices by validation user.

    Attributes:
        fits: Models fitted by arm.
        rankings: Fitted models ranked by arm; a boost needs no fit of its own.
        tried: Every choice with its mean NDCG, in order.

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
        self._family, self._stages, self._half_life, self._done = family, stages, half_life, done
        self._models: dict[Any, list[Recommender]] = {}
        self._found: dict[Any, NDArray[np.float64]] = {}

    def value(self, arm: str, choice: Choice) -> float:
        """Mean NDCG over the users of all scenes."""
        return float(self.by_user(arm, choice).mean())

    def by_user(self, arm: str, choice: Choice) -> NDArray[np.float64]:
        """NDCG [V] of the users of all scenes."""
        key = (arm, choice.fitted_by(), choice.boost)
        if key not in self._found:
            models = self._fitted(arm, choice)
            self._found[key] = np.concatenate(
                [
                    stage.judge.judge(model, boost=choice.boost, half_life=self._half_life).ranking.ndcg
                    for stage, model in zip(self._stages, models, strict=True)
                ]
            )
            self.rankings[arm] += len(models)
            self.tried.append(
                {"arm": arm, "options": choice.options, "draw": choice.draw.to_json(), "weights": list(choice.weights),
                 "source_weight": choice.source_weight, "boost": choice.boost, "ndcg": float(self._found[key].mean())}
            )  # fmt: skip
        return self._found[key]

    def scale(self, arm: str, choice: Choice) -> LogitMap | None:
        """What calibrates the probabilities of an arm's models, from the real events of all scenes; None where there are none."""
        rows, predicted = [], []
        for stage, model in zip(self._stages, self._fitted(arm, choice), strict=True):
            if not isinstance(model, Probabilistic):
                return None
            rows.append(stage.judge.rows(model.negatives))
            predicted.append(rows[-1].predicted(model))
        return LogitMap.fit(rows, predicted)

    def forget(self, arm: str) -> None:
        """Drop an arm's fitted models; its figures stay."""
        self._models = {key: models for key, models in self._models.items() if key[0] != arm}

    def _fitted(self, arm: str, choice: Choice) -> list[Recommender]:
        key = (arm, choice.fitted_by())
        if key not in self._models:
            self._models[key] = []
            for stage in self._stages:
                events = stage.maker.events(arm, choice, 0)
                self._models[key].append(stage.judge.fit(self._family, choice.options, events, seed=0))
                self.fits[arm] += 1
                self._done(f"{self._family} {arm}", 1)
        return self._models[key]
