"""The bootstrap covers, Holm corrects, and the ranking metrics are what they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scalr_prod.evaluation.ranking_metrics import calibration_metrics, exposure_metrics, rank_users
from scalr_prod.evaluation.statistics import ArmComparison, MetricContributions, TwoWayClusters, holm_adjust, paired_bootstrap


@pytest.mark.long
def test_the_bootstrap_covers_the_true_lift_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    covered = 0
    trials = 300
    for trial in range(trials):
        user = rng.gamma(0.3, 1.0, 400)  # skewed and shared by both arms, as users' metrics are
        base = user * rng.gamma(2.0, 0.5, 400)
        arm = 1.1 * user * rng.gamma(2.0, 0.5, 400)  # true lift 10 %
        low, high = paired_bootstrap(arm, base, seed=trial, resamples=400).ci95
        covered += low <= 10 <= high
    # A binomial of 300 at .95 stays within these bounds all but once in ten thousand.
    assert 0.90 <= covered / trials <= 0.99


def test_without_a_difference_few_intervals_leave_zero_out():
    rng = np.random.default_rng(1)
    found = []
    for trial in range(300):
        base, arm = rng.gamma(0.3, 1.0, (2, 300))
        low, high = paired_bootstrap(arm, base, seed=trial, resamples=300).difference_ci95
        found.append(low <= 0 <= high)
    assert np.mean(found) >= 0.90


def test_pairs_matter():
    rng = np.random.default_rng(2)
    base = rng.gamma(0.3, 1.0, 500)
    paired = paired_bootstrap(base + 0.01, base)
    apart = paired_bootstrap(rng.permutation(base) + 0.01, base)
    assert paired.difference_ci95 == pytest.approx((0.01, 0.01))
    assert paired.p_value < 0.01 < apart.p_value


def test_a_wider_comparison_keeps_its_lift():
    measured = ArmComparison(50.0, 10.0, (30.0, 73.0769), 0.1, (0.05, 0.15), 0.01)
    wider = measured.widened(2)
    assert (wider.lift_pct, wider.lift_error, wider.difference) == (50.0, 20.0, 0.1)
    assert wider.ci95 == pytest.approx((12.6667, 99.7041), abs=1e-3)  # 1.5 × (1.3 / 1.5)², 1.5 × (1.730769 / 1.5)²
    assert wider.difference_ci95 == pytest.approx((0.0, 0.2))
    assert wider.p_value == pytest.approx(0.198, abs=1e-3)  # z = 2.576 / 2
    nothing_hit = ArmComparison(-100.0, 0.0, (-100.0, -100.0), -0.1, (-0.1, -0.1), 0.0).widened(2)
    assert (nothing_hit.ci95, nothing_hit.p_value) == ((-100.0, -100.0), 0.0)


def test_holm_is_the_stepwise_bonferroni():
    assert holm_adjust([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm_adjust([0.5, 0.9]) == [1.0, 1.0]
    assert holm_adjust([]) == []


class _Fixed:
    """Scores from a table."""

    def __init__(self, table):
        self.table = np.asarray(table, dtype=np.float32)

    def fit(self, events, *, seed): ...

    def score(self, users):
        return self.table[users]


def test_ranking_metrics_by_hand():
    model = _Fixed([[9, 8, 7, 6, 5, 100], [9, 8, 7, 6, 5, 100]])  # the sixth column is beyond the catalogue
    relevant = sparse.csr_matrix(np.array([[0, 1, 0, 1, 0], [0, 0, 0, 0, 1]]))
    seen = sparse.csr_matrix(np.array([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]))
    head = np.array([True, True, False, False, False])
    found = rank_users(model, np.array([0, 1]), relevant=relevant, seen=seen, is_head=head, k=3)
    assert found.top.tolist() == [[1, 2, 3], [0, 1, 2]]
    both = 1 + 1 / np.log2(3)
    assert found.ndcg == pytest.approx([(1 + 1 / np.log2(4)) / both, 0])
    assert found.recall.tolist() == [1, 0]
    assert found.mrr.tolist() == [1, 0]
    assert found.head[0] == 1
    assert np.isnan(found.head[1])
    assert found.tail == pytest.approx([1 / np.log2(4), 0])


def test_ties_go_to_the_lower_number():
    found = rank_users(
        _Fixed(np.zeros((1, 6))),
        np.array([0]),
        relevant=sparse.csr_matrix(np.eye(1, 6)),
        seen=sparse.csr_matrix((1, 6)),
        is_head=np.ones(6, bool),
        k=2,
    )
    assert found.top.tolist() == [[0, 1]]


def test_exposure():
    head = np.array([True, False, False, False])
    even = exposure_metrics(np.array([[0, 1], [2, 3]]), 4, head)
    assert even == pytest.approx({"coverage": 1.0, "gini": 0.0, "tail_share": 0.75})
    assert exposure_metrics(np.array([[0], [0]]), 4, head) == pytest.approx({"coverage": 0.25, "gini": 0.75, "tail_share": 0.0})


def test_calibration_of_a_calibrated_and_of_a_constant_model():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.01, 0.4, 200_000)
    label = rng.random(len(p)) < p
    good = calibration_metrics(p.astype(np.float32), label)
    assert good["ne"] < 1
    assert good["calibration"] == pytest.approx(1, abs=0.02)
    assert good["ece"] < 0.005
    flat = calibration_metrics(np.full(len(p), label.mean(), np.float32), label)
    assert flat["ne"] == pytest.approx(1, abs=1e-4)
    twice = calibration_metrics((2 * p).astype(np.float32), label)
    assert twice["calibration"] == pytest.approx(2, abs=0.05)
    assert twice["ne"] > good["ne"]


def hits_of(rows, items, gain=None):
    return MetricContributions(
        np.asarray(rows, int), np.asarray(items, int), np.ones(len(rows)) if gain is None else np.asarray(gain, float)
    )


def test_an_interval_knows_when_few_items_carry_the_gain():
    """1 000 users, each with one hit: on the same item, or on one each. Users alone cannot tell the two apart."""
    users, items = 1000, 500
    rng = np.random.default_rng(0)
    rows = np.arange(users)
    base = hits_of(rows, rng.integers(0, items, users), np.full(users, 0.5))
    clusters = TwoWayClusters(rows, items)
    one = clusters.compare(hits_of(rows, np.zeros(users, int)), base)
    many = clusters.compare(hits_of(rows, rng.integers(0, items, users)), base)
    assert one.lift_pct == many.lift_pct == pytest.approx(100)
    assert many.difference_ci95[0] > 0.3
    assert one.difference_ci95[0] < 0, "the whole gain is that of one item"


def test_the_interval_covers_where_one_item_has_a_quarter_of_the_gain():
    """An item with a large share pulls the ratio towards itself."""
    rng = np.random.default_rng(0)
    users, items, draws = 400, 300, 500
    popularity = 1 / np.arange(1, items + 1) ** 1.2
    covered = 0
    for _ in range(draws):
        item = rng.choice(items, users, p=popularity / popularity.sum())
        arm, base = (rng.lognormal(0, 0.7, items)[item] * rng.lognormal(0, 0.3, users) for _ in range(2))
        low, high = (
            TwoWayClusters(np.arange(users), items).compare(*(hits_of(range(users), item, gain) for gain in (arm, base))).ci95
        )
        covered += low <= 0 <= high
    assert covered / draws >= 0.93


def test_two_way_means_are_the_metric_and_users_of_several_cutoffs_count_once():
    arm, base = hits_of([0, 1, 1], [0, 1, 2], [0.2, 0.3, 0.1]), hits_of([0, 2], [0, 1], [0.1, 0.2])
    found = TwoWayClusters(np.array([5, 6, 5]), 3).compare(arm, base)
    assert found.difference == pytest.approx(0.6 / 3 - 0.3 / 3)
    alone = TwoWayClusters(np.array([5, 6, 5]), 3).compare(arm, base, np.array([True, False, True]))
    assert alone.difference == pytest.approx(0.2 / 2 - 0.3 / 2)
    whole = TwoWayClusters(np.zeros(4, int), 1).compare(hits_of(range(4), [0] * 4), hits_of([], []))
    assert whole.difference_ci95 == (1.0, 1.0), "one user and one item: nothing varies"


@pytest.mark.parametrize(
    ("users", "items", "gain", "spread"),
    [(300, 200, 0.0, 0.0), (300, 200, 0.0, 1.0), pytest.param(1500, 400, 0.6, 1.0, marks=pytest.mark.long)],
)
def test_the_two_way_interval_covers_where_users_and_items_differ(users, items, gain, spread):
    """Two arms that share half of their hits; items suit either arm more or less."""
    rng = np.random.default_rng(0)
    discount = 1 / np.log2(np.arange(2, 22))

    def contributions_of_one_draw():
        popularity = rng.lognormal(0, 1.2, items)
        chance = 0.3 * rng.gamma(0.5, 1.0, users)[:, None] * popularity / popularity.sum()
        suits = rng.lognormal(-(spread**2) / 2, spread, (2, items))
        shared = rng.random((users, items)) < chance
        hits = [
            shared | (rng.random((users, items)) < chance * fits * more)
            for fits, more in zip(suits, (1 + gain, 1.0), strict=True)
        ]
        worth = rng.choice(discount, (users, items))
        return [hits_of(*np.nonzero(hit), worth[hit]) for hit in hits]

    draws = [contributions_of_one_draw() for _ in range(150)]
    truth = 100 * (sum(arm.gain.sum() for arm, _ in draws) / sum(base.gain.sum() for _, base in draws) - 1)
    intervals = [TwoWayClusters(np.arange(users), items).compare(arm, base).ci95 for arm, base in draws]
    assert np.mean([low <= truth <= high for low, high in intervals]) >= 0.93
