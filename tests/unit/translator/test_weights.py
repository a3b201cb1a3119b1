"""Weights of target events in estimators, popularity and calibration."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.translator_log import DAY, METADATA, SETTINGS, make_log

from scalr_prod.translator.calibration import CalibrationEvents, calibrate, uncalibrated_tables
from scalr_prod.translator.data.domain_events import DomainEvents
from scalr_prod.translator.data.event_log import EventLog
from scalr_prod.translator.data.training_pairs import TrainingSlice, contexts_and_labels
from scalr_prod.translator.estimators import BUILTIN_ESTIMATORS
from scalr_prod.translator.module import TranslatorModule
from scalr_prod.translator.trainer import fit_parameter_sets

TASTES, LIGHT = 4, 0.02


@pytest.fixture(scope="module")
def log() -> EventLog:
    return make_log(target_items=40)


@pytest.fixture(scope="module")
def contradicted(log) -> EventLog:
    """Beside each event three views of the next taste's items, which weigh next to nothing."""
    target, rng = log.target, np.random.default_rng(1)
    again = np.repeat(np.arange(len(target)), 4)
    view = np.arange(len(again)) % 4 > 0
    shifted = (target.item[again] // TASTES + rng.integers(0, 10, len(again))) % 10 * TASTES + (target.item[again] + 1) % TASTES
    item = np.where(view, shifted, target.item[again]).astype(np.int32)
    weight = np.where(view, LIGHT, 1.0).astype(np.float32)
    events = DomainEvents(target.user[again], item, target.time[again], target.ids, weight)
    return replace(log, target=events, history=log.history[again])


def fitted(log: EventLog) -> tuple[TrainingSlice, dict[str, torch.Tensor]]:
    torch.set_num_threads(1)
    pairs = TrainingSlice.from_log(log, 70 * DAY, SETTINGS, popularity_until=100 * DAY)
    return pairs, fit_parameter_sets(pairs, {-1: np.zeros(len(log.users), bool)}, lambda _: None)


def mass_on_taste(
    log: EventLog, pairs: TrainingSlice, tensors: dict[str, torch.Tensor], weight: np.ndarray | None
) -> dict[str, float]:
    """Of later purchases, by member: how much probability the taste of the purchase has, less that of the views' taste."""
    rows = np.flatnonzero((log.target.time >= 70 * DAY) & log.is_label)
    contexts, labels = contexts_and_labels(log, rows, source_index=pairs.source_index, target_index=pairs.target_index)
    module = TranslatorModule(tensors | uncalibrated_tables(), METADATA | {"folds": "0", "n_source": str(pairs.n_source)})
    nobody = np.zeros(len(rows), bool)
    tables = calibrate(
        module, CalibrationEvents(contexts, labels, nobody, weight=None if weight is None else weight[rows]), seed=0
    )
    module = TranslatorModule(tensors | tables, METADATA | {"folds": "0", "n_source": str(pairs.n_source)})
    taste_of = np.full(pairs.n_target, -1)
    known = pairs.target_index >= 0
    taste_of[pairs.target_index[known]] = np.arange(len(known))[known] % TASTES
    bought = log.target.weight[rows] == 1
    own = torch.from_numpy(log.target.item[rows] % TASTES)
    found = {}
    for member in ("mixture", *BUILTIN_ESTIMATORS):
        total = []
        for some, (p,) in module.distributions(contexts, (member,)):
            by_taste = torch.stack([p[:, taste_of == taste].sum(1) for taste in range(TASTES)], 1)
            right, wrong = (by_taste.gather(1, ((own[some] + step) % TASTES)[:, None])[:, 0] for step in (0, 1))
            total.append((right - wrong)[torch.from_numpy(bought[some])])
        found[member] = float(torch.cat(total).mean())
    return found


def test_every_component_follows_event_weights(contradicted):
    weighted = mass_on_taste(contradicted, *fitted(contradicted), contradicted.label_weights(100 * DAY))
    alike = replace(contradicted, target=replace(contradicted.target, weight=np.ones(len(contradicted.target), np.float32)))
    pairs, tensors = fitted(alike)
    unweighted = mass_on_taste(contradicted, pairs, tensors, None)
    for member in ("mixture", *BUILTIN_ESTIMATORS):
        assert weighted[member] > 0.1, (member, weighted, unweighted)
        assert unweighted[member] < weighted[member] - 0.25, (member, weighted, unweighted)
    assert unweighted["mixture"] < 0, "without weights, the views have it"


def test_weights_of_one_equal_no_weights(log):
    ones = replace(log, target=replace(log.target, weight=np.ones(len(log.target), np.float32)))
    (pairs, plain), (same, weighed) = fitted(log), fitted(ones)
    assert (same.target_matrix() != pairs.target_matrix()).nnz == 0
    assert plain.keys() == weighed.keys()
    for name, tensor in plain.items():
        assert torch.allclose(tensor.double(), weighed[name].double(), rtol=1e-3, atol=1e-4), name


def test_scaling_all_weights_changes_little(log):
    """A whole log at one weight is the same population: the sequential estimator does not see it, the calibration nearly not."""
    half = replace(log, target=replace(log.target, weight=np.full(len(log.target), 0.5, np.float32)))
    (pairs, plain), (same, weighed) = fitted(log), fitted(half)
    assert np.allclose(same.target_matrix().toarray(), 0.5 * pairs.target_matrix().toarray())
    assert torch.allclose(plain["-1/sequential/target"], weighed["-1/sequential/target"], rtol=1e-3, atol=1e-3)


def test_a_purchase_after_a_view_adds_the_difference_when_it_happens():
    users, items = np.array([0, 0, 0, 0, 1], np.int32), np.array([0, 1, 0, 0, 0], np.int32)
    time, weight = np.array([1, 2, 3, 4, 9]) * DAY, np.array([0.1, 1.0, 1.0, 0.1, 0.1], np.float32)
    log = make_log()
    target = DomainEvents(users, items, time, log.target.ids.slice(0, 2), weight)
    made = replace(log, target=target, history=np.full((5, 10), -1, np.int32))
    assert made.weight_gains.tolist() == pytest.approx([0.1, 1.0, 0.9, 0, 0.1])
    assert made.is_label.tolist() == [True, True, False, False, True]
    assert made.label_weights(10 * DAY)[made.is_label].tolist() == pytest.approx([1.0, 1.0, 0.1])
    assert made.label_weights(3 * DAY)[0] == pytest.approx(0.1), "a purchase that has not happened yet does not weigh"
    assert replace(made, exclude_consumed=False).weight_gains.tolist() == pytest.approx(weight.tolist())
    assert replace(made, target=replace(target, weight=None)).weight_gains is None


def test_decayed_counts_of_weighted_events_are_sums():
    from scalr_prod.translator.estimators.popularity import decayed_counts

    rng = np.random.default_rng(0)
    item, time, weight = np.zeros(50, int), np.sort(rng.integers(0, 90 * DAY, 50)), rng.random(50).astype(np.float32)
    for half_life in (np.inf, 20.0):
        found = decayed_counts(item, time, half_life, weight)
        for row in range(50):
            ages = (time[row] - time[: row + 1]) / DAY
            assert found[row] == pytest.approx(float((weight[: row + 1] * 0.5 ** (ages / half_life)).sum()))


def test_rows_are_sampled_in_proportion_to_weight(contradicted, log):
    rows = np.flatnonzero(contradicted.is_label)
    some = contradicted.sample_by_weight(rows, 100 * DAY, seed=0)
    weight = contradicted.label_weights(100 * DAY)
    assert set(rows[weight[rows] == 1]) <= set(some)
    light = (weight[some] < 1).sum() / (weight[rows] < 1).sum()
    assert light == pytest.approx(LIGHT, abs=0.015)
    everything = np.flatnonzero(log.is_label)
    assert log.sample_by_weight(everything, 100 * DAY, seed=0) is everything


def test_window_batches_include_weights(contradicted):
    """Batches of the sequential estimator include the weights."""
    from scalr_prod.translator.estimators.window_index import TrainingWindows

    windows = TrainingWindows.from_pairs(TrainingSlice.from_log(contradicted, 70 * DAY, SETTINGS))
    assert float(windows.weight.mean()) == pytest.approx(1)
    seen = [window.weight for window in windows.iter_epoch(64, torch.Generator().manual_seed(0))]
    assert sorted(torch.cat(seen).tolist()) == pytest.approx(sorted(windows.weight.tolist()))
