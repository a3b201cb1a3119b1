"""How often the intervals of an evaluation cover, with everything that validation chooses inside.

Each simulated evaluation has 600 users with one to three items to find among a thousand, whose popularity is skewed. `Tuner` chooses
model settings, λ, temperature, volume and filter on a validation period by the package's own rules and accepts or refuses λ. What it
ships is then measured on four test periods with as many users with `TwoWayClusters`, as `scalr evaluate` does on one. Every
hyperparameter's value moves the ranks of items, and of pairs of user and item, at random in each period, so that the best of those tried
is ahead by chance. The true gain of a choice is known: 0 in the first world; in the second, every value of λ, temperature, volume and
filter has a gain of its own, and that of a choice has a standard deviation of 10 %.

Counted are evaluations in which some λ above 0 was best on validation, the only ones that show a validation interval, and those that ship
λ above 0. One thread.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from scalr_prod.config.sections import DownstreamSettings, GenerationSettings
from scalr_prod.evaluation.arms import REAL_ONLY, WITH_SYNTHETIC, Arm
from scalr_prod.evaluation.ranking_metrics import Ranking
from scalr_prod.evaluation.statistics import TwoWayClusters
from scalr_prod.evaluation.trial_cache import MIN_DEPTH, ValidationSplit
from scalr_prod.evaluation.tuning import Tuner, tune_half_life

EVALUATIONS, TEST_PERIODS, USERS, ITEMS, MOST = 600, 4, 600, 1000, 3
#: Of log2 of a rank: what all arms share, and what an item, and a pair, is moved by one arm.
SPREAD, ITEM_NOISE, PAIR_NOISE = 2.5, 0.5, 0.8
WORLDS = {"no value has an effect": 0.0, "effects vary by 10 %": 0.1}
SETTINGS: Any = SimpleNamespace(downstream=DownstreamSettings(threads=1), generation=GenerationSettings())


class Period:
    """Users with the items that they will find, and the ranks that an arm gives these items.

    Args:
        world: Seeds what holds in every period.
        period: Seeds what is of this period alone.
        effect: Standard deviation of the gain of a hyperparameter's value.
    """

    def __init__(self, world: int, period: int, effect: float) -> None:
        self.world, self.period, self.effect = world, period, effect
        rng = np.random.default_rng([world, period])
        popularity = 1 / np.arange(1, ITEMS + 1)
        self.items = rng.choice(ITEMS, (USERS, MOST), p=popularity / popularity.sum())
        self.wanted = np.arange(MOST) < rng.integers(1, MOST + 1, USERS)[:, None]
        self.shared = rng.normal(7.0, SPREAD, (USERS, MOST)) + np.log2(1 + self.items) / 4
        self.segments = np.arange(USERS) % 3
        numbering = SimpleNamespace(items=pa.array(np.arange(ITEMS)))
        self.split = SimpleNamespace(users=np.arange(USERS), numbering=numbering, segments=lambda: self.segments, cutoff=period)

    def fit(self, family: str, options: dict[str, Any], events: Arm, *, seed: int, threads: int) -> Arm:  # noqa: ARG002 - as evaluators do
        """An arm is its own model."""
        return events

    def recent_popularity(self, half_life: float) -> float:
        """The list is as good at any half-life."""
        return half_life

    def evaluate(self, model: Arm | float, **boost: Any) -> SimpleNamespace:  # noqa: ARG002 - as evaluators do
        """The ranking of an arm, or of the list."""
        parts = ["list"] if isinstance(model, float) else _parts(model)
        moved = self.shared + sum(self._noise(part) for part in parts) / len(parts) ** 0.5
        gain = np.where(self.wanted & (moved < np.log2(MIN_DEPTH)), 1 / np.log2(1 + 2 ** moved.clip(0)), 0.0)
        if isinstance(model, Arm):
            gain *= 1 + self.gain_of(model)
        gain /= self.wanted.sum(1)[:, None]
        ndcg = gain.sum(1)
        others: Any = dict.fromkeys(("recall", "mrr", "head", "tail"), ndcg)
        return SimpleNamespace(ranking=Ranking(top=self.items.astype(np.int32), gain=gain, ndcg=ndcg, **others))

    def gain_of(self, arm: Arm) -> float:
        """The true gain of an arm over one without effects."""
        values = [np.random.default_rng([self.world, _number(part)]).normal() for part in _parts(arm)[1:]]
        return max(self.effect * float(np.sum(values)) / max(len(values), 1) ** 0.5, -0.9)

    def _noise(self, part: str) -> np.ndarray:
        rng = np.random.default_rng([self.world, self.period, 1, _number(part)])
        return rng.normal(0, ITEM_NOISE, ITEMS)[self.items] + rng.normal(0, PAIR_NOISE, (USERS, MOST))


def _number(part: str) -> int:
    return int.from_bytes(hashlib.sha256(part.encode()).digest()[:8], "little")


def _parts(arm: Arm) -> list[str]:
    """What moves an arm's ranks: its model settings, and each value of its synthetic events."""
    options = ",".join(f"{name}{value:g}" for name, value in sorted(arm.options.items()) if isinstance(value, (int, float)))
    if not any(arm.weights):
        return [f"options {options}"]
    draw = arm.draw
    values = [f"{weight:g}" for weight in arm.weights]
    return [
        f"options {options}",
        f"weights {'/'.join(values)}",
        f"temperature {draw.temperature:g}",
        f"volume {draw.volume:g}",
        f"lift {draw.min_lift:g}",
    ]


def main() -> dict[str, Any]:
    logging.getLogger("scalr_prod").setLevel(logging.ERROR)  # every refusal is a warning
    found: dict[str, Any] = {"evaluations": EVALUATIONS, "users": USERS}
    for name, effect in WORLDS.items():
        found[name] = coverage([evaluate(world, effect) for world in range(EVALUATIONS)])
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    return found


def evaluate(world: int, effect: float) -> dict[str, Any]:
    """Tune on a validation period; measure what ships on test periods."""
    validation, *tests = [Period(world, period, effect) for period in range(1 + TEST_PERIODS)]
    known = {"users": 1000, "own_over_others": {"nats": 0.4, "ci99": [0.3, 0.5]}}
    builder: Any = SimpleNamespace(
        events=lambda arm, *_: arm, max_contexts=None, translation=SimpleNamespace(information=known)
    )
    splits = [ValidationSplit(validation, builder)]  # type: ignore[arg-type]
    tuner = Tuner("als", splits, SETTINGS, tune_half_life(splits), lambda *_: None)
    real, tuned = tuner.tune(REAL_ONLY), tuner.tune(WITH_SYNTHETIC)
    acceptance = tuned.validation.acceptance if tuned.validation is not None else None
    gain = partial(_true_gain, validation, baseline=real.arm)
    found: dict[str, Any] = {"shipped": any(tuned.arm.weights), "compared": acceptance is not None}
    if acceptance is not None:
        truth = gain(acceptance.candidate)
        found |= {"reported": _covers(acceptance.reported.ci95, truth), "unwidened": _covers(acceptance.over_real.ci95, truth)}
    if found["shipped"]:
        clusters = TwoWayClusters(np.arange(USERS), ITEMS)
        hits = [[test.evaluate(arm).ranking.hits() for arm in (tuned.arm, real.arm)] for test in tests]
        covers = [_covers(clusters.compare(*pair).ci95, gain(tuned.arm)) for pair in hits]
        found |= {"test": np.mean(covers), "gain_pct": gain(tuned.arm)}
    return found


def _true_gain(period: Period, arm: Arm, *, baseline: Arm) -> float:
    return 100 * ((1 + period.gain_of(arm)) / (1 + period.gain_of(baseline)) - 1)


def _covers(interval: tuple[float, float], value: float) -> bool:
    return interval[0] <= value <= interval[1]


def coverage(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares of evaluations."""
    compared, shipped = ([one for one in found if one[name]] for name in ("compared", "shipped"))
    return {
        "some λ was best": len(compared),
        "validation interval covers": round(float(np.mean([one["reported"] for one in compared])), 3),
        "before it is widened": round(float(np.mean([one["unwidened"] for one in compared])), 3),
        "λ above 0 shipped": len(shipped),
        "test interval covers": round(float(np.mean([one["test"] for one in shipped])), 3),
        "mean true gain of what shipped, %": round(float(np.mean([one["gain_pct"] for one in shipped])), 2),
    }


if __name__ == "__main__":
    import json

    print(json.dumps(main(), indent=2, ensure_ascii=False))
