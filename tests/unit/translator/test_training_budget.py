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
