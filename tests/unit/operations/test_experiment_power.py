"""Whether experiments find the effects that they are said to find, as often as that."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.examples import sweep
from support.small_project import Handmade
from typer.testing import CliRunner

from scalr_prod.apps.cli import app
from scalr_prod.errors import EvaluationError, SettingsError
from scalr_prod.operations import always_valid
from scalr_prod.operations.experiment_power import OutcomeModel, measure_power
from scalr_prod.operations.holdout_experiment import estimate_effect

HOLDOUT, PERIOD, USERS = 0.1, 28, 3000


def rates(rng) -> np.ndarray:
    """Events per day of users who differ."""
    return rng.gamma(1.0, 0.1, USERS)


def model(seed: int = 0) -> OutcomeModel:
    rng = np.random.default_rng(seed)
    rate = rates(rng) * PERIOD
    return OutcomeModel.from_periods(rng.poisson(rate).astype(float), rng.poisson(rate).astype(float), PERIOD)


def found(effect: float, days: int, *, pre_value: bool, fixed: bool, experiments: int) -> float:
    """Share of experiments whose interval at the end is above 0."""
    hits = 0
    for seed in range(experiments):
        rng = np.random.default_rng(1000 + seed)
        rate, held_out = rates(rng), rng.random(USERS) < HOLDOUT
        outcome = rng.poisson((rate + np.where(held_out, 0, 0.1 * effect)) * days).astype(float)
        before = rng.poisson(rate * PERIOD).astype(float) if pre_value else None
        measured = estimate_effect(outcome, held_out, HOLDOUT, days=days, pre_value=before)
        hits += (measured.fixed_low if fixed else measured.low) > 0
    return hits / experiments


def test_the_model_is_that_of_the_users():
    fitted = model()
    assert fitted.daily_mean == pytest.approx(0.1, rel=0.05)
    assert fitted.between == pytest.approx(0.1**2, rel=0.15)
    assert fitted.within == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize(
    ("pre_value", "fixed"), sweep([(True, False), (False, False), (True, True)], keep=1), ids=["daily", "no value", "one look"]
)
def test_80_of_100_experiments_find_the_smallest_effect(pre_value, fixed):
    z = 1.96 if fixed else always_valid.boundary(PERIOD)
    effect = model().detectable(z, PERIOD, HOLDOUT, period=PERIOD if pre_value else None)
    assert 0.05 < effect < 0.5
    share = found(effect, PERIOD, pre_value=pre_value, fixed=fixed, experiments=100)
    assert 0.65 < share < 0.92


def test_a_smaller_effect_takes_longer_and_a_tiny_one_over_a_year():
    fitted = model()
    needed = [fitted.days_needed(effect, HOLDOUT, PERIOD) for effect in (0.3, 0.15, 0.005)]
    assert needed[0] < needed[1]
    assert needed[2] is None
    assert fitted.detectable(3, needed[1], HOLDOUT, period=PERIOD) < fitted.detectable(3, needed[1], HOLDOUT)


@pytest.fixture
def project(tmp_path) -> Handmade:
    """100 users without a target event, 100 with one a day and 200 with one every other day, for 80 days."""
    rng = np.random.default_rng(0)
    source = [(f"u{k}", f"s{k % 7}", k / 100, k / 100) for k in range(400)]
    chance = {k: 1.0 if k < 200 else 0.5 for k in range(100, 400)}
    target = [
        (f"u{k}", f"t{n % 5}", 24 * n + 0.5, 24 * n + 0.5) for k, p in chance.items() for n in range(80) if rng.random() < p
    ]
    return Handmade(tmp_path, source=source, target=target)


def test_it_is_told_from_the_logs_of_a_project(project):
    command = ["experiment", "power", "--config", str(project.config), "--holdout", "0.2", "--effect", "10"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["users"], report["holdout"], report["effect_pct"], report["period_days"]) == (400, 0.2, 10.0, 28.0)
    assert report["active_users_per_day"] == pytest.approx(200, rel=0.05)
    assert [row["days"] for row in report["by_days"]] == [7, 14, 28, 56, 84]
    for row in report["by_days"]:
        assert row["at_one_look_pct"] < row["with_pre_value_pct"] < row["mde_pct"]
    segments = {row["segment"]: row for row in report["by_segment"]}
    assert segments["all"]["events_per_user_day"] == pytest.approx(0.5, rel=0.03)
    assert (segments["cold"]["users"], segments["dense"]["users"]) == (100, 300)
    assert (segments["cold"]["mde_pct"], segments["cold"]["days_needed"]) == (None, None)
    assert 1 <= report["days_needed"] <= 28
    text = CliRunner().invoke(app, command).stdout
    assert "days_needed" in text
    assert "with_pre_value_pct" in text


def test_what_cannot_be_planned_is_told(project, tmp_path):
    with pytest.raises(SettingsError, match="they are 0 and 5 %") as told:
        measure_power(project.settings)
    assert "--holdout 0.05" in told.value.next_step
    short = Handmade(tmp_path / "short", target=[("u1", "t1", 0, 0), ("u1", "t1", 20, 20)])
    with pytest.raises(EvaluationError, match="less than two days"):
        measure_power(short.settings, holdout=0.1)


def test_without_a_recent_event_of_a_source_user_there_is_no_detectable_effect(tmp_path):
    target = [("u1", "t1", 0, 0), *((f"other{day}", "t1", 24 * day, 24 * day) for day in range(1, 80))]
    project = Handmade(tmp_path, source=[("u1", "s1", 0, 0)], target=target)
    report = measure_power(project.settings, holdout=0.1)
    assert (report.by_days, report.days_needed) == ([], None)
    assert [segment.mde_pct for segment in report.by_segment] == [None]
