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


def test_aligned_draws_are_as_popular_as_real_events():
    counts = np.array([60] * 10 + [4] * 100)
    drawn = np.random.default_rng(0).integers(0, 110, (200, 20))
    kept = bench_loop._kept_by_alignment(drawn, counts)
    assert (drawn < 10).mean() < 0.1
    assert 0.1 < (drawn[kept] < 10).mean() < 0.25, "at least half of the draws stay"


def test_named_arms_leave_the_other_figures_as_they_are(monkeypatch, tmp_path):
    (tmp_path / "loop.json").write_text('{"figures": {"world 0": {"default": 1, "marked": 1}, "world 1": {"default": 1}}}')
    monkeypatch.setattr(bench_loop, "RESULT", tmp_path / "loop.json")
    monkeypatch.setattr(bench_loop, "_measured", lambda _, names: dict.fromkeys(names, 2))
    monkeypatch.setenv("SCALR_BENCH_ARMS", "marked,capped")
    found = bench_loop.main()
    assert found == {"world 0": {"default": 1, "marked": 2, "capped": 2}, "world 1": {"default": 1, "marked": 2}}


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
