"""Tastes are what a plain count of the log says, never look ahead, and are those of the context alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from translator_world import DAY, LENGTH, SETTINGS, make_log

from scalr_prod.translator import tastes
from scalr_prod.translator.batch import Batch
from scalr_prod.translator.log import Events
from scalr_prod.translator.pairs import Pairs, contexts_at
from scalr_prod.translator.tastes import TASTES

HALF_LIVES = {"taste_count": (None, 0.5), "taste_days_90": (90, 0.2), "taste_days_20": (20, 0.1), "taste_days_3": (3, 0.05)}


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return Pairs.of(make_log(), 70 * DAY, SETTINGS, popularity_until=100 * DAY)


def batch_at(pairs: Pairs, rows: np.ndarray) -> tuple[Batch, np.ndarray]:
    contexts, _ = contexts_at(pairs.log, rows, source_index=pairs.source_index, target_index=pairs.target_index)
    return Batch.of(contexts, torch.from_numpy(pairs.first_seen)), pairs.log.history[rows]


def log_counts(pairs: Pairs, item: int, moment: int) -> np.ndarray:
    """Of a source item strictly before a moment, by going through the whole log."""
    events = pairs.log.source
    time = events.time[(events.item == item) & (events.time < min(moment, pairs.until))]
    # After the slice's end popularity stands still.
    age = (min(moment, max_time(pairs)) - time) / DAY
    return np.log([(len(age) if half is None else (0.5 ** (age / half)).sum()) + added for half, added in HALF_LIVES.values()])


def max_time(pairs: Pairs) -> int:
    time = pairs.log.source.time
    return int(time[time < pairs.until].max()) + 300_000_001


def test_counts_are_exact_at_any_time_and_do_not_look_ahead(pairs):
    fitted = tastes.fit(pairs)
    events = pairs.log.source
    some = np.random.default_rng(0).choice(len(events), 200, replace=False)
    item = torch.from_numpy(pairs.source_index[events.item[some]].astype(np.int64))
    found = tastes._log_counts(fitted, item, torch.from_numpy(events.time[some]), torch.float64)
    for row, place in enumerate(some.tolist()):
        expected = log_counts(pairs, int(events.item[place]), int(events.time[place]))
        np.testing.assert_allclose(found[row], expected, atol=1e-4)


def test_tastes_are_the_means_of_the_history_beside_what_was_chosen_around_then(pairs):
    fitted = tastes.fit(pairs)
    rows = np.flatnonzero(pairs.log.target.time >= 60 * DAY)[::3]
    batch, history = batch_at(pairs, rows)
    raw = np.zeros((len(rows), len(TASTES)))
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
    expected = ((raw - fitted["mean"].numpy()) / fitted["spread"].numpy()).clip(-3, 3) * known[:, None]
    np.testing.assert_allclose(tastes.of(fitted, batch), expected, atol=2e-3)
    assert (expected.std(0) > 0.3).all(), "the tastes must differ, or this test shows nothing"


def test_what_is_around_is_the_mean_of_the_interval_before(pairs):
    long = make_log(users=600, seed=5)
    pairs = Pairs.of(long, 80 * DAY, SETTINGS)
    fitted = tastes.fit(pairs)
    instants = fitted["instants"].numpy()
    assert len(instants) > 5
    events = long.source
    inside = (events.time >= instants[2]) & (events.time < instants[3])
    values = [log_counts(pairs, int(events.item[place]), int(events.time[place])) for place in np.flatnonzero(inside)]
    np.testing.assert_allclose(fitted["around"][3], np.mean(values, 0), atol=1e-3)


def test_source_events_after_the_slice_change_nothing(pairs):
    log = pairs.log
    kept = np.arange(len(log.source)) < len(log.source)
    later = log.source.time >= pairs.until
    moved = Events(log.source.user, np.where(later & kept, 0, log.source.item), log.source.time, log.source.ids)
    other = Pairs.of(replace(log, source=moved), pairs.until, SETTINGS, popularity_until=100 * DAY)
    for name, tensor in tastes.fit(other).items():
        if name not in {"mean", "spread"}:
            assert torch.equal(tensor, tastes.fit(pairs)[name]), name


def test_a_history_of_unknown_items_has_no_taste(pairs):
    fitted = tastes.fit(pairs)
    batch, _ = batch_at(pairs, np.flatnonzero(pairs.log.target.time >= 60 * DAY)[:20])
    assert (tastes.of(fitted, replace(batch, items=torch.zeros_like(batch.items))) == 0).all()


def test_many_events_of_an_item_are_thinned_and_nearly_as_good(pairs, monkeypatch):
    exact = tastes.fit(pairs)
    monkeypatch.setattr(tastes, "_MOST_OF_AN_ITEM", 8)
    thinned = tastes.fit(pairs)
    assert len(thinned["key"]) < len(exact["key"]) / 2
    assert (thinned["start"].diff() <= 8).all()
    batch, _ = batch_at(pairs, np.flatnonzero(pairs.log.target.time >= 60 * DAY))
    few, all_ = (tastes._raw(one, batch, torch.float32)[:, 0] + one["around"][-1, 0] for one in (thinned, exact))
    assert (few - all_).abs().mean() < 0.3


def test_tastes_of_hostile_times_are_numbers(pairs):
    fitted = tastes.fit(pairs)
    batch, _ = batch_at(pairs, np.flatnonzero(pairs.log.target.time >= 60 * DAY)[:4])
    for end in (-(2**63), 2**63 - 1, 0):
        for age in (0.0, 3e38, -3e38):
            asked = replace(batch, history_end=torch.full_like(batch.history_end, end), ages=torch.full_like(batch.ages, age))
            assert torch.isfinite(tastes.of(fitted, asked)).all()


def test_a_slice_without_source_events_has_no_tastes():
    log = make_log()
    late = Events(log.source.user, log.source.item, log.source.time + 200 * DAY, log.source.ids)
    known = Pairs.of(log, 70 * DAY, SETTINGS)
    nothing = replace(known, log=replace(log, source=late, history=np.full_like(log.history, -1)))
    fitted = tastes.fit(nothing)
    batch, _ = batch_at(known, np.arange(10))
    assert batch.items.shape == (10, LENGTH)
    assert torch.isfinite(tastes.of(fitted, batch)).all()
