"""λ is the synthetic rows' total weight as a share of the real rows', whatever their numbers."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from scalr_prod.config import SegmentWeights
from scalr_prod.generation import confidence_weight
from scalr_prod.training_set import confidence_multipliers, discount_popularity, real_to_synthetic
from scalr_prod.training_set.row_weights import weight_sql


@pytest.mark.parametrize(("real", "synthetic"), [(1000.0, 5000.0), (33_703.0, 61_000.5), (10.0, 7.0)])
def test_the_multipliers_give_the_share_but_for_the_rounding(real, synthetic):
    multipliers = confidence_multipliers(SegmentWeights(0.1, 0.1, 0.0), real_to_synthetic(real, synthetic))
    assert multipliers.cold * synthetic == pytest.approx(0.1 * real, rel=2**0.125 - 1 + 1e-9)
    assert multipliers.dense == 0


def test_a_days_rows_do_not_change_the_rows_of_the_days_before():
    """A year of daily growth: the ratio changes a few times and not every day."""
    ratios = [real_to_synthetic(10_000 + 100 * day, 50_000 + 300 * day) for day in range(365)]
    assert len(set(ratios)) <= 3


def test_no_synthetic_row_weighs_more_than_a_real_one():
    """Few synthetic rows beside many real ones, as after a project's first days."""
    assert confidence_multipliers(SegmentWeights(0.5, 0.1, 0.0), real_to_synthetic(1e6, 10.0)) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize(("real", "synthetic"), [(0.0, 5.0), (5.0, 0.0)])
def test_without_real_or_synthetic_rows_there_is_no_ratio(real, synthetic):
    assert real_to_synthetic(real, synthetic) == 1.0


@pytest.mark.parametrize("discount", [0.0, 0.5, 1.0])
def test_a_discount_divides_by_the_popularity_that_a_row_tells(discount):
    rng = np.random.default_rng(0)
    prior = np.append(10.0 ** -rng.uniform(1, 6, 500), 1e-12)
    probability = np.minimum(prior * 10.0 ** rng.uniform(-2, 3, 501), 0.9)
    rows = pa.table({"probability": probability.astype(np.float32), "weight": confidence_weight(probability, prior)})
    multiplier = 1e-8  # no row reaches a real one's weight
    found = duckdb.sql(f"SELECT {weight_sql(repr(multiplier), discount)} AS weight FROM rows").fetchnumpy()["weight"]
    expected = discount_popularity(rows["weight"].to_numpy(), prior, discount) * multiplier
    np.testing.assert_allclose(found[:-1], expected[:-1], rtol=1e-3)
    assert np.isfinite(found).all()
    rare, popular = prior < 1e-4, prior > 1e-2
    shares = [weight[rare].sum() / weight[popular].sum() for weight in (rows["weight"].to_numpy(), found)]
    assert (shares[1] > 2 * shares[0]) == (discount > 0)


def test_a_discounted_row_weighs_no_more_than_a_real_one():
    sql = weight_sql("1.0", 1.0)
    assert duckdb.sql(f"SELECT {sql} FROM (VALUES (0.01::FLOAT, 0.9::FLOAT)) v (probability, weight)").fetchall() == [(1.0,)]
