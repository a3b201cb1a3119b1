"""The translator is fitted and measured on labels: the events that a run can generate."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.translator_log import METADATA, SETTINGS, calibration, make_log

from benchmarks.worlds import World
from scalr_prod.config.sections import ComputeSettings, HistorySettings, TranslatorSettings
from scalr_prod.translator.data.contexts import NO_ITEM
from scalr_prod.translator.data.domain_events import DomainEvents
from scalr_prod.translator.data.event_log import EventLog
from scalr_prod.translator.data.training_pairs import TrainingSlice, contexts_and_labels
from scalr_prod.translator.module import TranslatorModule
from scalr_prod.translator.trainer import (
    calibration_slice,
    fit_calibration,
    fit_parameter_sets,
    fit_shared,
    label_rows_between,
    measure_components,
    time_quantile,
)

#: Every new choice is uniform over the catalogue, and three of ten target events repeat one of the user's.
HABITS = World(
    signal=0.0, repeats=0.3, users=120, topics=1, own_topics=1, skew=0.0, source_items=50, target_items=400, source_events=5,
    target_events=12,
)  # fmt: skip


def log_of(rows: list[tuple[int, int, int]], *, exclude_consumed: bool = True) -> EventLog:
    """Target events (user, item, time) of four users and five items, and one source event."""
    user, item, time = np.array(sorted(rows, key=lambda row: (row[0], row[2])), dtype=np.int64).reshape(-1, 3).T
    nothing = np.zeros(1, dtype=np.int32)
    target = DomainEvents(user.astype(np.int32), item.astype(np.int32), time, pa.array(range(5)))
    source = DomainEvents(nothing, nothing, np.zeros(1, dtype=np.int64), pa.array([0]))
    history = np.full((len(user), 1), -1, dtype=np.int32)
    return EventLog(pa.array(range(4)), np.zeros(4, dtype=np.int32), source, target, history, exclude_consumed)


def asked(log: EventLog, target_index: np.ndarray) -> np.ndarray:
    """Return the exclusion lists at every other target event, in reverse order: int32 [R, E]."""
    rows = np.arange(len(log.target))[::-2]
    contexts, _ = contexts_and_labels(log, rows, source_index=np.ones(1, dtype=np.int32), target_index=target_index)
    return contexts.exclude_matrix()


EVENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=24)


@given(EVENTS)
def test_repeats_are_not_labels_and_consumed_items_are_excluded(rows):
    log = log_of(rows)
    events = list(zip(log.target.user.tolist(), log.target.item.tolist(), log.target.time.tolist(), strict=True))
    first = [events[:place] for place in range(len(events))]
    again = [any(one[:2] == event[:2] for one in before) for event, before in zip(events, first, strict=True)]
    np.testing.assert_array_equal(log.is_label, ~np.array(again))
    index = np.array([2, NO_ITEM, 0, 1, 3], dtype=np.int32)  # the second item is in no vocabulary
    for (user, _, time), row in zip(events[::-2], asked(log, index), strict=True):
        had = {int(index[item]) for owner, item, when in events if owner == user and when < time}
        assert sorted(row[row != NO_ITEM].tolist()) == sorted(had - {NO_ITEM})


@given(EVENTS)
def test_every_event_is_a_label_without_exclusion(rows):
    log = log_of(rows, exclude_consumed=False)
    assert log.is_label.all()
    assert asked(log, np.arange(5, dtype=np.int32)).shape[1] == 0


def test_excluded_items_have_probability_zero_and_the_rest_sums_to_one():
    torch.set_num_threads(1)
    log = make_log()
    options = SETTINGS.model_copy(update={"estimators": ("popularity", "frequency")})
    pairs = TrainingSlice.from_log(log, int(log.target.time.max()), options)
    tensors = fit_parameter_sets(pairs, {-1: np.zeros(len(log.users), dtype=bool)}, lambda _: None) | calibration()
    named = {"folds": "0", "estimators": json.dumps(options.estimators), "n_source": str(pairs.n_source)}
    module = TranslatorModule(tensors, METADATA | named)
    rows = label_rows_between(log, int(log.target.time[log.is_label].max()) // 2, 2**62)
    contexts, labels = contexts_and_labels(log, rows, source_index=pairs.source_index, target_index=pairs.target_index)
    exclude = contexts.exclude_matrix()
    members = ("mixture", "popularity", "frequency")
    for some, found in module.distributions(contexts, members):
        for p in found:
            np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
            for row, distribution in zip(some, p.numpy(), strict=True):
                assert not distribution[exclude[row][exclude[row] >= 0]].any()
                known = labels[row] >= 0 and pairs.first_seen[labels[row]] < contexts.event_time[row]
                assert not known or distribution[labels[row]] > 0
    assert (exclude >= 0).sum() > len(rows), "the test needs users who had something"


def judged(*, exclude_consumed: bool) -> SimpleNamespace:
    """Fit on a slice of `HABITS`, calibrate on the next, and judge on the one after, on what is new to the users."""
    torch.set_num_threads(1)
    logs = HABITS.make()
    options = TranslatorSettings(threads=1, estimators=("popularity",))
    settings = SimpleNamespace(translator=options, histories=HistorySettings(), compute=ComputeSettings())
    log, new = (logs.log(length=5, folds=3, exclude_consumed=excluded) for excluded in (exclude_consumed, True))
    begin, middle, end = (time_quantile(new.label_times(), share) for share in (0.6, 0.8, 1.0))
    hidden = log.fold == 0
    (shared,) = fit_shared([calibration_slice(settings, log, begin, middle)])
    calibrated = fit_calibration(settings, shared, hidden, lambda _: None, with_information=True)
    pairs = TrainingSlice.from_log(log, middle, options, popularity_until=end)
    tensors = fit_parameter_sets(pairs, {-1: hidden}, lambda _: None) | calibrated.tables
    figures = measure_components(settings, new, pairs, tensors, label_rows_between(new, middle, end), hidden)["all"][
        "popularity"
    ]
    uniform = logs.oracles(middle, end).uniform.mean()
    between = (logs.target.time >= begin) & (logs.target.time < middle)
    pair = np.stack([logs.target.user, logs.target.item])
    _, first = np.unique(pair, axis=1, return_index=True)
    return SimpleNamespace(
        over_uniform=figures.nll - uniform,
        calibrated=calibrated,
        events=int(between.sum()),
        new=int(between[first].sum()),
    )


def test_metrics_and_information_gain_ignore_repeats():
    found = judged(exclude_consumed=True)
    assert found.new < 0.8 * found.events
    assert found.calibrated.metrics["all"]["mixture"].events == found.new
    assert found.calibrated.over_popularity.events <= found.new
    every = judged(exclude_consumed=False)
    assert every.calibrated.metrics["all"]["mixture"].events == every.events


def test_popularity_does_not_predict_repeats():
    """Every new choice is uniform, so that popularity says nothing of it; of repeats it says that the user chose the item lately."""
    assert judged(exclude_consumed=True).over_uniform < 0.02
    assert judged(exclude_consumed=False).over_uniform > 0.04


def test_a_log_without_repeats_has_the_same_parameters():
    """Excluded items influence the calibration only."""
    torch.set_num_threads(1)
    rows = [(user, item, 1 + (3 * user + item) % 7) for user in range(4) for item in range(5)]
    settings = SETTINGS.model_copy(update={"estimators": ("popularity", "frequency", "topics", "linear", "factorisation")})
    nobody = {-1: np.zeros(4, dtype=bool)}
    one, other = (
        fit_parameter_sets(TrainingSlice.from_log(log_of(rows, exclude_consumed=flag), 9, settings), nobody, lambda _: None)
        for flag in (True, False)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_metrics_of_many_events_are_sampled_with_a_standard_error(monkeypatch):
    """What is learned does not change, and the figures of the draw lie within a few of its standard errors."""
    every = judged(exclude_consumed=True).calibrated
    whole = every.metrics["all"]["mixture"]
    monkeypatch.setattr("scalr_prod.translator.trainer.MAX_MEASURED_EVENTS", whole.events // 3)
    some = judged(exclude_consumed=True).calibrated
    drawn = some.metrics["all"]["mixture"]
    assert drawn.events == whole.events // 3
    assert drawn.events == some.metrics["cold"]["mixture"].events + some.metrics["warm"]["mixture"].events
    assert all(torch.equal(some.tables[name], table) for name, table in every.tables.items())
    assert 0 < abs(drawn.nll - whole.nll) < 4 * drawn.nll_se
    assert drawn.nll_se == pytest.approx(whole.nll_se * 3**0.5, rel=0.3)
