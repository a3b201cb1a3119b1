"""Probabilities hold at the times that a run asks about, and the table of their classes says so."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import stats
from support.translator_log import DAY, LENGTH, METADATA, SETTINGS

from scalr_prod.translator.calibration import CalibrationEvents, calibrate, uncalibrated_tables
from scalr_prod.translator.data.domain_events import DomainEvents
from scalr_prod.translator.data.event_log import EventLog
from scalr_prod.translator.data.training_pairs import LazyContexts, TrainingSlice, contexts_and_labels
from scalr_prod.translator.metrics import measure
from scalr_prod.translator.module import TranslatorModule
from scalr_prod.translator.reliability import CONFIDENCE, ReliabilityClass
from scalr_prod.translator.trainer import fit_parameter_sets

ITEMS, USERS = 20, 1_500


def bursty_log() -> EventLog:
    """Each item is in demand for two days of forty, and a target event follows its user's source event by ten to thirty days."""
    rng = np.random.default_rng(7)
    user = np.arange(USERS, dtype=np.int32)
    begin = rng.integers(0, 270 * 24, USERS) * (DAY // 24)
    later = begin + rng.integers(10 * 24, 30 * 24, USERS) * (DAY // 24)
    in_demand = later // (2 * DAY) % ITEMS
    item = np.where(rng.random(USERS) < 0.9, in_demand, rng.integers(0, ITEMS, USERS)).astype(np.int32)
    source = DomainEvents(user, rng.integers(0, 10, USERS).astype(np.int32), begin, pa.array(range(10)))
    target = DomainEvents(user, item, later, pa.array(range(ITEMS)))
    history = np.full((USERS, LENGTH), -1, dtype=np.int32)
    history[:, -1] = user
    return EventLog(pa.array(range(USERS)), user % 2, source, target, history)


@pytest.fixture(scope="module")
def measured() -> dict[bool, tuple[ReliabilityClass, ...]]:
    """Whether calibration asks as a run does → classes on later events of held-out users."""
    torch.set_num_threads(1)
    log = bursty_log()
    settings = SETTINGS.model_copy(update={"estimators": ("popularity", "frequency")})
    pairs = TrainingSlice.from_log(log, 150 * DAY, settings, popularity_until=300 * DAY)
    indices = {"source_index": pairs.source_index, "target_index": pairs.target_index}
    held_out = log.users.to_numpy() % 2 == 0
    tensors = fit_parameter_sets(pairs, {-1: held_out}, lambda _: None)
    metadata = METADATA | {"folds": "0", "n_source": str(pairs.n_source), "estimators": '["popularity", "frequency"]'}
    time = log.target.time
    fitted = np.flatnonzero((time >= 150 * DAY) & (time < 220 * DAY))
    judged = np.flatnonzero((time >= 220 * DAY) & held_out[log.target.user])
    contexts, labels = contexts_and_labels(log, judged, **indices, asked_at=220 * DAY)
    found = {}
    for as_a_run_asks in (False, True):
        events = LazyContexts(log, fitted, **indices, asked_at=150 * DAY if as_a_run_asks else None)
        module = TranslatorModule(tensors | uncalibrated_tables(), metadata)
        tables = calibrate(module, CalibrationEvents(events, events.labels, held_out[log.target.user[fitted]]), seed=0)
        groups = {"all": np.ones(len(labels), dtype=bool)}
        found[as_a_run_asks] = measure(TranslatorModule(tensors | tables, metadata), contexts, labels, groups)["all"][
            "mixture"
        ].reliability
    return found


def test_calibration_at_the_instant_of_target_events_is_over_confident(measured):
    wrong = [class_ for class_ in measured[False] if class_.is_off(2)]
    assert any(class_.low >= 0.1 and class_.predicted > 2 * class_.observed for class_ in wrong)


def test_calibration_as_a_run_asks_is_not(measured):
    assert sum(class_.events for class_ in measured[True]) > 100
    assert not [class_ for class_ in measured[True] if class_.is_off(2)]


def test_contexts_are_as_of_the_time_that_is_asked_at():
    rng = np.random.default_rng(1)
    user, at = np.repeat(np.arange(4, dtype=np.int32), 6), 10 * DAY
    time = np.sort(rng.integers(0, 20, (4, 6)), axis=1).ravel() * DAY
    time[:6] += at  # the first user has no history yet
    source = DomainEvents(user, rng.integers(0, 10, 24).astype(np.int32), time, pa.array(range(10)))
    rows = np.arange(4)
    target = DomainEvents(rows.astype(np.int32), np.arange(4, dtype=np.int32), np.full(4, 30 * DAY), pa.array(range(4)))
    log = EventLog(pa.array(rows), rows % 2, source, target, np.full((4, 3), -1, dtype=np.int32))
    index = np.arange(1, 11, dtype=np.int32)
    lazy = LazyContexts(log, rows, index, np.arange(4, dtype=np.int32), asked_at=at)
    contexts = lazy.take(rows)
    for row in rows:
        own = np.flatnonzero((user == row) & (time < at))[-3:]
        end = time[own[-1]] if len(own) else at
        np.testing.assert_array_equal(contexts.history_items[row], np.pad(index[source.item[own]], (3 - len(own), 0)))
        np.testing.assert_allclose(contexts.history_ages[row], np.pad((end - time[own]) / DAY, (3 - len(own), 0)))
        assert (contexts.history_end[row], contexts.event_time[row], lazy.event_time[row]) == (end, at, at)
    np.testing.assert_array_equal(lazy.has_known_items(), (contexts.history_items > 0).any(1))


def reliability_class(pairs: int, predicted: float, events: int) -> ReliabilityClass:
    return ReliabilityClass(0.0, 1.0, pairs, predicted * pairs, events)


@pytest.mark.parametrize(
    ("class_", "is_off"),
    [
        (reliability_class(200, 0.3, 10), True),
        (reliability_class(200, 0.05, 40), True),  # too low is as wrong
        (reliability_class(60, 0.94, 0), True),
        (reliability_class(49, 0.94, 0), False),  # too few outcomes
        (reliability_class(10_000, 0.3, 2_000), False),  # beyond chance, within the factor
        (reliability_class(60, 0.02, 0), False),  # beyond the factor, by chance
    ],
)
def test_a_class_is_off_by_more_than_its_interval_and_the_factor(class_, is_off):
    assert class_.is_off(2.0) is is_off
    again = ReliabilityClass.from_json(class_.to_json())
    assert (again.pairs, again.events, again.predicted) == (class_.pairs, class_.events, pytest.approx(class_.predicted))


def test_the_interval_covers_the_true_rate():
    rng = np.random.default_rng(3)
    intervals = [reliability_class(100, 0.1, int(events)).interval() for events in rng.binomial(100, 0.1, 400)]
    assert sum(low <= 0.1 <= high for low, high in intervals) >= 398


@pytest.mark.parametrize(("pairs", "events"), [(5, 2), (100, 0), (100, 100), (1, 1), (1_000_000, 150)])
def test_the_interval_is_the_exact_binomial_one(pairs, events):
    expected = stats.binomtest(events, pairs).proportion_ci(CONFIDENCE, method="exact")
    assert reliability_class(pairs, 0.1, events).interval() == pytest.approx((expected.low, expected.high), rel=1e-5)
