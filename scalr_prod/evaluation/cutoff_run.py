# SPDX-License-Identifier: Apache-2.0
"""Evaluation runner: tunes every arm, evaluates it at every cutoff, and writes a report after each family."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.evaluation.arms import JOINT_TRAINING, REAL_ONLY, TUNED_ARMS, UNTRAINED_ARMS, WITH_SYNTHETIC, ArmDataBuilder
from scalr_prod.evaluation.budget import UNLIMITED, budget_for
from scalr_prod.evaluation.evaluation_report import EvaluationReport, build_verdict, summarize_arms, write_report
from scalr_prod.evaluation.evaluator import SplitEvaluator
from scalr_prod.evaluation.models import uses_earlier_events, uses_source_events
from scalr_prod.evaluation.published_sets import PublishedTrainingSets
from scalr_prod.evaluation.result_cache import JSON_CODEC, ResultCache, family_source_digest, outcome_codec
from scalr_prod.evaluation.signal import measure_signal
from scalr_prod.evaluation.tuning import Tuner, tune_half_life
from scalr_prod.evaluation.user_panel import UserPanel
from scalr_prod.generation import SEGMENTS, Policy, logs_digest, policy_path, settings_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scalr_prod.config import Settings
    from scalr_prod.evaluation.arms import ArmChoice
    from scalr_prod.evaluation.evaluator import Outcome
    from scalr_prod.evaluation.probabilities import PlattCalibrator
    from scalr_prod.evaluation.progress_ticker import EvaluationProgress
    from scalr_prod.evaluation.split import EvaluationSplit
    from scalr_prod.evaluation.trial_cache import ValidationWindow

__all__ = ["CutoffRun", "EvaluationRunner"]

logger = logging.getLogger(__name__)

_ZERO_WEIGHTS: Final = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class CutoffRun:
    """What is needed to evaluate arms at one cutoff.

    Attributes:
        evaluator: Evaluator of the cutoff's split.
        data_builder: Builder of the arms' training events.
        published: Published training sets.
        cache: Cached results of the split.
    """

    evaluator: SplitEvaluator
    data_builder: ArmDataBuilder
    published: PublishedTrainingSets
    cache: ResultCache

    @property
    def date(self) -> str:
        """Date of the cutoff, ISO 8601."""
        return self.evaluator.split.cutoff.date().isoformat()


#: Approximate number of fits to tune an arm, as ALS and two-tower took on the Yelp log. Used only to estimate the remaining time.
_TUNING_FITS: Final = {REAL_ONLY: 14, WITH_SYNTHETIC: 31, JOINT_TRAINING: 19}
_CONTROL_TUNING_FITS: Final = 36


def _expected_tuning_fits(arm: str) -> int:
    return _TUNING_FITS.get(arm, _CONTROL_TUNING_FITS if arm in TUNED_ARMS else 1)


class EvaluationRunner:
    """One evaluation.

    Args:
        settings: The project's settings, with the models and seeds to use.
        arms: Arms to compare.
        splits: One split per cutoff, in order of time.
        cold_fraction: Share of users whose target history is hidden.
        progress: Progress reporting.
        quick: Try fewer choices, sample real+scalr in process, and write no policy.
    """

    def __init__(
        self,
        settings: Settings,
        arms: Sequence[str],
        splits: Sequence[EvaluationSplit],
        cold_fraction: float,
        progress: EvaluationProgress,
        *,
        quick: bool = False,
    ) -> None:
        self.settings, self.arms, self.splits, self.cold_fraction, self.progress = (
            settings,
            arms,
            splits,
            cold_fraction,
            progress,
        )
        self.quick = quick
        self.folder = settings.home / "evaluations" / f"{'quick' if quick else 'report'}-{splits[0].settings.home.name}"
        self.choices: dict[str, dict[str, ArmChoice]] = {}
        self.figures: dict[str, dict[str, Any]] = {}
        self.calibrators: dict[str, dict[str, PlattCalibrator | None]] = {}
        self.best_baselines: dict[str, dict[str, str]] = {}
        self.recent_popularity: dict[str, Any] = {}
        self.signal: dict[str, Any] | None = None
        self.outcomes: dict[str, dict[str, list[list[Outcome]]]] = {}
        self.synthetic_counts: dict[tuple[str, str], dict[str, float]] = {}
        self.runs: list[dict[str, Any]] = []
        self._tuners: dict[str, Tuner] = {}
        self._started = time.perf_counter()

    def tune_arms(self, windows: Sequence[ValidationWindow]) -> None:
        """Tune every arm on the validation windows."""
        families = [self._family_arms(family) for family in self.settings.downstream.models]
        chosen, judged = (
            sum(fits(arm) for arms in families for arm in arms)
            for fits in (_expected_tuning_fits, self._expected_evaluation_fits)
        )
        self.progress.total = chosen + judged * len(self.splits)
        self.prepare_tuning(windows)
        self.signal = measure_signal(windows[0])
        for family in self.settings.downstream.models:
            for arm in self.progress.track_steps(self._family_arms(family), _expected_tuning_fits):
                self.tune_arm(family, arm)

    def prepare_tuning(self, windows: Sequence[ValidationWindow]) -> None:
        """Tune the half-life of recent popularity, which all other choices depend on, and create the tuners."""
        self.progress.start_task("choosing the half-life of popular_lately")
        self.recent_popularity = tune_half_life(windows)
        self._tuners = {
            family: Tuner(family, windows, self.settings, self.recent_popularity, self.progress.count_fits, quick=self.quick)
            for family in self.settings.downstream.models
        }

    def tune_arm(self, family: str, arm: str) -> None:
        """Tune one arm; real events alone must come first."""
        tuner = self._tuners[family]
        if arm == REAL_ONLY:
            self.choices[family], self.figures[family], self.calibrators[family] = {}, {}, {}
        if arm in UNTRAINED_ARMS:
            return
        if arm in {REAL_ONLY, JOINT_TRAINING, *TUNED_ARMS}:
            self.progress.start_task(f"choosing for {family} {arm}")
            choice, figures = tuner.choose(arm)
            self.choices[family][arm], self.figures[family][arm] = choice, figures
            logger.info("%s %s on validation: NDCG %.4f, %d fits", family, arm, figures["ndcg"], figures["fits"])
        # A family without probabilities needs no calibration; the first arm shows whether it has them.
        calibrates = arm == REAL_ONLY or self.calibrators[family][REAL_ONLY] is not None
        self.calibrators[family][arm] = tuner.trials.fit_calibrator(arm, self._arm_choice(family, arm)) if calibrates else None
        tuner.trials.drop_models(arm)
        if arm == REAL_ONLY:
            self.best_baselines[family] = tuner.best_baselines()
            logger.info("%s: the best baselines on validation are %s", family, self.best_baselines[family])

    def _family_arms(self, family: str) -> list[str]:
        """Return a family's arms; one that already uses source events has no joint-training arm."""
        return [arm for arm in self.arms if arm != JOINT_TRAINING or not uses_source_events(family)]

    def _expected_evaluation_fits(self, arm: str) -> int:
        return 1 if arm in UNTRAINED_ARMS else self.settings.downstream.seeds

    def evaluate_split(self, split: EvaluationSplit) -> None:
        """Evaluate every family and arm at one cutoff; write a partial report after each family."""
        cutoff_run = self.prepare_cutoff(split)
        for family in self.choices:
            for arm in self.progress.track_steps(self._family_arms(family), self._expected_evaluation_fits):
                self.evaluate_arm(cutoff_run, family, arm)
            others = [run for run in self.runs if run["cutoff"] != split.cutoff.isoformat()]
            self.runs = others + cutoff_run.published.run_reports
            write_report(self.build_report(complete=False), self.folder)

    def prepare_cutoff(self, split: EvaluationSplit) -> CutoffRun:
        """Prepare one cutoff; its translator is trained when an arm first needs it."""
        kept = ResultCache.from_split(split)
        begun = partial(self.progress.start_task, f"training the translator up to {split.cutoff.date().isoformat()}")
        data_builder = ArmDataBuilder(split, on_training=begun, budget=budget_for(split) if self.quick else UNLIMITED)
        return CutoffRun(
            SplitEvaluator(split, self.settings.downstream.k), data_builder, PublishedTrainingSets(data_builder, kept), kept
        )

    def evaluate_arm(self, run: CutoffRun, family: str, arm: str) -> None:
        """Evaluate one arm at one cutoff with all seeds."""
        half_life = self.recent_popularity["half_life"]
        self.progress.label = f"{family} {arm} at {run.date}"
        if arm == "popular_lately":
            outcomes = [run.evaluator.evaluate(run.evaluator.recent_popularity(half_life))]
        elif arm in UNTRAINED_ARMS:
            choice = self._arm_choice(family, arm)
            key = ("listed", arm, choice.draw.to_json(), half_life)
            outcomes = [
                run.cache.get_or_compute(key, lambda: self._evaluate_recommender(run, choice), outcome_codec(run.evaluator))
            ]
        else:
            choice = self._arm_choice(family, arm)
            if arm == WITH_SYNTHETIC and any(choice.weights) and not self.quick and run.published.is_refused(choice.draw):
                choice = replace(self._arm_choice(family, REAL_ONLY), draw=choice.draw)  # nothing is published
            ships = not self.quick and run.published.is_used_by(arm, choice)
            alone = self.quick and not any(choice.weights)  # no translator is trained for events of weight 0
            outcomes = [
                self._fit_and_evaluate(
                    run, family, REAL_ONLY if alone and arm == WITH_SYNTHETIC else arm, choice, seed, use_published=ships
                )
                for seed in range(self.settings.downstream.seeds)
            ]
            if not alone:
                self._count_synthetic(run, family, arm, choice, use_published=ships)
        self.outcomes.setdefault(family, {}).setdefault(arm, []).append(outcomes)
        self._log_outcomes(family, arm, run, outcomes)

    def finish(self) -> EvaluationReport:
        """Write and return the final report, and write the policy unless in quick mode."""
        if self.quick:
            report = self.build_report(complete=False)
            write_report(report, self.folder)
            return report
        policy = self._build_policy()
        path = policy_path(self.settings)
        policy.write(self.folder / "policy.json", path)
        logger.info("policy written to %s: λ %s", path, policy.to_json()["weights"])
        report = self.build_report(complete=True, policy=str(path))
        write_report(report, self.folder)
        return report

    def build_report(self, *, complete: bool, policy: str | None = None) -> EvaluationReport:
        """Build a report of all outcomes so far."""
        seed = self.settings.downstream.seed
        panels = {
            family: UserPanel.from_splits(self.splits[: len(found[REAL_ONLY])]) for family, found in self.outcomes.items()
        }
        rows, models = [], []
        for family, found in self.outcomes.items():
            for row in summarize_arms(panels[family], family, found, seed=seed):
                counts = self.synthetic_counts.get((family, row["name"]))
                rows.append(row if counts is None else row | {"synthetic": counts})
            models.append(build_verdict(panels[family], family, found, self.best_baselines[family], seed=seed))
        widest = max(panels.values(), key=lambda panel: len(panel.user))
        return EvaluationReport(
            cutoffs=[split.cutoff.isoformat() for split in self.splits],
            cold_fraction=self.cold_fraction,
            users={"all": len(widest.user)} | {name: int((widest.segment == n).sum()) for n, name in enumerate(SEGMENTS)},
            arms=rows,
            signal=self.signal,
            verdict={"quick": self.quick, "best_baseline": self.best_baselines[self._best_family()]["all"], "models": models}
            | (budget_for(self.splits[0]).to_json() if self.quick else {}),
            choices={family: self._family_choices_json(family) for family in self.outcomes},
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

    def _fit_and_evaluate(
        self, run: CutoffRun, family: str, arm: str, choice: ArmChoice, seed: int, *, use_published: bool
    ) -> Outcome:
        evaluator, scale = run.evaluator, self.calibrators[family][arm]
        half_life = self.recent_popularity["half_life"]

        def fit() -> Outcome:
            published = run.published.events(choice.draw) if use_published else None
            events = run.data_builder.events(arm, choice, seed, published)
            if uses_earlier_events(family):
                events = run.data_builder.with_earlier_events(events, arm, choice, seed)
            self.progress.label = f"{family} {arm} at {run.date}"
            model = evaluator.fit(family, choice.options, events, seed=seed)
            self.progress.count_fits(self.progress.label)
            return evaluator.evaluate(model, boost=choice.boost, half_life=half_life, calibrator=scale)

        sampling = (use_published, run.data_builder.budget.to_json()) if arm not in {REAL_ONLY, JOINT_TRAINING} else ()
        inputs = (
            family,
            family_source_digest(family),
            arm,
            choice.to_json(),
            seed,
            sampling,
            half_life,
            scale and scale.to_json(),
        )
        return run.cache.get_or_compute(("judged", *inputs), fit, outcome_codec(evaluator))

    def _evaluate_recommender(self, run: CutoffRun, choice: ArmChoice) -> Outcome:
        return run.evaluator.evaluate(
            run.data_builder.make_recommender(choice.draw, run.evaluator.recent_popularity(self.recent_popularity["half_life"]))
        )

    def _arm_choice(self, family: str, arm: str) -> ArmChoice:
        """Return the arm's tuned choice; untuned arms use that of real+scalr."""
        choices = self.choices[family]
        return choices[arm] if arm in choices else choices[WITH_SYNTHETIC]

    def _count_synthetic(self, run: CutoffRun, family: str, arm: str, choice: ArmChoice, *, use_published: bool) -> None:
        """Record an arm's number of synthetic events before λ (first cutoff and seed) and the share of the catalogue they cover."""

        def count() -> dict[str, float]:
            events = run.data_builder.synthetic_events(
                arm, choice, 0, run.published.events(choice.draw) if use_published else None
            )
            return {"events": len(events), "coverage": len(np.unique(events.item)) / events.n_items}

        if arm not in {REAL_ONLY, JOINT_TRAINING} and (family, arm) not in self.synthetic_counts:
            self.synthetic_counts[family, arm] = run.cache.get_or_compute(
                ("synthetic", arm, choice.to_json(), use_published, run.data_builder.budget.to_json()), count, JSON_CODEC
            )

    def _log_outcomes(self, family: str, arm: str, run: CutoffRun, outcomes: Sequence[Outcome]) -> None:
        ndcg = np.mean([one.ranking.ndcg for one in outcomes], axis=0)
        cold = run.evaluator.segments == 0
        of_cold = f", cold users {ndcg[cold].mean():.4f}" if cold.any() else ""
        logger.info("%s %s at %s: NDCG@%d %.4f%s", family, arm, run.date, run.evaluator.k, ndcg.mean(), of_cold)

    def _best_family(self) -> str:
        """Return the family with the best real+scalr on validation."""
        return max(self.figures, key=lambda family: self.figures[family][WITH_SYNTHETIC]["ndcg"])

    def _build_policy(self) -> Policy:
        family = self._best_family()
        choice = self.choices[family][WITH_SYNTHETIC]
        refused = any(run.get("refused") for run in self.runs if run["draw"] == choice.draw.to_json())
        weights = _ZERO_WEIGHTS if refused else choice.weights
        return Policy(
            model=family,
            best_baseline=self.best_baselines[family]["all"],
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
            bar=_threshold_json(self.figures[family][WITH_SYNTHETIC].get("bar")),
        )

    def _family_choices_json(self, family: str) -> dict[str, Any]:
        arms = {arm: _choice_json(choice, self.figures[family][arm]) for arm, choice in self.choices[family].items()}
        listed = {name: value for name, value in self.recent_popularity.items() if name != "by_user"}
        return arms[WITH_SYNTHETIC] | {
            "best_baseline": self.best_baselines[family]["all"],
            "popular_lately": listed,
            "arms": arms,
        }


def _threshold_json(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the fields that a policy stores; lifts are left out since they may be undefined."""
    return found and {name: found[name] for name in ("p_below", "why", "p_value")}


def _choice_json(choice: ArmChoice, figures: dict[str, Any]) -> dict[str, Any]:
    return {
        "options": choice.options,
        "draw": choice.draw.to_json(),
        "lambda": dict(zip(SEGMENTS, choice.weights, strict=True)),
        "source_weight": choice.source_weight,
        "boost": dict(zip(SEGMENTS, choice.boost, strict=True)),
        "helps": any(choice.weights),
        "validation": figures,
    }
