"""The compiled CPU executor against the reference: formulas, draws, probabilities and fallbacks."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.translator_log import DAY, LENGTH, METADATA, SETTINGS, calibration, make_log

from scalr_prod.translator.calibration_table import BUILTIN_LAYOUT
from scalr_prod.translator.data.contexts import COLD_USERS, NO_ITEM, Contexts
from scalr_prod.translator.data.training_pairs import TrainingSlice
from scalr_prod.translator.estimators import popularity
from scalr_prod.translator.kernels import executor, item_block
from scalr_prod.translator.module import TranslatorModule
from scalr_prod.translator.trainer import fit_parameter_sets

UNIT = 2.0**-24


@pytest.fixture(scope="module")
def world() -> SimpleNamespace:
    """60 target items in blocks of 16, and popularity with a snapshot every few events."""
    torch.set_num_threads(1)
    pairs = TrainingSlice.from_log(make_log(target_items=60), 90 * DAY, SETTINGS)
    fold = pairs.log.fold
    tensors = (
        fit_parameter_sets(pairs, {-1: np.zeros(len(fold), bool), 0: fold == 0, 1: fold == 1}, lambda _: None) | calibration()
    )
    metadata = METADATA | {"n_source": str(pairs.n_source)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "ITEMS_PER_BLOCK", 16)
        modules = [TranslatorModule(tensors, metadata, reference=reference) for reference in (False, True)]
        yield SimpleNamespace(pairs=pairs, tensors=tensors, metadata=metadata, fused=modules[0], reference=modules[1])


def make_contexts(world: SimpleNamespace, rows: int, *, seed: int = 0, exclude: int = 0, length: int = LENGTH) -> Contexts:
    random = np.random.default_rng(seed)
    there = np.arange(length) >= length - random.integers(0, length + 1, rows)[:, None]
    items = np.where(there, random.integers(0, world.pairs.n_source + 1, (rows, length)), 0)
    ages = np.where(there, np.sort(random.exponential(30, (rows, length)))[:, ::-1], 0)
    time = random.integers(0, 110 * DAY, rows)
    time[: rows // 3] = time[: rows // 3] // DAY * DAY  # some at one time
    return Contexts(
        history_items=items.astype(np.int32),
        history_ages=ages.astype(np.float32),
        history_end=time - 1,
        event_time=time,
        fold=random.integers(COLD_USERS, 2, rows).astype(np.int32),
        noise_key=random.integers(-(2**63), 2**63, rows),
        exclude=random.integers(-1, world.pairs.n_target, (rows, exclude)).astype(np.int32),
    )


def test_exp_and_log_are_accurate_to_three_units():
    random = np.random.default_rng(0)
    for x in np.concatenate([random.uniform(-87, 80, 4_000), random.uniform(-1, 1, 1_000), [0, -87, 80]]).astype(np.float32):
        assert abs(float(item_block.exp(x)) / np.exp(np.float64(x)) - 1) <= 3 * UNIT
    assert float(item_block.exp(np.float32(-np.inf))) < 2e-38
    for x in np.exp(random.uniform(-80, 80, 4_000)).tolist() + np.exp(random.uniform(-0.1, 0.1, 2_000)).tolist():
        exact = np.log(np.float64(np.float32(x)))
        assert abs(float(item_block.log(np.float32(x))) - exact) <= 3 * UNIT * abs(exact)
    for x in np.concatenate([random.uniform(-126, 120, 2_000), [-300.0, 0.0]]):
        assert abs(float(item_block.exp2(np.float64(x))) - 2.0**x) <= 3 * UNIT * 2.0**x + 2.0**-126


@pytest.mark.parametrize(
    ("k", "temperature", "min_lift"), [(4, 1.0, 0.0), (20, 1.0, 1.0), (20, 0.3, 0.5), (9, 2.0, 0.5), (70, 1.0, 0.0)]
)
def test_draws_and_probabilities_match_the_reference(world, k, temperature, min_lift):
    contexts = make_contexts(world, 1_500, seed=k, exclude=4)
    found, expected = (
        module.sample(contexts, k, temperature=temperature, min_lift=min_lift) for module in (world.fused, world.reference)
    )
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=1e-5)
    np.testing.assert_allclose(found.prior, expected.prior, rtol=1e-5)
    assert (found.items != NO_ITEM).any()


def test_every_component_scores_as_the_reference(world):
    contexts = make_contexts(world, 200, seed=1, exclude=3)
    every = np.tile(np.arange(-1, world.pairs.n_target, dtype=np.int32), (200, 1))
    for member in BUILTIN_LAYOUT.components:
        found, expected = (module.score(contexts, every, component=member) for module in (world.fused, world.reference))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5)
        np.testing.assert_array_equal(found[0] == 0, expected[0] == 0)


def test_an_inexact_prior_is_recomputed_by_the_reference(world, whole_rows):
    """The mass of excluded items is subtracted from a shared sum, which is exact if enough remains."""
    contexts = replace(make_contexts(world, 40, seed=2), event_time=np.full(40, 100 * DAY))
    every = np.tile(np.arange(world.pairs.n_target, dtype=np.int32), (40, 1))
    popular = np.argsort(-world.reference.score(contexts, every)[1], axis=1)[:, :-3].astype(np.int32)
    for exclude in (popular[:, :1], popular):
        asked = replace(contexts, exclude=exclude)
        expected = world.reference.score(asked, every), world.reference.sample(asked, 2)
        whole_rows.clear()
        found = world.fused.score(asked, every), world.fused.sample(asked, 2)
        assert sum(whole_rows) == (80 if exclude is popular else 0)
        np.testing.assert_allclose(found[0][1], expected[0][1], rtol=1e-5)
        np.testing.assert_array_equal(found[1].items, expected[1].items)


def test_unsupported_requests_use_the_reference(world, monkeypatch, whole_rows):
    contexts = make_contexts(world, 20, seed=3)
    monkeypatch.setattr(executor, "MAX_DRAWS", 3)
    for k, rows in ((3, 0), (4, 20)):
        world.fused.sample(contexts, k)
        assert sum(whole_rows) == rows
    mixture = world.fused.parameter_set(-1)
    monkeypatch.setitem(mixture.estimators, "linear", SimpleNamespace(score=None))
    assert not executor.FusedExecutor.supports(mixture, "mixture")
    assert executor.FusedExecutor.supports(mixture, "sequential")


def test_the_self_test_compiles_all_kernels(world):
    """A request with other array types would have to wait for another compilation."""
    kernels = [item_block.score_block, item_block.add_log_products]
    TranslatorModule(world.tensors, world.metadata).warm_up()
    for rows, exclude, k in ((1, 0, 1), (7, 3, 5), (40, 0, 70)):
        contexts = make_contexts(world, rows, seed=rows, exclude=exclude)
        world.fused.sample(contexts, k, temperature=0.5)
        for member in ("mixture", "popularity", "sequential"):
            world.fused.score(contexts, np.zeros((rows, k), np.int32), component=member)
    assert [len(kernel.signatures) for kernel in kernels] == [1] * len(kernels)


def test_log_counts_of_given_items_match_those_of_all_items(world):
    parameters = world.fused.parameter_set(-1).popularity
    time = torch.from_numpy(np.random.default_rng(4).integers(-DAY, 120 * DAY, 200))
    items = torch.randint(world.pairs.n_target, (200, 7), generator=torch.Generator().manual_seed(4))
    for dtype, without in itertools.product((torch.float32, torch.float64), (False, True)):
        known = {name: tensor for name, tensor in parameters.items() if not (without and name == "by_item")}
        named, every = popularity.log_counts(known, time, dtype, items), popularity.log_counts(known, time, dtype)
        for name in popularity.COUNT_NAMES:
            assert torch.equal(named[name], every[name].gather(1, items))
