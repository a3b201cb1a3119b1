"""The translator on the slice of time after the one that its weights were fitted on, both directions, beside what it must reach.

`scalr translator evaluate` on two real domains: half of the users have no target event in training ("cold"), every event of the slice
is predicted from what came strictly before it, the whole catalogue ranked. Needs the food and kitchen logs, as `bench_run` does.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.bench_run import DATA, DIRECTIONS, write_settings
from scalr_prod.config.settings import load_settings
from scalr_prod.features import apply_feature_repo
from scalr_prod.histories import build_histories
from scalr_prod.ingest import ingest
from scalr_prod.translator import evaluate, train

#: Of the best estimator's NDCG@20, and of the frequency estimator's for users without target history.
NDCG_OF_BEST, COLD_OF_FREQUENCY = 0.98, 1.5


def main() -> dict:
    folder = DATA / "amazon_food_kitchen"
    if not folder.exists():
        return {"skipped": f"the data set is not at {folder}; set SCALR_TEST_DATA"}
    figures = {}
    for source, target in DIRECTIONS:
        with tempfile.TemporaryDirectory() as scratch:
            figures[f"{target}_from_{source}"] = _direction(write_settings(folder, source, target, Path(scratch)))
    return figures


def _direction(config: Path) -> dict:
    settings = load_settings(config)
    ingest(settings)
    build_histories(settings)
    apply_feature_repo(settings)
    trained = train(settings)
    report = evaluate(settings)
    later = report.slices["test"]
    single = {name: row for name, row in later["all"].items() if name != "mixture"}
    mixture, cold = later["all"]["mixture"], later["cold"]
    return {
        "nll": mixture["nll"],
        "nll_limit": min(row["nll"] for row in single.values()),
        "ndcg_of_best": round(mixture["ndcg@20"] / max(row["ndcg@20"] for row in single.values()), 4),
        "ndcg_of_best_limit": NDCG_OF_BEST,
        "cold_ndcg_of_frequency": round(cold["mixture"]["ndcg@20"] / cold["frequency"]["ndcg@20"], 2),
        "cold_ndcg_of_frequency_limit": COLD_OF_FREQUENCY,
        "later_slice": later,
        "weights": report.weights,
        "train_seconds": trained.seconds,
        "evaluate_seconds": report.seconds,
    }
