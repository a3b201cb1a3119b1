"""What `scalr evaluate` comes to in worlds whose translation is known: whether λ and the lift follow the signal, and are 0 without one.

ALS in the small world of `bench_worlds`, half of the users target-cold, one cutoff, one validation window, two seeds. The last world has
a log with repeats. Then twenty worlds each without a signal and with a weak one: how often λ is above 0, and what that brings on the test.
One thread.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.bench_worlds import SMALL

if TYPE_CHECKING:
    from benchmarks.worlds import World

KNOBS: tuple[dict[str, Any], ...] = (
    *({"signal": signal} for signal in (0.0, 0.1, 0.3, 0.6, 0.9)),
    {"signal": 0.6, "repeats": 0.3},
)
#: Signals of which twenty worlds each are evaluated.
UNCERTAIN = (0.0, 0.1)
SEEDS = 20
SETTINGS = """[project]
name = "world"
[translator]
threads = 1
[generation]
contexts = "users"
[serving]
scorer = "local"
threads = 1
[downstream]
models = ["als"]
cold_fraction = 0.5
threads = 1
"""


def main() -> dict[str, Any]:
    found = {}
    for knobs in KNOBS:
        name = ", ".join(f"{key} {value:g}" for key, value in knobs.items())
        with TemporaryDirectory() as folder:
            found[name] = lift(replace(SMALL, **knobs), Path(folder))
        print(f"  {name}: {found[name]}", file=sys.stderr, flush=True)
    for signal in UNCERTAIN:
        decisions = [decide(replace(SMALL, signal=signal, seed=seed)) for seed in range(1, SEEDS + 1)]
        found[f"signal {signal:g}, {SEEDS} worlds"] = {
            "accepted": sum(one["accepted"] for one in decisions),
            "runs that would generate events": sum(one["generates"] for one in decisions),
            "lift_over_best_pct": [one["lift_over_best_pct"] for one in decisions if one["accepted"]],
            "own_over_others": [one["own_over_others"] for one in decisions],
        }
    return found


def decide(world: World) -> dict[str, Any]:
    """Whether an evaluation accepts synthetic events, and whether a run would generate some afterwards."""
    from scalr_prod.config.settings import load_settings
    from scalr_prod.evaluation import EvaluationRequest, evaluate
    from scalr_prod.generation import why_not_generated

    with TemporaryDirectory() as folder:
        settings = load_settings(world.make().write(Path(folder), SETTINGS))
        report = evaluate(settings, EvaluationRequest(arms=())).to_json()
        found = {
            "accepted": any(report["choices"]["als"]["lambda"].values()),
            "generates": why_not_generated(settings) is None,
            "own_over_others": report["signal"]["own_over_others"],
            "lift_over_best_pct": round(report["verdict"]["models"][0]["lift_over_best_pct"], 1),
        }
    print(f"  signal {world.signal:g}, seed {world.seed}: {found}", file=sys.stderr, flush=True)
    return found


def lift(world: World, folder: Path) -> dict[str, Any]:
    """λ by segment, NDCG@20 of each arm, and the gain over the best baseline."""
    from scalr_prod.config.settings import load_settings
    from scalr_prod.evaluation import EvaluationRequest, evaluate

    settings = load_settings(world.make().write(folder, SETTINGS))
    report = evaluate(settings, EvaluationRequest(arms=("translator", "shuffled", "model_level_transfer"))).to_json()
    (verdict,) = report["verdict"]["models"]
    choice = report["choices"]["als"]
    rows = {row["name"]: row for row in report["arms"]}
    return {
        "test_users": report["users"],
        "ndcg": {name: round(row["metrics"]["ndcg"], 4) for name, row in rows.items()},
        "by_segment": {
            name: {segment: round(found["ndcg"], 4) for segment, found in row["slices"].items() if segment in report["users"]}
            for name, row in rows.items()
        },
        "own_over_others": report["signal"]["own_over_others"],
        "lambda": choice["lambda"],
        "lambda_of_shuffled": choice["arms"]["shuffled"]["lambda"],
        "best_baseline": verdict["best_baseline"],
        "lift_over_best_pct": round(verdict["lift_over_best_pct"], 1),
        "ci95": [round(bound, 1) for bound in verdict["ci95"]],
        "over_rival": verdict["over_rival"],
    }
