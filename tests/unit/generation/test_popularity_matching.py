import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scalr_prod.generation.popularity_matching import MIN_KEPT_SHARE, bucket_shares, keep_counts, popularity_buckets


def distance(counts, shares) -> float:
    return float(np.abs(counts / counts.sum() - shares).sum() / 2)


def test_buckets_rise_with_popularity_and_hold_like_mass():
    counts = np.arange(1, 401)
    bucket = popularity_buckets(counts, 10)
    assert (np.diff(bucket) >= 0).all()
    shares = bucket_shares(counts, bucket, 10)
    assert shares.sum() == pytest.approx(1)
    assert shares == pytest.approx(np.full(10, 0.1), abs=0.01)


def test_items_of_one_popularity_share_a_bucket():
    counts = np.array([1, 1, 1, 1, 50, 50])
    bucket = popularity_buckets(counts, 4)
    assert len(set(bucket[:4])) == 1
    assert len(set(bucket[4:])) == 1
    assert bucket[0] < bucket[4]


def test_buckets_of_nothing():
    assert popularity_buckets(np.zeros(0, dtype=np.int64), 10).tolist() == []
    assert bucket_shares(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), 3).tolist() == [0, 0, 0]
    counts = np.array([4, 0])
    assert keep_counts(counts, np.zeros(2)).tolist() == [4, 0]


def test_shares_are_met_exactly_where_half_can_stay():
    kept = keep_counts(np.array([600, 400]), np.array([0.5, 0.5]))
    assert kept.tolist() == [400, 400]


def test_half_stays_where_shares_cannot_be_met():
    kept = keep_counts(np.array([990, 10]), np.array([0.5, 0.5]))
    assert kept.tolist() == [490, 10]


def test_events_without_a_real_bucket_only_fill_up():
    kept = keep_counts(np.array([100, 20, 20]), np.array([0.0, 0.5, 0.5]))
    assert kept.tolist() == [30, 20, 20]
    assert keep_counts(np.array([10, 50, 50]), np.array([0.0, 0.5, 0.5])).tolist() == [0, 50, 50]


@st.composite
def problems(draw):
    size = draw(st.integers(1, 6))
    counts = np.array(draw(st.lists(st.integers(0, 400), min_size=size, max_size=size)), dtype=np.int64)
    mass = np.array(draw(st.lists(st.integers(0, 50), min_size=size, max_size=size)), dtype=float)
    assume(counts.sum() >= 20)
    assume(mass.sum() > 0)
    return counts, mass / mass.sum()


@given(problems())
def test_half_stays_and_the_distance_never_grows(problem):
    counts, shares = problem
    kept = keep_counts(counts, shares)
    assert (kept >= 0).all()
    assert (kept <= counts).all()
    assert kept.sum() >= MIN_KEPT_SHARE * counts.sum()
    # Rounding up moves each bucket by less than one event.
    assert distance(kept, shares) <= distance(counts, shares) + len(counts) / kept.sum()


@given(problems(), st.integers(0, 2**32 - 1))
def test_no_other_choice_of_as_many_events_is_nearer(problem, seed):
    counts, shares = problem
    kept = keep_counts(counts, shares)
    total = int(kept.sum())
    rng = np.random.default_rng(seed)
    for _ in range(20):
        other = rng.multivariate_hypergeometric(counts, total)
        assert distance(kept, shares) <= distance(other, shares) + len(counts) / total
