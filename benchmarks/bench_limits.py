"""The translator in this process beside the matrix product of the same shapes, and beside its own plain code. One thread.

Made data with a catalogue of 10 000 items. Two kinds of contexts: `long` histories of 50 events, with times that are all different, and
`short` ones of 8 events, with times that are days. Rounds are taken in turn, and processor time is counted, so that other work on the
machine disturbs the ratios little. The draws of both executions must be equal.
Limits: .45 of the product, 4 times the plain code.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.bench_scoring import TARGET_ITEMS, make_contexts, write_project
from scalr_prod.feast_store import apply_feature_repo
from scalr_prod.histories import build_histories
from scalr_prod.ingest import ingest
from scalr_prod.settings import load_settings
from scalr_prod.translator import Contexts, TranslatorModule, load_version, train

if TYPE_CHECKING:
    from collections.abc import Callable

K, BATCHES, ROUNDS = 8, 4, 7
SHORT, DAY_US = 8, 86_400_000_000
OF_PRODUCT, OF_PLAIN = 0.45, 4.0


def main() -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        settings = load_settings(write_project(Path(scratch)))
        ingest(settings)
        build_histories(settings)
        apply_feature_repo(settings)
        return measure(load_version(settings, train(settings).version).path)


def measure(folder: Path) -> dict:
    """Contexts per second of processor time, and ratios: medians of the rounds."""
    torch.set_num_threads(1)
    fused, plain = TranslatorModule.load(folder), TranslatorModule.load(folder, reference=True)
    product, columns = product_of(fused)
    figures: dict = {"catalogue": TARGET_ITEMS, "columns": columns}
    for kind, contexts in (("long", long_ones()), ("short", short_ones())):
        np.testing.assert_array_equal(fused.sample(contexts, K).items, plain.sample(contexts, K).items)
        ways: dict[str, Callable[[], object]] = {
            "product": lambda contexts=contexts: product(len(contexts)),
            "fused": lambda contexts=contexts: fused.sample(contexts, K),
            "plain": lambda contexts=contexts: plain.sample(contexts, K),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, work in ways.items():
                started = time.process_time()
                work()
                rates[name].append(len(contexts) / (time.process_time() - started))
        figures |= {f"{kind}_contexts_per_s_{name}": round(statistics.median(found)) for name, found in rates.items()}
        for name, limit in (("product", OF_PRODUCT), ("plain", OF_PLAIN)):
            ratio = statistics.median(one / other for one, other in zip(rates["fused"], rates[name], strict=True))
            figures |= {f"{kind}_of_{name}": round(ratio, 3), f"{kind}_of_{name}_limit": limit}
    return figures


def product_of(module: TranslatorModule) -> tuple[Callable[[int], None], int]:
    """The product of random users' vectors with the item vectors that the mixture of everybody weighs; the vectors' length together."""
    mixture = module.parameter_set(-1)
    vectors = [
        estimator.vectors(mixture.parameters[name])
        for name, estimator in mixture.estimators.items()
        if hasattr(estimator, "vectors") and mixture.calibration["mixture"][name] != 0
    ]
    items = torch.cat([of_each.T for of_each in vectors])
    users = torch.rand(256, len(items), generator=torch.Generator().manual_seed(0))

    def product(rows: int) -> None:
        for start in range(0, rows, len(users)):
            torch.mm(users[: rows - start], items)

    return product, len(items)


def long_ones() -> Contexts:
    return Contexts.concat([make_contexts(seed) for seed in range(BATCHES)])


def short_ones() -> Contexts:
    contexts = long_ones()
    items, ages = contexts.history_items.copy(), contexts.history_ages.copy()
    items[:, :-SHORT], ages[:, :-SHORT] = 0, 0
    day = contexts.event_time // DAY_US * DAY_US
    return replace(contexts, history_items=items, history_ages=ages, history_end=day, event_time=day)


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
