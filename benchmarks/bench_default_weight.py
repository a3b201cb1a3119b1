"""Temperature, filter, number of draws and λ where nobody has measured them: what the defaults are chosen from.

Half of the users are target-cold, and the cut is at the 80th percentile of target time. For each kind of draw and each λ, `implicit`'s ALS
(64 factors, the better of α 10 and 40) is fitted on real and synthetic events. NDCG@20 of all test users. One thread.

SCALR_BENCH_PAIRS names the pairs of `bench_default_run` and `bench_set_aside`, with commas between them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from scipy.sparse import csr_matrix

from benchmarks import bench_default_run
from benchmarks.bench_run import DATA
from benchmarks.bench_set_aside import COLD, NAMED_FIRST, NAMED_LATER, SETTINGS, YELP, queries_of

LAMBDAS = (0.03, 0.1, 0.3, 1.0)
ALPHAS = (10.0, 40.0)
HALF_LIVES = (7.0, 30.0, 90.0, 365.0, 3650.0)
#: Events of each user, temperature, threshold of the filter.
DRAWS = ((20, 1.0, 1.0), (20, 1.0, 0.0), (20, 0.5, 0.0), (20, 0.3, 0.0), (5, 0.5, 0.0), (50, 0.5, 0.0))
DEFAULT_PAIRS = "food_from_kitchen,kitchen_from_food,deli_from_produce"


def main() -> dict[str, Any]:
    """By pair: real events only, the best list, and NDCG@20 by draw and λ."""
    figures: dict[str, Any] = {}
    for name in os.environ.get("SCALR_BENCH_PAIRS", DEFAULT_PAIRS).split(","):
        queries = _queries(name)
        figures[name] = {"skipped": "the log is absent; set SCALR_TEST_DATA"} if queries is None else measure_pair(queries)
        print(f"{name}: {figures[name]}", file=sys.stderr, flush=True)
    return figures


def _queries(name: str) -> tuple[str, str] | None:
    """Queries of a pair's source and target log; None where the log is absent."""
    if name in bench_default_run.PAIRS:
        folder, *roles = bench_default_run.PAIRS[name]
        paths = [DATA / folder / f"{role}.parquet" for role in roles]
        source, target = (f"SELECT user_id, item_id, timestamp FROM '{path}'" for path in paths)
        return (source, target) if all(path.exists() for path in paths) else None
    pair = (NAMED_FIRST | NAMED_LATER)[name]
    return queries_of(pair) if pair[0] != "yelp" or YELP.exists() else None


def measure_pair(queries: tuple[str, str]) -> dict[str, Any]:
    """One pair of logs."""
    from scalr_prod.config.settings import load_settings
    from scalr_prod.evaluation import EvaluationRequest
    from scalr_prod.evaluation.models.recent_popularity import RecentPopularity
    from scalr_prod.evaluation.plan import EvaluationPlan
    from scalr_prod.evaluation.ranking_metrics import rank_users
    from scalr_prod.evaluation.translation import DrawOptions, SplitTranslator
    from scalr_prod.training_set import real_to_synthetic

    with tempfile.TemporaryDirectory() as folder:
        for role, query in zip(("source", "target"), queries, strict=True):
            duckdb.execute(f"COPY ({query} ORDER BY timestamp, user_id, item_id) TO '{folder}/{role}.parquet'")
        config = Path(folder) / "scalr.toml"
        config.write_text(SETTINGS.format(name="defaults", cold=COLD))
        (split,) = EvaluationPlan.from_request(load_settings(config), EvaluationRequest(cold_fraction=COLD)).splits
        real, seen, is_head = split.real, split.seen(), split.is_head()

        def ndcg(scorer: Any) -> float:
            ranking = rank_users(scorer, split.users, relevant=split.relevant, seen=seen, is_head=is_head, k=20)
            return float(ranking.ndcg.mean())

        lists = []
        for half_life in HALF_LIVES:
            lists.append(RecentPopularity(half_life))
            lists[-1].fit(real, seed=0)
        found: dict[str, Any] = {
            "real_events": len(real),
            "source_events": len(split.source),
            "test_users": len(split.users),
            "popular_lately": round(max(map(ndcg, lists)), 5),
            "real": round(max(ndcg(_Als(real, alpha)) for alpha in ALPHAS), 5),
            "draws": [],
        }
        translator = SplitTranslator.from_split(split)
        for volume, temperature, min_lift in DRAWS:
            events = translator.draw(DrawOptions(volume, temperature, min_lift, align=False))
            ratio = real_to_synthetic(float(real.weight.sum()), float(events.weight.sum()))
            by_weight = {}
            for weight in LAMBDAS:
                rows = real.joined([events.weighted(min(1.0, weight * ratio))])
                by_weight[f"{weight:g}"] = round(max(ndcg(_Als(rows, alpha)) for alpha in ALPHAS), 5)
            draw = {"volume": volume, "temperature": temperature, "min_lift": min_lift, "events": len(events)}
            found["draws"].append(draw | {"ndcg": by_weight})
        return found


class _Als:
    """`implicit`'s ALS with confidence 1 + α × weight."""

    def __init__(self, events: Any, alpha: float) -> None:
        from implicit.als import AlternatingLeastSquares

        cells = (events.weight.astype(np.float32), (events.user, events.item))
        confidence = csr_matrix(cells, shape=(events.n_users, events.n_items))
        confidence.data = 1 + np.float32(alpha) * confidence.data
        self._model = AlternatingLeastSquares(factors=64, alpha=1.0, random_state=0, num_threads=1)
        self._model.fit(confidence, show_progress=False)

    def score(self, users: Any) -> Any:
        """Return scores [B, n_items]."""
        return np.asarray(self._model.user_factors)[users] @ np.asarray(self._model.item_factors).T


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
