"""How much a synthetic row should count where nobody has measured it: λ of runs without a policy.

Events with ``contexts = "events"``, the default until ADR 0090, two draws each, on the pairs of `bench_set_aside` and of
Amazon. ALS with one set of options, at each λ; the popularity boost of each is the best of five, for real events alone as well. Half of
the users are target-cold. Judged on the last fifth of the training period before the 80th percentile of target time, so that no test
slice is looked at. One thread.
"""

from __future__ import annotations

import sys
import tempfile
from datetime import UTC
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from benchmarks.bench_run import DATA
from benchmarks.bench_set_aside import COLD, NAMED_FIRST, NAMED_LATER, SETTINGS, YELP, queries_of

LAMBDAS = (0.01, 0.03, 0.1, 0.3, 1.0)
BOOSTS = (0.0, 0.1, 0.3, 1.0, 3.0)
SEEDS = 2
#: Of the list that a boost adds, days.
HALF_LIFE = 90.0
AMAZON = {"amazon_food_from_kitchen": ("kitchen", "food"), "amazon_kitchen_from_food": ("food", "kitchen")}


def main() -> dict[str, Any]:
    """NDCG@20 over that of real events alone, by pair and λ, and the median over pairs."""
    figures: dict[str, Any] = {}
    for name, pair in (NAMED_FIRST | NAMED_LATER).items():
        if pair[0] == "yelp" and not YELP.exists():
            figures[name] = {"skipped": f"Yelp's log is not at {YELP}; set SCALR_TEST_DATA"}
            continue
        figures[name] = judged(queries_of(pair))
        print(f"{name}: {figures[name]}", file=sys.stderr, flush=True)
    for name, pair in AMAZON.items():
        paths = [DATA / "amazon_food_kitchen" / f"{one}.parquet" for one in pair]
        if not paths[0].exists():
            figures[name] = {"skipped": f"the log is not at {paths[0]}; set SCALR_TEST_DATA"}
            continue
        source, target = (f"SELECT user_id, item_id, timestamp FROM '{path}'" for path in paths)
        figures[name] = judged((source, target))
        print(f"{name}: {figures[name]}", file=sys.stderr, flush=True)
    found = [one["over_real_pct"] for one in figures.values() if "over_real_pct" in one]
    medians = {name: float(np.median([one[name] for one in found])) for name in found[0]}
    worst = {name: min(one[name] for one in found) for name in found[0]}
    return figures | {"median_over_real_pct": medians, "worst_over_real_pct": worst}


def judged(queries: tuple[str, str]) -> dict[str, Any]:
    """One pair: synthetic events for each real one, NDCG@20 of real events alone, and by how much each λ is ahead of it (%)."""
    from scalr_prod.config.settings import load_settings
    from scalr_prod.evaluation.arms import Arm, ArmDataBuilder
    from scalr_prod.evaluation.evaluator import SplitEvaluator
    from scalr_prod.evaluation.models import family_hyperparameters
    from scalr_prod.evaluation.split import EvaluationSplit
    from scalr_prod.evaluation.translation import DrawOptions
    from scalr_prod.ingest import ingest

    with tempfile.TemporaryDirectory() as scratch:
        for role, query in zip(("source", "target"), queries, strict=True):
            duckdb.execute(f"COPY ({query} ORDER BY timestamp, user_id, item_id) TO '{scratch}/{role}.parquet'")
        config = Path(scratch) / "scalr.toml"
        config.write_text(SETTINGS.format(name="weight", cold=COLD).replace('contexts = "users"', 'contexts = "events"'))
        settings = load_settings(config)
        ingest(settings)
        found = duckdb.execute(f"SELECT quantile_disc(timestamp, 0.8) FROM '{scratch}/target.parquet'").fetchone()
        assert found is not None
        cutoff = found[0].astimezone(UTC) if found[0].tzinfo else found[0].replace(tzinfo=UTC)
        scene = EvaluationSplit.from_settings(settings, cutoff, end=None, cold_fraction=COLD, name="test").earlier(0, end=None)
        judge, maker, drawn = SplitEvaluator(scene, settings.downstream.k), ArmDataBuilder(scene), settings.generation
        options = {knob.name: knob.values[0] for knob in family_hyperparameters("als")}
        draw = DrawOptions(drawn.events_per_source_event, drawn.temperature, drawn.min_lift, drawn.align)

        def reached(weight: float) -> float:
            """The mean over users and seeds, under the best boost."""
            arm = Arm("als", "real+scalr" if weight else "real", options, draw, (weight,) * 3, 1.0)
            models = [judge.fit("als", options, maker.events(arm, seed), seed=seed) for seed in range(SEEDS)]
            return max(
                float(
                    np.mean([judge.evaluate(model, boost=(boost,) * 3, half_life=HALF_LIFE).ranking.ndcg for model in models])
                )
                for boost in BOOSTS
            )

        alone = reached(0.0)
        synthetic, real = maker.draw_events(draw), scene.real
        return {
            "synthetic_per_real": round(float(synthetic.weight.sum() / real.weight.sum()), 2),
            "real": round(alone, 4),
            "over_real_pct": {f"{weight:g}": round(100 * (reached(weight) / alone - 1), 1) for weight in LAMBDAS},
        }
