"""The GPU executor, run by Triton's interpreter on a CPU, against the reference: draws, probabilities and fallbacks."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from support.examples import sweep
from support.translator_log import DAY, LENGTH, METADATA, SETTINGS, calibration, make_log

from scalr_prod.translator import counter_rng
from scalr_prod.translator.calibration_table import BUILTIN_LAYOUT
from scalr_prod.translator.data.contexts import COLD_USERS, NO_ITEM, ConsumedItems, Contexts
from scalr_prod.translator.data.training_pairs import TrainingSlice
from scalr_prod.translator.estimators import frequency
from scalr_prod.translator.module import TranslatorModule
from scalr_prod.translator.trainer import fit_parameter_sets

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("triton", reason="Triton's language is there for Linux alone")

import triton
import triton.language as tl

from scalr_prod.translator.kernels.gpu import gpu_executor, gpu_self_test, sampling_kernel

#: Seconds each in the interpreter; draws and probabilities stay in `make test`, and a GPU's self-test repeats the comparison.
long = pytest.mark.long


@pytest.fixture(scope="module")
def world() -> Iterator[SimpleNamespace]:
    """150 target items: two blocks, and five places of 32; popularity changes within a tile, and histories' tables name few items."""
    torch.set_num_threads(1)
    pairs = TrainingSlice.from_log(make_log(target_items=150), 90 * DAY, SETTINGS)
    fold = pairs.log.fold
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frequency, "MAX_ENTRIES", 3)
        tensors = (
            fit_parameter_sets(pairs, {-1: np.zeros(len(fold), bool), 0: fold == 0, 1: fold == 1}, lambda _: None)
            | calibration()
        )
        metadata = METADATA | {"n_source": str(pairs.n_source)}
        gpu, reference = (TranslatorModule(tensors, metadata, reference=reference) for reference in (False, True))
        gpu.__dict__["_executor"] = gpu_self_test.build_executor(
            tuple(gpu._mixtures.values()), gpu._item_words, gpu.first_seen, gpu.n_source
        )
        yield SimpleNamespace(pairs=pairs, gpu=gpu, reference=reference, tensors=tensors, metadata=metadata)


def make_contexts(world: SimpleNamespace, rows: int, *, seed: int = 0, exclude: int = 0, days: int = 3) -> Contexts:
    """In so many days, within which few items of so short a log are chosen; a third at one time each day."""
    random = np.random.default_rng(seed)
    there = np.arange(LENGTH) >= LENGTH - random.integers(0, LENGTH + 1, rows)[:, None]
    items = np.where(there, random.integers(0, world.pairs.n_source + 1, (rows, LENGTH)), 0)
    ages = np.where(there, np.sort(random.exponential(30, (rows, LENGTH)))[:, ::-1], 0)
    time = random.integers(max(0, 60 - days) * DAY, 60 * DAY if days < 60 else 110 * DAY, rows)
    time[: rows // 3] = time[: rows // 3] // DAY * DAY
    return Contexts(
        history_items=items.astype(np.int32),
        history_ages=ages.astype(np.float32),
        history_end=time - 1,
        event_time=time,
        fold=random.integers(COLD_USERS, 2, rows).astype(np.int32),
        noise_key=random.integers(-(2**63), 2**63, rows),
        exclude=random.integers(-1, world.pairs.n_target, (rows, exclude)).astype(np.int32),
    )


@pytest.mark.parametrize(
    ("k", "temperature", "min_lift", "days"),
    sweep(
        [(20, 1.0, 1.0, 3), (9, 1.0, 0.5, 110), (4, 1.0, 0.0, 3), (9, 0.3, 0.5, 3), (9, 2.0, 0.5, 3), (160, 1.0, 0.0, 3)],
        keep=2,
    ),
)
def test_draws_and_probabilities_match_the_reference(world, k, temperature, min_lift, days):
    contexts = make_contexts(world, 120, seed=k, exclude=4, days=days)
    found, expected = (
        module.sample(contexts, k, temperature=temperature, min_lift=min_lift) for module in (world.gpu, world.reference)
    )
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=1e-5)
    np.testing.assert_allclose(found.prior, expected.prior, rtol=1e-5)
    assert (found.items != NO_ITEM).any()


@pytest.mark.slow
@long
def test_every_component_scores_as_the_reference(world):
    contexts = make_contexts(world, 70, seed=1, exclude=3)
    every = np.tile(np.arange(-1, world.pairs.n_target, dtype=np.int32), (70, 1))
    for member in BUILTIN_LAYOUT.components:
        found, expected = (module.score(contexts, every, component=member) for module in (world.gpu, world.reference))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5)
        np.testing.assert_array_equal(found[0] == 0, expected[0] == 0)


@long
def test_the_pass_rarely_needs_float64(world, whole_rows):
    contexts = make_contexts(world, 120, seed=3, exclude=4)
    world.gpu.sample(contexts, 4)
    assert sum(whole_rows) <= 2  # of 120: rounding hides an item in another place almost never


def test_rows_within_the_rounding_bound_use_the_reference(world, whole_rows, monkeypatch):
    contexts = make_contexts(world, 30, seed=4)
    expected = world.reference.sample(contexts, 4)
    whole_rows.clear()
    monkeypatch.setattr(gpu_executor, "EXTRA_CANDIDATES", -3)  # one place of 32 items for four draws: others hide behind it
    found = world.gpu.sample(contexts, 4)
    np.testing.assert_array_equal(found.items, expected.items)
    assert sum(whole_rows) > 10


@pytest.mark.slow
@long
def test_results_do_not_depend_on_tiles_or_groups(world, monkeypatch):
    """Tiles of few contexts, since many events lie between them; groups of few; all items for one program."""
    contexts = make_contexts(world, 60, seed=5, exclude=2)
    expected = world.gpu.sample(contexts, 6)
    monkeypatch.setattr(gpu_executor, "_MAX_EVENTS_PER_TILE", 5)
    monkeypatch.setattr(gpu_executor, "_MAX_STATE_ELEMENTS", 1)
    monkeypatch.setattr(gpu_executor, "_CHUNK", 1_000)
    monkeypatch.setattr(gpu_executor, "_PROGRAMS", 1)
    found = world.gpu.sample(contexts, 6)
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=1e-5)


@triton.jit
def _variates(numbers, low, high, out, count: tl.constexpr):
    place = tl.arange(0, count)
    words = [tl.load(one + tl.arange(0, 1)).to(tl.uint32, bitcast=True) for one in (low, high)]
    found = sampling_kernel._log_variate(tl.load(numbers + place).to(tl.uint32, bitcast=True), words[0], words[1])
    tl.store(out + tl.arange(0, 1)[:, None] * count + place[None, :], found)


def test_variates_match_the_reference_within_the_bound():
    """As far as formulas go: a card's own logarithm is another one."""
    count = 2**16
    numbers, out = counter_rng.item_words(count), torch.empty(1, count)
    low, high = counter_rng.key_words(np.array([12345]))
    _variates[(1,)](numbers, low, high, out, count=count)
    exact = counter_rng.exponential((low, high), numbers, torch.float64).log()
    assert float((out - exact).abs().max()) <= 2.0**-17
    assert float(exact.min()) < -9  # small variates, which decide races, are among them


def test_tiles_end_after_many_events():
    before = np.array([0, 1, 2, 600, 600, *([700] * 100)])
    assert gpu_executor._tiles(before).tolist() == [0, 3, 35, 67, 99]
    assert gpu_executor._tiles(before[:0]).tolist() == []


def test_consumed_items_equal_an_exclusion_matrix(world):
    contexts = make_contexts(world, 40, seed=6, exclude=5)
    flat = contexts.exclude_matrix()
    had = ConsumedItems(flat.ravel(), np.arange(40) * 5, np.full(40, 5))
    found = world.gpu.sample(replace(contexts, exclude=had), 5)
    np.testing.assert_array_equal(found.items, world.reference.sample(contexts, 5).items)
    assert not (found.items[:, :, None] == flat[:, None, :])[found.items >= 0].any()


def test_no_contexts_and_no_items_left(world):
    assert world.gpu.sample(make_contexts(world, 0), 3).items.shape == (0, 3)
    contexts = make_contexts(world, 3, seed=7)
    before = replace(contexts, event_time=np.zeros(3, np.int64), history_end=np.full(3, -1))
    found = world.gpu.sample(before, 3)
    assert (found.items == NO_ITEM).all()
    assert not found.probabilities.any()


@pytest.mark.slow
@pytest.mark.long  # a compiler for cards that this machine lacks, in a process of its own
@pytest.mark.parametrize("card", [80, 90])
def test_the_kernel_compiles_for_cards(card):
    """The interpreter accepts code that Triton's compiler refuses; compiling needs no GPU."""
    code = f"""
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from scalr_prod.translator.kernels.gpu import gpu_executor, sampling_kernel

constants = dict(width=256, log_width=32, with_frequency=True, with_keys=True)
constants |= dict(rows=sampling_kernel.CONTEXTS_PER_TILE, items=sampling_kernel.ITEMS_PER_BLOCK, each=sampling_kernel.ITEMS_PER_KEY)
constants |= dict(depth=gpu_executor._DEPTH, precision=gpu_executor._PRECISION)
known = dict.fromkeys(("tile_first", "tile_rows", "eligible", "special", "low", "high", "numbers"), "*i32")
known |= dict.fromkeys(("mass_out", "prior_mass_out"), "*fp64") | dict.fromkeys(("n_items", "blocks_each"), "i32")
known |= dict.fromkeys(("log_weight", "frequency_weight", "slope"), "fp32")
names = sampling_kernel.sampling_pass.arg_names
signature = {{name: "constexpr" if name in constants else known.get(name, "*fp32") for name in names}}
places = {{(names.index(name),): value for name, value in constants.items()}}
source = ASTSource(sampling_kernel.sampling_pass, signature=signature, constexprs=places)
made = compile(source, target=GPUTarget("cuda", {card}, 32), options=dict(num_warps=gpu_executor._WARPS))
assert made.asm["cubin"]
print(made.metadata.shared)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    assert int(done.stdout) <= 99 * 2**10  # of shared memory, which the smaller cards of that kind have


@long
def test_the_self_test_runs_with_few_eligible_items(world):
    """A context with two eligible items has two draws of four."""
    tensors = world.tensors | {"shared/first_seen": torch.arange(world.pairs.n_target) * DAY}
    module = TranslatorModule(tensors, world.metadata, reference=True)
    found = gpu_self_test.build_executor(
        tuple(module._mixtures.values()), module._item_words, module.first_seen, module.n_source
    )
    assert isinstance(found, gpu_executor.GpuExecutor)


def test_an_executor_with_other_draws_is_rejected(world, monkeypatch):
    """With a driver, compiler or GPU that computes wrong numbers, the reference is used, with a warning."""
    states = gpu_executor.GpuExecutor._states
    monkeypatch.setattr(gpu_executor.GpuExecutor, "_states", lambda self, time: 3 * states(self, time))
    with pytest.raises(RuntimeError, match="differ"):
        gpu_self_test.build_executor(
            tuple(world.gpu._mixtures.values()), world.gpu._item_words, world.gpu.first_seen, world.gpu.n_source
        )
