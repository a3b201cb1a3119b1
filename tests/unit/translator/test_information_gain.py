"""Information gain is separated from popularity, from time, and from users in the training data."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.worlds import World
from scalr_prod.config.sections import ComputeSettings, HistorySettings, TranslatorSettings
from scalr_prod.translator.data.contexts import Contexts
from scalr_prod.translator.data.training_pairs import TrainingSlice
from scalr_prod.translator.information_gain import InformationGain, swap_histories
from scalr_prod.translator.trainer import (
    calibration_slice,
    fit_calibration,
    fit_parameter_sets,
    fit_shared,
    measure_own_over_others,
    time_quantile,
)

LEAN = {"estimators": ("popularity", "frequency", "linear")}


def contexts(user: np.ndarray, time: np.ndarray) -> Contexts:
    """Each with a history of one event that names its user."""
    rows = len(user)
    return Contexts(
        history_items=(user[:, None] + 1).astype(np.int32),
        history_ages=np.zeros((rows, 1), dtype=np.float32),
        history_end=time - 1,
        event_time=time,
        fold=np.full(rows, -1, dtype=np.int32),
        noise_key=np.arange(rows, dtype=np.int64),
        exclude=np.empty((rows, 0), dtype=np.int32),
    )


def test_histories_are_swapped_with_users_near_in_time():
    rng = np.random.default_rng(0)
    user = rng.integers(0, 30, 4_000).astype(np.int32)
    user[:400] = np.where(rng.random(400) < 0.9, 7, user[:400])  # one user makes nearly all events of a time
    time = np.arange(4_000, dtype=np.int64) * 1_000
    own = contexts(user, time)
    other = swap_histories(own, user, rng)
    assert (other.history_items[:, 0] != own.history_items[:, 0]).all()
    assert (other.history_end <= other.event_time).all()
    assert (np.abs(other.history_end - own.history_end)[500:] <= 50_000).all()
    np.testing.assert_array_equal(other.event_time, own.event_time)


def test_a_single_user_keeps_their_history():
    user = np.zeros(5, dtype=np.int32)
    own = contexts(user, np.arange(5, dtype=np.int64))
    np.testing.assert_array_equal(swap_histories(own, user, np.random.default_rng(0)).history_items, own.history_items)


def information(world: World, **options) -> InformationGain:
    torch.set_num_threads(1)
    settings = SimpleNamespace(
        translator=TranslatorSettings(threads=1, **LEAN | options), histories=HistorySettings(), compute=ComputeSettings()
    )
    log = world.make().log(length=20, folds=3)
    begin, end = time_quantile(log.label_times(), 0.9), int(log.target.time.max()) + 1
    pairs = TrainingSlice.from_log(log, end, settings.translator)
    shared_before, shared = fit_shared([calibration_slice(settings, log, begin, end), pairs])
    calibrated = fit_calibration(settings, shared_before, log.sample_users(3), lambda _: None, with_information=True)
    held_out = {fold: log.fold == fold for fold in range(3)}
    tensors = fit_parameter_sets(pairs, held_out, lambda _: None, shared=shared)
    return InformationGain(measure_own_over_others(settings, pairs, tensors, held_out), calibrated.over_popularity)


@pytest.mark.long
@pytest.mark.slow
def test_a_tenth_of_a_nat_is_significant_and_reproducible():
    world = World(signal=0.2, users=1_500, topics=8, source_items=64, target_items=64)  # .11 nats for the oracle
    found = information(world)
    assert found.own_over_others.nats.low > 0.02
    assert found.over_popularity.own.high > 0 > found.over_popularity.others.low
    assert found.to_json() == information(world).to_json()


@pytest.mark.slow
def test_users_in_the_training_data_are_excluded():
    """Users repeat themselves, and source and target have nothing to do with each other: parameters know users by their source."""
    world = World(signal=0.0, repeats=0.5, users=800, topics=10, source_items=300, target_items=300)
    found = information(world)
    assert found.own_over_others.nats.low < 0.001
    assert found.own_over_others.nats.high < 0.05
