"""`scalr init` on logs whose names tell nothing: user, item and time by the values of both logs, or a question."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.examples import sweep
from support.obscure_logs import CLEAR_PAIRS, UNCLEAR_PAIR
from support.shown import any_numbers, difference, example
from typer.testing import CliRunner

from scalr_prod.apps.cli import app
from scalr_prod.apps.onboarding import InitPlan, LogRequest, confirm_interactively, plan_init
from scalr_prod.errors import ColumnNotFound

runner = CliRunner()
ROLES = ("user", "item", "timestamp")


@pytest.mark.parametrize("name", sweep(CLEAR_PAIRS, keep=3))
def test_obscure_names_are_found_by_their_values(name, tmp_path, monkeypatch):
    pair = CLEAR_PAIRS[name]
    monkeypatch.chdir(tmp_path)
    pair.write(tmp_path)
    done = runner.invoke(app, ["init", "--yes", "--source", pair.source, "--target", pair.target, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    domains = tomllib.loads(Path("scalr.toml").read_text(encoding="utf-8"))["domains"]
    for place, columns, title in (
        ("source", pair.source_columns, pair.source_title),
        ("target", pair.target_columns, pair.target_title),
    ):
        assert domains[place]["columns"] == dict(zip(ROLES, columns, strict=True))
        assert domains[place].get("item_columns", {}).get("title") == title
        assert [row["role"] for row in told[place]["evidence"]][:3] == list(ROLES)
        assert all(row["values"] for row in told[place]["evidence"])
    assert runner.invoke(app, ["ingest"]).exit_code == 0


def test_the_evidence_is_shown_as_in_the_guide(tmp_path, monkeypatch):
    pair = CLEAR_PAIRS["hotels and tables"]
    monkeypatch.chdir(tmp_path)
    pair.write(tmp_path)
    done = runner.invoke(app, ["init", "--yes", "--source", pair.source, "--target", pair.target])
    assert done.exit_code == 0, done.output
    shown = "\n".join(["…", *example("docs/guides/your-data.md"), "…"])
    assert difference(shown, any_numbers(done.stdout)) == ""


def test_what_the_values_do_not_tell_is_asked(tmp_path):
    UNCLEAR_PAIR.write(tmp_path)
    requests = [
        LogRequest("source", str(tmp_path / UNCLEAR_PAIR.source)),
        LogRequest("target", str(tmp_path / UNCLEAR_PAIR.target)),
    ]
    with pytest.raises(ColumnNotFound, match=r"y and x may be the user.s id") as caught:
        plan_init(tmp_path / "scalr.toml", requests)
    assert "y (368 of 395 values are in the other log, too), x (" in caught.value.found
    assert "w (" not in caught.value.found
    for place in ("source", "target"):
        assert f"--column {place}.user=NAME" in caught.value.next_step
    # On a terminal the likeliest columns are shown, and one correction per log settles it.
    shown: list = []
    answers = iter(["source.user=x", "target.user=x", ""])
    plan = confirm_interactively(
        tmp_path / "scalr.toml", requests, items={}, names={}, show=shown.append, ask=lambda _: next(answers)
    )
    assert all(isinstance(one, InitPlan) for one in shown)
    assert "is not certain; x would do too (--column source.user=NAME)" in "\n".join(shown[0].notes)
    assert {column["column"] for column in shown[0].to_summary()["source"]["evidence"]} == {"x", "y", "h", "w"}
    for domain in plan.domains.values():
        assert tuple(domain.log_guess.columns[role] for role in ROLES) == UNCLEAR_PAIR.source_columns
    assert not [note for note in plan.notes if "certain" in note]


def write_pair(folder: Path, source: pd.DataFrame, target: pd.DataFrame) -> list[LogRequest]:
    source.to_csv(folder / "a.csv", index=False)
    target.to_csv(folder / "b.csv", index=False)
    return [LogRequest("source", str(folder / "a.csv")), LogRequest("target", str(folder / "b.csv"))]


def log(rows: int, *, seed: int, items: int = 80, users: int = 100) -> pd.DataFrame:
    """Return ``p`` (a person), ``i`` (an item of the person's taste) and ``t``, ordered by time."""
    rng = np.random.default_rng(seed)
    person = rng.integers(users, size=rows)
    item = person % 4 + 4 * rng.integers(items // 4, size=rows)
    time = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.sort(rng.integers(0, 200 * 86_400, size=rows)), unit="s")
    return pd.DataFrame(
        {"p": [f"p{number:04d}" for number in person], "i": [f"i{seed}-{number}" for number in item], "t": time}
    )


def found(folder: Path, source: pd.DataFrame, target: pd.DataFrame, **more) -> dict[str, tuple[str, ...]]:
    plan = plan_init(folder / "scalr.toml", write_pair(folder, source, target), **more)
    return {place: tuple(domain.log_guess.columns[role] for role in ROLES) for place, domain in plan.domains.items()}


def test_a_known_name_goes_before_the_values(tmp_path):
    rows = log(900, seed=1).rename(columns={"t": "created_at"})
    rows["opened"] = rows["created_at"] - pd.Timedelta(hours=1)  # earlier in each row, but of no known name
    assert found(tmp_path, rows, log(700, seed=2))["source"] == ("p", "i", "created_at")


def test_one_log_with_known_names_tells_the_users_of_the_other(tmp_path):
    known = log(700, seed=2).rename(columns={"p": "user_id", "i": "item_id", "t": "timestamp"})
    source = log(900, seed=1)
    source["again"] = np.random.default_rng(0).permutation(source["i"])
    plan = plan_init(tmp_path / "scalr.toml", write_pair(tmp_path, source, known))
    assert plan.domains["source"].log_guess.columns["user"] == "p"
    assert plan.domains["target"].log_guess.evidence_rows() == []


def test_shared_groups_and_attributes_are_no_users(tmp_path):
    def with_groups(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        number = rows["p"].str[1:].astype(int)
        return rows.assign(
            land=number.map(lambda one: f"country {one % 9}"),
            shop=rng.integers(1, 30, size=len(rows)),
            event=[f"{seed}{position}" for position in range(len(rows))],
        )

    columns = found(tmp_path, with_groups(log(3000, seed=1, users=300), 1), with_groups(log(2000, seed=2, users=300), 2))
    assert columns == {"source": ("p", "i", "t"), "target": ("p", "i", "t")}


def test_a_catalogue_in_both_logs_is_asked_about(tmp_path):
    source, target = log(3000, seed=1), log(2000, seed=1)
    with pytest.raises(ColumnNotFound, match="may be the user"):
        found(tmp_path, source, target)
    source, target = (rows.rename(columns={"p": "customer"}) for rows in (source, target))
    assert found(tmp_path, source, target) == {"source": ("customer", "i", "t"), "target": ("customer", "i", "t")}


def test_dense_integers_in_both_columns_are_asked_about(tmp_path):
    def numbered(rows: pd.DataFrame) -> pd.DataFrame:
        return rows.assign(p=rows["p"].str[1:].astype(int) + 1, i=pd.factorize(rows["i"])[0] + 1)

    with pytest.raises(ColumnNotFound, match="may be the user"):
        found(tmp_path, numbered(log(3000, seed=1)), numbered(log(2000, seed=2)))


def test_counters_measurements_and_order_numbers_are_no_items(tmp_path):
    def with_numbers(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        return rows.assign(
            nth=rows.groupby("p").cumcount() + 1,
            grams=rng.integers(100, 900, size=len(rows)),
            order=rows.groupby(["p", rows["t"].dt.date]).ngroup() + 5000,
        )

    columns = found(tmp_path, with_numbers(log(3000, seed=1), 1), with_numbers(log(2000, seed=2), 2))
    assert columns == {"source": ("p", "i", "t"), "target": ("p", "i", "t")}


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_epoch_numbers_of_every_unit_are_times_and_ids_that_look_like_them_are_not(unit, tmp_path):
    source, target = log(1500, seed=1), log(1000, seed=2)
    source["t"] = source["t"].astype(f"datetime64[{unit}]").astype("int64")
    # Customer numbers of ten digits, beside a time of another form: they look like seconds since 1970.
    target["p"] = target["p"].str[1:].astype(int) * 7919 + 1_400_000_000
    source["p"] = source["p"].str[1:].astype(int) * 7919 + 1_400_000_000
    known = {"source": {"user": "p"}}
    requests = write_pair(tmp_path, source, target)
    requests[0] = LogRequest("source", requests[0].location, columns=known["source"])
    plan = plan_init(tmp_path / "scalr.toml", requests)
    assert tuple(plan.domains["source"].log_guess.columns[role] for role in ROLES) == ("p", "i", "t")
    assert tuple(plan.domains["target"].log_guess.columns[role] for role in ROLES) == ("p", "i", "t")


def test_days_that_may_be_read_in_two_orders_are_told(tmp_path):
    source = log(1500, seed=1)
    source["t"] = source["t"].map(lambda at: at.replace(day=at.day % 12 + 1)).dt.strftime("%d/%m/%Y")
    plan = plan_init(tmp_path / "scalr.toml", write_pair(tmp_path, source, log(1000, seed=2)))
    assert "read as %d/%m/%Y; %m/%d/%Y would do too" in "\n".join(plan.notes)


def test_a_time_of_the_user_or_the_item_is_not_the_events(tmp_path):
    source = log(1500, seed=1)
    source["since"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(source["p"].str[1:].astype(int), unit="D")
    source["released"] = pd.Timestamp("2021-01-01") + pd.to_timedelta(source["i"].str[3:].astype(int), unit="D")
    source["delivered"] = source["t"] + pd.Timedelta(days=3)
    source["exported"] = "2025-01-01"
    plan = plan_init(tmp_path / "scalr.toml", write_pair(tmp_path, source, log(1000, seed=2)))
    assert plan.domains["source"].log_guess.columns["timestamp"] == "t"
    assert "t was taken, the first in each row; delivered would do too" in "\n".join(plan.notes)


def test_a_few_rows_decide_nothing(tmp_path):
    with pytest.raises(ColumnNotFound, match=r"no column looks like the user.s id"):
        found(tmp_path, log(30, seed=1), log(30, seed=2))
    rows = log(40, seed=1, users=25).rename(columns={"p": "user_id", "t": "timestamp"})
    with pytest.raises(ColumnNotFound, match=r"i may be the item.s id"):
        found(tmp_path, rows, rows)


def test_logs_without_a_common_user_say_what_they_hold(tmp_path):
    other = log(1000, seed=2)
    with pytest.raises(ColumnNotFound, match=r"no column looks like the user.s id.*p \(100 values\)"):
        found(tmp_path, log(1500, seed=1), other.assign(p="q" + other["p"]))


def test_a_known_name_whose_values_are_no_users_is_passed_over(tmp_path):
    source = log(1500, seed=1)
    source["client"] = np.where(np.arange(len(source)) % 3, "ios", "android")
    assert found(tmp_path, source, log(1000, seed=2))["source"] == ("p", "i", "t")


def test_a_known_item_name_decides_between_several(tmp_path):
    def with_shelf(rows: pd.DataFrame, name: str) -> pd.DataFrame:
        shelf = rows["p"].str[1:].astype(int) % 3 + 3 * np.random.default_rng(3).integers(30, size=len(rows))
        return rows.assign(shelf=[f"s{number}" for number in shelf]).rename(columns={"i": name})

    target = log(1000, seed=2)
    with pytest.raises(ColumnNotFound, match=r"thing and shelf may be the item.s id"):
        found(tmp_path, with_shelf(log(3000, seed=1), "thing"), target)
    assert found(tmp_path, with_shelf(log(3000, seed=1), "sku"), target)["source"] == ("p", "sku", "t")


def test_several_sources_agree_on_the_targets_users(tmp_path):
    write_pair(tmp_path, log(2000, seed=1), log(1000, seed=2))
    log(1500, seed=3).rename(columns={"p": "who", "i": "what", "t": "at_time"}).to_csv(tmp_path / "c.csv", index=False)
    requests = [
        LogRequest("sources.first", str(tmp_path / "a.csv")),
        LogRequest("sources.second", str(tmp_path / "c.csv")),
        LogRequest("target", str(tmp_path / "b.csv")),
    ]
    plan = plan_init(tmp_path / "scalr.toml", requests)
    assert [domain.log_guess.columns["user"] for domain in plan.domains.values()] == ["p", "who", "p"]


def test_numbers_of_orders_in_both_logs_are_no_users(tmp_path):
    source, target = log(2000, seed=1), log(1200, seed=2)
    rng = np.random.default_rng(4)
    orders = rng.choice(np.arange(10**6, 10**7), size=2000, replace=False)
    # The target is what was sent back: one line in some of the source's orders, so that the number is in both logs.
    source["order"] = orders
    target = source.sample(1200, random_state=0).sort_values("t").assign(i=target["i"].to_numpy())
    target["t"] = target["t"] + pd.Timedelta(days=9)
    assert found(tmp_path, source, target) == {"source": ("p", "i", "t"), "target": ("p", "i", "t")}


def test_ids_of_more_digits_than_a_float_holds(tmp_path):
    large = 150_000_000_000_020_481
    logs = [log(2000, seed=1), log(1200, seed=2)]
    logs = [
        rows.assign(p=rows["p"].str[1:].astype(int) + large, i=rows["i"].str[3:].astype(int) + number * large)
        for number, rows in enumerate(logs, 2)
    ]
    requests = []
    for place, rows in zip(("source", "target"), logs, strict=True):
        rows.to_parquet(tmp_path / f"{place}.parquet", index=False)
        requests.append(LogRequest(place, str(tmp_path / f"{place}.parquet")))
    plan = plan_init(tmp_path / "scalr.toml", requests)
    assert [domain.log_guess.columns["user"] for domain in plan.domains.values()] == ["p", "p"]
