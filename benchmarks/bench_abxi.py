"""SASRec with and without synthetic events on the protocol of ABXI (WWW 2025): leave-one-out, rank 1 of 1 000.

A user's last event of both domains together is tested, the one before chooses λ; it is ranked among 999 items of its domain drawn
uniformly that the user never had. Everything before is training, for translator and model; synthetic events come from source
events before the test event. Leave-one-out lets the future of other users into training, and uniform negatives flatter what is
popular: these figures compare with the published ones; believe those of `scalr evaluate`. The two directions run beside each
other, one thread each.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from benchmarks.bench_run import DATA, beside_each_other, write_settings

SETTINGS = """
[translator]
estimators = ["popularity", "frequency", "linear", "factorisation"]
folds = 2
threads = 1
[generation]
contexts = "events"
[serving]
scorer = "local"
"""
#: ABXI code v2.1, mean of 5 seeds, on these files.
PUBLISHED = {"food": {"hr10": 0.3243, "ndcg10": 0.1971}, "kitchen": {"hr10": 0.2438, "ndcg10": 0.1427}}
OPTIONS = {"epochs": 30, "threads": 1}
WEIGHTS = (0.1, 0.5, 1.0)
SEEDS = 2
DEPTH = 10


def main() -> dict:
    folder = DATA / "amazon_food_kitchen"
    if not folder.exists():
        return {"skipped": f"the data set is not at {folder}; set SCALR_TEST_DATA"}
    about = {"published_abxi": PUBLISHED, "options": OPTIONS, "seeds": SEEDS}
    return about | beside_each_other("benchmarks.bench_abxi")


def run_direction(data: Path, source: str, target: str, scratch: Path) -> dict:
    """Both arms of one direction, and the paired bootstrap over test users (one event each)."""
    from scalr_prod.evaluation.statistics import paired_bootstrap

    started = time.perf_counter()
    log = pd.concat([pd.read_parquet(data / f"{name}.parquet").assign(domain=name) for name in (source, target)])
    log = log.sort_values(["user_id", "seq_pos"], kind="stable")
    back = log.groupby("user_id").cumcount(ascending=False)
    train, validation, test = (
        log[back >= 2],
        log[(back == 1) & (log.domain == target)],
        log[(back == 0) & (log.domain == target)],
    )
    scene, translation = translate(data, train, source, target, scratch)
    judge = _Judge(scene, log[log.domain == target])
    synthetic = translation.draw(_draw())
    real, held = scene.real, _events(scene, validation)
    tuned = {0.0: float(_ndcg10(judge.ranks(real, validation, seed=0)).mean())}
    for weight in WEIGHTS:
        ranks = judge.ranks(real.joined([synthetic.weighted(weight)]), validation, seed=0)
        tuned[weight] = float(_ndcg10(ranks).mean())
    best = max(tuned, key=lambda weight: tuned[weight])
    whole = real.joined([held])
    arms = {"sasrec": whole, "sasrec+scalr": whole.joined([synthetic.weighted(best)])}
    ranks = {name: np.stack([judge.ranks(events, test, seed=seed) for seed in range(SEEDS)]) for name, events in arms.items()}
    gain = paired_bootstrap(*(_ndcg10(ranks[name]).mean(0) for name in ("sasrec+scalr", "sasrec")), seed=0)
    return {
        "test_events": len(test),
        "lambda": best,
        "validation_ndcg10": tuned,
        **{
            name: {"hr10": round(float((rank <= DEPTH).mean()), 4), "ndcg10": round(float(_ndcg10(rank).mean()), 4)}
            for name, rank in ranks.items()
        },
        "lift_pct": round(gain.lift_pct, 2),
        "ci95": [round(bound, 2) for bound in gain.ci95],
        "seconds": round(time.perf_counter() - started, 1),
    }


def translate(data: Path, train: pd.DataFrame, source: str, target: str, scratch: Path) -> tuple:
    """A scene of the training events, and its translator."""
    from scalr_prod.config.settings import load_settings
    from scalr_prod.evaluation.sandbox import Sandbox
    from scalr_prod.evaluation.split import EvaluationSplit, IdNumbering
    from scalr_prod.evaluation.translation import SplitTranslator
    from scalr_prod.ingest import ingest
    from scalr_prod.lake import Lake
    from scalr_prod.schemas import Table
    from scalr_prod.translator import data_end

    logs = scratch / "logs"
    logs.mkdir()
    for name in (source, target):
        train[train.domain == name][["user_id", "item_id", "timestamp"]].to_parquet(logs / f"{name}.parquet")
    (logs / "items.parquet").write_bytes((data / "items.parquet").read_bytes())
    settings = load_settings(write_settings(logs, source, target, scratch, SETTINGS))
    ingest(settings)
    lake = Lake.open(settings)
    end = data_end(lake)
    visible = lake.read(Table.TARGET_EVENTS)
    everything = pd.read_parquet(data / f"{target}.parquet")
    ids = [pa.array(np.sort(np.unique(values))) for values in (train.user_id, everything.item_id, train.item_id)]
    numbering = IdNumbering(*ids)
    until = end + timedelta(days=1)
    real = numbering.to_interactions(visible, until)
    nobody = np.zeros(len(numbering.users), dtype=bool)
    scene = EvaluationSplit(Sandbox(settings, until), numbering, real, real, nobody, np.empty(0, np.int64), None, None)
    return scene, SplitTranslator.from_split(scene)


def _draw() -> object:
    from scalr_prod.evaluation.translation import DrawOptions

    return DrawOptions(volume=1, temperature=0.02, min_lift=1.0)


def _events(scene: object, rows: pd.DataFrame) -> object:
    columns = {
        "user_id": rows.user_id,
        "item_id": rows.item_id,
        "event_timestamp": rows.timestamp.astype("datetime64[us, UTC]"),
    }
    table = pa.Table.from_pandas(pd.DataFrame(columns), preserve_index=False)
    return scene.numbering.to_interactions(table, scene.cutoff, weight=np.ones(len(rows), np.float32))


def _ndcg10(rank: np.ndarray) -> np.ndarray:
    return np.where(rank <= DEPTH, 1 / np.log2(rank + 1), 0)


class _Judge:
    """Ranks held-out events among 999 negatives each, the same for every model."""

    def __init__(self, scene: object, had: pd.DataFrame) -> None:
        self.scene = scene
        self.had = _events(scene, had).matrix()

    def ranks(self, events: object, held: pd.DataFrame, *, seed: int) -> np.ndarray:
        """Rank of each held-out event, 1 to 1 000, by a model that was trained on some events."""
        from scalr_prod.evaluation.models import make_model

        model = make_model("sasrec", {key: value for key, value in OPTIONS.items() if key != "threads"}, threads=1)
        model.fit(events, seed=seed)
        asked = _events(self.scene, held)
        users = asked.user.astype(np.int64)
        rng = np.random.default_rng(7)
        rank = np.empty(len(asked))
        for start in range(0, len(users), 512):
            rows = np.s_[start : start + 512]
            scores = model.score(users[rows])
            for row, (user, item) in enumerate(zip(users[rows], asked.item[rows], strict=True)):
                chance = np.ones(scores.shape[1], dtype=bool)
                chance[self.had[user].indices] = False
                negative = rng.choice(np.flatnonzero(chance), 999, replace=False)
                rank[start + row] = 1 + (scores[row, negative] >= scores[row, item]).sum()
        return rank


if __name__ == "__main__":
    if sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder_of_one:
            print(json.dumps(run_direction(DATA / "amazon_food_kitchen", *sys.argv[1:3], Path(folder_of_one))))
    else:
        print(json.dumps(main(), indent=2))
