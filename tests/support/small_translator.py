"""A small translator that is whole, and contexts to ask it about: for tests of what it draws and scores."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import torch

from scalr_prod.translator.data.contexts import Contexts, Samples
from scalr_prod.translator.data.training_pairs import TrainingSlice
from scalr_prod.translator.module import TranslatorModule
from scalr_prod.translator.trainer import fit_parameter_sets
from support.translator_log import DAY, LENGTH, METADATA, SETTINGS, calibration, make_log

EXECUTIONS = ("fused", "reference")


@functools.cache
def make_world() -> SimpleNamespace:
    """A translator of three parameter sets, each way of working it out, and what it was made of; made once a process."""
    torch.set_num_threads(1)
    pairs = TrainingSlice.from_log(make_log(target_items=60), 90 * DAY, SETTINGS)
    fold = pairs.log.fold
    tensors = fit_parameter_sets(pairs, {-1: np.zeros(len(fold), bool), 0: fold == 0, 1: fold == 1}, lambda _: None)
    tensors |= calibration()
    metadata = METADATA | {"n_source": str(pairs.n_source)}
    modules = {name: TranslatorModule(tensors, metadata, reference=name == "reference") for name in EXECUTIONS}
    return SimpleNamespace(pairs=pairs, tensors=tensors, metadata=metadata, modules=modules, module=modules["fused"])


def make_contexts(world: SimpleNamespace, rows: int, *, seed: int = 0, exclude: int = 0) -> Contexts:
    """Any of its items at any ages, of any fold."""
    random = np.random.default_rng(seed)
    length = random.integers(0, LENGTH + 1, rows)
    there = np.arange(LENGTH) >= LENGTH - length[:, None]
    items = np.where(there, random.integers(0, world.pairs.n_source + 1, (rows, LENGTH)), 0)
    ages = np.where(there, np.sort(random.exponential(30, (rows, LENGTH)))[:, ::-1], 0)
    ages[:, -1] = 0
    time = random.integers(0, 110, rows) * DAY + 1
    return Contexts(
        history_items=items.astype(np.int32),
        history_ages=ages.astype(np.float32),
        history_end=time - 1,
        event_time=time,
        fold=random.integers(-1, 2, rows).astype(np.int32),
        noise_key=random.integers(-(2**63), 2**63, rows),
        exclude=random.integers(-1, world.pairs.n_target, (rows, exclude)).astype(np.int32),
    )


def equal(one: Samples, other: Samples) -> None:
    """The same draws, and probabilities as near as float32 tells."""
    np.testing.assert_array_equal(one.items, other.items)
    np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(one.prior, other.prior, rtol=1e-5, atol=1e-7)
