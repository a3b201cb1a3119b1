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
from scalr_prod.evaluation.split import MIN_TEST_USERS
from scalr_prod.generation import SEGMENTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


Effect = Literal["helps", "unsure", "behind", "harms", "refused"]

#: Arms of the table, weakest idea first, with their names in prose.
_ARMS: Final = {
    POPULARITY_BASELINE: "recently popular items",
    CLUSTER_BASELINE: "items popular among users with similar source histories",
    REAL_ONLY: "real events only",
    JOINT_BASELINE: "joint training on both domains",
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
    "helps": "Yes, synthetic events help",
    "unsure": "Unclear: synthetic events helped on validation, and the test does not confirm it",
    "behind": "Synthetic events help this model, but a simpler method is better",
    "harms": "No: synthetic events helped on validation, but did harm in the test",
}
_QUICK_STARTS: Final = {
    "helps": "Yes, synthetic events help with default settings",
    "unsure": "Unclear with default settings",
    "behind": "Synthetic events help this model with default settings, but a simpler method is better",
    "harms": "No, synthetic events do harm with default settings",
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
_QUICK_NEXT_STEPS: Final = {
    "helps": "scalr evaluate, which looks for better settings and tests more baselines; then scalr run, which applies them",
    "refused": (
        "check that user ids name the same people in both logs; scalr evaluate tries other settings. If it finds no gain either, "
        "scalr run generates nothing"
    ),
}
_QUICK_NEXT_STEP: Final = (
    "keep training on real events for now; scalr evaluate looks for settings that help, and scalr run applies them, or generates nothing "
    "if there are none"
)
#: Part of a verdict → the users that it is about.
_USERS: Final = {
    "all": "all users",
    "cold": "no target events",
    "sparse": "few target events",
    "dense": "many target events",
    "new": "all as new users",
}
_NEW_USERS: Final = "everybody as a new user, with the target history hidden"
#: What the table says of real and synthetic events if λ is 0: after an evaluation, and in a quick verdict.
_UNUSED: Final = ("not used", "not tested")
_GAIN: Final = "real + synthetic over it (95 %)"


#: From here on the upper end of a lift's interval says only that the baseline's NDCG may be 0.
_UNBOUNDED_PCT: Final = 100_000
#: Depth of the rankings of reports that do not name it.
_DEFAULT_DEPTH: Final = 20
#: Hyperparameters with a unit.
_UNITS: Final = {"half_life": "half_life (days)"}


@dataclass(frozen=True)
class VerdictSummary:
    """What an evaluation found, in three sentences, a table and the rows of a chart.

    Attributes:
        effect: ``helps`` or ``harms``: the interval of the lift over the best baseline excludes 0. ``behind``: it is below 0, but the
            interval of the lift over real events only is above. ``unsure``: it contains 0. ``refused``: the events are
            not used, since λ is 0 or the quality gate rejects them.
        model: The model family that the sentences are about, the best one on validation.
        answer: Whether synthetic events help, compared with the best baseline and the strongest one that uses source events, too.
        by_group: The lift for each group of users, over the best method without synthetic events.
        tested_on: Number of test users, and when the test begins.
        model_settings: The model's hyperparameters, on real events only and with synthetic events. A model with others gains more or less.
        next_step: What to do now.
        table: One row per method: ``method``, NDCG of all users, the lift of real and synthetic events over it, NDCG of groups of users.
        lifts: One row per group of users: ``users``, ``lift_pct``, ``low`` and ``high``, over the best method without synthetic events.
    """

    effect: Effect
    model: str
    answer: str
    by_group: str
    tested_on: str
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
    ours: Mapping[str, Any] = next((row for row in arms if row["name"] == WITH_SYNTHETIC), {})
    effect = _effect(verdict, ours.get("ci95"), is_used=choices[best]["helps"])
    depth = report["verdict"].get("k", _DEFAULT_DEPTH)
    return VerdictSummary(
        effect,
        best,
        _answer(effect, report, verdict, choices[best], ours),
        _by_group(effect, verdict),
        _describe_test(report),
        _describe_model(best, choices[best], is_quick=is_quick),
        _next_step(effect, verdict, is_quick=is_quick),
        _table(arms, verdict, depth, unused=_UNUSED[is_quick] if effect == "refused" else None),
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


def _answer(
    effect: Effect,
    report: Mapping[str, Any],
    verdict: Mapping[str, Any],
    choice: Mapping[str, Any],
    arm: Mapping[str, Any],
) -> str:
    model, is_quick = verdict["model"], report["verdict"]["quick"]
    if effect == "refused" and is_quick:
        return f"No gain expected, so synthetic events were not tested with {model}: " + (
            _describe_signal(report.get("signal"))
            if classify_signal(report.get("signal")) is not Signal.PRESENT
            else "[training_set] synthetic_weight is 0."
        )
    if "rejected" in choice:
        return f"Not published: with {model}, the quality gate rejects the synthetic events. {choice['rejected']}"
    if effect == "refused":
        decision = describe_acceptance(tuple(choice["lambda"].values()), choice["validation"].get("bar"))
        return f"No gain found: with {model}, synthetic events are not used ({decision.removeprefix('refused: ')})."
    baseline = _BASELINES[verdict["best_baseline"]]
    start = (_QUICK_STARTS if is_quick else _STARTS)[effect]
    if verdict["lift_over_best_pct"] is None:
        return f"{start}. With {model}, {baseline} found none of the users' items."
    reached = _baseline_ndcg(arm, verdict)
    if reached is not None:
        both = f"{arm['metrics']['ndcg']:.3g} with synthetic events and {reached:.3g} with {baseline}"
        answer = f"{start}. NDCG of {model} is {both}: {_percent(verdict)}."
    else:
        answer = f"{start}. NDCG of {model} with synthetic events, over that with {baseline}: {_percent(verdict)}."
    strongest = _strongest_cross_domain(verdict)
    if strongest is not None:
        answer += f" Against {_CROSS_DOMAIN[strongest][0]}: {_percent(verdict[strongest], 'lift_pct')}."
    return answer


def _baseline_ndcg(arm: Mapping[str, Any], verdict: Mapping[str, Any]) -> float | None:
    """Return the NDCG of the baseline of all users; None if the lift over it does not tell."""
    lift, ndcg = verdict["lift_over_best_pct"], arm.get("metrics", {}).get("ndcg")
    return float(ndcg) / (1 + lift / 100) if ndcg and lift is not None else None


def _describe_signal(signal: Mapping[str, Any] | None) -> str:
    found = (signal or {}).get("own_over_others")
    text = "users' own source histories were not shown to predict their target events better than other users' histories"
    if found is None:
        return f"{text}."
    low, high = found["ci99"]
    return f"{text} ({found['nats']:+z.3f} nats per event, 99 %: {low:+z.3f} … {high:+z.3f})."


def _strongest_cross_domain(verdict: Mapping[str, Any]) -> str | None:
    """Return the key of the baseline that uses source events, too, and over which the lift is lowest, or None if there is none."""
    found = [key for key in _CROSS_DOMAIN if key in verdict and verdict[key]["lift_pct"] is not None]
    return min(found, key=lambda key: float(verdict[key]["lift_pct"]), default=None)


def _over_strongest(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the lift over the best method without synthetic events, and its interval."""
    over_best = {"lift_pct": part["lift_over_best_pct"], "ci95": part["ci95"]}
    strongest = _strongest_cross_domain(part)
    if strongest is None or (over_best["lift_pct"] is not None and over_best["lift_pct"] <= part[strongest]["lift_pct"]):
        return over_best
    found: Mapping[str, Any] = part[strongest]
    return found


def _by_group(effect: Effect, verdict: Mapping[str, Any]) -> str:
    parts = {name: verdict[name] for name in (*SEGMENTS, "new") if name in verdict}
    if not parts:
        return "There are too few users for figures by group."
    if effect == "refused":
        return _best_by_group(parts)
    found = [
        f"{_NEW_USERS if name == 'new' else _USERS[name]}{_cases(part)} "
        + (_percent(_over_strongest(part), "lift_pct") if _has_enough_cases(part) else "too few to tell")
        for name, part in parts.items()
    ]
    return f"Over the best method of each group without synthetic events: {'; '.join(found)}."


def _best_by_group(parts: Mapping[str, Mapping[str, Any]]) -> str:
    groups: dict[str, list[str]] = {}
    for name, part in parts.items():
        groups.setdefault(part["best_baseline"], []).append(_NEW_USERS if name == "new" else f"users with {_USERS[name]}")
    if len(groups) == 1:
        return f"Best for all users: {_ARMS[next(iter(groups))]}."
    found = [f"{_ARMS[arm]} for {' and '.join(users)}" for arm, users in groups.items()]
    return f"Best: {'; '.join(found)}."


def _has_enough_cases(part: Mapping[str, Any]) -> bool:
    """Return whether a group's interval means anything: that of one user has no width."""
    return int(part.get("cases", MIN_TEST_USERS)) >= MIN_TEST_USERS


def _cases(part: Mapping[str, Any]) -> str:
    return f" ({part['cases']:,})" if "cases" in part else ""


def _describe_test(report: Mapping[str, Any]) -> str:
    cutoffs = [str(cutoff)[:10] for cutoff in report.get("cutoffs") or ()]
    users = (report.get("users") or {}).get("all")
    return f"{users:,} users' events after {', '.join(cutoffs)}" if users and cutoffs else "later events"


def _describe_model(model: str, choice: Mapping[str, Any], *, is_quick: bool) -> str:
    """Describe the model's settings on real events only, and those that differ with synthetic events."""
    with_synthetic = choice["options"]
    real = choice.get("arms", {}).get(REAL_ONLY, choice)["options"]
    named = _describe_options(real)
    if not named:
        return f"{model} with its own settings"
    own = {name: value for name, value in with_synthetic.items() if value != real.get(name)}
    tuned = "not tuned" if is_quick else "tuned on them"
    return f"{model} with {named} (tuned on validation, on real events only)" + (
        f"; with synthetic events {_describe_options(own)} ({tuned})" if own else ""
    )


def _describe_options(options: Mapping[str, Any]) -> str:
    named = [f"{_UNITS.get(name, name)} {value:.3g}" for name, value in options.items() if isinstance(value, int | float)]
    if options.get("half_life", 0.0) is None:  # infinite
        named.append("no decay")
    return ", ".join(named)


def _next_step(effect: Effect, verdict: Mapping[str, Any], *, is_quick: bool) -> str:
    if is_quick:
        return _QUICK_NEXT_STEPS.get(effect, _QUICK_NEXT_STEP)
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


def _table(
    arms: Sequence[Mapping[str, Any]], verdict: Mapping[str, Any], k: int, *, unused: str | None
) -> list[dict[str, Any]]:
    """Return the table. Groups without users have no column.

    Args:
        arms: The arms of the model.
        verdict: Its part of the verdict.
        k: Depth of the rankings.
        unused: What to say in place of figures of real and synthetic events; None: they are used.
    """
    by_name = {row["name"]: row for row in arms}
    named = {key: f"NDCG@{k}, {_USERS[key]}" for key in ("all", "cold", "new")}
    rows: list[dict[str, Any]] = []
    for arm, name in _ARMS.items():
        if arm not in by_name:
            continue
        # The report has the lift over real events only in the row of real and synthetic events.
        over = by_name[arm].get("scalr_over_this") or ({} if arm != REAL_ONLY else by_name.get(WITH_SYNTHETIC, {}))
        figures: dict[str, float | str | None] = {key: _ndcg(by_name[arm], key) for key in named}
        if arm == WITH_SYNTHETIC and unused:
            figures = {key: None if value is None else unused for key, value in figures.items()}
        gain = _percent(over, "lift_pct") if "ci95" in over and not unused else ""
        rows.append({"method": name} | {named[key]: value for key, value in figures.items()} | {_GAIN: gain})
    reached = _baseline_ndcg(by_name.get(WITH_SYNTHETIC, {}), verdict)
    if verdict["best_baseline"] == BEST_BY_SEGMENT and not unused and reached is not None:
        better = {"method": "the better of popular items and real events in each group", named["all"]: round(reached, 4)}
        rows.insert(-1, better | {_GAIN: _percent(verdict)})
    columns = [
        name for name in ("method", named["all"], _GAIN, named["cold"], named["new"]) if any(row.get(name) for row in rows)
    ]
    return [{name: "" if row.get(name) is None else row[name] for name in columns} for row in rows]


def _lifts(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    parts = {name: verdict if name == "all" else verdict.get(name) for name in _USERS}
    found = {name: _over_strongest(part) for name, part in parts.items() if part is not None and _has_enough_cases(part)}
    return [
        {"users": _USERS[name]}
        | {key: round(value) for key, value in zip(("lift_pct", "low", "high"), (lift["lift_pct"], *lift["ci95"]), strict=True)}
        for name, lift in found.items()
        if None not in {lift["lift_pct"], *lift["ci95"]}
    ]


def _ndcg(arm: Mapping[str, Any], users: str) -> float | None:
    part = arm["metrics"] if users == "all" else arm["slices"].get(users, {})
    return None if part.get("ndcg") is None else round(part["ndcg"], 4)


def _percent(comparison: Mapping[str, Any], name: str = "lift_over_best_pct") -> str:
    low, high = comparison["ci95"]
    if comparison[name] is None or low is None or high is None:
        return "by an undefined share (the baseline's NDCG is 0)"
    upper = f"{high:+z.0f}" if high < _UNBOUNDED_PCT else "∞"
    return f"{comparison[name]:+z.0f} % (95 %: {low:+z.0f} … {upper})"
