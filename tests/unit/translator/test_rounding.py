"""The module computes in float32 and draws as in float64: near ties, tiny probabilities, rounding bounds."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.examples import sweep
from support.small_translator import EXECUTIONS, make_contexts, make_world
from support.translator_log import DAY, calibration_table

from scalr_prod.translator import counter_rng
from scalr_prod.translator.calibration import CALIBRATION_TABLES
from scalr_prod.translator.calibration_table import BUILTIN_LAYOUT
from scalr_prod.translator.context_batch import ContextBatch
from scalr_prod.translator.data.contexts import NO_ITEM, Contexts
from scalr_prod.translator.estimators import BUILTIN_ESTIMATORS
from scalr_prod.translator.mixture import Mixture
from scalr_prod.translator.module import TranslatorModule


@pytest.fixture(scope="module")
def world() -> SimpleNamespace:
    return make_world()


def exact_draws(module: TranslatorModule, contexts: Contexts, k: int, temperature: float, min_lift: float) -> np.ndarray:
    """Sample by a plain implementation in float64: items [B, k]."""
    drawn = np.full((len(contexts), k), NO_ITEM)
    for fold in np.unique(contexts.fold).tolist():
        rows = np.flatnonzero(contexts.fold == fold)
        part, mixture = contexts.take(rows), module.parameter_set(fold)
        batch = ContextBatch.from_contexts(part, module.first_seen)
        found = mixture.distributions(mixture.encode(batch, ("popularity", "mixture")), dtype=torch.float64)
        p, prior = (found[member].numpy() for member in ("mixture", "popularity"))
        race = counter_rng.exponential(
            counter_rng.key_words(part.noise_key), counter_rng.item_words(module.n_target), torch.float64
        ).numpy()
        with np.errstate(divide="ignore"):
            keys = np.log(p) / temperature - np.log(race)
        for row, exclude in enumerate(part.exclude):
            keys[row, exclude[exclude >= 0]] = -np.inf
        best = np.argsort(-keys, axis=1, kind="stable")[:, :k]
        kept = np.isfinite(np.take_along_axis(keys, best, 1)) & (
            np.take_along_axis(p, best, 1) >= min_lift * np.take_along_axis(prior, best, 1)
        )
        drawn[rows, : best.shape[1]] = np.where(kept, best, NO_ITEM)
    return drawn


@pytest.fixture
def looked_at_again(monkeypatch) -> dict[str, int]:
    """Count the rows whose candidates, or all items, were computed in float64."""
    rows = {"best": 0, "all": 0}
    logits, distributions = Mixture.logits, Mixture.distributions

    def count_best(self, summary, member, items):
        rows["best"] += len(items)
        return logits(self, summary, member, items)

    def count_all(self, summary, *, dtype=torch.float32):
        rows["all"] += len(summary.batch.time) if dtype == torch.float64 else 0
        return distributions(self, summary, dtype=dtype)

    monkeypatch.setattr(Mixture, "logits", count_best)
    monkeypatch.setattr(Mixture, "distributions", count_all)
    return rows


@pytest.mark.parametrize(
    ("k", "temperature", "min_lift"),
    sweep([(20, 1.0, 1.0), (9, 2.0, 0.5), (4, 1.0, 0.0), (20, 0.5, 0.0), (70, 1.0, 0.0)], keep=2),
)
def test_draws_equal_float64(world, k, temperature, min_lift):
    contexts = make_contexts(world, 3_000, seed=9, exclude=2)
    expected = exact_draws(world.module, contexts, k, temperature, min_lift)
    for module in world.modules.values():
        drawn = module.sample(contexts, k, temperature=temperature, min_lift=min_lift).items
        np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize("name", EXECUTIONS)
def test_float64_is_rarely_needed(world, looked_at_again, name):
    contexts = make_contexts(world, 3_000, seed=10)
    world.modules[name].sample(contexts, 20, min_lift=1.0)
    assert looked_at_again["best"] < 0.1 * len(contexts)
    assert looked_at_again["all"] < 0.01 * len(contexts)


@pytest.mark.parametrize("k", sweep([5, 1, 40], keep=1))
def test_near_ties_are_resolved_as_in_float64(world, looked_at_again, k):
    """Alike but for their variates to the power of a low temperature, or for less than float32 can tell: all items are close."""
    contexts = make_contexts(world, 300, seed=11, exclude=2)
    alike = calibration_table() * 1e-6
    tensors = world.tensors | dict.fromkeys(CALIBRATION_TABLES, alike)
    fused, reference = (TranslatorModule(tensors, world.metadata, reference=name == "reference") for name in EXECUTIONS)
    for temperature in (1e-6, 1e-4):
        expected = exact_draws(reference, contexts, k, temperature, 0)
        np.testing.assert_array_equal(fused.sample(contexts, k, temperature=temperature).items, expected)
        looked_at_again.update(best=0, all=0)
        np.testing.assert_array_equal(reference.sample(contexts, k, temperature=temperature).items, expected)
        assert looked_at_again["best"] > (0.8 * len(contexts) if temperature < 1e-5 else 0)
    # Of many races of one context, those whose two best are nearest.
    many = make_contexts(world, 1, seed=12).take(np.zeros(100_000, dtype=np.int64))
    many = replace(many, noise_key=np.arange(len(many)), event_time=np.full(len(many), 100 * DAY))
    nearest = many.take(nearest_races(world.module, many)[:50])
    expected = exact_draws(world.module, nearest, k, 1.0, 0)
    for module in world.modules.values():
        looked_at_again.update(best=0, all=0)
        np.testing.assert_array_equal(module.sample(nearest, k).items, expected)
        assert looked_at_again["best"] > 0


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_probabilities_below_float32_are_drawn(world, looked_at_again, temperature):
    contexts = make_contexts(world, 300, seed=14)
    tensors = world.tensors | dict.fromkeys(CALIBRATION_TABLES, 40 * calibration_table())
    fused, reference = (TranslatorModule(tensors, world.metadata, reference=name == "reference") for name in EXECUTIONS)
    expected = exact_draws(reference, contexts, 40, temperature, 0)
    np.testing.assert_array_equal(fused.sample(contexts, 40, temperature=temperature).items, expected)
    looked_at_again.update(best=0, all=0)
    drawn = reference.sample(contexts, 40, temperature=temperature)
    np.testing.assert_array_equal(drawn.items, expected)
    assert ((drawn.items != NO_ITEM) & (drawn.probabilities == 0)).any()
    assert looked_at_again["all"] > 0.8 * len(contexts)


def nearest_races(module: TranslatorModule, contexts: Contexts) -> np.ndarray:
    """Rows in order of how near the two best keys are, by float64; all contexts are alike but for their noise."""
    mixture = module.parameter_set(int(contexts.fold[0]))
    p = mixture.distributions(
        mixture.encode(ContextBatch.from_contexts(contexts.slice(0, 1), module.first_seen), ("mixture",)), dtype=torch.float64
    )
    race = counter_rng.exponential(
        counter_rng.key_words(contexts.noise_key), counter_rng.item_words(module.n_target), torch.float64
    )
    best = (p["mixture"] / race).topk(2).values
    assert float((best[:, 1] / best[:, 0]).max()) > 1 - 1e-4
    return (best[:, 1] / best[:, 0]).argsort(descending=True).numpy()


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_rounding_is_bounded(world, scale):
    """Logits in float32 are no further from those in float64 than the bound, and it is not a hundred times too wide."""
    contexts = replace(make_contexts(world, 400, seed=13), fold=np.zeros(400, dtype=np.int32))
    noisy = torch.randn(calibration_table().shape, generator=torch.Generator().manual_seed(2))
    noisy[:, : len(BUILTIN_ESTIMATORS)] = noisy[:, : len(BUILTIN_ESTIMATORS)].abs()
    for table in (calibration_table(), noisy):
        module = TranslatorModule(world.tensors | dict.fromkeys(CALIBRATION_TABLES, scale * table), world.metadata)
        mixture = module.parameter_set(0)
        for member in BUILTIN_LAYOUT.components:
            batch = ContextBatch.from_contexts(contexts, module.first_seen)
            summary = mixture.encode(batch, (member,))
            every = torch.arange(module.n_target).expand(len(contexts), -1)
            exact = mixture.logits(summary, member, every)
            rough = mixture.all_logits(summary)[member].double()
            off, bound = (rough - exact).abs(), mixture.rounding_bound(summary, member, every)
            assert (off <= bound).all()
            assert (bound <= mixture.rounding_bound(summary, member)).all()
            assert bound.median() < 100 * off.amax(1).median()


def test_variates_are_the_same_in_float32():
    words = counter_rng.key_words(np.arange(4_000))
    rough, exact = (
        counter_rng.exponential(words, counter_rng.item_words(500), dtype).double() for dtype in (torch.float32, torch.float64)
    )
    assert float(exact.min()) < 1e-5
    assert float(exact.max()) > 13
    torch.testing.assert_close(rough, exact, rtol=8 * 2**-24, atol=0)
