"""The time of a training is estimated from counts of the logs as from the slices that it is made of."""

from __future__ import annotations

import pytest
from support.translator_log import LENGTH, SETTINGS, make_log

from scalr_prod.translator.data.domain_log import DomainLog
from scalr_prod.translator.data.training_pairs import TrainingSlice
from scalr_prod.translator.training_budget import (
    LogCounts,
    estimate_calibration_work,
    estimate_training_minutes,
    estimate_training_work,
)


def test_whole_logs_are_estimated_as_their_slice():
    log = make_log()
    pairs = TrainingSlice.from_log(log, int(max(log.source.time.max(), log.target.time.max())) + 1, SETTINGS)
    source, target = (DomainLog(log.users, events, None) for events in (log.source, log.target))
    labels = int(log.is_label.sum())
    assert target.n_labels() == labels
    counts = LogCounts(len(source), source.n_windows(LENGTH), labels, LENGTH)
    sets = estimate_training_work(pairs, 1) + estimate_training_work(pairs, SETTINGS.folds + 1)
    held_back = estimate_calibration_work(1) * SETTINGS.validation_fraction * labels
    assert estimate_training_minutes(counts, SETTINGS) == pytest.approx((sets + held_back) / 60e6)
    assert source.n_windows(5) == 3 * 120  # twelve events each


def test_steps_beyond_the_limit_are_not_estimated():
    counts = LogCounts(source_events=10**9, windows=2 * 10**7, labels=10**8, length=50)
    settings = SETTINGS.model_copy(update={"dim": 64, "epochs": 3, "batch_size": 256})
    fewer, more, whole, beyond = (
        estimate_training_minutes(counts, settings.model_copy(update={"sequential_steps": steps}))
        for steps in (1_000, 2_000, 10**8, 10**9)
    )
    assert more - fewer == pytest.approx((settings.folds + 2) * 1_000 * 64 * 50 * 10 / 3 / 60e6)
    assert more < whole == beyond
