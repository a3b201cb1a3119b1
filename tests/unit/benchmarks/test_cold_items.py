"""The experiment on cold items: what is hidden stays hidden, metrics are those of an evaluation, and a planted taste is found."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from benchmarks import bench_cold_items as bench
from benchmarks.bench_cold_items import Cases, ColdSplit, Fitted, Logs, Prior, Taste
from scalr_prod.evaluation.ranking_metrics import rank_users

USERS, SOURCE, TARGET, WARM, TOPICS = 300, 40, 200, 120, 5


@pytest.fixture
def logs() -> Logs:
    """Items whose title is their topic; a user's events of both domains are of one topic."""
    rng = np.random.default_rng(0)
    sides, titles = [], []
    for items in (SOURCE, TARGET):
        user = np.repeat(np.arange(USERS), 6)
        item = rng.integers(0, items // TOPICS, len(user)) * TOPICS + user % TOPICS
        time = np.tile(np.arange(6), USERS) * bench.DAY_US
        sides.append((user.astype(np.int32), item.astype(np.int32), time))
        titles.append(dict.fromkeys(bench.ENCODERS, np.eye(TOPICS, dtype=np.float32)[np.arange(items) % TOPICS]))
    ids = [pa.array(np.arange(count)) for count in (USERS, SOURCE, TARGET)]
    return Logs(ids[0], ids[1], sides[0], ids[2], sides[1], np.ones(TARGET, dtype=bool), *titles)


@pytest.fixture
def split(logs) -> ColdSplit:
    """The last items hidden, a translator that knows nothing, and users who choose hidden items of their topic, mostly."""
    rng = np.random.default_rng(1)
    own = np.arange(USERS) % TOPICS
    topic = np.where(rng.random(USERS) < 0.7, own, rng.integers(0, TOPICS, USERS))
    chosen = WARM + topic + TOPICS * rng.integers(0, (TARGET - WARM) // TOPICS, USERS)
    every = np.arange(USERS)
    profile = np.eye(TOPICS, dtype=np.float32)[own]
    return ColdSplit(
        logs=logs,
        hidden=np.arange(TARGET) >= WARM,
        new=np.zeros(TARGET, dtype=bool),
        warm=np.arange(WARM),
        users=every,
        relevant=sparse.csr_matrix((np.ones(USERS, np.float32), (every, chosen)), shape=(USERS, TARGET)),
        seen=sparse.csr_matrix((USERS, TARGET), dtype=np.float32),
        mixture=np.full((USERS, WARM), 1 / WARM, np.float32),
        popularity=np.full(WARM, 1 / WARM, np.float32),
        user_vectors=profile,
        item_vectors=np.ones((WARM, TOPICS), np.float32),
        profiles=dict.fromkeys(bench.ENCODERS, profile),
        targets={},
        other=np.roll(every, 1),
    )


def test_a_hidden_item_has_no_event_in_the_log_that_is_trained_on(logs):
    until, hidden = 3 * bench.DAY_US, np.arange(TARGET) % 3 == 0
    log = logs.event_log(until, hidden)
    assert not hidden[log.target.item].any()
    assert len(log.target) == ((logs.target[2] < until) & ~hidden[logs.target[1]]).sum()
    assert (log.target.time < until).all()
    assert (log.source.time < until).all()
    known = log.history >= 0
    assert (log.source.time[log.history] < log.target.time[:, None])[known].all(), "a history is strictly before its event"
    assert (log.source.user[log.history] == log.target.user[:, None])[known].all()
    assert known.sum(1).max() == 2


def test_fifths_hold_titled_items_alone_and_are_level(logs):
    titled = np.arange(TARGET) % 4 > 0
    fifth = replace(logs, titled=titled).deal_items()
    assert (fifth[~titled] == -1).all()
    assert np.bincount(fifth[titled]).tolist() == [30] * 5


def test_metrics_are_those_of_an_evaluation(split):
    scores = np.random.default_rng(2).random((USERS, TARGET), dtype=np.float32)
    seen = sparse.random(USERS, TARGET, 0.1, format="csr", random_state=3, dtype=np.float32)
    seen = seen - seen.multiply(split.relevant)
    seen.eliminate_zeros()
    cases = Cases.among(replace(split, seen=seen), np.arange(TARGET))
    found = cases.measure(scores)
    expected = rank_users(
        SimpleNamespace(score=lambda users: scores[users]),
        np.arange(USERS),
        relevant=split.relevant,
        seen=seen,
        is_head=np.zeros(TARGET, dtype=bool),
        k=bench.K,
    )
    np.testing.assert_allclose(found["ndcg"].sum_by_case(USERS), expected.ndcg, atol=1e-9)
    np.testing.assert_allclose(found["recall"].sum_by_case(USERS), expected.recall, atol=1e-9)


def test_the_fit_finds_a_planted_taste_and_how_often_cold_items_are_chosen(split):
    priors, tastes = (Prior("neighbours", "ngrams", 5),), (Taste("bridge", "wordllama", 0),)
    fit = Fitted.fit(split, priors, tastes)
    items = np.flatnonzero(split.hidden)
    p = np.exp(fit.cold_scores(split, items)(np.arange(USERS)).astype(np.float64))
    own = split.logs.target_titles["wordllama"][items] @ split.profiles["wordllama"].T > 0
    assert (p * own.T).sum() / p.sum() == pytest.approx(0.76, abs=0.06), "0.7, and a fifth of the rest"
    assert fit.weights[0] == pytest.approx(0, abs=1e-6), "all items are as popular"
    assert (p.sum(1) / (1 + p.sum(1))).mean() > 0.999, "all events here are of cold items"
    shuffled = Fitted.fit(split.shuffled(0), priors, tastes)
    assert abs(shuffled.weights[1]) < 0.2 * fit.weights[1]


def test_a_prior_by_neighbours_is_the_popularity_of_the_same_title(split):
    popularity = np.where(np.arange(WARM) % TOPICS == 2, 4.0, 1.0).astype(np.float32)
    split = replace(split, popularity=popularity / popularity.sum())
    items = np.flatnonzero(split.hidden)
    found = np.exp(Prior("neighbours", "wordllama", 5).log(split, items)) * popularity.sum()
    assert np.allclose(found, np.where(items % TOPICS == 2, 4.0, 1.0))
