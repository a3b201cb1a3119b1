"""Who is held out, and whether the interval of the effect holds what it promises."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.examples import sweep
from support.small_project import Handmade
from typer.testing import CliRunner

from scalr_prod.apps.cli import app
from scalr_prod.config.settings import settings_from_dict
from scalr_prod.errors import BadValue, ColumnNotFound, EvaluationError, QualityGateFailed, SettingsError
from scalr_prod.ledger import Ledger
from scalr_prod.operations.holdout_experiment import analyze_experiment, estimate_effect
from scalr_prod.publication.commit import publish
from scalr_prod.quality import validate_run
from scalr_prod.schemas import Table
from scalr_prod.workspace.user_assignment import Holdout

#: A whole audit, or a hundred experiments.
long = pytest.mark.long

USERS = 2000


def sides(settings, users) -> np.ndarray:
    """Which of some ids are held out, by the expression that runs and training sets use."""
    return split(Holdout.from_settings(settings), users)


def split(held: Holdout, users) -> np.ndarray:
    with duckdb.connect() as db:
        db.register("them", pd.DataFrame({"user": users}))
        return db.sql(f"SELECT {held.membership_sql('them.user')} AS held FROM them").fetchnumpy()["held"]


def with_holdout(tmp_path, share: float, key: str | None = "a key of the company"):
    domains = {name: {"name": name, "events": f"{name}.parquet"} for name in ("source", "target")}
    wanted = {"holdout": share} | ({"key": key} if key else {})
    return settings_from_dict(
        {"project": {"home": str(tmp_path / "home")}, "domains": domains, "experiment": wanted}, base=tmp_path
    )


def test_the_share_is_held_out_and_a_larger_one_holds_the_same_users_too(tmp_path):
    small, large = (sides(with_holdout(tmp_path, share), np.arange(20_000)) for share in (0.05, 0.2))
    assert small.mean() == pytest.approx(0.05, abs=0.005)
    assert large.mean() == pytest.approx(0.2, abs=0.01)
    assert large[small].all()


def test_the_side_is_that_of_the_id_whatever_its_type_and_follows_from_the_key_alone(tmp_path):
    users = np.arange(5000)
    one = sides(with_holdout(tmp_path, 0.3), users)
    assert (sides(with_holdout(tmp_path / "elsewhere", 0.3), users.astype(str)) == one).all()
    other = sides(with_holdout(tmp_path, 0.3, "another key"), users)
    assert (other == one).mean() == pytest.approx(0.3**2 + 0.7**2, abs=0.03), "another key is another choice"


def test_without_a_key_the_home_keeps_one(tmp_path):
    first = Holdout.from_settings(with_holdout(tmp_path, 0.1, key=None))
    assert Holdout.from_settings(with_holdout(tmp_path, 0.1, key=None)) == first
    assert Holdout.from_settings(with_holdout(tmp_path / "other", 0.1, key=None)).salt != first.salt
    assert Holdout.from_settings(with_holdout(tmp_path, 0.0)) is None


def made(rng, held, *, effect: float):
    """Skewed outcomes that go with those of before."""
    taste = rng.gamma(1.0, 2.0, len(held))
    before = taste + rng.normal(0, 1, len(held))
    return taste + rng.gamma(1.0, 1.0, len(held)) + np.where(held, 0.0, effect), before


def test_the_interval_for_one_reading_is_welchs():
    rng = np.random.default_rng(1)
    held = rng.random(300) < 0.2
    value = np.where(held, rng.normal(1, 3, 300), rng.normal(2, 1, 300))
    found = estimate_effect(value, held, 0.2)
    reference = stats.ttest_ind(value[~held], value[held], equal_var=False).confidence_interval(0.95)
    assert (found.fixed_low, found.fixed_high) == pytest.approx((reference.low, reference.high))
    assert found.low < found.fixed_low < found.fixed_high < found.high


@long
@pytest.mark.parametrize("cuped", sweep([True, False], keep=1), ids=["cuped", "plain"])
def test_the_interval_covers_the_truth_in_93_of_100_experiments(cuped):
    covered, widths = 0, []
    for number in range(100):
        rng = np.random.default_rng(number)
        held = split(Holdout(0.1, f"{number:032x}"), np.arange(USERS))
        value, before = made(rng, held, effect=0.5)
        found = estimate_effect(value, held, 0.1, pre_value=before if cuped else None)
        covered += found.fixed_low <= 0.5 <= found.fixed_high
        widths.append(found.fixed_high - found.fixed_low)
    assert covered >= 93
    assert np.mean(widths) < (0.5 if cuped else 0.75)


def test_what_was_known_before_makes_the_interval_narrower(tmp_path):
    held = sides(with_holdout(tmp_path, 0.2), np.arange(USERS))
    value, before = made(np.random.default_rng(0), held, effect=1.0)
    plain, cuped = estimate_effect(value, held, 0.2), estimate_effect(value, held, 0.2, pre_value=before)
    assert (plain.method, cuped.method) == ("difference_in_means", "cuped")
    assert cuped.high - cuped.low < 0.8 * (plain.high - plain.low)
    assert 0.3 < cuped.variance_removed < 0.9
    assert plain.effect == pytest.approx(plain.mean_treated - plain.mean_held_out)
    assert plain.relative_pct == pytest.approx(100 * plain.effect / plain.mean_held_out)
    before[::3] = np.nan
    assert cuped.fixed_low < estimate_effect(value, held, 0.2, pre_value=before).effect < cuped.fixed_high
    constant = estimate_effect(value, held, 0.2, pre_value=np.zeros(USERS))
    assert (constant.effect, constant.variance_removed) == (pytest.approx(plain.effect), 0.0)


def test_outcomes_without_any_variance_are_an_effect_of_nothing(tmp_path):
    held = sides(with_holdout(tmp_path, 0.2), np.arange(USERS))
    found = estimate_effect(np.zeros(USERS), held, 0.2)
    assert (found.effect, found.low, found.high, found.relative_pct) == (0.0, 0.0, 0.0, None)


# --- from the command line


@pytest.fixture
def project(tmp_path) -> Handmade:
    source = [(f"u{k}", f"s{k % 7}", k / 100, k / 100) for k in range(400)]
    return Handmade(tmp_path, extra='[experiment]\nholdout = 0.2\nkey = "a key of the company"\n', source=source)


def outcomes(project, **columns) -> str:
    users = [f"u{k}" for k in range(400)]
    frame = pd.DataFrame({"user_id": users, "value": np.arange(400.0) % 5} | columns)
    frame.to_csv(project.folder / "outcomes.csv", index=False)
    return "outcomes.csv"


def test_who_is_where_is_told_and_written_and_the_effect_measured(project):
    rng = np.random.default_rng(3)
    held = sides(project.settings, [f"u{k}" for k in range(400)])
    value, before = made(rng, held, effect=2.0)
    outcomes(project, value=value, pre_value=before)
    command = ["experiment", "--config", str(project.config), "--json", "--outcomes", "outcomes.csv"]
    for name, read in (("sides.csv", pd.read_csv), ("sides.parquet", pd.read_parquet)):
        found = CliRunner().invoke(app, [*command, "--out", str(project.folder / name)])
        assert found.exit_code == 0, found.output
        report = json.loads(found.stdout)
        assert (report["users_held_out"], report["users_treated"]) == (held.sum(), 400 - held.sum())
        written = read(project.folder / name).set_index("user_id")["side"]
        assert (written[[f"u{k}" for k in range(400)]].to_numpy() == np.where(held, "held_out", "treated")).all()
    effect = report["effect"]
    assert (effect["method"], effect["users_held_out"]) == ("cuped", held.sum())
    assert effect["low"] < 2 < effect["high"]
    assert effect["srm_p"] > 0.01
    assert report["synthetic_events_of_held_out"] == 0
    assert not list(project.folder.glob(".*.tmp"))


def test_sides_that_cannot_be_written_are_told_with_the_file(project):
    (project.folder / "folder.csv").mkdir()
    for out in (project.folder / "folder.csv", project.config / "sides.csv", Path("/proc/sides.csv")):
        with pytest.raises(EvaluationError, match="cannot be written") as told:
            analyze_experiment(project.settings, out=out)
        assert told.value.where == str(out)
    assert not list(project.folder.glob(".*.tmp"))


def test_the_effect_of_each_segment_counts_days_from_the_start(tmp_path):
    """Half of the users are dense before the start, and lose by treatment; target events after it do not make a user dense."""
    source = [(f"u{k}", f"s{k % 7}", k / 100, k / 100) for k in range(400)]
    early = [(f"u{k}", f"t{n}", -1000 + n, -1000 + n) for k in range(0, 400, 2) for n in range(6)]
    late = [(f"u{k}", f"t{n}", 100 + n, 100 + n) for k in range(1, 400, 2) for n in range(6)]
    begun = '[experiment]\nholdout = 0.3\nkey = "a key of the company"\nstart = 2024-01-01T00:00:00Z\n'
    project = Handmade(tmp_path, extra=begun, source=source, target=[*early, *late])
    held, rng = sides(project.settings, [f"u{k}" for k in range(400)]), np.random.default_rng(0)
    effect = np.where(np.arange(400) % 2 == 0, -3.0, 1.0)
    outcomes(project, value=rng.normal(5, 1, 400) + np.where(held, 0, effect))

    def report(until: datetime):
        return analyze_experiment(project.settings, outcomes="outcomes.csv", until=until)

    found = report(datetime(2024, 1, 25, tzinfo=UTC))
    assert (found.days, found.start) == (24.0, datetime(2024, 1, 1, tzinfo=UTC))
    assert set(found.effect_by_segment) == {"cold", "dense"}
    cold, dense = found.effect_by_segment["cold"], found.effect_by_segment["dense"]
    assert (cold.users_held_out, dense.users_held_out) == (held[1::2].sum(), held[::2].sum())
    assert 0 < cold.low < 1 < cold.high
    assert dense.low < -3 < dense.high < 0
    first_day = report(datetime(2024, 1, 2, tzinfo=UTC)).effect_by_segment["dense"]
    assert first_day.high - first_day.low > 1.5 * (dense.high - dense.low), "fewer days allow for more chance"
    with pytest.raises(EvaluationError, match="before the experiment's start"):
        report(datetime(2023, 12, 31, tzinfo=UTC))


def test_the_experiment_starts_with_the_first_publication_under_its_key(project, caplog):
    outcomes(project)
    report = analyze_experiment(project.settings, outcomes="outcomes.csv")
    assert (report.start, report.days) == (None, 1.0)
    assert "as wide as on the first day" in caplog.text
    spec = project.accepted(start=0, end=4, seed=1)
    publish(project.settings, spec.run_id)
    with Ledger.open(project.settings) as ledger:
        (published,) = ledger.publications.find()
    report = analyze_experiment(project.settings, outcomes="outcomes.csv")
    assert report.start == published.published_at
    other = project.configure('[experiment]\nholdout = 0.2\nkey = "another key of theirs"\n')
    assert analyze_experiment(other).start is None


def test_a_choice_of_users_that_depends_on_the_experiment_is_told(project, caplog):
    held = sides(project.settings, [f"u{k}" for k in range(400)])
    users = np.array([f"u{k}" for k in range(400)])
    chosen = np.concatenate([users[~held], users[held][:25]])
    pd.DataFrame({"user_id": chosen, "value": np.arange(len(chosen)) % 3}).to_csv(project.folder / "o.csv", index=False)
    report = analyze_experiment(project.settings, outcomes="o.csv")
    assert report.effect.srm_p < 0.001
    assert "the effect is biased" in caplog.text


def test_events_of_held_out_users_that_were_published_before_are_counted(project):
    spec = project.accepted(start=0, end=4, seed=1)
    publish(project.settings, spec.run_id)
    users = project.lake.read(Table.SYNTHETIC_TARGET_EVENTS).column("user_id").to_pylist()
    expected = int(sides(project.settings, users).sum())
    assert expected > 0
    assert analyze_experiment(project.settings).synthetic_events_of_held_out == expected


@long
def test_the_gate_refuses_an_event_of_a_held_out_user(tmp_path):
    users = [f"u{k}" for k in range(20)]
    project = Handmade(tmp_path, items=[f"t{i}" for i in range(10)])
    project.configure('[experiment]\nholdout = 0.3\nkey = "a key of the company"\n')
    held = sides(project.settings, users)
    assert 2 < held.sum() < 12
    spec = project.run()
    frame = project.candidates(spec)
    with pytest.raises(QualityGateFailed, match="user_is_not_held_out"):
        validate_run(project.settings, spec.run_id)
    project.write(spec, frame[~frame["user_id"].isin(np.array(users)[held])])
    report = validate_run(project.settings, spec.run_id)
    assert report.passed
    assert report.figures["source_coverage"] == 1.0, "events that are not to be translated are not missing"


@pytest.mark.parametrize(
    ("columns", "error", "says"),
    [
        ({"user_id": ["u1"] * 400}, BadValue, "user u1 occurs more than once"),
        ({"value": [None] + [1.0] * 399}, BadValue, "no finite number"),
        ({"value": ["x"] * 400}, BadValue, "x"),
        ({"user_id": [None] + [f"u{k}" for k in range(1, 400)]}, BadValue, "null"),
        ({"user_id": [f"u{k}" for k in range(10)] + [f"v{k}" for k in range(390)], "value": 1.0}, None, ""),
    ],
)
def test_outcomes_that_cannot_be_judged_are_refused_by_name(project, columns, error, says):
    location = outcomes(project, **columns)
    if error is None:  # users whom the lake does not know have a side too
        assert analyze_experiment(project.settings, outcomes=location).effect.effect == 0
        return
    with pytest.raises(error, match=says) as caught:
        analyze_experiment(project.settings, outcomes=location)
    assert caught.value.next_step


def test_a_missing_column_too_few_users_and_no_experiment_are_told(project):
    (project.folder / "o.csv").write_text("user_id,worth\nu1,2\n")
    with pytest.raises(ColumnNotFound, match="no column 'value'") as caught:
        analyze_experiment(project.settings, outcomes="o.csv")
    assert "pre_value" in caught.value.next_step
    (project.folder / "o.csv").write_text("user_id,value\nu1,2\nu2,3\n")
    with pytest.raises(EvaluationError, match="20 of each are needed"):
        analyze_experiment(project.settings, outcomes="o.csv")
    with pytest.raises(EvaluationError, match="unsupported file type"):
        analyze_experiment(project.settings, out=project.folder / "sides.txt")
    with pytest.raises(SettingsError, match="nobody is held out"):
        analyze_experiment(project.configure(""))


def test_nothing_is_left_in_the_staging_folder(project):
    analyze_experiment(project.settings)
    assert not list((project.settings.home / "staging").iterdir())


def test_users_whom_no_log_knows_are_told_of(project, caplog):
    outcomes(project)
    analyze_experiment(project.settings, outcomes="outcomes.csv")
    assert "in no log" not in caplog.text
    outcomes(project, user_id=[f"zz{k}" for k in range(400)])
    assert analyze_experiment(project.settings, outcomes="outcomes.csv").effect is not None
    assert "400 of 400 users (for example 'zz0') are in no log" in caplog.text
