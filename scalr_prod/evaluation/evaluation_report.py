# SPDX-License-Identifier: Apache-2.0
"""Evaluation report: results by arm and model family with confidence intervals, as JSON and as a Parquet table."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core.atomic_io import atomic_path, write_text
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.evaluation.acceptance import describe_acceptance
from scalr_prod.evaluation.arms import BEST_BY_SEGMENT, CLUSTER_BASELINE, JOINT_BASELINE, REAL_ONLY, WITH_SYNTHETIC
from scalr_prod.evaluation.ranking_metrics import calibration_metrics
from scalr_prod.evaluation.signal import describe_signal
from scalr_prod.evaluation.statistics import ArmComparison, MetricContributions, TwoWayClusters, holm_adjust
from scalr_prod.evaluation.verdict_summary import summarize_verdict
from scalr_prod.generation import SEGMENTS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from scalr_prod.evaluation.user_panel import OutcomesByCutoff, UserPanel


#: Key in a verdict → baseline that uses source events, too.
_CROSS_DOMAIN_BASELINES: Final = {"over_rival": JOINT_BASELINE, "over_clusters": CLUSTER_BASELINE}


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


@dataclass(frozen=True)
class EvaluationReport(Jsonable):
    """Results of an evaluation.

    Attributes:
        cutoffs: ISO 8601, UTC, in order of time.
        cold_fraction: Share of users whose target history was hidden.
        users: Test cases (a user at a cutoff), by segment.
        translator: Until when its translators were trained, and how much older a run's may be.
        arms: One row per arm and family. ``probabilities``: NE and calibration. ``synthetic``: number of synthetic events before λ,
            and the share of the catalogue that they cover.
        signal: Information of source histories beyond popularity; None if it could not be measured.
        verdict: ``quick``: whether this is a quick verdict, of a run's default settings. ``k``: depth of the rankings. The best
            baseline, and by model the lift of real+scalr over the better of popularity baseline and real events only
            (chosen on validation), with two-way intervals.
        choices: Family → what validation chose for real+scalr, its validation metrics (None in a quick verdict, which has a run's default
            settings), and the same for every other arm (``arms``).
        budget: Family → arm → models fitted and rankings made to tune it.
        runs: What was published for ``real+scalr``: sampling options, gate report, fidelity and privacy.
        path: Folder of ``report.json`` and ``arms.parquet``.
        policy: Path of the policy that later runs apply; None if none was written.
        complete: False while arms are missing, and in a quick verdict.
        seconds: Wall-clock time since the call, quick verdict included.
    """

    cutoffs: list[str]
    cold_fraction: float
    users: dict[str, int]
    translator: str
    arms: list[dict[str, Any]]
    signal: dict[str, Any] | None
    verdict: dict[str, Any]
    choices: dict[str, Any] = field(repr=False)
    budget: dict[str, dict[str, Any]] = field(repr=False)
    runs: list[dict[str, Any]] = field(repr=False)
    path: str
    policy: str | None
    complete: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; null for infinite values (no decay) and undefined ones (a lift over 0)."""
        values: dict[str, Any] = _replace_non_finite({"cutoff": self.cutoffs[0]} | super().to_json())
        return values

    def to_summary(self) -> dict[str, Any]:
        """Return the verdict for a terminal: the answer, by group of users, what to do next, and one table."""
        summary = summarize_verdict(self.to_json())
        lines: dict[str, Any] = {
            "does it help": summary.answer,
            "by group": summary.by_group,
            "tested on": summary.tested_on,
            "measured with": summary.model_settings,
            "next": summary.next_step,
        }
        if len(self.verdict["models"]) > 1:
            lines["models"] = [
                {"model": row["model"], "over its best baseline % (95 %)": _over_best(row)} for row in self.verdict["models"]
            ]
        return lines | {
            "all methods": summary.table,
            "report": self.path,
            **({"policy": self.policy} if self.policy else {}),
            "seconds": self.seconds,
        }

    def to_details(self) -> dict[str, Any]:
        """Return all figures for a terminal: one line per arm, and λ by family."""
        return {
            "cutoffs": self.cutoffs,
            "cold_fraction": self.cold_fraction,
            "users": self.users,
            "translator": self.translator,
            "signal beyond popularity": describe_signal(self.signal),
            "arms": [_arm_line(row) for row in self.arms],
            "quick verdict, default settings" if self.verdict["quick"] else "verdict": [
                _verdict_line(model) for model in self.verdict["models"]
            ],
            "budget": {
                family: ", ".join(f"{arm} {used['fits']} fits and {used['rankings']} rankings" for arm, used in arms.items())
                for family, arms in self.budget.items()
            },
            "lambda": {family: choice["lambda"] for family, choice in self.choices.items()},
            "helps": {}
            if self.verdict["quick"]
            else {
                family: f"rejected by the quality gate: {choice['rejected']}"
                if "rejected" in choice
                else describe_acceptance(tuple(choice["lambda"].values()), choice["validation"].get("bar"))
                for family, choice in self.choices.items()
            },
            "path": self.path,
            "policy": self.policy,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class ArmOutcomes:
    """Outcomes of a family's arms, by name of the arm; for each cutoff (and half of the users), the outcomes of every seed.

    Attributes:
        panel: Test cases of `plain` and `blended`: the users as they are.
        new_user_panel: Test cases of `new_users`: the users as if they were new. None if there are none.
        plain: Outcomes of the models as they are trained.
        blended: Outcomes of the same models, blended with recent popularity.
        new_users: Outcomes of models that saw none of the tested users' target events.
    """

    panel: UserPanel
    new_user_panel: UserPanel | None
    plain: Mapping[str, OutcomesByCutoff]
    blended: Mapping[str, OutcomesByCutoff] = field(default_factory=dict)
    new_users: Mapping[str, OutcomesByCutoff] = field(default_factory=dict)


def summarize_arms(results: ArmOutcomes, family: str) -> list[dict[str, Any]]:
    """Return one row per arm: mean metrics over cases and seeds, lift over real events only, and lift of real+scalr over the arm.

    Args:
        results: Outcomes by arm.
        family: Model family.
    """
    panel, outcomes = results.panel, results.plain
    clusters = TwoWayClusters(panel.user, panel.n_items)
    ndcg = {arm: panel.ndcg_contributions(by_cutoff) for arm, by_cutoff in outcomes.items()}
    over_real = _with_holm({arm: clusters.compare(own, ndcg[REAL_ONLY]) for arm, own in ndcg.items() if arm != REAL_ONLY})
    synthetic_over = _with_holm(
        {
            arm: clusters.compare(ndcg[WITH_SYNTHETIC], own)
            for arm, own in ndcg.items()
            if WITH_SYNTHETIC in ndcg and arm not in {WITH_SYNTHETIC, REAL_ONLY}
        }
    )
    probabilities = normalized_entropies(panel, outcomes, clusters)
    new_users = _summarize_new_users(results)
    rows = []
    for arm, by_cutoff in outcomes.items():
        metrics = _mean_metrics(panel, by_cutoff)
        row: dict[str, Any] = {"name": arm, "model": family, "seeds": len(by_cutoff[0]), "metrics": metrics}
        row |= over_real.get(arm, {})
        if arm in synthetic_over:
            row["scalr_over_this"] = synthetic_over[arm]
        row["slices"] = _slice_metrics(panel, by_cutoff)
        for name, cases in panel.segment_masks().items():
            if arm != REAL_ONLY:
                row["slices"][name] |= clusters.compare(ndcg[arm], ndcg[REAL_ONLY], cases).to_json()
        if arm in new_users:
            row["slices"]["new"] = new_users[arm]
        if arm in results.blended:
            row["slices"]["blended"] = {
                "users": len(panel.user),
                "ndcg": float(panel.mean_metric(results.blended[arm], "ndcg").mean()),
            }
        if arm in probabilities:
            row["probabilities"] = probabilities[arm]
        rows.append(row)
    return rows


def _summarize_new_users(results: ArmOutcomes) -> dict[str, dict[str, Any]]:
    """Return NDCG and the lift over real events only of each arm for users as if they were new."""
    panel = results.new_user_panel
    if panel is None or REAL_ONLY not in results.new_users:
        return {}
    clusters = TwoWayClusters(panel.user, panel.n_items)
    ndcg = {arm: panel.ndcg_contributions(outcomes) for arm, outcomes in results.new_users.items()}
    found = {}
    for arm, outcomes in results.new_users.items():
        mean = panel.mean_metric(outcomes, "ndcg").mean()
        found[arm] = {"users": len(panel.user), "ndcg": float(mean)}
        if arm != REAL_ONLY:
            found[arm] |= clusters.compare(ndcg[arm], ndcg[REAL_ONLY]).to_json()
    return found


def _with_holm(comparisons: Mapping[str, ArmComparison]) -> dict[str, dict[str, Any]]:
    """Return the comparisons as plain JSON values, with Holm-adjusted p-values."""
    adjusted = holm_adjust([comparison.p_value for comparison in comparisons.values()])
    return {
        arm: comparison.to_json() | {"p_holm": p_holm}
        for (arm, comparison), p_holm in zip(comparisons.items(), adjusted, strict=True)
    }


def build_verdict(results: ArmOutcomes, family: str, best_baselines: Mapping[str, str]) -> dict[str, Any]:
    """Return the lift of real+scalr over the best baseline and over the cross-domain baselines: overall, by segment, and for new users.

    ``blended`` compares the same models after both were blended with recent popularity.

    Args:
        results: Outcomes by arm.
        family: Model family.
        best_baselines: ``all`` and each segment → the better of popularity baseline and real events only, see `Tuner.best_baselines`.
    """
    panel, outcomes = results.panel, results.plain
    wanted = {WITH_SYNTHETIC, *_CROSS_DOMAIN_BASELINES.values(), *(best_baselines[name] for name in SEGMENTS)}
    clusters = TwoWayClusters(panel.user, panel.n_items)
    ndcg = {arm: panel.ndcg_contributions(outcomes[arm]) for arm in wanted if arm in outcomes}
    masks = panel.segment_masks()
    best = MetricContributions.concat([ndcg[best_baselines[name]].select_cases(cases) for name, cases in masks.items()])
    overall = clusters.compare(ndcg[WITH_SYNTHETIC], best)
    names = {best_baselines[name] for name in masks}
    row: dict[str, Any] = {"model": family} | _lift_over_best(overall, names.pop() if len(names) == 1 else BEST_BY_SEGMENT)
    row |= {"difference": overall.difference, "difference_ci95": list(overall.difference_ci95)}
    row |= _lifts_over_cross_domain(clusters, ndcg)
    for name, cases in masks.items():
        over_best = clusters.compare(ndcg[WITH_SYNTHETIC], ndcg[best_baselines[name]], cases)
        row[name] = _lift_over_best(over_best, best_baselines[name]) | {"cases": int(cases.sum())}
        row[name] |= _lifts_over_cross_domain(clusters, ndcg, cases)
    if REAL_ONLY in results.blended and WITH_SYNTHETIC in results.blended:
        blended, real = (panel.ndcg_contributions(results.blended[arm]) for arm in (WITH_SYNTHETIC, REAL_ONLY))
        row["blended"] = _lift_over_best(clusters.compare(blended, real), REAL_ONLY)
    new_panel = results.new_user_panel
    if new_panel is not None and WITH_SYNTHETIC in results.new_users:
        baseline = best_baselines[SEGMENTS[0]]
        new = {
            arm: new_panel.ndcg_contributions(results.new_users[arm])
            for arm in (WITH_SYNTHETIC, baseline, *_CROSS_DOMAIN_BASELINES.values())
            if arm in results.new_users
        }
        clusters = TwoWayClusters(new_panel.user, new_panel.n_items)
        row["new"] = _lift_over_best(clusters.compare(new[WITH_SYNTHETIC], new[baseline]), baseline)
        row["new"]["cases"] = len(new_panel.user)
        row["new"] |= _lifts_over_cross_domain(clusters, new)
    return row


def _lifts_over_cross_domain(
    clusters: TwoWayClusters, ndcg: Mapping[str, MetricContributions], cases: NDArray[np.bool_] | None = None
) -> dict[str, Any]:
    """Return the lift of real+scalr over each baseline that uses source events, too."""
    return {
        key: clusters.compare(ndcg[WITH_SYNTHETIC], ndcg[arm], cases).lift_to_json()
        for key, arm in _CROSS_DOMAIN_BASELINES.items()
        if arm in ndcg
    }


def _lift_over_best(comparison: ArmComparison, baseline: str) -> dict[str, Any]:
    return {"best_baseline": baseline, "lift_over_best_pct": comparison.lift_pct, "ci95": list(comparison.ci95)}


def write_report(report: EvaluationReport, folder: Path) -> None:
    """Write ``report.json``, and ``arms.parquet`` with a row per arm, family, slice and metric (slice ``synthetic``: the arm's events)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_text(folder / "report.json", json.dumps(report.to_json(), indent=1) + "\n")
    table = []
    for row in report.arms:
        table += [(row["name"], row["model"], "all", metric, value) for metric, value in row["metrics"].items()]
        table += [
            (row["name"], row["model"], "synthetic", key, float(value)) for key, value in row.get("synthetic", {}).items()
        ]
        table += [
            (row["name"], row["model"], part, metric, float(value))
            for part, figures in (*row["slices"].items(), *row.get("probabilities", {}).items())
            for metric, value in figures.items()
            if isinstance(value, int | float)
        ]
        if "lift_pct" in row:
            low, high = row["ci95"]
            table += [
                (row["name"], row["model"], "all", metric, value)
                for metric, value in (("lift_pct", row["lift_pct"]), ("lift_low", low), ("lift_high", high))
            ]
    names = ("arm", "model", "slice", "metric", "value")
    with atomic_path(folder / "arms.parquet") as unfinished:
        pq.write_table(pa.table(dict(zip(names, map(list, zip(*table, strict=True)), strict=True))), unfinished)


def _replace_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _replace_non_finite(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_replace_non_finite(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _arm_line(row: Mapping[str, Any]) -> dict[str, Any]:
    metrics, slices = row["metrics"], row["slices"]
    return {
        "model": row["model"],
        "arm": row["name"],
        "ndcg": metrics["ndcg"],
        "lift % (95 % CI)": _interval(row),
        "synthetic augmentation over this %": _interval(row.get("scalr_over_this", {})),
        **{name: slices.get(name, {}).get("ndcg") for name in (*SEGMENTS, "new", "blended")},
        "coverage": metrics["coverage"],
        **_entropy_columns(row.get("probabilities", {})),
    }


def _entropy_columns(probabilities: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return NE over all users, and NE relative to real events only by segment."""
    if not probabilities:
        return {}
    relative = {
        f"NE {name} % (95 % CI)": _interval({"lift_pct": part["ne_vs_real_pct"], "ci95": part["ne_ci95"]}, digits=2)
        for name, part in probabilities.items()
        if "ne_vs_real_pct" in part
    }
    return {"NE": probabilities["all"]["ne"], **relative}


def _interval(comparison: Mapping[str, Any], digits: int = 1) -> str:
    """Format a lift with its interval for a table."""
    if "ci95" not in comparison:
        return ""
    low, high = comparison["ci95"]
    return f"{comparison['lift_pct']:+z.{digits}f} ({low:+z.{digits}f} … {high:+z.{digits}f})"


def _verdict_line(verdict: Mapping[str, Any]) -> dict[str, Any]:
    cold = verdict.get("cold", {})
    new, blended = verdict.get("new", {}), verdict.get("blended", {})
    return {
        "model": verdict["model"],
        "best baseline": verdict["best_baseline"],
        "lift over best % (95 % CI)": _over_best(verdict),
        "cold users": _over_best(cold),
        "all, target history hidden": _over_best(new),
        "over joint training": _interval(verdict.get("over_rival", {})),
        "over popularity by cluster": _interval(verdict.get("over_clusters", {})),
        "both blended with recent popularity": _over_best(blended),
    }


def _over_best(verdict: Mapping[str, Any]) -> str:
    if not verdict:
        return ""
    return _interval({"lift_pct": verdict["lift_over_best_pct"], "ci95": verdict["ci95"]})


def _mean_metrics(panel: UserPanel, by_cutoff: OutcomesByCutoff) -> dict[str, float]:
    metrics = {name: float(panel.mean_metric(by_cutoff, name).mean()) for name in ("ndcg", "recall", "mrr")}
    outcomes = [outcome for seeds in by_cutoff for outcome in seeds]
    exposure = {name: float(np.mean([outcome.exposure[name] for outcome in outcomes])) for name in outcomes[0].exposure}
    return metrics | exposure


def _slice_metrics(panel: UserPanel, by_cutoff: OutcomesByCutoff) -> dict[str, dict[str, Any]]:
    ndcg = panel.mean_metric(by_cutoff, "ndcg")
    values = {name: ndcg[cases] for name, cases in panel.segment_masks().items()}
    for name in ("head", "tail"):
        ndcg_of_items = panel.mean_metric(by_cutoff, name)
        values[name] = ndcg_of_items[np.isfinite(ndcg_of_items)]
    return {name: {"users": len(part), "ndcg": float(part.mean())} for name, part in values.items() if len(part)}
