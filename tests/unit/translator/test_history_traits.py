"""Traits agree with a plain count of the log, never look ahead, and depend on the context alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.translator_log import DAY, SETTINGS, make_log

from scalr_prod.translator.context_batch import ContextBatch
from scalr_prod.translator.data import history_traits
from scalr_prod.translator.data.domain_events import DomainEvents
from scalr_prod.translator.data.history_traits import TRAITS
from scalr_prod.translator.data.training_pairs import TrainingSlice, contexts_and_labels

HALF_LIVES = {"taste_count": (None, 0.5), "taste_days_90": (90, 0.2), "taste_days_20": (20, 0.1), "taste_days_3": (3, 0.05)}


@pytest.fixture(scope="module")
def pairs() -> TrainingSlice:
    return TrainingSlice.from_log(make_log(), 70 * DAY, SETTINGS, popularity_until=100 * DAY)


def batch_at(pairs: TrainingSlice, rows: np.ndarray) -> tuple[ContextBatch, np.ndarray]:
    contexts, _ = contexts_and_labels(pairs.log, rows, source_index=pairs.source_index, target_index=pairs.target_index)
    return ContextBatch.from_contexts(contexts, torch.from_numpy(pairs.first_seen)), pairs.log.history[rows]


def log_counts(pairs: TrainingSlice, item: int, moment: int) -> np.ndarray:
    """Return the log counts of a source item strictly before a moment, from a scan of the whole log."""
    events = pairs.log.source
    moment = min(moment, pairs.popularity_until + 300_000_000)  # after the end, counts stand still
    time = events.time[(events.item == item) & (events.time < min(moment, pairs.popularity_until))]
    age = (moment - time) / DAY
    return np.log([(len(age) if half is None else (0.5 ** (age / half)).sum()) + added for half, added in HALF_LIVES.values()])


def test_counts_are_exact_at_any_time_and_do_not_look_ahead(pairs):
    fitted = history_traits.fit(pairs)
    events = pairs.log.source
    some = np.random.default_rng(0).choice(len(events), 200, replace=False)
    item = torch.from_numpy(pairs.source_index[events.item[some]].astype(np.int64))
    found = history_traits._log_counts(fitted, item, torch.from_numpy(events.time[some]), torch.float64)
    for row, place in enumerate(some.tolist()):
        expected = log_counts(pairs, int(events.item[place]), int(events.time[place]))
        np.testing.assert_allclose(found[row], expected, atol=1e-4)


def test_counts_do_not_depend_on_the_batch_size(pairs, monkeypatch):
    monkeypatch.setattr(history_traits, "_MAX_SAMPLED_EVENTS", 100)  # of more events, some are looked at
    expected = history_traits.fit(pairs)
    monkeypatch.setattr(history_traits, "_BATCH_EVENTS", 50)
    found = history_traits.fit(pairs)
    assert len(list(history_traits._iter_sorted_by_item(pairs, history_traits._count_events(pairs)))) > 10
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_tastes_are_history_means_relative_to_the_interval_means(pairs):
    fitted = history_traits.fit(pairs)
    rows = np.flatnonzero(pairs.log.target.time >= 60 * DAY)[::3]
    batch, history = batch_at(pairs, rows)
    raw = np.zeros((len(rows), len(TRAITS)))
    events, known = pairs.log.source, np.zeros(len(rows), bool)
    for row, places in enumerate(history):
        there = [place for place in places if place >= 0 and pairs.source_index[events.item[place]] > 0]
        if not there:
            continue
        known[row] = True
        values = []
        for place in there:
            interval = max(np.searchsorted(fitted["instants"].numpy(), events.time[place], side="right") - 1, 0)
            around = fitted["around"][interval].numpy()
            values.append(log_counts(pairs, int(events.item[place]), int(events.time[place])) - around)
        age = (events.time[there].max() - events.time[there]) / DAY
        raw[row] = [*np.mean(values, 0), np.log1p(len(there)), np.log1p((age < 30).sum())]
    found = history_traits.raw_traits(fitted, batch)
    np.testing.assert_allclose(found[known], raw[known], atol=2e-3)
    assert found[~known].isnan().all()
    assert (raw[known].std(0) > 0.05).all(), "the tastes must differ, or this test shows nothing"
    mean, spread = history_traits.trait_moments(found)
    np.testing.assert_allclose(mean, raw[known].mean(0), atol=2e-3)
    expected = ((raw - mean.numpy()) / spread.numpy()).clip(-3, 3) * known[:, None]
    np.testing.assert_allclose(history_traits.standardize_traits(found, mean, spread), expected, atol=2e-2)


def test_interval_means_are_those_of_the_interval_before(pairs):
    long = make_log(users=600, seed=5)
    pairs = TrainingSlice.from_log(long, 80 * DAY, SETTINGS)
    fitted = history_traits.fit(pairs)
    instants = fitted["instants"].numpy()
    assert len(instants) > 5
    events = long.source
    inside = (events.time >= instants[2]) & (events.time < instants[3])
    values = [log_counts(pairs, int(events.item[place]), int(events.time[place])) for place in np.flatnonzero(inside)]
    np.testing.assert_allclose(fitted["around"][3], np.mean(values, 0), atol=1e-3)


def test_intervals_of_a_long_log_use_sampled_times(pairs, monkeypatch):
    monkeypatch.setattr(history_traits, "_MIN_INTERVAL_EVENTS", 40)
    every, first = history_traits.fit(pairs), pairs.log.source.time.min()
    monkeypatch.setattr(history_traits, "_MAX_SAMPLED_TIMES", 100)
    some = history_traits.fit(pairs)
    assert every["instants"][0] == some["instants"][0] == first
    assert 1 < len(some["around"]) < len(every["around"]), "as many as there are times"
    # Of 100 times a quantile is off by as much as chance says.
    ordered = np.sort(pairs.log.source.time)
    shares = np.searchsorted(ordered, some["instants"][1:-1].numpy()) / len(ordered)
    np.testing.assert_allclose(shares, np.arange(1, len(shares) + 1) / (len(shares) + 1), atol=0.15)
    assert some["around"].isfinite().all()


def test_later_events_do_not_change_earlier_counts(pairs):
    log, moment = pairs.log, 50 * DAY
    later = log.source.time >= moment
    moved = DomainEvents(log.source.user, np.where(later, 0, log.source.item), log.source.time, log.source.ids)
    other = replace(pairs, log=replace(log, source=moved))
    before = np.flatnonzero(~later)
    item = torch.from_numpy(pairs.source_index[log.source.item[before]].astype(np.int64))
    time = torch.from_numpy(log.source.time[before])
    one, same = (history_traits._log_counts(history_traits.fit(each), item, time, torch.float64) for each in (pairs, other))
    assert torch.equal(one, same)


def test_counts_are_constant_after_the_end_of_the_known_log(pairs):
    """A slice that ends earlier has the same counts: they are known at the time of each event, not fitted."""
    fitted, early = history_traits.fit(pairs), history_traits.fit(replace(pairs, until=60 * DAY))
    assert all(torch.equal(early[name], tensor) for name, tensor in fitted.items())
    item = torch.arange(1, pairs.n_source + 1)
    end = torch.full_like(item, pairs.popularity_until + 300_000_000)
    at_end, later = (history_traits._log_counts(fitted, item, time, torch.float64) for time in (end, end + 400 * DAY))
    assert torch.equal(at_end, later)


def test_traits_of_an_unknown_history_are_zero(pairs):
    fitted = history_traits.fit(pairs)
    batch, _ = batch_at(pairs, np.flatnonzero(pairs.log.target.time >= 60 * DAY)[:20])
    mean, spread = history_traits.trait_moments(history_traits.raw_traits(fitted, batch))
    nothing = history_traits.raw_traits(fitted, replace(batch, items=torch.zeros_like(batch.items)))
    assert (history_traits.standardize_traits(nothing, mean, spread) == 0).all()
    assert torch.equal(history_traits.trait_moments(nothing)[1], torch.ones(len(TRAITS)))


def test_an_item_of_many_events_is_counted_once_a_day(pairs, monkeypatch):
    exact = history_traits.fit(pairs)
    minutes = np.random.default_rng(1).integers(0, 1440, len(pairs.log.source)) * 60_000_000
    events = pairs.log.source
    order = np.lexsort((events.time + minutes, events.user))
    within = DomainEvents(events.user[order], events.item[order], (events.time + minutes)[order], events.ids)
    of_minutes = replace(pairs, log=replace(pairs.log, source=within))
    monkeypatch.setattr(history_traits, "_MAX_EXACT_EVENTS", 4)
    once = history_traits.fit(of_minutes)
    assert len(once["key"]) < len(events)
    item = torch.arange(1, pairs.n_source + 1)
    for day in (40, 60, 80):
        moment = torch.full_like(item, day * DAY + 300_000_000)  # what is left out is the day's own events, and nothing else
        a_day_ends = torch.full_like(item, day * DAY)
        found, expected = (
            history_traits._log_counts(once, item, moment, torch.float64),
            history_traits._log_counts(exact, item, a_day_ends, torch.float64),
        )
        np.testing.assert_allclose(found[:, 0], expected[:, 0], atol=1e-6)


@pytest.mark.parametrize("end", [-(2**63), 2**63 - 1, 0])
@pytest.mark.parametrize("age", [0.0, 3e38, -3e38])
def test_traits_of_extreme_times_are_finite(pairs, end, age):
    fitted = history_traits.fit(pairs)
    batch, _ = batch_at(pairs, np.flatnonzero(pairs.log.target.time >= 60 * DAY)[:4])
    asked = replace(batch, history_end=torch.full_like(batch.history_end, end), ages=torch.full_like(batch.ages, age))
    mean, spread = history_traits.trait_moments(history_traits.raw_traits(fitted, batch))
    assert torch.isfinite(history_traits.standardize_traits(history_traits.raw_traits(fitted, asked), mean, spread)).all()
