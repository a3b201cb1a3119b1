"""Calibration recovers the weights that labels were sampled with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.translator_log import DAY, METADATA, SETTINGS, make_log

from scalr_prod.translator.calibration import (
    CALIBRATION_TABLES,
    CalibrationEvents,
    calibrate,
    fold_table_name,
    uncalibrated_tables,
)
from scalr_prod.translator.calibration_table import BUILTIN_LAYOUT
from scalr_prod.translator.context_batch import ContextBatch
from scalr_prod.translator.data import history_traits
from scalr_prod.translator.data.training_pairs import TrainingSlice, contexts_and_labels
from scalr_prod.translator.metrics import measure
from scalr_prod.translator.module import TranslatorModule
from scalr_prod.translator.trainer import fit_parameter_sets

TRUE = {"factorisation": 2.0, "sequential": 0.5, "count": 0.2, "days_20_from_1": 1.5, "days_90_from_4": -0.8}


class World:
    """An uncalibrated translator, and contexts later than its training data."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        log = make_log(target_items=60)
        self.pairs = TrainingSlice.from_log(log, 70 * DAY, SETTINGS, popularity_until=100 * DAY)
        self.tensors = fit_parameter_sets(self.pairs, {-1: np.zeros(len(log.users), bool)}, lambda _: None)
        rows = np.flatnonzero(log.target.time >= 70 * DAY)
        indices = {"source_index": self.pairs.source_index, "target_index": self.pairs.target_index}
        contexts, self.labels = contexts_and_labels(log, rows, **indices)
        again = np.tile(np.arange(len(contexts)), 20)
        self.contexts = contexts.take(again)
        plain = self.module(uncalibrated_tables())
        mean, spread = history_traits.trait_moments(
            history_traits.raw_traits(
                plain.parameter_set(-1).traits, ContextBatch.from_contexts(self.contexts, plain.first_seen)
            )
        )
        self.tensors |= {"shared/tastes/mean": mean, "shared/tastes/spread": spread}

    def module(self, calibration: dict[str, torch.Tensor]) -> TranslatorModule:
        metadata = METADATA | {"folds": "0", "n_source": str(self.pairs.n_source)}
        return TranslatorModule(self.tensors | calibration, metadata)

    def nll(self, calibration: dict[str, torch.Tensor], labels: np.ndarray, member: str = "mixture") -> float:
        everybody = {"all": np.ones(len(labels), bool)}
        return measure(self.module(calibration), self.contexts, labels, everybody, (member,))["all"][member].nll


def mixing(weights: dict[str, float]) -> dict[str, torch.Tensor]:
    """Return calibration tables whose mixture has these weights, with the traits' moments of the world."""
    calibration = {table: uncalibrated_tables()[table] for table in CALIBRATION_TABLES}
    for table in CALIBRATION_TABLES:
        row = calibration[table][BUILTIN_LAYOUT.components.index("mixture")]
        row.zero_()
        for name, weight in weights.items():
            row[BUILTIN_LAYOUT.weights.index(name)] = weight
    return calibration


def untilted(calibration: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same tables without trait weights."""
    tilts = [place for place, name in enumerate(BUILTIN_LAYOUT.weights) if "_by_" in name]
    plain = {name: calibration[name].clone() for name in CALIBRATION_TABLES}
    for table in plain.values():
        table[:, tilts] = 0
    return calibration | plain


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def drawn_by(world: World, calibration: dict[str, torch.Tensor], seed: int = 5) -> np.ndarray:
    """Sample a label for each context from a mixture."""
    labels = np.empty(len(world.contexts), dtype=np.int32)
    generator = torch.Generator().manual_seed(seed)
    for rows, (p,) in world.module(calibration).distributions(world.contexts):
        labels[rows] = torch.multinomial(p, 1, generator=generator)[:, 0].numpy()
    return labels


def calibrated(world: World, labels: np.ndarray) -> dict[str, torch.Tensor]:
    nobody = np.zeros(len(labels), bool)
    events, components = CalibrationEvents(world.contexts, labels, nobody), ("mixture", "popularity")
    found = calibrate(world.module(uncalibrated_tables()), events, seed=0, components=components)
    assert torch.equal(*(found[name] for name in CALIBRATION_TABLES)), "with too few held-out rows both tables are one"
    return found


def test_calibration_recovers_the_likelihood_of_a_known_mixture(world):
    true = mixing(TRUE)
    labels = drawn_by(world, true)
    found = calibrated(world, labels)
    fitted, best, popularity = (
        world.nll(t, labels, m) for t, m in ((found, "mixture"), (true, "mixture"), (found, "popularity"))
    )
    # More weights than were drawn with, so it may come below; what was drawn for the normaliser makes it a little worse.
    assert fitted < best + 0.01
    assert best < popularity - 0.1, "popularity alone must not explain the answers, or this test shows nothing"


@pytest.mark.long
def test_calibration_recovers_trait_weights(world):
    true = mixing(TRUE | {"days_20_by_taste_count": 0.8, "count_by_recent": -0.8})
    labels = drawn_by(world, true)
    found = calibrated(world, labels)
    without = untilted(found)
    assert world.nll(found, labels) < world.nll(true, labels) + 0.01
    assert world.nll(without, labels) > world.nll(true, labels) + 0.05


@pytest.mark.long
def test_estimator_weights_are_nonnegative(world):
    labels = drawn_by(world, mixing(TRUE | {"factorisation": -3.0}))
    names = BUILTIN_LAYOUT.weights
    found = calibrated(world, labels)[CALIBRATION_TABLES[0]]
    assert (found[:, [names.index(name) for name in ("frequency", "linear", "factorisation", "sequential")]] >= 0).all()


@pytest.mark.long
@pytest.mark.parametrize("events", [150, None])
def test_mixture_is_no_worse_than_popularity_if_histories_carry_no_information(world, events):
    """Measured on other labels than it was fitted on: few labels must not lead to trait weights by chance."""
    weights = {"count": 0.2, "days_20_from_1": 2.0}
    labels = drawn_by(world, mixing(weights))
    some = np.random.default_rng(0).permutation(len(labels))[:events]
    nobody = np.zeros(len(some), bool)
    found = calibrate(
        world.module(uncalibrated_tables()), CalibrationEvents(world.contexts.take(some), labels[some], nobody), seed=0
    )
    fresh = drawn_by(world, mixing(weights), seed=6)
    assert world.nll(found, fresh) < world.nll(found, fresh, "popularity") + (0.02 if events is None else 0.06)


def test_shuffled_labels_carry_no_information(world):
    """Weights fitted on shuffled labels are no better than popularity on the true ones; weights fitted on these are."""
    labels = drawn_by(world, mixing(TRUE))
    dealt = np.random.default_rng(3).permutation(labels)
    allowed = (world.contexts.exclude_matrix() != dealt[:, None]).all(1)  # some are dealt to users who had the item
    true, other = calibrated(world, labels), calibrated(world, np.where(allowed, dealt, -1))
    popularity = world.nll(true, labels, "popularity")
    assert world.nll(true, labels) < popularity - 0.1
    assert world.nll(other, labels) > popularity - 0.05


@pytest.mark.long
def test_too_few_held_out_users_use_the_table_of_all_users(world):
    labels = drawn_by(world, mixing(TRUE))
    few = np.zeros(len(labels), bool)
    few[:40] = True
    found = calibrate(
        world.module(uncalibrated_tables()),
        CalibrationEvents(world.contexts.take(np.arange(60)), labels[:60], few[:60]),
        seed=0,
    )
    assert torch.equal(*(found[name] for name in CALIBRATION_TABLES))
    many = np.arange(len(labels)) % 2 == 0
    found = calibrate(world.module(uncalibrated_tables()), CalibrationEvents(world.contexts, labels, many), seed=0)
    assert not torch.equal(*(found[name] for name in CALIBRATION_TABLES))


def test_without_eligible_labels_the_mixture_is_popularity(world):
    """All items of the slice are new, so that no label is eligible."""
    labels = np.full(len(world.contexts), -1, dtype=np.int32)
    found = calibrated(world, labels)
    assert found.keys() == uncalibrated_tables().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in uncalibrated_tables().items())


def test_a_fold_does_not_influence_its_own_table(world):
    """With other labels of fold 0's users, fold 0's table stays bit-identical, and those of other folds change."""
    labels, contexts = drawn_by(world, mixing(TRUE))[:1000], world.contexts.take(np.arange(1000))
    held_out, fold = (np.random.default_rng(seed).integers(0, 2, len(labels)).astype(np.int32) for seed in (1, 2))
    other = labels.copy()
    theirs = fold == 0
    other[theirs] = labels[theirs] // 2  # of two items, the one with the lower index was there no later
    ours, others = (
        calibrate(world.module(uncalibrated_tables()), CalibrationEvents(contexts, answers, held_out == 1, fold=fold), seed=0)
        for answers in (labels, other)
    )
    assert torch.equal(ours[fold_table_name(0)], others[fold_table_name(0)])
    for name in (*CALIBRATION_TABLES, fold_table_name(1)):
        assert not torch.equal(ours[name], others[name]), name
    assert not any(torch.equal(ours[fold_table_name(0)], ours[name]) for name in (*CALIBRATION_TABLES, fold_table_name(1)))


@pytest.mark.long
def test_a_fold_table_uses_all_other_users_if_none_were_held_out(world):
    labels = drawn_by(world, mixing(TRUE))
    fold = (np.arange(len(labels)) % 2).astype(np.int32)
    found = calibrate(
        world.module(uncalibrated_tables()), CalibrationEvents(world.contexts, labels, fold == 0, fold=fold), seed=0
    )
    others = fold == 1
    everybody = np.zeros(others.sum(), bool)
    assert torch.equal(found[fold_table_name(1)], found[CALIBRATION_TABLES[1]]), "the held-out users are all of the other fold"
    assert not torch.equal(found[fold_table_name(0)], found[CALIBRATION_TABLES[0]])
    alone = calibrate(
        world.module(uncalibrated_tables()), CalibrationEvents(world.contexts.take(others), labels[others], everybody), seed=0
    )
    # The draws for the normaliser are others, so that weights of features that tell nearly the same differ, and the likelihood does not.
    theirs = np.where(others, labels, -1)
    first, second = (world.nll(found | dict.fromkeys(CALIBRATION_TABLES, found[fold_table_name(n)]), theirs) for n in (0, 1))
    assert first == pytest.approx(world.nll(alone, theirs), abs=0.0003)
    assert second > first + 0.001, "the table of the other half must be worse, or this test shows nothing"


def test_each_fold_uses_its_own_table(world):
    twins = {
        f"{fold}/{name.removeprefix('-1/')}": x for name, x in world.tensors.items() if name[:3] == "-1/" for fold in (0, 1)
    }
    sharp, flat = (mixing({"days_20_from_1": weight})[CALIBRATION_TABLES[1]] for weight in (2.0, 0.0))
    tables = uncalibrated_tables() | {fold_table_name(0): sharp}
    metadata = METADATA | {"n_source": str(world.pairs.n_source)}
    module = TranslatorModule(world.tensors | twins | tables | {fold_table_name(1): flat}, metadata)
    contexts = world.contexts.take(np.arange(50))

    def answer(module: TranslatorModule, fold: int) -> torch.Tensor:
        asked = replace(contexts, fold=np.full(50, fold, np.int32))
        return torch.cat([p for _, (p,) in module.distributions(asked)])

    assert (answer(module, 0) - answer(module, 1)).abs().max() > 1e-3
    # A version of a former package has one table for all folds.
    former = TranslatorModule(world.tensors | twins | uncalibrated_tables() | {CALIBRATION_TABLES[1]: flat}, metadata)
    assert torch.equal(answer(former, 0), answer(module, 1))
