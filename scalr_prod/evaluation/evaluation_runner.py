# SPDX-License-Identifier: Apache-2.0
"""Evaluation runner: tunes every arm, evaluates it at every cutoff, and writes a report after each family."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.evaluation.arms import (
    CLUSTER_BASELINE,
    JOINT_BASELINE,
    POPULARITY_BASELINE,
    REAL_ONLY,
    TUNED_ARMS,
    UNTRAINED_ARMS,
    WITH_SYNTHETIC,
    ArmDataBuilder,
    describe_baseline,
)
from scalr_prod.evaluation.evaluation_report import ArmOutcomes, EvaluationReport, build_verdict, summarize_arms, write_report
from scalr_prod.evaluation.evaluator import SplitEvaluator
from scalr_prod.evaluation.models import uses_source_events
from scalr_prod.evaluation.plan import quick_context_limit
from scalr_prod.evaluation.published_sets import PublishedTrainingSets
from scalr_prod.evaluation.result_cache import JSON_CODEC, ResultCache, family_source_digest, outcome_codec
from scalr_prod.evaluation.signal import measure_signal
from scalr_prod.evaluation.tuning import TunedClusters, TunedHalfLife, Tuner, tune_clusters, tune_half_life
from scalr_prod.evaluation.user_panel import UserPanel
from scalr_prod.generation import SEGMENTS, Policy, policy_path, settings_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scalr_prod.config import TranslatorSettings
    from scalr_prod.evaluation.arms import Arm
    from scalr_prod.evaluation.evaluator import Outcome
    from scalr_prod.evaluation.interactions import DownstreamModel
    from scalr_prod.evaluation.plan import EvaluationPlan
    from scalr_prod.evaluation.probabilities import PlattCalibrator
    from scalr_prod.evaluation.progress import EvaluationProgress
    from scalr_prod.evaluation.split import EvaluationSplit
    from scalr_prod.evaluation.trial_cache import ValidationSplit
    from scalr_prod.evaluation.tuning import TunedArm


logger = logging.getLogger(__name__)

_ZERO_WEIGHTS: Final = (0.0, 0.0, 0.0)
_NEW_USER_FOLDS: Final = 2


@dataclass(frozen=True)
class CutoffRun:
    """What is needed to evaluate arms at one cutoff.

    Attributes:
        evaluator: Evaluator of the cutoff's split.
        data_builder: Builder of the arms' training events.
        published: Published training sets; None: events are sampled in process.
        cache: Cached results of the split.
        seeds: Number of trainings of each model.
        new_users: One run for each half of the users, treated as new; empty in those runs themselves.
    """

    evaluator: SplitEvaluator
    data_builder: ArmDataBuilder
    published: PublishedTrainingSets | None
    cache: ResultCache
    seeds: int
    new_users: Sequence[CutoffRun] = ()

    @property
    def date(self) -> str:
        """Date of the cutoff, ISO 8601."""
        return self.evaluator.split.cutoff.date().isoformat()


@dataclass
class FamilyEvaluation:
    """Tuning and test results of one model family so far.

    Attributes:
        name: Name of the family.
        tuner: Tuner of its arms.
        tuned: Tuned arms by name.
        calibrators: Name of an arm → calibration of its probabilities; None for models without probabilities.
        best_baselines: ``all`` and each segment → the better baseline on validation.
        outcomes: Name of an arm → for each cutoff, the outcomes of every seed.
        blended: The same with the arm's scores boosted by recent popularity; trained arms only.
        new_users: Name of an arm → for each cutoff and each half of the users as if they were new, the outcomes of every seed.
        synthetic_counts: Name of an arm → number of its synthetic events, and the share of the catalogue that they cover.
    """

    name: str
    tuner: Tuner
    tuned: dict[str, TunedArm] = field(default_factory=dict)
    calibrators: dict[str, PlattCalibrator | None] = field(default_factory=dict)
    best_baselines: dict[str, str] = field(default_factory=dict)
    outcomes: dict[str, list[list[Outcome]]] = field(default_factory=dict)
    blended: dict[str, list[list[Outcome]]] = field(default_factory=dict)
    new_users: dict[str, list[list[Outcome]]] = field(default_factory=dict)
    synthetic_counts: dict[str, dict[str, float]] = field(default_factory=dict)

    def arm(self, name: str) -> Arm:
        """Return an arm with its tuned values; untuned arms use those of real+scalr."""
        return self.tuned[name].arm if name in self.tuned else replace(self.tuned[WITH_SYNTHETIC].arm, name=name)

    def boost(self, name: str) -> tuple[float, float, float]:
        """Return the boost by recent popularity that suits an arm; untuned arms use that of real+scalr."""
        return self.tuned[name if name in self.tuned else WITH_SYNTHETIC].blended.boost

    def choices_to_json(self, half_life: TunedHalfLife, clusters: TunedClusters | None) -> dict[str, Any]:
        """Return what validation chose for real+scalr, and for every tuned arm, as plain JSON values."""
        arms = {name: tuned.to_json() for name, tuned in self.tuned.items()}
        return arms[WITH_SYNTHETIC] | {
            "best_baseline": self.best_baselines["all"],
            POPULARITY_BASELINE: half_life.to_json(),
            **({} if clusters is None else {CLUSTER_BASELINE: clusters.to_json()}),
            "arms": arms,
        }


def _describe_translator(options: TranslatorSettings) -> str:
    """Describe until when an evaluation's translators are trained, and how much older a run's may be."""
    at_cutoff = "trained again until each cutoff"
    if options.pin:
        return f"{at_cutoff}; runs keep the latest one, whatever its age ([translator] pin = true)"
    if not options.retrain_every:
        return at_cutoff
    return f"{at_cutoff}; a run's may be up to {options.retrain_every:g} days older ([translator] retrain_every)"


#: Approximate number of combinations of values tried for an arm, to estimate the remaining time; measured with ALS on Yelp.
_TRIALS: Final = {REAL_ONLY: 9, JOINT_BASELINE: 20}
_SYNTHETIC_TRIALS: Final = 17


class EvaluationRunner:
    """One evaluation.

    Args:
        plan: Arms, settings and cutoffs. A quick plan samples real+scalr in process and writes no policy.
        progress: Progress reporting.
    """

    def __init__(self, plan: EvaluationPlan, progress: EvaluationProgress) -> None:
        self.plan, self.settings, self.progress = plan, plan.settings, progress
        kind = "quick" if plan.quick else "report"
        self.folder = self.settings.home / "evaluations" / f"{kind}-{plan.splits[0].settings.home.name}"
        self.half_life: TunedHalfLife
        self.clusters: TunedClusters | None = None
        self.families: dict[str, FamilyEvaluation] = {}
        self.signal: dict[str, Any] | None = None
        self.runs: list[dict[str, Any]] = []

    def tune_arms(self, splits: Sequence[ValidationSplit]) -> None:
        """Tune every arm on the validation splits, those of the latest window first."""
        arms = [name for family in self.settings.downstream.models for name in self._family_arms(family)]
        evaluation_fits = sum(map(self._expected_evaluation_fits, arms)) * len(self.plan.splits)

        def expected_tuning_fits(name: str) -> int:
            return len(splits) * _TRIALS.get(name, _SYNTHETIC_TRIALS if name in TUNED_ARMS else 0)

        self.progress.total = sum(map(expected_tuning_fits, arms)) + evaluation_fits
        self.prepare_tuning(splits)
        self.signal = measure_signal(splits[0].cache, splits[0].data_builder)
        for family in self.families.values():
            for name in self.progress.track_steps(self._family_arms(family.name), expected_tuning_fits):
                self.tune_arm(family, name)

    def prepare_tuning(self, splits: Sequence[ValidationSplit]) -> None:
        """Tune the half-life of the popularity baseline, which all other choices depend on, and create the tuners."""
        self.progress.start_task(f"tuning {POPULARITY_BASELINE}")
        self.half_life = tune_half_life(splits)
        if CLUSTER_BASELINE in self.plan.arms:
            self.progress.start_task(f"tuning {CLUSTER_BASELINE}")
            self.clusters = tune_clusters(splits)
        for name in self.settings.downstream.models:
            tuner = Tuner(name, splits, self.settings, self.half_life, self.progress.count_fits, quick=self.plan.quick)
            self.families[name] = FamilyEvaluation(name, tuner)

    def tune_arm(self, family: FamilyEvaluation, name: str) -> None:
        """Tune one arm; real events only must come first."""
        if name in UNTRAINED_ARMS:
            return
        if name in {REAL_ONLY, JOINT_BASELINE, *TUNED_ARMS}:
            self.progress.start_task(f"tuning {family.name} {name}")
            tuned = family.tuned[name] = family.tuner.tune(name)
            if (validation := tuned.validation) is not None:
                logger.info("%s %s on validation: NDCG %.4f, %d fits", family.name, name, validation.ndcg, validation.fits)
        # A family without probabilities needs no calibration; the first arm shows whether it has them.
        calibrates = name == REAL_ONLY or family.calibrators[REAL_ONLY] is not None
        family.calibrators[name] = family.tuner.trials.fit_calibrator(family.arm(name)) if calibrates else None
        family.tuner.trials.drop_models(name)
        if name == REAL_ONLY:
            family.best_baselines = family.tuner.best_baselines()
            named = ", ".join(f"{describe_baseline(family.best_baselines[name])} for {name} users" for name in SEGMENTS)
            logger.info("%s: best baselines on validation: %s", family.name, named)

    def use_defaults(self, family: FamilyEvaluation, *, has_signal: bool) -> None:
        """Use a run's default settings for real+scalr, with λ = 0 without a signal; real events only must be tuned."""
        weights = self.settings.training_set.resolved_segment_weights if has_signal else _ZERO_WEIGHTS
        family.tuned[WITH_SYNTHETIC] = family.tuner.default_arm(weights)
        # Its own calibration would need the events, and the translator, of the validation window.
        family.calibrators[WITH_SYNTHETIC] = family.calibrators[REAL_ONLY]

    def _family_arms(self, family: str) -> list[str]:
        """Return a family's arms; one that already uses source events has no joint training."""
        return [name for name in self.plan.arms if name != JOINT_BASELINE or not uses_source_events(family)]

    def _expected_evaluation_fits(self, name: str) -> int:
        return 1 if name in UNTRAINED_ARMS else self.settings.downstream.seeds + _NEW_USER_FOLDS

    def evaluate_split(self, split: EvaluationSplit) -> None:
        """Evaluate every family and arm at one cutoff; write a partial report after each family."""
        run = self.prepare_cutoff(split)
        for family in self.families.values():
            for name in self.progress.track_steps(self._family_arms(family.name), self._expected_evaluation_fits):
                self.evaluate_arm(run, family, name)
            others = [report for report in self.runs if report["cutoff"] != split.cutoff.isoformat()]
            self.runs = others + (run.published.run_reports if run.published else [])
            write_report(self.build_report(complete=False), self.folder)

    def prepare_cutoff(self, split: EvaluationSplit) -> CutoffRun:
        """Prepare one cutoff; its translator is trained when an arm first needs it."""
        cache = ResultCache.from_split(split)
        on_training = partial(self.progress.start_task, f"training the translator up to {split.cutoff.date().isoformat()}")
        max_contexts = quick_context_limit(split) if self.plan.quick else None
        data_builder = ArmDataBuilder(split, on_training=on_training, max_contexts=max_contexts)
        k = self.settings.downstream.k
        new_users = [
            CutoffRun(SplitEvaluator(fold, k), data_builder.with_new_users(fold), None, ResultCache.from_split(fold), seeds=1)
            for fold in split.new_user_folds()
        ]
        published = None if self.plan.quick else PublishedTrainingSets(data_builder, cache)
        seeds = self.settings.downstream.seeds
        return CutoffRun(SplitEvaluator(split, k), data_builder, published, cache, seeds, new_users)

    def evaluate_arm(self, run: CutoffRun, family: FamilyEvaluation, name: str) -> None:
        """Evaluate one arm at one cutoff: the users as they are with all seeds, and each half of them as if they were new with one."""
        self.progress.label = f"{family.name} {name} at {run.date}"
        runs = (run, *run.new_users)
        if name in UNTRAINED_ARMS:
            found, *as_new = [[self._evaluate_untrained(one, family, name)] for one in runs]
        else:
            is_rejected = self._is_rejected(run, family, name)
            fits = [fit for one in runs for fit in self._fits(one, family, name, is_rejected=is_rejected)]
            outcomes = family.tuner.pool.map(lambda fit, threads: fit(threads), fits)
            found = [plain for plain, _ in outcomes[: run.seeds]]
            family.blended.setdefault(name, []).append([blended for _, blended in outcomes[: run.seeds]])
            as_new = [[plain] for plain, _ in outcomes[run.seeds :]]
        family.outcomes.setdefault(name, []).append(found)
        for outcomes_of_half in as_new:
            family.new_users.setdefault(name, []).append(outcomes_of_half)
        self._log_outcomes(family.name, name, run, found)

    def _evaluate_untrained(self, run: CutoffRun, family: FamilyEvaluation, name: str) -> Outcome:
        """Evaluate an arm that trains no model of the family."""
        if name == POPULARITY_BASELINE:
            return run.evaluator.evaluate(run.evaluator.recent_popularity(self.half_life.half_life))
        if name == CLUSTER_BASELINE and self.clusters is not None:
            clusters = run.evaluator.cluster_popularity(self.clusters.clusters, self.clusters.half_life)
            return run.evaluator.evaluate(clusters)
        return self._evaluate_recommender(run, family.arm(name))

    def finish(self) -> EvaluationReport:
        """Write and return the final report, and write the policy unless the plan is quick."""
        if self.plan.quick:
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
        splits = self.plan.splits
        families = [family for family in self.families.values() if family.outcomes]
        panels = {family.name: UserPanel.from_splits(splits[: len(family.outcomes[REAL_ONLY])]) for family in families}
        rows, models = [], []
        for family in families:
            results = ArmOutcomes(
                panels[family.name], self._new_user_panel(family), family.outcomes, family.blended, family.new_users
            )
            for row in summarize_arms(results, family.name):
                counts = family.synthetic_counts.get(row["name"])
                rows.append(row if counts is None else row | {"synthetic": counts})
            models.append(build_verdict(results, family.name, family.best_baselines))
        widest = max(panels.values(), key=lambda panel: len(panel.user))
        return EvaluationReport(
            cutoffs=[split.cutoff.isoformat() for split in splits],
            cold_fraction=self.plan.cold_fraction,
            users={"all": len(widest.user)} | {name: int((widest.segment == n).sum()) for n, name in enumerate(SEGMENTS)},
            translator=_describe_translator(self.settings.translator),
            arms=rows,
            signal=self.signal,
            verdict={
                "quick": self.plan.quick,
                "k": self.settings.downstream.k,
                "best_baseline": self._best_family().best_baselines["all"],
                "models": models,
            }
            | ({"contexts_at_most": quick_context_limit(splits[0])} if self.plan.quick else {}),
            choices={family.name: self._choices_to_json(family) for family in families},
            budget={
                family.name: {
                    name: {"fits": tuned.validation.fits, "rankings": tuned.validation.rankings}
                    for name, tuned in family.tuned.items()
                    if tuned.validation is not None
                }
                for family in self.families.values()
            },
            runs=self.runs,
            path=str(self.folder),
            policy=policy,
            complete=complete,
            seconds=round(self.progress.seconds, 1),
        )

    def _is_rejected(self, run: CutoffRun, family: FamilyEvaluation, name: str) -> bool:
        """Return whether the quality gate rejects the events of real+scalr at a cutoff."""
        arm = family.arm(name)
        return bool(run.published and name == WITH_SYNTHETIC and any(arm.weights) and run.published.is_refused(arm.draw))

    def _fits(
        self, run: CutoffRun, family: FamilyEvaluation, name: str, *, is_rejected: bool
    ) -> list[Callable[[int], tuple[Outcome, Outcome]]]:
        """Return the fits of an arm, one for each seed, and count its synthetic events.

        A fit is given its number of threads, and returns the outcomes without and with a boost by recent popularity.

        Args:
            run: The cutoff, or a half of its users as if they were new.
            family: The model family.
            name: The arm.
            is_rejected: Whether the quality gate rejects the arm's events at this cutoff.
        """
        arm = family.arm(name)
        if is_rejected:
            arm = replace(family.arm(REAL_ONLY), name=name, draw=arm.draw)  # nothing is published
        published = run.published if run.published and run.published.is_used_by(arm) else None
        if published is None and name == WITH_SYNTHETIC and not any(arm.weights):
            arm = replace(arm, name=REAL_ONLY)  # no translator is trained for events of weight 0
        boost = family.boost(name)
        if run.new_users and arm.has_synthetic_events and name not in family.synthetic_counts:
            family.synthetic_counts[name] = self._count_synthetic(run, arm, published)
        return [partial(self._fit_and_evaluate, run, arm, seed, boost, published) for seed in range(run.seeds)]

    def _fit_and_evaluate(
        self,
        run: CutoffRun,
        arm: Arm,
        seed: int,
        boost: tuple[float, float, float],
        published: PublishedTrainingSets | None,
        threads: int,
    ) -> tuple[Outcome, Outcome]:
        evaluator, half_life = run.evaluator, self.half_life.half_life
        family = self.families[arm.family]
        calibrator, lock = family.calibrators[arm.name], family.tuner.pool.lock

        @functools.cache
        def fitted() -> DownstreamModel:
            with lock:
                events = run.data_builder.events(arm, seed, published.events(arm.draw) if published else None)
                self.progress.label = f"{arm.family} {arm.name} at {run.date}"
            model = evaluator.fit(arm.family, arm.options, events, seed=seed, threads=threads)
            with lock:
                self.progress.count_fits(f"{arm.family} {arm.name} at {run.date}")
            return model

        def evaluate(arm: Arm) -> Outcome:
            return evaluator.evaluate(fitted(), boost=arm.boost, half_life=half_life, calibrator=calibrator)

        sampling = (published is not None, run.data_builder.max_contexts) if arm.has_synthetic_events else ()
        outcomes = []
        for one in (arm, replace(arm, boost=boost)):
            identity = (one.family, family_source_digest(one.family), one.name, one.hyperparameters_to_json())
            inputs = (*identity, seed, sampling, half_life, calibrator and calibrator.to_json())
            outcomes.append(
                run.cache.get_or_compute(("test outcome", *inputs), partial(evaluate, one), outcome_codec(evaluator))
            )
        return outcomes[0], outcomes[1]

    def _evaluate_recommender(self, run: CutoffRun, arm: Arm) -> Outcome:
        """Evaluate the translator as a recommender."""

        def evaluate() -> Outcome:
            recent_popularity = run.evaluator.recent_popularity(self.half_life.half_life)
            return run.evaluator.evaluate(run.data_builder.make_recommender(arm.draw, recent_popularity))

        key = ("recommender", arm.name, arm.draw.to_json(), self.half_life.half_life)
        return run.cache.get_or_compute(key, evaluate, outcome_codec(run.evaluator))

    def _count_synthetic(self, run: CutoffRun, arm: Arm, published: PublishedTrainingSets | None) -> dict[str, float]:
        """Return an arm's number of synthetic events before λ (first seed), and the share of the catalogue that they cover."""

        def count() -> dict[str, float]:
            events = run.data_builder.synthetic_events(arm, 0, published.events(arm.draw) if published else None)
            return {"events": len(events), "coverage": len(np.unique(events.item)) / events.n_items}

        inputs = (arm.name, arm.hyperparameters_to_json(), published is not None, run.data_builder.max_contexts)
        counts: dict[str, float] = run.cache.get_or_compute(("synthetic", *inputs), count, JSON_CODEC)
        return counts

    def _log_outcomes(self, family: str, name: str, run: CutoffRun, outcomes: Sequence[Outcome]) -> None:
        ndcg = np.mean([outcome.ranking.ndcg for outcome in outcomes], axis=0)
        cold = run.evaluator.segments == 0
        of_cold = f", cold users {ndcg[cold].mean():.4f}" if cold.any() else ""
        logger.info("%s %s at %s: NDCG@%d %.4f%s", family, name, run.date, run.evaluator.k, ndcg.mean(), of_cold)

    def _new_user_panel(self, family: FamilyEvaluation) -> UserPanel | None:
        """Return the panel of users as if they were new, at the cutoffs that are evaluated; None if there are none."""
        done = self.plan.splits[: len(family.outcomes[REAL_ONLY])]
        folds = [fold for split in done for fold in split.new_user_folds()]
        return UserPanel.from_splits(folds) if folds else None

    def _best_family(self) -> FamilyEvaluation:
        """Return the family with the best real+scalr on validation; a quick verdict has one family."""

        def ndcg(family: FamilyEvaluation) -> float:
            validation = family.tuned[WITH_SYNTHETIC].validation
            return 0.0 if validation is None else validation.ndcg

        return max(self.families.values(), key=ndcg)

    def _rejection(self, family: FamilyEvaluation) -> str | None:
        """Return why the quality gate rejected a family's events at a cutoff; None: it did not, or λ is 0."""
        arm = family.tuned[WITH_SYNTHETIC].arm
        if not any(arm.weights):  # families share what is published for a draw
            return None
        draw = arm.draw.to_json()
        return next((str(run["refused"]) for run in self.runs if run.get("refused") and run["draw"] == draw), None)

    def _choices_to_json(self, family: FamilyEvaluation) -> dict[str, Any]:
        choices = family.choices_to_json(self.half_life, self.clusters)
        rejection = self._rejection(family)
        return choices if rejection is None else choices | {"helps": False, "rejected": rejection}

    def _build_policy(self) -> Policy:
        family = self._best_family()
        tuned = family.tuned[WITH_SYNTHETIC]
        draw = tuned.arm.draw
        weights = _ZERO_WEIGHTS if self._rejection(family) else tuned.arm.weights
        acceptance = tuned.validation.acceptance.to_json() if tuned.validation and tuned.validation.acceptance else None
        return Policy(
            model=family.name,
            best_baseline=family.best_baselines["all"],
            helps=any(weights),
            volume=draw.volume,
            temperature=draw.temperature,
            min_lift=draw.min_lift,
            align=draw.align,
            segment_weights=weights,
            sparse_below=self.settings.downstream.sparse_below,
            settings=settings_digest(self.settings),
            logs=self.plan.logs,
            report=str(self.folder),
            # Lifts are left out, since they may be undefined.
            bar=acceptance and {name: acceptance[name] for name in ("harm_probability", "max_harm_probability", "p_value")},
        )
