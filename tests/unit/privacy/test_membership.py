"""Attack scores with answers by hand, and planted leaks that the attacks on other users' rows find."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from scalr_prod.privacy.membership import DrawnByFold, attack_other_rows, closest_records, item_counts, item_similarity
from scalr_prod.privacy.run_rows import RunRows, user_item_matrix

FOLDS = 3


def matrix(*rows: tuple[int, ...], items: int = 5) -> sparse.csr_matrix:
    dense = np.zeros((len(rows), items), dtype=np.float32)
    for row, found in enumerate(rows):
        dense[row, list(found)] = 1
    return sparse.csr_matrix(dense)


def test_closest_records_weigh_what_is_rare_and_leave_out_the_users_own():
    real, drawn, rarity = matrix((0, 1), (4,)), matrix((0, 1), (0, 2), (1, 3)), np.array([1, 3, 1, 3, 2], np.float32)
    nobody = np.array([-1, -1])
    assert closest_records(real, drawn, nobody, rarity) == pytest.approx([1, 0])
    # Without row 0: {0, 1} beside {0, 2} is 1 / √(4 · 2), beside {1, 3} 3 / √(4 · 6).
    assert closest_records(real, drawn, np.array([0, -1]), rarity) == pytest.approx([3 / np.sqrt(24), 0])


def test_item_counts_are_shares_of_the_others():
    real, drawn = matrix((0, 1), (2,)), matrix((0,), (0, 1), (3,))
    found = item_counts(real, drawn, np.array([0, -1]))
    # Two others of three rows: item 0 once, item 1 once. The second user is not among the three.
    assert found == pytest.approx([np.mean(np.log([1.5 / 3, 1.5 / 3])), np.log(0.5 / 4)])


def test_item_similarity_is_the_mean_cosine_above_everybodys():
    reference = matrix((0, 1), (0, 1), (2, 3))
    repeated, related, strange = (item_similarity(matrix(row), matrix((0,)), reference)[0] for row in ((0,), (1,), (2,)))
    # Cosines of item 0 with 0, 1, 2: 1, 1, 0. The users' real items, each half of two users and of one: 2/3 and 1/3.
    assert (repeated, related, strange) == pytest.approx((1 - 2 / 3, 1 - 2 / 3, 0 - 1 / 3))
    assert item_similarity(matrix((4,)), matrix((4,)), reference)[0] == pytest.approx(1), (
        "nobody else had it, but it is repeated"
    )


@pytest.fixture
def world():
    """600 users of three folds, with five real items of 500 each, and draws of ten items that know nothing."""
    rng = np.random.default_rng(0)
    fold = np.tile(np.arange(FOLDS, dtype=np.int32), 200)
    pairs = [(user, item) for user in range(600) for item in rng.choice(500, 5, replace=False)]
    user, item = np.array(pairs, dtype=np.int32).T
    real = user_item_matrix(user, item, (600, 500))
    drawn = user_item_matrix(
        np.repeat(np.arange(600, dtype=np.int32), 10), rng.integers(0, 500, 6000).astype(np.int32), (600, 500)
    )
    return RunRows(pa.array(range(600)), 1, fold, np.zeros(600, bool), drawn, real, drawn, drawn), rng


def attacks(rows: RunRows):
    everybody = np.arange(600)
    groups = [np.flatnonzero(rows.fold == fold) for fold in range(FOLDS)]
    own = [np.where(rows.fold == fold, np.searchsorted(group, everybody), -1) for fold, group in enumerate(groups)]
    return attack_other_rows(rows, everybody, DrawnByFold([rows.drawn[group] for group in groups], own))


def test_draws_that_know_nothing_tell_nothing(world):
    rows, _ = world
    for success in attacks(rows).values():
        assert success.auc.ci95[0] <= 0.5 <= success.auc.ci95[1]


def test_rows_that_repeat_users_of_other_folds_are_found(world):
    """Each user's rows hold the real items of a user of each other fold: both trained the set that drew them."""
    rows, rng = world
    drawn = rows.drawn.tolil()
    for fold in range(FOLDS):
        users = np.flatnonzero(rows.fold == fold)
        for other in ((fold + 1) % FOLDS, (fold + 2) % FOLDS):
            for user, repeated in zip(users, rng.permutation(np.flatnonzero(rows.fold == other)), strict=True):
                drawn[user, rows.real[repeated].indices] = 1
    found = attacks(replace(rows, drawn=drawn.tocsr()))
    assert found["closest_row_set"].auc.ci95[0] > 0.99
    assert found["closest_row_set"].true_positives.value > 0.9
    assert found["control"].auc.ci95[0] <= 0.5 <= found["control"].auc.ci95[1], "both sets have seen the user"
    assert found["item_counts"].auc.ci95[0] > 0.6


def test_rows_that_repeat_users_of_the_own_fold_are_no_membership(world):
    """They cannot come from training: the sets have not seen these users. So the attack is wrong about them."""
    rows, _ = world
    drawn = rows.drawn.tolil()
    for fold in range(FOLDS):
        users = np.flatnonzero(rows.fold == fold)
        for user, repeated in zip(users, np.roll(users, 1), strict=True):
            drawn[user, rows.real[repeated].indices] = 1
    found = attacks(replace(rows, drawn=drawn.tocsr()))
    assert found["closest_row_set"].auc.ci95[1] < 0.1


def test_too_few_users_are_not_attacked(world):
    rows, _ = world
    few = np.arange(50)
    assert attack_other_rows(rows, few, DrawnByFold([rows.drawn] * FOLDS, [few] * FOLDS)) == {}
