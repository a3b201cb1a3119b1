"""What `scalr evaluate` comes to in worlds whose translation is known: whether λ and the lift follow the signal, and are 0 without one.

ALS in the small world of `bench_worlds`, half of the users target-cold, one cutoff, one validation window, two seeds. The last world has
a log with repeats. One thread.
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
