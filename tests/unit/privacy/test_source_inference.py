"""The probability of picking the own history, by hand, and newcomers among newcomers."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from scalr_prod.privacy.run_rows import RunRows
from scalr_prod.privacy.source_inference import hit_probability, measure_newcomers_source_inference
from scalr_prod.translator import COLD_USERS


def test_the_most_likely_history_is_picked_and_ties_by_chance():
    likelihood = np.array([[0.0, -1, -2, -3], [0, -1, -2, -3], [-5, -5, -5, -5], [-9, -9, -1, -1]])
    np.testing.assert_array_equal(hit_probability(likelihood), [1, 0, 0.25, 0.5])


def test_a_guess_is_right_once_in_the_number_of_histories():
    rng = np.random.default_rng(0)
    hits = np.concatenate([hit_probability(rng.normal(size=(100, 100))) for _ in range(50)])
    assert abs(hits.mean() - 0.01) < 3 * np.sqrt(0.01 / 5000)


@dataclass(frozen=True)
class Newcomers:
    """Users whose source history is one item of their own; pairs of them have the same likeliest target item."""

    user: np.ndarray

    def log_draw_probabilities(self, parameter_set, group):
        assert parameter_set == COLD_USERS, "not as the run translated newcomers"
        log_p = np.full((len(group), 1000), -9.0, np.float32)
        log_p[np.arange(len(group)), self.user[group] // 2] = -1
        return log_p

    def last_contexts(self, _):
        return SimpleNamespace(history_items=self.user[:, None].astype(np.int32) + 1)


@pytest.mark.parametrize(("count", "measured"), [(99, None), (250, 200)])
def test_newcomers_are_attacked_among_newcomers(count, measured):
    user = np.arange(count)
    drawn = sparse.csr_matrix((np.ones(count, np.float32), (user, user // 2)), shape=(count, 1000))
    source = sparse.csr_matrix((np.ones(count, np.float32), (user, user + 1)), shape=(count, count + 1))
    nothing = sparse.csr_matrix((count, 1000), dtype=np.float32)
    rows = RunRows(pa.array(user), 1, np.zeros(count, np.int32), np.ones(count, bool), drawn, nothing, source, drawn)
    found = measure_newcomers_source_inference(rows, Newcomers(user))
    if measured is None:
        assert found is None
        return
    assert (found.users, found.real_rows) == (measured, None)
    assert (found.published_rows.value, found.with_provenance.value) == (0.5, 1.0), "of two histories with the same rows"
