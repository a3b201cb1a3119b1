# SPDX-License-Identifier: Apache-2.0
"""Evaluation runner: tunes every arm, evaluates it at every cutoff, and writes a report after each family."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.downstream.arms import BASE, LISTS, OURS, RIVAL, TUNED, Maker
from scalr_prod.downstream.few import ALL, few_of
from scalr_prod.downstream.kept import FACTS, Kept, family_code, outcomes_of
from scalr_prod.downstream.models import knows_before, knows_source
from scalr_prod.downstream.panel import Panel
from scalr_prod.downstream.published import Published
from scalr_prod.downstream.report import EvaluationReport, summarise, verdict_of, write_report
from scalr_prod.downstream.signal import signal_of
from scalr_prod.downstream.trial import Judge
from scalr_prod.downstream.tuning import Tuner, tune_lately
from scalr_prod.policy import SEGMENTS, Policy, logs_digest, policy_path, settings_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scalr_prod.downstream.arms import Choice
    from scalr_prod.downstream.heartbeat import Heartbeat
    from scalr_prod.downstream.odds import LogitMap
    from scalr_prod.downstream.scene import Scene
    from scalr_prod.downstream.trial import Outcome
    from scalr_prod.downstream.trials import Stage
    from scalr_prod.settings import Settings

__all__ = ["Bench", "Here"]

logger = logging.getLogger(__name__)

_NOTHING: Final = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Here:
    """What is needed to evaluate arms at one cutoff.

    Attributes:
        judge: Evaluator of the cutoff's split.
        maker: Builder of the arms' training events.
        published: Published training sets.
        kept: Cached results of the split.
    """

    judge: Judge
    maker: Maker
    published: Published
    kept: Kept

    @property
    def date(self) -> str:
        """Date of the cutoff, ISO 8601."""
        return self.judge.scene.cutoff.date().isoformat()


#: Approximate number of fits to tune an arm, as ALS and two-tower took on the Yelp log. Used only to estimate the remaining time.
_FITS_OF_CHOICE: Final = {BASE: 14, OURS: 31, RIVAL: 19}
_FITS_OF_A_CONTROL: Final = 36


def _fits_of_choice(arm: str) -> int:
    return _FITS_OF_CHOICE.get(arm, _FITS_OF_A_CONTROL if arm in TUNED else 1)


class Bench:
    """One evaluation.

    Args:
        settings: The project's settings, with the models and seeds to use.
        arms: Arms to compare.
        scenes: One split per cutoff, in order of time.
        cold: Share of users whose target history is hidden.
        pulse: Progress reporting.
        quick: Try fewer choices, sample real+scalr in process, and write no policy.
    """

    def __init__(
        self,
        settings: Settings,
        arms: Sequence[str],
        scenes: Sequence[Scene],
        cold: float,
        pulse: Heartbeat,
        *,
        quick: bool = False,
    ) -> None:
        self.settings, self.arms, self.scenes, self.cold, self.pulse = settings, arms, scenes, cold, pulse
        self.quick = quick
        self.folder = settings.home / "evaluations" / f"{'quick' if quick else 'report'}-{scenes[0].settings.home.name}"
        self.choices: dict[str, dict[str, Choice]] = {}
        self.figures: dict[str, dict[str, Any]] = {}
        self.scales: dict[str, dict[str, LogitMap | None]] = {}
        self.best: dict[str, dict[str, str]] = {}
        self.lately: dict[str, Any] = {}
        self.signal: dict[str, Any] | None = None
        self.outcomes: dict[str, dict[str, list[list[Outcome]]]] = {}
        self.synthetic: dict[tuple[str, str], dict[str, float]] = {}
        self.runs: list[dict[str, Any]] = []
        self._tuners: dict[str, Tuner] = {}
        self._started = time.perf_counter()

    def choose(self, stages: Sequence[Stage]) -> None:
        """Tune every arm on the validation windows."""
        families = [self._arms(family) for family in self.settings.downstream.models]
        chosen, judged = (
            sum(fits(arm) for arms in families for arm in arms) for fits in (_fits_of_choice, self._fits_of_judging)
        )
        self.pulse.total = chosen + judged * len(self.scenes)
        self.begin(stages)
        self.signal = signal_of(stages[0])
        for family in self.settings.downstream.models:
            for arm in self.pulse.steps(self._arms(family), _fits_of_choice):
                self.choose_arm(family, arm)

    def begin(self, stages: Sequence[Stage]) -> None:
        """Tune the half-life of recent popularity, which all other choices depend on, and create the tuners."""
        self.pulse.at("choosing the half-life of popular_lately")
        self.lately = tune_lately(stages)
        self._tuners = {
            family: Tuner(family, stages, self.settings, self.lately, self.pulse.fitted, few=self.quick)
            for family in self.settings.downstream.models
        }

    def choose_arm(self, family: str, arm: str) -> None:
        """Tune one arm; real events alone must come first."""
        tuner = self._tuners[family]
        if arm == BASE:
            self.choices[family], self.figures[family], self.scales[family] = {}, {}, {}
        if arm in LISTS:
            return
        if arm in {BASE, RIVAL, *TUNED}:
            self.pulse.at(f"choosing for {family} {arm}")
            choice, figures = tuner.of(arm)
            self.choices[family][arm], self.figures[family][arm] = choice, figures
            logger.info("%s %s on validation: NDCG %.4f, %d fits", family, arm, figures["ndcg"], figures["fits"])
        # A family without probabilities needs no calibration; the first arm shows whether it has them.
        calibrates = arm == BASE or self.scales[family][BASE] is not None
        self.scales[family][arm] = tuner.trials.scale(arm, self._choice(family, arm)) if calibrates else None
        tuner.trials.forget(arm)
        if arm == BASE:
            self.best[family] = tuner.best_baselines()
            logger.info("%s: the best baselines on validation are %s", family, self.best[family])

    def _arms(self, family: str) -> list[str]:
        """Return a family's arms; one that already uses source events has no joint-training arm."""
        return [arm for arm in self.arms if arm != RIVAL or not knows_source(family)]

    def _fits_of_judging(self, arm: str) -> int:
        return 1 if arm in LISTS else self.settings.downstream.seeds

    def judge(self, scene: Scene) -> None:
        """Evaluate every family and arm at one cutoff; write a partial report after each family."""
        cutoff_run = self.at(scene)
        for family in self.choices:
            for arm in self.pulse.steps(self._arms(family), self._fits_of_judging):
                self.judge_arm(cutoff_run, family, arm)
            others = [run for run in self.runs if run["cutoff"] != scene.cutoff.isoformat()]
            self.runs = others + cutoff_run.published.facts
            write_report(self.report(complete=False), self.folder)

    def at(self, scene: Scene) -> Here:
        """Prepare one cutoff; its translator is trained when an arm first needs it."""
        kept = Kept.of(scene)
        begun = partial(self.pulse.at, f"training the translator up to {scene.cutoff.date().isoformat()}")
        data_builder = Maker(scene, begun=begun, few=few_of(scene) if self.quick else ALL)
        return Here(Judge(scene, self.settings.downstream.k), data_builder, Published(data_builder, kept), kept)

    def judge_arm(self, here: Here, family: str, arm: str) -> None:
        """Evaluate one arm at one cutoff with all seeds."""
        half_life = self.lately["half_life"]
        self.pulse.label = f"{family} {arm} at {here.date}"
        if arm == "popular_lately":
            outcomes = [here.judge.judge(here.judge.lately(half_life))]
        elif arm in LISTS:
            choice = self._choice(family, arm)
            key = ("listed", arm, choice.draw.to_json(), half_life)
            outcomes = [here.kept.once(key, lambda: self._recommended(here, choice), outcomes_of(here.judge))]
        else:
            choice = self._choice(family, arm)
            if arm == OURS and any(choice.weights) and not self.quick and here.published.refused(choice.draw):
                choice = replace(self._choice(family, BASE), draw=choice.draw)  # nothing is published
            ships = not self.quick and here.published.ships(arm, choice)
            alone = self.quick and not any(choice.weights)  # no translator is trained for events of weight 0
            outcomes = [
                self._fitted(here, family, BASE if alone and arm == OURS else arm, choice, seed, ships=ships)
                for seed in range(self.settings.downstream.seeds)
            ]
            if not alone:
                self._count(here, family, arm, choice, ships=ships)
        self.outcomes.setdefault(family, {}).setdefault(arm, []).append(outcomes)
        self._tell(family, arm, here, outcomes)

    def finish(self) -> EvaluationReport:
        """Write and return the final report, and write the policy unless in quick mode."""
        if self.quick:
            report = self.report(complete=False)
            write_report(report, self.folder)
            return report
        policy = self._policy()
        path = policy_path(self.settings)
        policy.write(self.folder / "policy.json", path)
        logger.info("policy written to %s: λ %s", path, policy.to_json()["weights"])
        report = self.report(complete=True, policy=str(path))
        write_report(report, self.folder)
        return report

    def report(self, *, complete: bool, policy: str | None = None) -> EvaluationReport:
        """Build a report of all outcomes so far."""
        seed = self.settings.downstream.seed
        panels = {family: Panel.of(self.scenes[: len(found[BASE])]) for family, found in self.outcomes.items()}
        rows, models = [], []
        for family, found in self.outcomes.items():
            for row in summarise(panels[family], family, found, seed=seed):
                counts = self.synthetic.get((family, row["name"]))
                rows.append(row if counts is None else row | {"synthetic": counts})
            models.append(verdict_of(panels[family], family, found, self.best[family], seed=seed))
        widest = max(panels.values(), key=lambda panel: len(panel.owner))
        return EvaluationReport(
            cutoffs=[split.cutoff.isoformat() for split in self.scenes],
            cold_fraction=self.cold,
            users={"all": len(widest.owner)} | {name: int((widest.segment == n).sum()) for n, name in enumerate(SEGMENTS)},
            arms=rows,
            signal=self.signal,
            verdict={"quick": self.quick, "best_baseline": self.best[self._headline()]["all"], "models": models}
            | (few_of(self.scenes[0]).to_json() if self.quick else {}),
            choices={family: self._choice_json(family) for family in self.outcomes},
            budget={
                family: {arm: {key: figures[key] for key in ("fits", "rankings")} for arm, figures in arms.items()}
                for family, arms in self.figures.items()
            },
            runs=self.runs,
            path=str(self.folder),
            policy=policy,
            complete=complete,
            seconds=round(time.perf_counter() - self._started, 1),
        )

    def _fitted(self, here: Here, family: str, arm: str, choice: Choice, seed: int, *, ships: bool) -> Outcome:
        evaluator, scale = here.judge, self.scales[family][arm]
        half_life = self.lately["half_life"]

        def fit() -> Outcome:
            published = here.published.events(choice.draw) if ships else None
            events = here.maker.events(arm, choice, seed, published)
            if knows_before(family):
                events = here.maker.with_before(events, arm, choice, seed)
            self.pulse.label = f"{family} {arm} at {here.date}"
            model = evaluator.fit(family, choice.options, events, seed=seed)
            self.pulse.fitted(self.pulse.label)
            return evaluator.judge(model, boost=choice.boost, half_life=half_life, scale=scale)

        sampling = (ships, here.maker.few.to_json()) if arm not in {BASE, RIVAL} else ()
        inputs = (family, family_code(family), arm, choice.to_json(), seed, sampling, half_life, scale and scale.to_json())
        return here.kept.once(("judged", *inputs), fit, outcomes_of(evaluator))

    def _recommended(self, here: Here, choice: Choice) -> Outcome:
        return here.judge.judge(here.maker.recommender(choice.draw, here.judge.lately(self.lately["half_life"])))

    def _choice(self, family: str, arm: str) -> Choice:
        """Return the arm's tuned choice; untuned arms use that of real+scalr."""
        choices = self.choices[family]
        return choices[arm] if arm in choices else choices[OURS]

    def _count(self, here: Here, family: str, arm: str, choice: Choice, *, ships: bool) -> None:
        """Record an arm's number of synthetic events before λ (first cutoff and seed) and the share of the catalogue they cover."""

        def count() -> dict[str, float]:
            events = here.maker.synthetic(arm, choice, 0, here.published.events(choice.draw) if ships else None)
            return {"events": len(events), "coverage": len(np.unique(events.item)) / events.n_items}

        if arm not in {BASE, RIVAL} and (family, arm) not in self.synthetic:
            self.synthetic[family, arm] = here.kept.once(
                ("synthetic", arm, choice.to_json(), ships, here.maker.few.to_json()), count, FACTS
            )

    def _tell(self, family: str, arm: str, here: Here, outcomes: Sequence[Outcome]) -> None:
        ndcg = np.mean([one.ranking.ndcg for one in outcomes], axis=0)
        cold = here.judge.segments == 0
        of_cold = f", cold users {ndcg[cold].mean():.4f}" if cold.any() else ""
        logger.info("%s %s at %s: NDCG@%d %.4f%s", family, arm, here.date, here.judge.k, ndcg.mean(), of_cold)

    def _headline(self) -> str:
        """Return the family with the best real+scalr on validation."""
        return max(self.figures, key=lambda family: self.figures[family][OURS]["ndcg"])

    def _policy(self) -> Policy:
        family = self._headline()
        choice = self.choices[family][OURS]
        refused = any(run.get("refused") for run in self.runs if run["draw"] == choice.draw.to_json())
        weights = _NOTHING if refused else choice.weights
        return Policy(
            model=family,
            best_baseline=self.best[family]["all"],
            helps=any(weights),
            volume=choice.draw.volume,
            temperature=choice.draw.temperature,
            min_lift=choice.draw.min_lift,
            align=choice.draw.align,
            weights=weights,
            sparse_below=self.settings.downstream.sparse_below,
            settings=settings_digest(self.settings),
            logs=logs_digest(self.settings),
            report=str(self.folder),
            bar=_bar_json(self.figures[family][OURS].get("bar")),
        )

    def _choice_json(self, family: str) -> dict[str, Any]:
        arms = {arm: _choice_json(choice, self.figures[family][arm]) for arm, choice in self.choices[family].items()}
        listed = {name: value for name, value in self.lately.items() if name != "by_user"}
        return arms[OURS] | {"best_baseline": self.best[family]["all"], "popular_lately": listed, "arms": arms}


def _bar_json(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the fields that a policy stores; lifts are left out since they may be undefined."""
    return found and {name: found[name] for name in ("p_below", "why", "p_value")}


def _choice_json(choice: Choice, figures: dict[str, Any]) -> dict[str, Any]:
    return {
        "options": choice.options,
        "draw": choice.draw.to_json(),
        "lambda": dict(zip(SEGMENTS, choice.weights, strict=True)),
        "source_weight": choice.source_weight,
        "boost": dict(zip(SEGMENTS, choice.boost, strict=True)),
        "helps": any(choice.weights),
        "validation": figures,
    }
