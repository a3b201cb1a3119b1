"""The translator as the catalogue grows: 10 000, 100 000 and 1 000 000 items, whole and by shortlists of a tenth and a fiftieth.

A version that was trained on a log that is there (SCALR_TEST_DATA, or ../shared/data beside the checkout; else on made data), with each
target item and its events copied until there are as many. Copies are alike, so that a block of 1 024 of a million holds some six or
twelve different items: a catalogue of a million different ones is harder to cut, and the smallest size here is the sternest. One
thread, one parameter set, a batch of contexts of one fold at times that are all different.
Each size is a process of its own. `contexts_per_s` is of processor time, `of_items` is contexts/s x items beside the smallest catalogue
(at least 1 / 1.3), `of_tables` the process's memory while it draws beside its tables (at most 1.5 for the whole catalogue). Of a shortlist:
how many times as fast it is; what it leaves out of P, the share of contexts whose first draw is another one; how far its probabilities are
from the whole catalogue's, mean |log|; and what other lists of as many items leave out: the most popular items of the whole log, which is
what `[translator] max_target_items` keeps, those that are most popular at the context's time, and those of the largest P.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.bench_generation import DATA_SETS, prepare
from benchmarks.bench_limits import copied
from benchmarks.bench_run import DATA, PeakMemory
from scalr_prod.config.settings import load_settings
from scalr_prod.core.memory import release_memory
from scalr_prod.core.timestamps import to_micros
from scalr_prod.translator import Contexts, TranslatorModule, load_version
from scalr_prod.translator.data.contexts import COLD_USERS
from scalr_prod.translator.data.event_log import read_event_log
from scalr_prod.translator.data.training_pairs import TrainingSlice, contexts_and_labels

if TYPE_CHECKING:
    from collections.abc import Callable

#: Items, about → contexts of a round.
SIZES = {10_000: 2048, 100_000: 1024, 1_000_000: 1024}
#: A shortlist is one in so many items.
ONE_IN = (10, 50)
K, ROUNDS, MEASURED = 4, 3, 256
LIMITS = {"of_items": round(1 / 1.3, 2), "of_tables": 1.5}


def main() -> dict[str, Any]:
    there = [name for name, (folder, *_) in DATA_SETS.items() if (DATA / folder).exists()]
    found: dict[str, Any] = {"limits": LIMITS}
    for name in there or ["made logs"]:
        with tempfile.TemporaryDirectory() as scratch:
            prepare(Path(scratch), name)
            found[name] = sizes(Path(scratch))
    return found


def sizes(home: Path) -> dict[str, Any]:
    """Figures of each size of the catalogue of one project."""
    found: dict[str, Any] = {}
    for items, rows in SIZES.items():
        with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as alone:
            found[f"{items} items"] = alone.submit(measured, home, items, rows).result()
    least = next(iter(found.values()))
    for one in found.values():
        one["of_items"] = round(one["contexts_per_s"] * one["items"] / (least["contexts_per_s"] * least["items"]), 3)
    return found


def measured(home: Path, items: int, rows: int) -> dict[str, Any]:
    """One size, in a process that does nothing else."""
    torch.set_num_threads(1)
    settings = load_settings(home / "scalr.toml")
    version = load_version(settings, 1)
    contexts, own = asked(settings, version, rows)
    tensors, metadata = copied(version.path, -(-items // own), items=own, all_weigh=False)
    # One set of parameters: that of users without target events.
    tensors = {name: x for name, x in tensors.items() if name.partition("/")[0] in {"shared", "-1"}}
    module, count = TranslatorModule(tensors, metadata | {"folds": "0"}), len(tensors["shared/first_seen"])
    tables = sum({x.data_ptr(): x.nbytes for x in tensors.values()}.values())
    chosen = tensors["-1/popularity/prior"].argsort(descending=True, stable=True)
    del tensors
    release_memory()
    some = contexts.take(np.linspace(0, rows - 1, MEASURED).astype(np.int64))
    peak = PeakMemory(os.getpid())
    whole = rate(lambda: module.sample(contexts, K), rows)
    peak.stop()
    figures: dict[str, Any] = {
        "items": count,
        "contexts_per_s": round(whole, 1),
        "of_tables": round(peak.bytes / tables, 2),
        "tables_mb": tables >> 20,
    }
    first_draws = module.sample(contexts, K).items[:, 0]
    for one_in in ONE_IN:
        least = count // one_in
        peak, started = PeakMemory(os.getpid()), time.process_time()
        drawn = module.sample(some, 1, shortlist=least)
        first = time.process_time() - started
        listed = rate(lambda least=least: module.sample(contexts, K, shortlist=least), rows)
        peak.stop()
        exact, _ = module.score(some, drawn.items)
        there = drawn.items >= 0
        same = module.sample(contexts, K, shortlist=least).items[:, 0] == first_draws
        figures[f"one in {one_in}"] = {
            "contexts_per_s": round(listed, 1),
            "times_as_fast": round(listed / whole, 2),
            "left_out": round(1 - float(same.mean()), 3),
            **left_out_by(module, some.take(np.arange(0, MEASURED, 4)), chosen, least),
            "log_p_off": round(float(np.abs(np.log(drawn.probabilities[there] / exact[there])).mean()), 3),
            "first_batch_s": round(first, 1),
            "of_tables": round(peak.bytes / tables, 2),
        }
    return figures


def left_out_by(module: TranslatorModule, contexts: Contexts, chosen: torch.Tensor, count: int) -> dict[str, float]:
    """What other lists of so many items leave out of P, means over contexts.

    Args:
        module: The translator.
        contexts: Some.
        chosen: int64 [N]. Items, the most popular first.
        count: Items on a list.
    """
    held: dict[str, list[float]] = {"most_popular": [], "most_popular_then": [], "most_probable": []}
    for _, (p, prior) in module.distributions(contexts, ("mixture", "popularity")):
        held["most_popular"] += p[:, chosen[:count]].sum(1).tolist()
        held["most_popular_then"] += p.gather(1, prior.topk(count, 1).indices).sum(1).tolist()
        held["most_probable"] += p.topk(count, 1).values.sum(1).tolist()
    return {f"left_out_by_{name}": round(1 - statistics.mean(shares), 3) for name, shares in held.items()}


def asked(settings: Any, version: Any, rows: int) -> tuple[Contexts, int]:
    """Contexts of labels of the log, and how many target items the version has."""
    log = read_event_log(settings, version.trained_until)
    pairs = TrainingSlice.from_log(log, to_micros(version.trained_until), settings.translator)
    labels = np.flatnonzero(log.is_label)
    chosen = np.sort(np.random.default_rng(0).choice(labels, rows, replace=len(labels) < rows))
    fold = np.full(rows, COLD_USERS, np.int32)
    contexts, _ = contexts_and_labels(log, chosen, source_index=pairs.source_index, target_index=pairs.target_index, fold=fold)
    # What a user had is named by items of the log, of which there are copies.
    return Contexts(**{**vars(contexts), "exclude": np.empty((rows, 0), np.int32)}), pairs.n_target


def rate(work: Callable[[], Any], rows: int) -> float:
    """Contexts per second of processor time, the median of the rounds."""
    found = []
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        found.append(rows / (time.process_time() - started))
    return statistics.median(found)


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
