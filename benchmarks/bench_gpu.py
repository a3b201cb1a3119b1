"""The translator on a GPU: contexts per second at 10 000, 100 000 and 1 000 000 items, beside torch's plain code and the card's limits.

The card's limits are measured: a large product in bf16 (`bf16_tflop_per_s`) and a large copy (`memory_gb_per_s`, read and written).
`tflop_per_s` counts the product of users' and items' vectors alone, each number once, though it is taken three times for float32's
precision. `of_product` compares with torch's product of the same shapes in float32 (`allow_tf32` off), into memory that is there.
`of_cpu` is the same module on this machine's CPU, with all of its cores. The draws of all must be equal. `learning` is what the sequential
estimator's pretraining takes in on either, source events per second; on the CPU with one thread, as in training.

Made data as in `limits`: long histories, times that are all different; for more items each item and event is there many times.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.bench_limits import copied, long_ones
from benchmarks.bench_scoring import TARGET_ITEMS, write_project
from scalr_prod.config.settings import load_settings
from scalr_prod.features import apply_feature_repo
from scalr_prod.histories import build_histories
from scalr_prod.ingest import ingest
from scalr_prod.translator import Contexts, TranslatorModule, load_version, train
from scalr_prod.translator.estimators import attention
from scalr_prod.translator.estimators.pretraining import make_optimizer, train_step

if TYPE_CHECKING:
    from collections.abc import Callable

K, ROUNDS, FOLD = 8, 7, 0
#: Copies of each item → contexts of a round on the GPU, by the plain code there, and on the CPU.
COPIES = {1: (4096, 1024, 1024), 10: (2048, 256, 256), 100: (512, 32, 64)}
OF_PEAK, OF_CPU = 0.5, 20.0


def main() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"skipped": f"torch {torch.__version__} sees no GPU"}
    with tempfile.TemporaryDirectory() as scratch:
        settings = load_settings(write_project(Path(scratch)))
        ingest(settings)
        build_histories(settings)
        apply_feature_repo(settings)
        return measured(load_version(settings, train(settings).version).path, "cuda")


def measured(folder: Path, device: str) -> dict[str, Any]:
    """Figures of each size of the catalogue."""
    peak = bf16_tflop_per_s(device)
    found: dict[str, Any] = {
        "card": torch.cuda.get_device_name() if device == "cuda" else device,
        "of_peak_target": OF_PEAK,
        "of_cpu_target": OF_CPU,
        "bf16_tflop_per_s": round(peak, 1),
        "memory_gb_per_s": round(memory_gb_per_s(device), 1),
    }
    found["learning"] = {"events_per_s_gpu": round(learnt(device)), "events_per_s_cpu": round(learnt("cpu"))}
    for copies, rows in COPIES.items():
        tensors, metadata = copied(folder, copies)
        found[f"{copies * TARGET_ITEMS} items"] = compared(tensors, metadata, device, rows, peak)
    return found


def compared(tensors: Any, metadata: Any, device: str, rows: tuple[int, int, int], peak: float) -> dict[str, Any]:
    """Contexts per second of each way, medians of the rounds, and ratios."""
    gpu, plain = (TranslatorModule(tensors, metadata, device, reference=reference) for reference in (False, True))
    cpu = TranslatorModule(tensors, metadata, threads=os.cpu_count() or 1)
    if not gpu.warm_up():
        raise SystemExit("the GPU's kernels were not taken: see the warning above")
    some = contexts_of(max(rows))
    ways: dict[str, tuple[Callable[[], Any], int]] = {
        "gpu": (lambda: gpu.sample(some.take(np.s_[: rows[0]]), K), rows[0]),
        "plain": (lambda: plain.sample(some.take(np.s_[: rows[1]]), K), rows[1]),
        "cpu": (lambda: cpu.sample(some.take(np.s_[: rows[2]]), K), rows[2]),
    }
    expected = ways["cpu"][0]().items
    np.testing.assert_array_equal(ways["gpu"][0]().items[: len(expected)], expected)
    rates = {name: rate(work, number, device) for name, (work, number) in ways.items()}
    mixture = gpu.parameter_set(FOLD)
    vectors = torch.cat(
        [
            estimator.vectors(mixture.parameters[name])
            for name, estimator in mixture.estimators.items()
            if hasattr(estimator, "vectors") and mixture.calibration["mixture"][name] != 0
        ],
        1,
    )
    users = torch.rand(1024, vectors.shape[1], device=device)
    out = torch.empty(1024, len(vectors), device=device)
    product = rate(lambda: torch.mm(users, vectors.T, out=out), 1024, device)
    flop = 2 * vectors.shape[0] * vectors.shape[1]
    return {
        "columns": vectors.shape[1],
        **{f"contexts_per_s_{name}": round(found) for name, found in rates.items()},
        "tflop_per_s": round(rates["gpu"] * flop / 1e12, 2),
        "of_peak": round(rates["gpu"] * flop / 1e12 / peak, 4),
        "of_product": round(rates["gpu"] / product, 3),
        "of_plain": round(rates["gpu"] / rates["plain"], 2),
        "of_cpu": round(rates["gpu"] / rates["cpu"], 2),
    }


def contexts_of(rows: int) -> Contexts:
    """So many contexts of one fold, with noise of their own."""
    some = long_ones()
    many = Contexts.concat([some] * -(-rows // len(some))).take(np.s_[:rows])
    many.noise_key[:] = np.random.default_rng(0).integers(-(2**62), 2**62, rows)
    return many


def rate(work: Callable[[], Any], rows: int, device: str) -> float:
    """Rows per second, the median of the rounds; the first one warms up."""
    found = []
    for _ in range(ROUNDS + 1):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        found.append(rows / (time.perf_counter() - started))
    return statistics.median(found[1:])


def learnt(device: str) -> float:
    """Source events per second of pretraining, in batches of 64 full windows, of as many items as `TARGET_ITEMS_FILE`."""
    generator = torch.Generator().manual_seed(0)
    windows, length, dim = 64, 50, 64
    parameters = {
        "source": torch.randn(TARGET_ITEMS + 1, dim, generator=generator),
        **attention.initial_weights(dim, generator),
    }
    learner = make_optimizer(parameters, steps=1_000, rate=1e-3, device=device)
    items = torch.randint(1, TARGET_ITEMS + 1, (windows, length), generator=generator)
    days = torch.rand(windows, length, generator=generator).cumsum(1)
    chance, popular = torch.full((TARGET_ITEMS + 1,), 1 / (TARGET_ITEMS + 1)), torch.zeros(TARGET_ITEMS + 1, device=device)

    def ten_steps() -> None:
        for _ in range(10):
            train_step(learner, items, days, popular=popular, chance=chance, generator=generator)

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = rate(ten_steps, 10 * windows * length, device)
    torch.set_num_threads(before)
    return found


def bf16_tflop_per_s(device: str, size: int = 8192) -> float:
    """Of a product of two square matrices."""
    size = size if device == "cuda" else 256
    a, b = torch.rand(2, size, size, device=device).bfloat16()
    return rate(lambda: a @ b, 2 * size**3, device) / 1e12


def memory_gb_per_s(device: str, size: int = 2**30) -> float:
    """Of a copy, what is read and what is written."""
    a = torch.zeros(size if device == "cuda" else 2**20, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return rate(lambda: b.copy_(a), 2 * len(a), device) / 1e9


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
