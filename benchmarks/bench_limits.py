"""The limits of this machine (`bare`); the translator beside the matrix product of the same shapes, and beside its own plain code.

One thread. Made data with a catalogue of 10 000 items, and the same with ten copies of each item and event. Two kinds of contexts:
`long` histories of 50 events, with times that are all different, and `short` ones of 8 events, with times that are days. All are of one
fold, whose vectors the product is of: each of the groups of rows that the translator works on, times the vectors of the mixture's
estimators side by side, in blocks of as many items, into memory that is there. It is the fastest form of it here. Rounds are taken in
turn, and processor time is counted, so that other work on the machine disturbs the ratios little. The draws of both executions must
be equal.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open

from benchmarks import bare
from benchmarks.bench_scoring import TARGET_ITEMS, make_contexts, write_project
from scalr_prod.config.settings import load_settings
from scalr_prod.features import apply_feature_repo
from scalr_prod.histories import build_histories
from scalr_prod.ingest import ingest
from scalr_prod.translator import Contexts, TranslatorModule, load_version, train
from scalr_prod.translator.estimators import BUILTIN_ESTIMATORS, popularity
from scalr_prod.translator.kernels.executor import ITEMS_PER_BLOCK
from scalr_prod.translator.module import METADATA_KEY

if TYPE_CHECKING:
    from collections.abc import Callable

K, BATCHES, ROUNDS, FOLD = 8, 4, 3, 0
SHORT, DAY_US = 8, 86_400_000_000
#: Of each estimator in the mixture.
WEIGHT = 0.3
#: Copies of each item → contexts of a round.
COPIES = {1: 512, 10: 128}
#: Of the product, and times the plain code; what was aimed at.
OF_PRODUCT, OF_PLAIN = 0.45, 4.0


def main() -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        settings = load_settings(write_project(Path(scratch)))
        ingest(settings)
        build_histories(settings)
        apply_feature_repo(settings)
        return {"bare": bare.measured()} | measured(load_version(settings, train(settings).version).path)


def measured(folder: Path) -> dict:
    """Figures of each size of the catalogue."""
    torch.set_num_threads(1)
    found: dict = {"of_product_limit": OF_PRODUCT, "of_plain_limit": OF_PLAIN}
    for copies, rows in COPIES.items():
        tensors, metadata = copied(folder, copies)
        modules = [TranslatorModule(tensors, metadata, reference=reference) for reference in (False, True)]
        found[f"{copies * TARGET_ITEMS} items"] = compared(*modules, rows)
    return found


def compared(fused: TranslatorModule, plain: TranslatorModule, rows: int) -> dict:
    """Contexts per second of processor time, and ratios: medians of the rounds."""
    product, columns = product_of(fused)
    figures: dict[str, Any] = {"columns": columns}
    for kind, all_contexts in (("long", long_ones()), ("short", short_ones())):
        contexts = all_contexts.take(np.arange(rows))
        np.testing.assert_array_equal(fused.sample(contexts, K).items, plain.sample(contexts, K).items)
        ways: dict[str, Callable[[], object]] = {
            "product": lambda: product(rows),
            "fused": lambda contexts=contexts: fused.sample(contexts, K),
            "plain": lambda contexts=contexts: plain.sample(contexts, K),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, work in ways.items():
                started = time.process_time()
                work()
                rates[name].append(rows / (time.process_time() - started))
        figures |= {f"{kind}_contexts_per_s_{name}": round(statistics.median(some)) for name, some in rates.items()}
        for name in ("product", "plain"):
            ratio = statistics.median(one / other for one, other in zip(rates["fused"], rates[name], strict=True))
            figures[f"{kind}_of_{name}"] = round(ratio, 3)
    return figures


def product_of(module: TranslatorModule) -> tuple[Callable[[int], None], int]:
    """The product of random users' vectors with the item vectors that the fold's mixture weighs; the vectors' length together."""
    mixture = module.parameter_set(FOLD)
    vectors = [
        estimator.vectors(mixture.parameters[name])
        for name, estimator in mixture.estimators.items()
        if hasattr(estimator, "vectors") and mixture.calibration["mixture"][name] != 0
    ]
    blocks = torch.cat(vectors, 1).split(ITEMS_PER_BLOCK)
    users = torch.rand(256, blocks[0].shape[1], generator=torch.Generator().manual_seed(0))
    out = torch.empty(256, ITEMS_PER_BLOCK)

    def product(rows: int) -> None:
        for start in range(0, rows, len(users)):
            some = users[: rows - start]
            for block in blocks:
                torch.mm(some, block.T, out=out[: len(some), : len(block)])

    return product, users.shape[1]


def copied(
    folder: Path, copies: int, *, items: int = TARGET_ITEMS, all_weigh: bool = True
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A version's tensors with so many of each of its target items and their events, and what its file says of itself."""
    with safe_open(folder / "translator.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = json.loads(file.metadata()[METADATA_KEY])
    known = {name: tensors.pop(f"shared/popularity/{name}") for name in popularity.TENSOR_NAMES}
    for name, tensor in tensors.items():
        for axis in [axis for axis, size in enumerate(tensor.shape) if size == items]:
            tensors[name] = tensor.repeat_interleave(copies, axis)
        if name.endswith("/frequency/item"):
            tensors[name] = tensor * copies
        elif name.endswith("/popularity/prior"):
            tensors[name] = tensors[name] - float(np.log(copies))
    if all_weigh:  # of made data the calibration leaves some out by chance
        table, names = tensors[f"{FOLD}/calibration/held_out"].clone(), json.loads(metadata["weights"])
        table[0, [names.index(name) for name in BUILTIN_ESTIMATORS]] = WEIGHT
        tensors[f"{FOLD}/calibration/held_out"] = table
    item = known["item"].long().repeat_interleave(copies) * copies + torch.arange(copies).repeat(len(known["item"]))
    time = known["time"].repeat_interleave(copies)
    pairs: Any = SimpleNamespace(
        popularity_events=lambda: (item.numpy(), time.numpy(), None),
        popularity_until=int(known["end"]),
        n_target=copies * items,
    )
    return tensors | {f"shared/popularity/{name}": tensor for name, tensor in popularity.fit(pairs).items()}, metadata


def long_ones() -> Contexts:
    contexts = Contexts.concat([make_contexts(seed) for seed in range(BATCHES)])
    return replace(contexts, fold=np.full(len(contexts), FOLD, np.int32))


def short_ones() -> Contexts:
    contexts = long_ones()
    items, ages = contexts.history_items.copy(), contexts.history_ages.copy()
    items[:, :-SHORT], ages[:, :-SHORT] = 0, 0
    day = contexts.event_time // DAY_US * DAY_US
    return replace(contexts, history_items=items, history_ages=ages, history_end=day, event_time=day)


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
