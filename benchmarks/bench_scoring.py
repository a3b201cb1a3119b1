"""The translator over gRPC beside the same module in this process: same threads, same batches, rounds taken in turn.

Made data with a catalogue of 10 000 items; batches of 256 contexts with 50 events each.
Limit: 0.93 of in-process, with two requests in flight.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scalr_prod.config.settings import load_settings
from scalr_prod.features import apply_feature_repo
from scalr_prod.histories import build_histories
from scalr_prod.ingest import ingest
from scalr_prod.serving import ensure_serving
from scalr_prod.serving.client import open_scorer
from scalr_prod.translator import train
from scalr_prod.translator.data.contexts import Contexts

USERS, SOURCE_ITEMS, TARGET_ITEMS = 3_000, 5_000, 10_000
SOURCE_EVENTS, TARGET_EVENTS = 60_000, 60_000
START, YEAR = 1_672_531_200_000_000, 365 * 86_400_000_000
BATCH, BATCHES, LENGTH, K = 256, 4, 50, 8
IN_FLIGHT = (1, 2, 4)
ROUNDS, BEST = 15, 3


def main() -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        config = write_project(Path(scratch))
        settings = load_settings(config)
        ingest(settings)
        build_histories(settings)
        apply_feature_repo(settings)
        version = train(settings).version
        batches = [make_contexts(seed) for seed in range(BATCHES)]
        with ensure_serving(settings, version):
            rates = measure(config, version, batches)
    figures = {"threads": settings.serving.threads, "catalogue": TARGET_ITEMS, "batch": BATCH}
    # The least disturbed rounds: what else the machine does can only slow one down.
    best = {name: statistics.mean(sorted(values)[-BEST:]) for name, values in rates.items()}
    figures |= {f"contexts_per_s_{name}": round(rate) for name, rate in best.items()}
    for flight in IN_FLIGHT:
        figures[f"ratio_{flight}_in_flight"] = round(best[f"grpc_{flight}"] / best["in_process"], 3)
    return figures | {"ratio_limit": 0.93}


def measure(config: Path, version: int, batches: list[Contexts]) -> dict[str, list[float]]:
    """Contexts per second of each way, a value a round."""
    ways = {"in_process": open_scorer(load_settings(config, serving={"scorer": "local"}), version)}
    ways |= {f"grpc_{n}": open_scorer(load_settings(config, serving={"in_flight": n}), version) for n in IN_FLIGHT}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    expected = [samples.items for samples in ways["in_process"].sample_stream(batches, K)]
    for number in range(ROUNDS + 1):
        for name, scorer in ways.items():
            started = time.perf_counter()
            answers = list(scorer.sample_stream(batches, K))
            seconds = time.perf_counter() - started
            assert all(np.array_equal(answer.items, items) for answer, items in zip(answers, expected, strict=True))
            if number:  # the first round warms up
                rates[name].append(BATCH * len(batches) / seconds)
    for scorer in ways.values():
        scorer.close()
    return rates


def make_contexts(seed: int) -> Contexts:
    rng = np.random.default_rng(seed)
    time = START + YEAR // 2 + rng.integers(0, YEAR // 2, BATCH)
    return Contexts(
        history_items=(rng.zipf(1.3, (BATCH, LENGTH)) % SOURCE_ITEMS).astype(np.int32),
        history_ages=np.sort(rng.random((BATCH, LENGTH), dtype=np.float32) * 300)[:, ::-1].copy(),
        history_end=time,
        event_time=time,
        fold=rng.integers(0, 3, BATCH, dtype=np.int32),
        noise_key=rng.integers(-(2**62), 2**62, BATCH),
        exclude=rng.integers(-1, TARGET_ITEMS // 2, (BATCH, 5), dtype=np.int32),
    )


def write_project(folder: Path) -> Path:
    for name, events, items, seed in (("source", SOURCE_EVENTS, SOURCE_ITEMS, 1), ("target", TARGET_EVENTS, TARGET_ITEMS, 2)):
        rng = np.random.default_rng(seed)
        log = {
            "user_id": rng.integers(0, USERS, events),
            # Every item occurs, and some occur much more often.
            "item_id": np.concatenate([np.arange(items), rng.zipf(1.3, events - items) % items]),
            "timestamp": pa.array(START + rng.integers(0, YEAR, events), pa.timestamp("us", "UTC")),
        }
        pq.write_table(pa.table(log), folder / f"{name}.parquet")
    config = folder / "scalr.toml"
    config.write_text(
        '[domains.source]\nname = "source"\nevents = "source.parquet"\n'
        '[domains.target]\nname = "target"\nevents = "target.parquet"\n'
        "[translator]\nepochs = 1\n"
    )
    return config


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
