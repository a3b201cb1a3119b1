"""Singling-out, linkability and inference: guesses by hand, planted memorisers that are found, and rows that know nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from scalr_prod.privacy.anonymity_risks import AttackedFold, attack_folds, fits_one_user, measure_risks, split_items
from scalr_prod.privacy.run_rows import RunRows, as_ones, user_item_matrix, weight_matrix

USERS, ITEMS, FOLDS = 600, 500, 3
ATTACKS = ["singling_out", "linkability", "inference"]


def noise(rng: np.random.Generator) -> sparse.csr_matrix:
    """Rows of ten items that know nothing, with low weights."""
    user = np.repeat(np.arange(USERS), 10)
    weight = rng.uniform(0.1, 0.5, len(user)).astype(np.float32)
    return weight_matrix(user, rng.integers(0, ITEMS, len(user)).astype(np.int32), weight, (USERS, ITEMS))


def repeat(weight: sparse.csr_matrix, real: sparse.csr_matrix, repeated: np.ndarray) -> sparse.csr_matrix:
    """Rows that contain the real items of a user each, with high weights; a negative number: none."""
    found = weight.tolil()
    for row, user in enumerate(repeated):
        if user >= 0:
            found[row, real[user].indices] = 0.9
    return found.tocsr()


@pytest.fixture
def rows() -> RunRows:
    """600 users of three folds, with five real items of 500 each, and rows that know nothing."""
    rng = np.random.default_rng(0)
    item = np.concatenate([rng.choice(ITEMS, 5, replace=False) for _ in range(USERS)]).astype(np.int32)
    real = user_item_matrix(np.repeat(np.arange(USERS), 5), item, (USERS, ITEMS))
    weight, fold = noise(rng), np.tile(np.arange(FOLDS, dtype=np.int32), USERS // FOLDS)
    return RunRows(pa.array(range(USERS)), 1, fold, np.zeros(USERS, bool), as_ones(weight), real, real, weight)


def repeated_by_next_fold(rows: RunRows) -> np.ndarray:
    """For each user one of the fold before: the user's own fold's set was trained on it."""
    rng, repeated = np.random.default_rng(1), np.empty(USERS, dtype=np.int64)
    for fold in range(FOLDS):
        repeated[rows.fold == fold] = rng.permutation(np.flatnonzero(rows.fold == (fold - 1) % FOLDS))
    return repeated


def backfill(rows: RunRows):
    return measure_risks(rows, SimpleNamespace(module=SimpleNamespace(folds=FOLDS)), mode="backfill", is_aligned=False)


@dataclass(frozen=True)
class Redrawn:
    """All users, and what their own folds' sets draw."""

    weight: sparse.csr_matrix
    user: np.ndarray
    newcomer: np.ndarray

    def select(self, mask):
        return Redrawn(self.weight[mask], self.user[mask], self.newcomer[mask])

    def draw_weights(self, parameter_set):
        assert (parameter_set == self.user % FOLDS).all(), "by a set that has seen the user"
        return self.weight


def causal(rows: RunRows, again: sparse.csr_matrix, **other):
    return measure_risks(rows, Redrawn(again, np.arange(USERS), rows.newcomer), mode="causal", is_aligned=False, **other)


def test_rows_that_know_nothing_are_no_risk(rows):
    for found in (backfill(rows), causal(rows, noise(np.random.default_rng(5)))):
        assert list(found) == ATTACKS
        for risk in found.values():
            assert risk.risk.ci95[0] <= 0 <= risk.risk.ci95[1]
        assert [found[name].guesses for name in ATTACKS[1:]] == [USERS, USERS]


def test_a_memoriser_is_found_by_other_users_rows(rows):
    planted = replace(rows, weight=repeat(rows.weight, rows.real, repeated_by_next_fold(rows)))
    for risk in backfill(planted).values():
        assert risk.risk.ci95[0] > 0.9
        assert risk.control_rate < 0.1
        assert not risk.has_failed


def test_a_memoriser_is_found_by_a_causal_runs_own_rows(rows):
    planted = replace(rows, weight=repeat(rows.weight, rows.real, np.arange(USERS)))
    for risk in causal(planted, rows.weight).values():
        assert risk.risk.ci95[0] > 0.9
    # What the user's own fold's set draws as well is not learned from the user.
    for risk in causal(planted, planted.weight).values():
        assert risk.attack_rate == risk.control_rate > 0.9
        assert risk.risk.value == 0


def test_a_users_own_row_is_not_among_the_controls_other_rows(rows):
    """Else a user's own events in the own rows would hide what other users' rows reveal."""
    own_too = repeat(repeat(rows.weight, rows.real, repeated_by_next_fold(rows)), rows.real, np.arange(USERS))
    found = backfill(replace(rows, weight=own_too))
    assert all(found[name].control_rate < 0.1 for name in ATTACKS)


def test_the_same_rows_give_the_same_bits(rows):
    assert backfill(rows) == backfill(rows)


def test_what_cannot_be_compared_is_not_attacked(rows):
    shadow = Redrawn(rows.weight, np.arange(USERS), rows.newcomer)
    assert measure_risks(rows, shadow, mode="causal", is_aligned=True) == {}, "drawn again, nothing is dropped"
    few = shadow.select(np.arange(USERS) < 60)
    assert measure_risks(rows, few, mode="causal", is_aligned=False) == {}
    newcomers = replace(rows, newcomer=np.ones(USERS, bool))
    assert backfill(newcomers) == {}


def test_a_pair_that_many_rows_have_is_one_guess(rows):
    """Else one user who is singled out would count as often as the pair is published."""
    same, number = rows.weight.tolil(), np.arange(USERS) % (USERS // 2)
    for user in range(USERS):
        same[user, [number[user] // FOLDS, number[user] // FOLDS + 1]] = 0.9
    found = backfill(replace(rows, weight=same.tocsr()))
    assert found["singling_out"].guesses == USERS // 2


def test_users_with_one_item_are_not_divided(rows):
    single = user_item_matrix(np.arange(USERS), np.arange(USERS, dtype=np.int32) % ITEMS, (USERS, ITEMS))
    assert list(backfill(replace(rows, real=single))) == ["singling_out"]


def test_exactly_one_user_has_both():
    real = sparse.csr_matrix(np.array([[1, 1, 0, 1], [1, 1, 1, 0], [0, 1, 1, 1]], np.float32))
    pairs = np.array([[0, 1], [0, 2], [1, 3], [0, 3], [2, 3]])  # held by {0, 1}, {1}, {0, 2}, {0}, {2}
    assert fits_one_user(pairs, real, np.full(5, -1)).tolist() == [False, True, False, True, True]
    assert fits_one_user(pairs, real, np.array([0, 1, 2, 1, -1])).tolist() == [True, False, True, True, True]
    assert fits_one_user(pairs[:0], real, np.empty(0, np.int64)).tolist() == []


def test_items_are_divided_without_loss():
    real = sparse.csr_matrix(np.array([[1, 1, 0, 1, 1], [0, 1, 0, 1, 0]], np.float32))
    seen = set()
    for seed in range(20):
        first, rest = split_items(real, np.array([3, 1]), np.random.default_rng(seed))
        np.testing.assert_array_equal((first + rest).toarray(), real.toarray())
        assert np.diff(first.indptr).tolist() == [3, 1]
        seen.add(int(first[1].indices[0]))
    assert seen == {1, 3}


def test_the_heaviest_items_are_claimed():
    """Everybody has 16 items, and two of their own. The attack is right if these weigh most, and never if two of the others do."""
    count, items = 120, 300
    real = np.zeros((count, items), np.float32)
    real[:, :16] = 1
    own, common = real * 0.2, real * 0.2
    for user, pair in enumerate(combinations(range(16), 2)):
        two = [20 + 2 * user, 21 + 2 * user]
        real[user, two] = 1
        own[user, two], common[user, two], common[user, list(pair)] = 0.8, 0.2, 0.8
    fold = AttackedFold(*map(sparse.csr_matrix, (real, own, common)), np.full(count, -1))
    found = attack_folds([fold], np.ones(items, np.float32))["singling_out"]
    assert (found.attack_rate, found.control_rate) == pytest.approx((1, 0), abs=0.02)
