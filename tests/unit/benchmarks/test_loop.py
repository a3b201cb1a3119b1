"""The simulated loop: what users do is what the world and the lists say, and marks reach the translator's training alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import bench_loop
from benchmarks.bench_loop import ARMS, Loop


@pytest.fixture
def loop(monkeypatch) -> Loop:
    monkeypatch.setattr(
        bench_loop, "WORLD", replace(bench_loop.WORLD, users=200, topics=5, source_items=60, target_items=100, target_events=15)
    )
    monkeypatch.setattr(bench_loop, "ROUNDS", 2)
    return Loop()


def test_without_a_list_the_figures_are_those_of_the_organic_events(loop):
    shares = loop.probabilities(loop.organic.user, loop.organic.time)
    assert np.allclose(shares.sum(1), 1)
    assert loop.tail.sum() == 80
    drawn = loop.tail[loop.organic.item].mean()
    for figures in loop.undisturbed():
        assert figures["tail_share"] == pytest.approx(drawn, abs=0.03)
        assert 20 < figures["effective_items"] < 100


@pytest.mark.long  # three trainings
def test_a_round_writes_what_users_took_from_the_list(loop):
    item, recommended = loop.organic.item.copy(), np.zeros(len(loop.organic.item), dtype=bool)
    first = loop._round(ARMS["default"], 0, item, recommended)
    inside = (loop.organic.time >= loop.edges[0]) & (loop.organic.time < loop.edges[1])
    assert not recommended[~inside].any()
    assert 0.3 < recommended[inside].mean() < 0.6
    assert (item[~recommended] == loop.organic.item[~recommended]).all()
    taken = loop.probabilities(loop.organic.user[recommended], loop.organic.time[recommended])[
        np.arange(recommended.sum()), item[recommended]
    ]
    assert (taken > 0).all(), "nobody takes what is not for them"
    happened = loop.tail[item[inside]].mean()
    assert first["tail_share"] == pytest.approx(happened, abs=0.06), "the expectation is that of what happened"
    kept = loop._draws(ARMS["default"], item, np.ones(len(item)), loop.edges[1])[1]
    marked = loop._draws(ARMS["marked"], item, np.where(recommended, 0.0, 1.0), loop.edges[1])[1]
    assert (kept != marked).any()
