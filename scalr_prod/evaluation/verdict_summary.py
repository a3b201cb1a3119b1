# SPDX-License-Identifier: Apache-2.0
"""Verdict of an evaluation for a reader in a hurry: does it help, how sure is that, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from scalr_prod.evaluation.acceptance import describe_acceptance
from scalr_prod.evaluation.arms import (
    BEST_BY_SEGMENT,
    CLUSTER_BASELINE,
    JOINT_BASELINE,
    POPULARITY_BASELINE,
    REAL_ONLY,
    WITH_SYNTHETIC,
)
from scalr_prod.evaluation.signal import Signal, classify_signal
from scalr_prod.generation import SEGMENTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


Effect = Literal["helps", "unsure", "behind", "harms", "refused"]

#: Arms of the table, weakest idea first, with their names in prose.
_ARMS: Final = {
    POPULARITY_BASELINE: "recently popular items",
    CLUSTER_BASELINE: "items popular among users with similar source histories",
    REAL_ONLY: "real events only",
    JOINT_BASELINE: "both domains in one model",
    WITH_SYNTHETIC: "real + synthetic events",
}
_BASELINES: Final = _ARMS | {
    BEST_BY_SEGMENT: "the better of recently popular items and real events only in each group of users"
}
#: Baselines that use source events, too: key in a verdict → name in prose, and what to do if it is better.
_CROSS_DOMAIN: Final = {
    "over_rival": ("the same model trained on both domains", "train your model on both domains, if you can"),
    "over_clusters": (
        "items popular among users with similar source histories",
        "recommend what is popular among users with similar source histories",
    ),
}
#: Beginning of the answer. A quick verdict has nothing from validation.
_STARTS: Final = {
    "helps": "Synthetic events help",
    "unsure": "Synthetic events helped on validation, and the test does not confirm it",
    "behind": "Synthetic events help this model, but a simpler method is better",
    "harms": "Synthetic events helped on validation, but did harm in the test",
}
_QUICK_STARTS: Final = {
    "helps": "Synthetic events help with default settings",
    "unsure": "Inconclusive for default settings",
    "behind": "Synthetic events help this model with default settings, but a simpler method is better",
    "harms": "Synthetic events do harm with default settings",
}
_NEXT_STEPS: Final = {
    "refused": "keep training on real events; scalr run generates nothing until an evaluation on more events finds a gain",
    "harms": (
        "set [training_set] synthetic_weight = 0, since scalr run would apply these settings; then test at more times: "
        "scalr evaluate --cutoffs 4"
    ),
    "unsure": "scalr run, which applies these settings; to be sure, test at more times (scalr evaluate --cutoffs 4) or measure online",
    "helps": "scalr run, which applies these settings",
}
_SENTENCE_USERS: Final = {"cold": "Users without target events", "new": "all users with their target history hidden"}
#: Part of a verdict → the users that it is about, in tables and charts.
_USERS: Final = {
    "all": "all users",
    "cold": "no target events",
    "sparse": "few target events",
    "dense": "many target events",
    "new": "all, target history hidden",
}


#: Depth of the rankings of reports that do not name it.
_DEFAULT_DEPTH: Final = 20
#: Hyperparameters with a unit.
_UNITS: Final = {"half_life": "half_life (days)"}


@dataclass(frozen=True)
class VerdictSummary:
    """What an evaluation found, in three sentences, a table and the rows of a chart.

    Attributes:
        effect: ``helps`` or ``harms``: the interval of the lift over the best baseline excludes 0. ``behind``: it is below 0, but the
            interval of the lift over real events only is above. ``unsure``: it contains 0. ``refused``: λ is 0.
        model: The model family that the sentences are about, the best one on validation.
        answer: Whether synthetic events help, compared with the best baseline and the strongest one that uses source events, too.
        certainty: For whom.
        model_settings: The model's hyperparameters in all arms; they are tuned on real events. A model with others gains more or less.
        next_step: What to do now.
        table: One row per arm: ``method``, NDCG of all users and of parts of them, and the lift of real and synthetic events over it.
        lifts: One row per group of users: ``users``, ``lift_pct``, ``low`` and ``high`` over the best baseline.
    """

    effect: Effect
    model: str
    answer: str
    certainty: str
    model_settings: str
    next_step: str
    table: Sequence[Mapping[str, Any]]
    lifts: Sequence[Mapping[str, Any]]


def summarize_verdict(report: Mapping[str, Any]) -> VerdictSummary:
    """Summarize an evaluation.

    Args:
        report: JSON of an `EvaluationReport`, as in ``report.json``.
    """
    choices = report["choices"]
    best = max(choices, key=lambda family: float((choices[family]["validation"] or {"ndcg": 0.0})["ndcg"]))
    is_quick = report["verdict"]["quick"]
    (verdict,) = (row for row in report["verdict"]["models"] if row["model"] == best)
    arms = [row for row in report["arms"] if row["model"] == best]
    over_real: Mapping[str, Any] = next((row for row in arms if row["name"] == WITH_SYNTHETIC), {})
    effect = _effect(verdict, over_real.get("ci95"), is_used=choices[best]["helps"])
    depth = report["verdict"].get("k", _DEFAULT_DEPTH)
    return VerdictSummary(
        effect,
        best,
        _answer(effect, report, verdict, choices[best]),
        _certainty(effect, verdict),
        _describe_model(best, choices[best]["options"]),
        _next_step(effect, verdict, is_quick=is_quick),
        _table(arms, depth, is_used=effect != "refused"),
        _lifts(verdict) if effect != "refused" else (),
    )


def _effect(verdict: Mapping[str, Any], over_real: Sequence[float | None] | None, *, is_used: bool) -> Effect:
    if not is_used:
        return "refused"
    low, high = verdict["ci95"]
    if low is None or high is None:  # the baseline's NDCG is 0
        return "unsure"
    if high < 0:
        return "behind" if over_real is not None and over_real[0] is not None and over_real[0] > 0 else "harms"
    return "helps" if low > 0 else "unsure"


def _answer(effect: Effect, report: Mapping[str, Any], verdict: Mapping[str, Any], choice: Mapping[str, Any]) -> str:
    model, is_quick = verdict["model"], report["verdict"]["quick"]
    if effect == "refused" and is_quick:
        return f"No gain expected, so synthetic events were not tested with {model}: " + (
            "users' own source histories were not shown to predict their target events better than other users' histories."
            if classify_signal(report.get("signal")) is not Signal.PRESENT
            else "[training_set] synthetic_weight is 0."
        )
    if effect == "refused":
        decision = describe_acceptance(tuple(choice["lambda"].values()), choice["validation"].get("bar"))
        return f"No gain found: with {model}, synthetic events are not used ({decision.removeprefix('refused: ')})."
    baseline = _BASELINES[verdict["best_baseline"]]
    start = (_QUICK_STARTS if is_quick else _STARTS)[effect]
    if verdict["lift_over_best_pct"] is None:
        return f"{start}: with {model}, {baseline} found none of the users' items."
    answer = f"{start}: NDCG of {model} is {_compared(verdict, 'lift_over_best_pct')} than with {baseline}"
    strongest = _strongest_cross_domain(verdict)
    if strongest is not None:
        answer += f", and {_compared(verdict[strongest], 'lift_pct')} than with {_CROSS_DOMAIN[strongest][0]}"
    return f"{answer}."


def _strongest_cross_domain(verdict: Mapping[str, Any]) -> str | None:
    """Return the key of the baseline that uses source events, too, and over which the lift is lowest, or None if there is none."""
    found = [key for key in _CROSS_DOMAIN if key in verdict and verdict[key]["lift_pct"] is not None]
    return min(found, key=lambda key: float(verdict[key]["lift_pct"]), default=None)


def _certainty(effect: Effect, verdict: Mapping[str, Any]) -> str:
    if effect == "refused":
        return f"Best for all users: {_BASELINES[verdict['best_baseline']]}."
    found = [f"{name} {_describe_part(verdict[key])}" for key, name in _SENTENCE_USERS.items() if key in verdict]
    return f"{'; '.join(found)}." if found else "There are too few users for figures by group."


def _describe_part(part: Mapping[str, Any]) -> str:
    """Describe the lift for a group of users over its best baseline, and over a better one that uses source events."""
    strongest = _strongest_cross_domain(part)
    is_beaten = strongest is not None and float(part[strongest]["lift_pct"]) < 0
    return f"{_percent(part)} over {_ARMS[part['best_baseline']]}" + (
        f", but {_percent(part[strongest], 'lift_pct')} over {_CROSS_DOMAIN[strongest][0]}" if strongest and is_beaten else ""
    )


def _describe_model(model: str, options: Mapping[str, Any]) -> str:
    named = ", ".join(
        f"{_UNITS.get(name, name)} {value:.3g}" for name, value in options.items() if isinstance(value, int | float)
    )
    return f"{model} with {named} (tuned on validation, on real events only)" if named else f"{model} with its own settings"


def _next_step(effect: Effect, verdict: Mapping[str, Any], *, is_quick: bool) -> str:
    if is_quick:
        found = "may find settings that help" if effect != "helps" else "chooses better ones"
        return f"scalr evaluate, which {found} and tests more baselines; later runs of scalr run follow what it finds"
    if effect == "behind":
        return f"recommend {_better_for(verdict)}; if you need this model, scalr run applies these settings"
    strongest = _strongest_cross_domain(verdict)
    if effect in {"helps", "unsure"} and strongest is not None and (verdict[strongest]["ci95"][1] or 0.0) < 0:
        return f"{_CROSS_DOMAIN[strongest][1]}; otherwise scalr run, which applies these settings"
    return _NEXT_STEPS[effect]


def _better_for(verdict: Mapping[str, Any]) -> str:
    """Describe the baseline that is better, for the groups of users for whom it is significantly so."""
    segments = {name: verdict[name] for name in SEGMENTS if name in verdict}
    lists = [
        name for name, part in segments.items() if part["best_baseline"] == POPULARITY_BASELINE and (part["ci95"][1] or 0.0) < 0
    ]
    if not lists or len(lists) == len(segments):
        return _BASELINES[verdict["best_baseline"]]
    return f"{_ARMS[POPULARITY_BASELINE]} to users with {' or '.join(_USERS[name] for name in lists)}"


def _table(arms: Sequence[Mapping[str, Any]], k: int, *, is_used: bool) -> list[dict[str, Any]]:
    by_name = {row["name"]: row for row in arms}
    rows = []
    for arm, name in _ARMS.items():
        if arm not in by_name:
            continue
        slices = by_name[arm]["slices"]
        # The report has the lift over real events only in the row of real and synthetic events.
        over = by_name[arm].get("scalr_over_this") or ({} if arm != REAL_ONLY else by_name.get(WITH_SYNTHETIC, {}))
        rows.append(
            {
                "method": name,
                f"NDCG@{k}": round(by_name[arm]["metrics"]["ndcg"], 4),
                _USERS["cold"]: _ndcg(slices, "cold"),
                _USERS["new"]: _ndcg(slices, "new"),
                "real + synthetic is better by (95 %)": _percent(over, "lift_pct") if "ci95" in over and is_used else "",
            }
        )
    return rows


def _lifts(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    parts = {name: verdict if name == "all" else verdict.get(name) for name in _USERS}
    return [
        {"users": _USERS[name], "lift_pct": part["lift_over_best_pct"], "low": part["ci95"][0], "high": part["ci95"][1]}
        for name, part in parts.items()
        if part is not None and None not in {part["lift_over_best_pct"], *part["ci95"]}
    ]


def _ndcg(slices: Mapping[str, Any], name: str) -> float | str:
    found = slices.get(name, {}).get("ndcg")
    return "no such users" if found is None else round(found, 4)


def _compared(comparison: Mapping[str, Any], name: str) -> str:
    """Describe a lift that is not None, such as "12 % higher (95 %: +5 … +20)"."""
    lift, (low, high) = comparison[name], comparison["ci95"]
    interval = "" if low is None or high is None else f" (95 %: {low:+.0f} … {high:+.0f})"
    return f"{abs(lift):.0f} % {'higher' if lift > 0 else 'lower'}{interval}"


def _percent(comparison: Mapping[str, Any], name: str = "lift_over_best_pct") -> str:
    low, high = comparison["ci95"]
    if comparison[name] is None or low is None or high is None:
        return "by an undefined share (the baseline's NDCG is 0)"
    return f"{comparison[name]:+.0f} % (95 %: {low:+.0f} … {high:+.0f})"
