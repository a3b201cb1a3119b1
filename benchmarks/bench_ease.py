"""EASE (Steck 2019) on Yelp's logs: the strongest simple linear model, on the target domain alone and on both domains at once.

It is no arm of `scalr evaluate`: its matrix has as many cells as pairs of items, which large catalogues do not allow. So this asks, on
the splits of docs/explanation/lift.md with users as they are, whether a baseline that is left out there would have been the stronger one.
Regularisation, the source domain's weight, and for each segment the boost by what is popular lately are chosen on the validation split;
figures are NDCG@20 of the four test periods. One thread, 2 minutes and 7 GiB a fit on both domains.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.bench_run import DATA

if TYPE_CHECKING:
    from numpy.typing import NDArray

SETTINGS = """
[domains.source]
name = "restaurant"
events = "{folder}/source.parquet"
[domains.target]
name = "other"
events = "{folder}/target.parquet"
"""
CUTOFFS, COLD, HALF_LIFE = 4, 0.0, 365.0
SOURCE_WEIGHTS, PENALTIES, BOOSTS = (0.0, 0.3, 1.0), (1000.0, 3000.0, 10000.0), (0.0, 0.001, 0.003, 0.01, 0.03, 0.1)


class Ease:
    """Item-to-item weights B with a zero diagonal that reconstruct the users' rows X: the closed form of a ridge regression.

    Args:
        scene: Its events up to the cutoff, each pair of user and item once.
        source_weight: Of source events; 0: the target domain alone.
    """

    def __init__(self, scene: Any, source_weight: float) -> None:
        from scipy import sparse

        target, source = scene.real.matrix(), scene.source.matrix()
        target.data[:], source.data[:] = 1, source_weight
        self._rows = sparse.hstack([target, source] if source_weight else [target]).tocsr()
        self._gram = (self._rows.T @ self._rows).toarray().astype(np.float32)
        self._items = scene.real.n_items

    def fit(self, penalty: float) -> None:
        """Solve for one ridge penalty."""
        from scipy.linalg import lapack

        gram, every = self._gram.copy(), np.arange(len(self._gram))
        gram[every, every] += penalty
        factor, _ = lapack.spotrf(gram, lower=1, overwrite_a=1)
        inverse, _ = lapack.spotri(factor, lower=1, overwrite_c=1)
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        weights = -inverse[:, : self._items] / np.diag(inverse)[None, : self._items]
        weights[every[: self._items], every[: self._items]] = 0
        self._weights = np.ascontiguousarray(weights)

    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """[B, n_items]."""
        return np.asarray(self._rows[users] @ self._weights, dtype=np.float32)


def main() -> dict[str, Any]:
    logs = DATA / "yelp_restaurants_other"
    if not logs.exists():
        return {"skipped": f"Yelp's logs are not at {logs}; set SCALR_TEST_DATA"}
    from scalr_prod.evaluation.evaluator import SplitEvaluator
    from scalr_prod.evaluation.split import EvaluationSplit

    with tempfile.TemporaryDirectory() as folder:
        validation, tests = _scenes(Path(folder), logs, EvaluationSplit)
        judges = [SplitEvaluator(scene, 20) for scene in (validation, *tests)]
        return {
            "target alone": _tuned(judges, SOURCE_WEIGHTS[:1]),
            "both domains": _tuned(judges, SOURCE_WEIGHTS[1:]),
        }


def _scenes(folder: Path, logs: Path, scene: Any) -> tuple[Any, list[Any]]:
    from scalr_prod.config.settings import load_settings
    from scalr_prod.evaluation.plan import choose_cutoffs
    from scalr_prod.ingest import ingest

    config = folder / "scalr.toml"
    config.write_text(SETTINGS.format(folder=logs))
    settings = load_settings(config)
    ingest(settings)
    moments = choose_cutoffs(settings, None, CUTOFFS)
    tests = [
        scene.from_settings(settings, moment, end=end, cold_fraction=COLD, name="test")
        for moment, end in zip(moments, [*moments[1:], None], strict=True)
    ]
    return tests[0].earlier(0), tests


def _tuned(judges: list[Any], source_weights: tuple[float, ...]) -> dict[str, Any]:
    best: tuple[float, tuple[float, float], tuple[float, ...]] = (-1.0, (0.0, 0.0), ())
    tried = {}
    for weight in source_weights:
        model = Ease(judges[0].split, weight)
        for penalty in PENALTIES:
            model.fit(penalty)
            boosts = _boosts(judges[0], model)
            found = float(judges[0].evaluate(model, boost=boosts, half_life=HALF_LIFE).ranking.ndcg.mean())
            tried[f"{weight:g}, {penalty:g}"] = round(found, 4)
            print(f"  source weight {weight:g}, penalty {penalty:g}: {found:.4f} on validation", file=sys.stderr, flush=True)
            best = max(best, (found, (weight, penalty), boosts))
    _, (weight, penalty), boosts = best
    ndcg, segments = [], []
    for judge in judges[1:]:
        model = Ease(judge.split, weight)
        model.fit(penalty)
        ndcg.append(judge.evaluate(model, boost=boosts, half_life=HALF_LIFE).ranking.ndcg)
        segments.append(judge.segments)
    every, segment = np.concatenate(ndcg), np.concatenate(segments)
    return {
        "source_weight": weight,
        "penalty": penalty,
        "boost": list(boosts),
        "validation": tried,
        "ndcg": round(float(every.mean()), 4),
        "by_segment": {name: round(float(every[segment == n].mean()), 4) for n, name in enumerate(("cold", "sparse", "dense"))},
        "by_cutoff": [round(float(one.mean()), 4) for one in ndcg],
    }


def _boosts(judge: Any, model: Ease) -> tuple[float, ...]:
    """The best of `BOOSTS` for each segment."""
    found = {boost: judge.evaluate(model, boost=(boost,) * 3, half_life=HALF_LIFE).ranking.ndcg for boost in BOOSTS}
    return tuple(max(BOOSTS, key=lambda boost, own=judge.segments == n: float(found[boost][own].mean())) for n in range(3))  # type: ignore[misc]
