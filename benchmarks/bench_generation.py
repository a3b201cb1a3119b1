"""The whole generation step beside its limit: the same translator in one process, asked about the same contexts.

The step is `generate`: Dask's start, reading, histories through Feast, requests to Triton, staged parts, alignment. The limit
has the contexts ready in memory and nothing around it. The first round of a process also starts the one that workers are forked
from (about five seconds of imports); later ones find it there. Logs that are there (SCALR_TEST_DATA, or ../shared/data beside the
checkout), a small run and one that is six times as long, whose start weighs less; else made logs of the size of the small one.
Target: 0.85 of the limit.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.bench_run import DATA, PeakMemory

if TYPE_CHECKING:
    from scalr_prod.config.settings import Settings

ROUNDS = 3
TARGET = 0.85
DATA_SETS = {
    "kitchen to food": ("amazon_food_kitchen", "kitchen", "food"),
    "restaurants to other": ("yelp_restaurants_other", "source", "target"),
}


def main() -> dict:
    there = [name for name, (folder, *_) in DATA_SETS.items() if (DATA / folder).exists()]
    found = {}
    for name in there or ["made logs"]:
        with tempfile.TemporaryDirectory() as scratch:
            found[name] = measure(prepare(Path(scratch), name))
    return {"ratio_target": TARGET, **found}


def measure(settings: Settings) -> dict:
    from scalr_prod.generation import generate, plan_run
    from scalr_prod.ledger import run_folder
    from scalr_prod.serving import ensure_serving

    spec = plan_run(settings)
    limits, steps = [], []
    with ensure_serving(settings, spec.translator_version):
        for _ in range(ROUNDS):
            shutil.rmtree(run_folder(settings.home, spec.run_id), ignore_errors=True)
            limits.append(in_process(settings, spec))
            report = generate(settings, spec)
            steps.append(report.contexts / report.seconds)
        shutil.rmtree(run_folder(settings.home, spec.run_id), ignore_errors=True)
        peak = PeakMemory(os.getpid())  # apart: to sum up shared pages four times a second slows down what it watches
        generate(settings, spec)
        peak.stop()
    ratios = [step / limit for step, limit in zip(steps, limits, strict=True)]
    return {
        "contexts": report.contexts,
        "events": report.events,
        "in_process_contexts_per_s": round(statistics.median(limits), 1),
        "generation_contexts_per_s": round(statistics.median(steps), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_of_the_first_round": round(ratios[0], 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "peak_gib_with_server": round(peak.bytes / 2**30, 2),
        "bucket_distance": report.bucket_distance,
    }


def prepare(folder: Path, name: str) -> Settings:
    """A project with histories, a Feast repository and a translator."""
    from scalr_prod.config.settings import load_settings
    from scalr_prod.features import apply_feature_repo
    from scalr_prod.histories import build_histories
    from scalr_prod.ingest import ingest
    from scalr_prod.translator import train

    settings = load_settings(write_settings(folder, *DATA_SETS[name]) if name in DATA_SETS else make_logs(folder))
    ingest(settings)
    build_histories(settings)
    apply_feature_repo(settings)
    train(settings)
    return settings


def write_settings(folder: Path, data: str, source: str, target: str) -> Path:
    """The settings of a data set, with its items where they are known."""
    items = DATA / data / "items.parquet"
    known = f'items = "{items}"\n' if items.exists() else ""
    config = folder / "scalr.toml"
    config.write_text(
        "".join(
            f'[domains.{role}]\nname = "{name}"\nevents = "{DATA / data / name}.parquet"\n{known}'
            for role, name in (("source", source), ("target", target))
        )
        + '[generation]\ncontexts = "events"\n'
    )
    return config


def in_process(settings, spec) -> float:
    """Contexts/s of the module in this process, with the threads that the server has, over one bucket of the run."""
    from scalr_prod.generation.context_query import RequestEncoder, read_contexts, sort_for_scoring
    from scalr_prod.generation.encoding import ConsumptionIndex
    from scalr_prod.serving.client import LocalScorer
    from scalr_prod.translator import load_version
    from scalr_prod.workspace.duckdb import open_duckdb, staging_folder

    version = load_version(settings, spec.translator_version)
    vocabulary = version.vocabulary()
    with staging_folder(settings, "bench") as folder, open_duckdb(settings, folder) as connection:
        rows, real = read_contexts(connection, settings, spec, 0, settings.generation.partitions)
    consumed = None if real is None else ConsumptionIndex.from_rows(real, vocabulary)
    rows = sort_for_scoring(rows, spec, version.folds)
    batches = list(RequestEncoder(settings, spec, vocabulary, version.folds).iter_requests(rows, consumed))
    wanted = spec.settings["generation"]
    with LocalScorer(version.path, version.version, threads=settings.serving.threads) as scorer:
        options = {"temperature": wanted["temperature"], "min_lift": wanted["min_lift"]}
        scorer.sample(batches[0], wanted["events_per_source_event"], **options)
        started = time.perf_counter()
        for _ in scorer.sample_stream(batches, wanted["events_per_source_event"], **options):
            pass
        return sum(map(len, batches)) / (time.perf_counter() - started)


def make_logs(folder: Path, *, users: int = 9000, items: int = 10_000, seed: int = 3) -> Path:
    """Two logs of about the size of the real ones: 10 source and 9 target events a user, popularity by Zipf."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    for name, mean in (("kitchen", 10), ("food", 9)):
        count = users * mean
        frame = pd.DataFrame(
            {
                "user_id": rng.integers(0, users, count),
                "item_id": rng.zipf(1.3, count) % items,
                "timestamp": pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(rng.random(count) * 500, unit="D"),
            }
        )
        frame.to_parquet(folder / f"{name}.parquet")
    config = folder / "scalr.toml"
    config.write_text(
        '[domains.source]\nname = "kitchen"\nevents = "kitchen.parquet"\n'
        '[domains.target]\nname = "food"\nevents = "food.parquet"\n'
        '[generation]\ncontexts = "events"\n'
    )
    return config


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
