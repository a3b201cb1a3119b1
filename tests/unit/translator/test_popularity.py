"""Popularity at any time, against a count of every event."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.translator_log import DAY, SETTINGS, make_log, with_weights

from scalr_prod.config.sections import TranslatorSettings
from scalr_prod.translator.data.domain_events import DomainEvents
from scalr_prod.translator.data.event_log import EventLog
from scalr_prod.translator.data.training_pairs import TrainingSlice
from scalr_prod.translator.estimators import popularity

#: Two million events.
long = pytest.mark.long


@pytest.fixture(scope="module")
def log() -> EventLog:
    torch.set_num_threads(1)
    return make_log()


@pytest.fixture(scope="module")
def pairs(log) -> TrainingSlice:
    return TrainingSlice.from_log(log, 80 * DAY, SETTINGS)


def features(fitted: dict, time: torch.Tensor, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    counts = popularity.log_counts(fitted, time, dtype)
    return {name: popularity.feature_values(counts, name) for name in popularity.FEATURES}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_popularity_is_exact_at_any_time(pairs, dtype):
    held = pairs.without_users(pairs.log.fold == 0)
    fitted = popularity.fit(held, 8)  # few marks, so that many events lie between two of them
    target = pairs.log.target
    counts = (
        pairs.log.is_label
        & (pairs.log.fold[target.user] != 0)
        & (target.time < pairs.until)
        & (pairs.target_index[target.item] >= 0)
    )
    time, index = target.time[counts], pairs.target_index[target.item[counts]]
    asked = np.concatenate([np.sort(time)[::7], np.sort(time)[::11] + 1, [pairs.until - 1, pairs.until, int(time.min()) - DAY]])
    found = features(fitted, torch.from_numpy(asked), dtype)
    for row, moment in enumerate(asked.tolist()):
        age = np.where(time < moment, (moment - time) / DAY, np.inf)
        for name, half_life, smoothing in (
            ("count", None, 0.5),
            ("days_90", 90, 0.2),
            ("days_20", 20, 0.1),
            ("days_3", 3, 0.05),
        ):
            weight = np.isfinite(age).astype(float) if half_life is None else 0.5 ** (age / half_life)
            expected = np.log(np.bincount(index, weight, minlength=pairs.n_target) + smoothing)
            np.testing.assert_allclose(found[name][row], expected, atol=2e-5)
            for least in (1, 4) if name != "count" else (4,):
                np.testing.assert_allclose(found[f"{name}_from_{least}"][row], np.maximum(expected, np.log(least)), atol=2e-5)


def test_popularity_of_equal_times_is_computed_once(pairs):
    fitted = popularity.fit(pairs, 8)
    time = torch.tensor([40, 70, 40, 95]) * DAY
    known = features(fitted, time)
    weights = {"count": 0.7, "days_20_from_4": -1.5}
    of_all = torch.tensor([weights.get(name, 0.0) for name in popularity.FEATURES])
    of_each = torch.randn(len(time), len(popularity.FEATURES), generator=torch.Generator().manual_seed(1))
    same, own = popularity.weighted_features(fitted, time, [of_all, of_each])
    torch.testing.assert_close(same, sum(weight * known[name] for name, weight in weights.items()))
    stacked = torch.stack([known[name] for name in popularity.FEATURES], 1)
    torch.testing.assert_close(own, (of_each[:, :, None] * stacked).sum(1))
    assert (popularity.weighted_features(fitted, time, [of_all * 0])[0] == 0).all()
    instants = popularity.choose_instants(pairs, 8)
    at = popularity.log_popularity_at(fitted, instants, weights)
    expected = features(fitted, instants)
    torch.testing.assert_close(at, sum(weight * expected[name] for name, weight in weights.items()).log_softmax(1))


@pytest.mark.parametrize("weighed", [False, True])
def test_popularity_does_not_depend_on_the_batch_size(pairs, weighed, monkeypatch):
    """One item has more events than a batch."""
    if weighed:
        pairs = with_weights(pairs)
    whole = popularity.fit(pairs)
    monkeypatch.setattr(popularity, "_BATCH_EVENTS", 20)
    some = popularity.fit(pairs)
    assert whole.keys() == some.keys()
    assert all(torch.equal(whole[name], some[name]) for name in whole)
    assert torch.bincount(whole["item"].long()).max() > 20 > torch.bincount(whole["item"].long()).min()


def test_popularity_is_constant_after_the_end(pairs):
    fitted = popularity.fit(pairs)
    for end, later in features(fitted, torch.tensor([pairs.until, pairs.until + 400 * DAY])).values():
        torch.testing.assert_close(end, later)


@long
def test_popularity_of_two_million_events_is_exact():
    """Sampled times, all 100 000 items, beside a count of every event; a version takes 48 bytes an event for them at most."""
    rng = np.random.default_rng(5)
    events, items = 2_000_000, 100_000
    item = np.concatenate([np.arange(items), rng.zipf(1.2, events - items) % items]).astype(np.int32)
    time = rng.integers(0, 700 * DAY, events)
    time[::4] -= time[::4] % DAY  # and many at the same instant
    one = np.zeros(1, dtype=np.int32)
    source = DomainEvents(one, one, np.zeros(1, dtype=np.int64), pa.array([0]))
    target = DomainEvents(np.zeros(events, dtype=np.int32), item, time, pa.array(range(items)))
    pairs = TrainingSlice.from_log(
        EventLog(pa.array([0]), one, source, target, np.full((events, 1), -1, dtype=np.int32), exclude_consumed=False),
        700 * DAY,
        TranslatorSettings(max_target_items=items),
    )
    fitted = popularity.fit(pairs)
    assert sum(tensor.nbytes for tensor in fitted.values()) < 48.1 * events
    index = pairs.target_index[item]
    asked = np.append(rng.integers(0, 700 * DAY, 4), [time[-1], int(time.max()) - time.max() % DAY, 700 * DAY])
    found = popularity.log_counts(fitted, torch.from_numpy(asked))
    for row, moment in enumerate(asked.tolist()):
        before = time < moment
        age = (moment - time[before]) / DAY
        for name, half_life, smoothing in (
            ("count", np.inf, 0.5),
            ("days_90", 90, 0.2),
            ("days_20", 20, 0.1),
            ("days_3", 3, 0.05),
        ):
            expected = np.bincount(index[before], 0.5 ** (age / half_life), minlength=items) + smoothing
            np.testing.assert_allclose(found[name][row].double().exp(), expected, rtol=1e-5)


def test_the_prior_counts_only_the_training_slice(log):
    early = TrainingSlice.from_log(log, 60 * DAY, SETTINGS, popularity_until=90 * DAY)
    exact = TrainingSlice.from_log(log, 60 * DAY, SETTINGS)
    torch.testing.assert_close(popularity.log_popularity(early), popularity.log_popularity(exact))
