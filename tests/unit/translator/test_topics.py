"""The topic estimator against plain expectation maximisation, event by event, and where plain EM overfits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.translator_log import DAY, SETTINGS, make_log, with_weights

from scalr_prod.translator.context_batch import ContextBatch
from scalr_prod.translator.data.training_pairs import TrainingSlice, contexts_and_labels
from scalr_prod.translator.estimators import popularity, topics


@pytest.fixture(scope="module")
def pairs() -> TrainingSlice:
    torch.set_num_threads(1)
    return TrainingSlice.from_log(make_log(users=60), 80 * DAY, SETTINGS)


def batch_of(pairs: TrainingSlice, rows: np.ndarray) -> ContextBatch:
    contexts, _ = contexts_and_labels(pairs.log, rows, source_index=pairs.source_index, target_index=pairs.target_index)
    return ContextBatch.from_contexts(contexts, torch.from_numpy(pairs.first_seen))


def by_hand(pairs: TrainingSlice, start: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """P(k | j), P(i | k) and the weight of each step back, one event and one item of a history at a time."""
    log, (n, k) = pairs.log, start.shape
    chosen = popularity.log_popularity(pairs).exp().double().numpy()
    events = []
    for row in pairs.target_rows():
        history = log.history[row][-20:]
        events.append(
            (
                int(log.target.user[row]) * 2654435761 // 65536 % 4,
                [int(pairs.source_index[log.source.item[place]]) if place >= 0 else 0 for place in history],
                int(pairs.target_index[log.target.item[row]]),
            )
        )
    limits = [0, 1, 2, 4, 8, 16]

    def kind(steps: int) -> int:
        return sum(steps > limit for limit in limits)

    weight = [1 / (1 + c) for c in range(7)]
    counts = None

    def tables(without: int | None) -> tuple[np.ndarray, np.ndarray]:
        source, target = (sum(table[g] for g in range(4) if g != without) for table in counts)
        shares = source[1:].sum(0) + 1
        shares = shares / shares.sum()
        a = source + 0.5 * shares + 2.0 * start
        a /= a.sum(1, keepdims=True)
        a[0] = shares
        b = target + 5.0 * chosen
        return a, b / b.sum(1, keepdims=True)

    for _ in range(iterations):
        new = np.zeros((4, n, k)), np.zeros((4, k, len(chosen)))
        said, seen = np.zeros(7), np.zeros(7)
        for group, items, label in events:
            if not any(items):
                continue
            a, b = (start, None) if counts is None else tables(group)
            w = np.array([weight[kind(len(items) - 1 - place)] if item else 0.0 for place, item in enumerate(items)])
            w /= w.sum()
            mass = w[:, None] * a[items]
            if b is not None:
                mass = mass * b[:, label]
                mass /= mass.sum()
                for place in range(len(items)):
                    said[kind(len(items) - 1 - place)] += w[place]
                    seen[kind(len(items) - 1 - place)] += mass[place].sum()
            for place, item in enumerate(items):
                new[0][group, item] += mass[place]
            new[1][group, :, label] += mass.sum(0)
        if counts is not None:
            weight = [x * (s + 1) / (e + 1) for x, s, e in zip(weight, seen, said, strict=True)]
            weight = [x / sum(weight) for x in weight]
        counts = new
    length = log.history.shape[1]
    a, b = tables(None)
    return a, b, np.array([weight[kind(min(length, 20) - 1 - place)] for place in range(min(length, 20))])


def test_the_fit_is_expectation_maximisation_over_groups_of_users(pairs, monkeypatch):
    monkeypatch.setattr(topics, "ITERATIONS", 3)
    shared = topics.share(pairs)
    found = topics.fit(pairs, shared)
    source, target, recency = by_hand(pairs, shared["source"].double().numpy(), 3)
    np.testing.assert_allclose(found["source"].numpy(), source, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(found["target"].T.numpy(), target, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(found["recency"].numpy(), recency, rtol=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_score_is_the_logarithm_of_the_mixture_over_items_and_topics(pairs, dtype):
    found = topics.fit(pairs, topics.share(pairs))
    rows = np.flatnonzero(pairs.log.target.time >= pairs.until)[:20]
    batch = batch_of(pairs, rows)
    source, target, recency = (found[name].double().numpy() for name in ("source", "target", "recency"))
    for row, logs in enumerate(topics.score(found, batch, popularity.log_popularity(pairs).to(dtype)).double().numpy()):
        items = batch.items[row].numpy()[-len(recency) :]
        weight = np.where(items > 0, recency, 0)
        by_topic = (weight[:, None] * source[items]).sum(0) / weight.sum() if weight.sum() else source[0]
        np.testing.assert_allclose(np.exp(logs), target @ by_topic, rtol=1e-4)
        assert np.exp(logs).sum() == pytest.approx(1, abs=1e-4)


def test_topics_of_an_unknown_history_are_the_overall_distribution(pairs):
    found = topics.fit(pairs, topics.share(pairs))
    batch = batch_of(pairs, np.flatnonzero(pairs.log.target.time >= pairs.until)[:3])
    empty = replace(batch, items=torch.zeros_like(batch.items))
    p = topics.score(found, empty, popularity.log_popularity(pairs)).exp()
    torch.testing.assert_close(p, (found["target"] @ found["source"][0]).expand_as(p))


def test_user_groups_prevent_overfitting(monkeypatch):
    """Target items drawn whatever the history: little is lost on other users, and less than by plain EM."""
    log = make_log(users=400, source_items=200)
    item = np.random.default_rng(1).permutation(log.target.item)
    log = replace(log, target=replace(log.target, item=item))
    pairs = TrainingSlice.from_log(log, 80 * DAY, SETTINGS).without_users(log.fold == 0)
    rows = np.flatnonzero((log.fold[log.target.user] == 0) & (log.history[:, -1] >= 0))
    label = torch.from_numpy(pairs.target_index[log.target.item[rows]].astype(np.int64))[:, None]
    prior, shared = popularity.log_popularity(pairs), topics.share(pairs)

    def lost() -> float:
        logs = topics.score(topics.fit(pairs, shared), batch_of(pairs, rows), prior).gather(1, label)
        return float(prior[label].mean() - logs.mean())

    ours = lost()
    apart = topics._Counts.without
    monkeypatch.setattr(topics._Counts, "without", lambda self, _, *tables: apart(self, None, *tables))
    assert ours < 0.08
    assert lost() > 1.1 * ours


@pytest.mark.parametrize("first", [False, True])
def test_expectation_kernel_matches_tensor_operations(first, monkeypatch):
    """Over histories of nothing, of one item, of many, with unknown ones between, and of an item twice; events weigh differently."""
    generator = torch.Generator().manual_seed(0)
    rows, length, sources, targets, many = 300, 20, 40, 30, 12
    items = torch.randint(0, sources, (rows, length), generator=generator)
    items *= torch.arange(length) >= torch.randint(0, length + 1, (rows, 1), generator=generator)
    items[0], items[1], items[1, -1], items[2] = 0, 0, 5, 7
    label = torch.randint(0, targets, (rows,), generator=generator)
    events = items, label, torch.rand(rows, generator=generator)
    weight = torch.rand(length, generator=generator)
    tables = tuple(torch.rand(n, many, generator=generator) for n in (sources, targets))
    chosen = torch.rand(targets, generator=generator)

    def found() -> list[torch.Tensor]:
        counts, places = topics._Counts.empty(tables[0], chosen), torch.zeros(2, length, dtype=torch.float64)
        for group in range(topics.GROUPS):
            some = tuple(one[group :: topics.GROUPS] for one in events)
            some = tuple(one.contiguous() for one in some)
            topics._expectation_step(some, weight, tables, (counts.source[group], counts.target[group]), places, first=first)
        shares = []
        for group in (None, 0, 3):
            source, target = torch.empty_like(tables[0]), torch.empty_like(tables[1])
            counts.without(group, source, target)
            shares += [source, target]
        # What is counted of row 0, which is no item, is nobody's.
        return [counts.source[:, 1:], counts.target, places, *shares]

    assert topics.load_kernels() is not None, "numba is a dependency"
    compiled = found()
    monkeypatch.setattr(topics, "load_kernels", lambda: None)
    for mine, theirs in zip(compiled, found(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weighed", [False, True])
def test_topics_do_not_depend_on_the_batch_size(pairs, weighed, monkeypatch):
    if weighed:
        pairs = with_weights(pairs)
    shared = topics.share(pairs)
    whole = topics.fit(pairs, shared)
    monkeypatch.setattr(topics, "_HISTORY_BATCH", 7)
    for name, some in topics.fit(pairs, shared).items():
        torch.testing.assert_close(some, whole[name], rtol=1e-4, atol=1e-6)


def test_compiled_fit_of_long_histories_matches_tensor_operations(pairs, monkeypatch):
    monkeypatch.setattr(topics, "DEPTH", 3)
    assert (pairs.log.history[pairs.target_rows(), -4] >= 0).any()
    shared = topics.share(pairs)
    compiled = topics.fit(pairs, shared)
    monkeypatch.setattr(topics, "load_kernels", lambda: None)
    plain = topics.fit(pairs, shared)
    for name, theirs in plain.items():
        torch.testing.assert_close(compiled[name], theirs, rtol=1e-4, atol=1e-6)


def test_source_items_that_users_share_begin_with_the_same_topic():
    """Users of two kinds, each with items of its own kind alone: P(k | j) tells the kinds apart, from source events only."""
    log = make_log(users=400, source_items=40)
    kind = log.source.user % 2
    item = np.random.default_rng(2).integers(0, 20, len(log.source)) * 2 + kind
    log = replace(log, source=replace(log.source, item=item.astype(log.source.item.dtype)))
    pairs = TrainingSlice.from_log(log, 80 * DAY, SETTINGS)
    found = topics.share(pairs)["source"][1:]
    numbers = pairs.source_index[np.arange(40)]
    own = [found[numbers[(np.arange(40) % 2 == of) & (numbers > 0)] - 1].mean(0) for of in (0, 1)]
    overlap = float(torch.minimum(*own).sum())
    assert overlap < 0.35
