"""The probability of picking the own history, by hand."""

from __future__ import annotations

import numpy as np

from scalr_prod.privacy.source_inference import hit_probability


def test_the_most_likely_history_is_picked_and_ties_by_chance():
    likelihood = np.array([[0.0, -1, -2, -3], [0, -1, -2, -3], [-5, -5, -5, -5], [-9, -9, -1, -1]])
    np.testing.assert_array_equal(hit_probability(likelihood), [1, 0, 0.25, 0.5])


def test_a_guess_is_right_once_in_the_number_of_histories():
    rng = np.random.default_rng(0)
    hits = np.concatenate([hit_probability(rng.normal(size=(100, 100))) for _ in range(50)])
    assert abs(hits.mean() - 0.01) < 3 * np.sqrt(0.01 / 5000)
