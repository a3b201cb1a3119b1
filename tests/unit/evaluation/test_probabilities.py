"""Labelled rows, and the logit map that calibrates probabilities on validation."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse
from support.examples import sweep

from scalr_prod.evaluation.probabilities import CalibratedPredictions, LabelledRows, PlattCalibrator


def rows_of(label, segment):
    nothing = np.zeros(len(label), np.int64)
    return LabelledRows(nothing, nothing, nothing, np.asarray(label, bool), np.asarray(segment, np.int8))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_rows_are_test_pairs_beside_items_that_the_user_neither_had_nor_met():
    rng = np.random.default_rng(0)
    relevant = sparse.csr_matrix(rng.random((30, 25)) < 0.1, dtype=np.float32)
    seen = sparse.csr_matrix((rng.random((30, 25)) < 0.2) & (relevant.toarray() == 0), dtype=np.float32)
    users = np.flatnonzero(np.diff(relevant.indptr))
    segment = rng.integers(0, 3, 30).astype(np.int8)
    hidden = sparse.csr_matrix(
        (rng.random((30, 25)) < 0.1) & (relevant.toarray() == 0) & (seen.toarray() == 0), dtype=np.float32
    )
    scene = SimpleNamespace(
        relevant=relevant, held_out=relevant + hidden, users=users, real=SimpleNamespace(n_items=25),
        seen=lambda: seen, segments=lambda: segment,
    )  # fmt: skip
    rows = LabelledRows.from_split(scene, 40)
    positive = set(zip(*relevant.nonzero(), strict=True))
    assert set(zip(rows.user[rows.label], rows.item[rows.label], strict=True)) == positive
    assert rows.label.sum() == len(positive)
    had = set(zip(*(seen + hidden).nonzero(), strict=True))
    negative = set(zip(rows.user[~rows.label], rows.item[~rows.label], strict=True))
    assert not negative & (positive | had)
    assert {item for _, item in negative} == set(range(25))
    assert np.array_equal(users[rows.case], rows.user)
    assert np.array_equal(rows.segment, segment[rows.user])
    owed = 40 * (~rows.label).mean() / rows.label.mean() / 40
    assert 20 < owed < 40, "some draws are of an item that the user had or met, and fall away"
    again = LabelledRows.from_split(scene, 40)
    assert np.array_equal(rows.item, again.item)


def test_only_test_users_have_rows_each_under_its_own_number():
    """A split of users as if they were new tests half of them, and the other half has later events, too."""
    rng = np.random.default_rng(0)
    relevant = sparse.csr_matrix(rng.random((30, 25)) < 0.2, dtype=np.float32)
    users = np.flatnonzero(np.diff(relevant.indptr))[:-3:2]
    split = SimpleNamespace(
        relevant=relevant, held_out=relevant, users=users, real=SimpleNamespace(n_items=25),
        seen=lambda: sparse.csr_matrix((30, 25), dtype=np.float32), segments=lambda: np.zeros(30, np.int8),
    )  # fmt: skip
    rows = LabelledRows.from_split(split, 4)
    assert np.array_equal(np.unique(rows.user), users)
    assert np.array_equal(users[rows.case], rows.user)
    assert len(CalibratedPredictions(rows, np.full(len(rows.label), 0.5)).information_gain()) == len(users)


@pytest.mark.parametrize("segment", sweep([0, 1, 2], keep=1))
def test_the_map_finds_how_logits_were_distorted(segment):
    """Logits were multiplied by 2 and moved by 1 in one segment alone: half of them, less a half, is right again."""
    rng = np.random.default_rng(segment)
    truth = rng.normal(-2, 1.5, 300_000)
    label = rng.random(len(truth)) < sigmoid(truth)
    where = rng.integers(0, 3, len(truth))
    told = sigmoid(np.where(where == segment, 2 * truth + 1, truth))
    rows = rows_of(label, where)
    half = len(truth) // 2
    parts = [rows_of(label[part], where[part]) for part in (np.s_[:half], np.s_[half:])]
    scale = PlattCalibrator.fit(parts, [told[:half], told[half:]])
    expected = np.where(np.arange(3) == segment, 0.5, 1.0), np.where(np.arange(3) == segment, -0.5, 0.0)
    assert scale.slope == pytest.approx(expected[0], abs=0.03)
    assert scale.offset == pytest.approx(expected[1], abs=0.05)
    assert scale(told, rows.segment) == pytest.approx(sigmoid(truth), abs=0.02)
    assert PlattCalibrator(**scale.to_json()).slope == list(scale.slope)


def test_a_model_that_knows_nothing_is_brought_to_the_base_rate_and_a_segment_without_rows_stays():
    rng = np.random.default_rng(1)
    label = rng.random(50_000) < 0.1
    noise = sigmoid(rng.normal(0, 3, len(label)))
    scale = PlattCalibrator.fit([rows_of(label, np.zeros(len(label)))], [noise])
    calibrated = scale(noise, np.zeros(len(label), np.int8))
    assert calibrated == pytest.approx(np.full(len(label), label.mean()), abs=0.02)
    assert (scale.slope[1:], scale.offset[1:]) == ((1.0, 1.0), (0.0, 0.0))
    assert scale(np.array([0.3]), np.array([1], np.int8)) == pytest.approx([0.3])


def test_a_perfect_validation_does_not_run_away():
    """Rows that a threshold separates have no finite best slope; the pull towards 1 gives one."""
    p = np.array([0.1, 0.2, 0.8, 0.9])
    scale = PlattCalibrator.fit([rows_of([0, 0, 1, 1], [0] * 4)], [p])
    assert 1 < scale.slope[0] < 5
    assert np.isfinite(CalibratedPredictions(rows_of([0, 0, 1, 1], [0] * 4), scale(p, np.zeros(4, np.int8))).log_loss).all()


def test_loss_is_the_log_of_the_probability_of_what_happened():
    found = CalibratedPredictions(rows_of([1, 0], [0, 0]), np.array([0.25, 0.25])).log_loss
    assert found == pytest.approx([np.log(4), np.log(4 / 3)])
