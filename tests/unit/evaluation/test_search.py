"""A choice is never the edge of a grid without a look beyond it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scalr_prod.evaluation.interactions import Interactions
from scalr_prod.evaluation.models.recent_popularity import PopularityBoosted, RecentPopularity
from scalr_prod.evaluation.search import Hyperparameter, search_values

DAY = 86_400_000_000


def near(target):
    return lambda value: -abs(math.log((value + 1e-9) / target))


@pytest.mark.parametrize(("target", "found"), [(0.1, 0.1), (3.0, 3.0), (0.01, 0.01), (8.0, 9.0)])
def test_it_widens_a_grid_both_ways_until_the_best_lies_inside(target, found):
    best, on_edge = search_values(Hyperparameter("weight", (0.03, 0.1, 0.3, 1.0)), near(target))
    assert best == pytest.approx(found, rel=0.4)
    assert not on_edge


def test_a_best_value_that_still_is_the_outermost_is_flagged():
    best, on_edge = search_values(Hyperparameter("weight", (0.1, 1.0)), lambda value: value)
    assert (best, on_edge) == (pytest.approx(27.0), True)


def test_a_natural_limit_is_no_edge():
    assert search_values(Hyperparameter("half_life", (90.0, math.inf), low=1.0), lambda value: value) == (math.inf, False)
    assert search_values(Hyperparameter("volume", (5, 20), step=2.5, high=100, is_integer=True), lambda value: value) == (
        100,
        False,
    )
    assert search_values(Hyperparameter("volume", (5, 20), step=2.5, low=1, is_integer=True), lambda value: -value) == (
        1,
        False,
    )


def test_ties_go_to_the_first_tried():
    assert search_values(Hyperparameter("boost", (0.0, 0.3, 1.0), high=1.0), lambda _: 0.0) == (0.0, False)


@pytest.mark.parametrize(("default", "chosen"), [(None, 1.0), (0.1, 0.3), (1.0, 1.0), (9.0, 1.0)])
def test_of_values_as_good_as_the_best_the_one_nearest_to_the_default_is_chosen(default, chosen):
    hyperparameter = Hyperparameter("weight", (0.03, 0.1, 0.3, 1.0), high=1.0, default=default)
    scores = {0.03: 0.1, 0.1: 0.5, 0.3: 0.9, 1.0: 1.0}
    found = search_values(hyperparameter, scores.__getitem__, is_as_good=lambda value, best: scores[value] > 0.8 * scores[best])
    assert found == (chosen, False)


@pytest.fixture
def events():
    """Item 0: ten events long ago; item 1: three of yesterday; item 2: one of today; item 3: synthetic ones only."""
    item = np.array([0] * 10 + [1] * 3 + [2] + [3] * 50, np.int32)
    age = np.array([300] * 10 + [1] * 3 + [0] + [0] * 50)
    return Interactions(
        user=np.zeros(64, np.int32), item=item, time=(400 - age) * DAY, weight=np.ones(64, np.float32),
        n_users=2, n_items=5, until=400 * DAY, observed=item < 3,
    )  # fmt: skip


@pytest.mark.parametrize(("half_life", "first"), [(0.1, 2), (7.0, 1), (3000.0, 0)])
def test_the_list_is_of_decayed_counts_of_observed_events(events, half_life, first):
    model = RecentPopularity(half_life)
    model.fit(events, seed=0)
    scores = model.score(np.array([0, 1]))
    assert scores.shape == (2, 5)
    assert np.array_equal(scores[0], scores[1])
    assert scores[0].argmax() == first
    assert scores[0, 3] < scores[0, :3].min()


class _Fixed:
    def fit(self, events, *, seed): ...

    def score(self, users):
        return np.tile(np.array([0, 0, 0, 100, 0, 7], np.float32), (len(users), 1))


def test_a_boost_moves_any_model_towards_the_list(events):
    lately = RecentPopularity(7.0)
    lately.fit(events, seed=0)
    users = np.array([0, 1])
    assert PopularityBoosted(_Fixed(), lately.log_popularity(), np.full(2, 0.1, np.float32)).score(users).argmax(
        1
    ).tolist() == [3, 3]
    mixed = PopularityBoosted(_Fixed(), lately.log_popularity(), np.array([0.1, 100.0], np.float32)).score(users)
    heavy = PopularityBoosted(_Fixed(), lately.log_popularity(), np.full(2, 100.0, np.float32)).score(users)
    assert np.array_equal(mixed[1], heavy[1]), "a user's own boost"
    assert mixed[0].argmax() == 3
    assert heavy.shape == (2, 5), "source items of a rival are no part of the catalogue"
    assert np.array_equal(np.argsort(-heavy[0], kind="stable")[:2], np.argsort(-lately.score(users)[0], kind="stable")[:2])
