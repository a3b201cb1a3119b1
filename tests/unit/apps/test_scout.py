"""`scalr scout`: logs of several domains → every pair measured, a page, and a scalr.toml for the best pair."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from benchmarks.worlds import Events, World
from scalr_prod.apps.cli import app
from scalr_prod.apps.onboarding import find_logs, plan_scout
from scalr_prod.apps.onboarding.log_request import LogRequest
from scalr_prod.apps.onboarding.scout import domain_key
from scalr_prod.config import load_settings
from scalr_prod.errors import SettingsError

runner = CliRunner()


def frame(events: Events, *, user: str = "user_id", first_user: int = 0) -> pd.DataFrame:
    at = pd.to_datetime(events.time, unit="us", utc=True)
    return pd.DataFrame({user: events.user + first_user, "item_id": events.item, "timestamp": at})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two domains, the first of which has few items and tells something of the other; and what is no log."""
    logs = World(signal=0.8, users=400, topics=16, source_items=16, target_items=320).make()
    folder = tmp_path / "logs"
    folder.mkdir()
    frame(logs.source).to_parquet(folder / "Cook & Dine.parquet")
    frame(logs.target).to_csv(folder / "food.csv", index=False)
    (folder / "README.md").write_text("What these are.")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCALR_TRANSLATOR__THREADS", "1")
    return folder


@pytest.mark.slow
def test_a_folder_gives_a_table_a_page_and_settings_that_read_the_logs(folder):
    done = runner.invoke(app, ["scout", "logs", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["pairs"][0]["source"], found["pairs"][0]["target"]) == ("cook_dine", "food")
    assert len(found["pairs"]) == 2
    assert found["pairs"][0]["own_over_others"]["ci99"][0] > 0
    assert found["best"] == {"sources": ["cook_dine"], "target": "food", "further_sources": []}
    assert found["notes"][-1].startswith("README.md was left out")
    text = Path("scalr.toml").read_text()
    assert text.startswith("# Best of 2 pairs by `scalr scout`: cook_dine → food, expected gain +")
    settings = load_settings("scalr.toml")
    assert settings.domains.source.name == "cook_dine"
    assert settings.domains.source.events == "logs/Cook & Dine.parquet"
    assert settings.domains.target.columns.user == "user_id"
    assert runner.invoke(app, ["ingest"]).exit_code == 0
    page = Path("scout.html").read_text()
    assert "cook_dine → food" in page
    assert "<script" not in page


def test_where_no_users_are_shared_all_pairs_are_listed_and_the_exit_code_is_3(folder):
    logs = World(users=40, topics=4, source_items=8, target_items=8).make()
    frame(logs.source, first_user=10_000).to_parquet(folder / "Cook & Dine.parquet")
    done = runner.invoke(app, ["scout", "logs"])
    assert done.exit_code == 3, done.output
    assert done.stdout.count("no common users") == 2
    assert "none: no run is expected to help" in done.stdout
    assert not Path("scalr.toml").exists()
    assert "No pair." in Path("scout.html").read_text()


def test_a_settings_file_that_is_there_is_an_error_before_anything_is_read(folder):
    Path("scalr.toml").write_text("mine")
    done = runner.invoke(app, ["scout", "nowhere"])
    assert done.exit_code == 1
    assert "already exists" in done.stderr
    assert Path("scalr.toml").read_text() == "mine"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["nowhere"], "the folder of logs cannot be read"),
        (["empty"], "no log was found"),
        (["--log", "food=logs/food.csv"], "one log is no pair of domains"),
        (["--log", "food=logs/food.csv", "--log", "kitchen=logs/gone.csv"], "gone.csv"),
        (["--log", "food=logs/food.csv", "--log", "kitchen=logs/broken.parquet"], "broken.parquet"),
        (["--log", "food=logs/food.csv", "--log", "kitchen=logs/odd.csv"], "--column logs.kitchen.item=NAME"),
        (["--log", "food=logs/food.csv", "--log", "kitchen=logs/late.csv"], "column 'timestamp', row 20001"),
    ],
)
def test_bad_input_is_a_clear_error_and_leaves_nothing(folder, given, message):
    Path("empty").mkdir()
    (folder / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    (folder / "odd.csv").write_text("user_id,timestamp\n1,2024-01-01\n")
    good = pd.DataFrame({"user_id": range(20_000), "item_id": range(20_000), "timestamp": "2024-01-01T00:00:00Z"})
    pd.concat([good, good.head(1).assign(timestamp="soon")]).to_csv(folder / "late.csv", index=False)
    done = runner.invoke(app, ["scout", *given])
    assert done.exit_code == 1, done.output
    assert message in done.stderr
    assert "next:" in done.stderr
    assert not Path("scalr.toml").exists()
    assert not Path("scout.html").exists()


@pytest.mark.parametrize("given", [[], ["logs", "--log", "a=b"], ["--log", "a"], ["--log", "a=b", "--log-query", "c=SELECT 1"]])
def test_wrong_usage_is_said(folder, given):
    assert runner.invoke(app, ["scout", *given]).exit_code == 2


def test_columns_are_guessed_by_values_against_a_log_whose_names_tell_them(tmp_path, monkeypatch):
    """The log with names is not the last one, where `scalr init` would have the target."""
    monkeypatch.chdir(tmp_path)
    logs = World(users=300, topics=8, source_items=64, target_items=64).make()
    frame(logs.source).to_csv("named.csv", index=False)
    frame(logs.target).set_axis(["who", "what", "then"], axis=1).to_csv("obscure.csv", index=False)
    requests = [LogRequest(f"logs.{name}", f"{name}.csv") for name in ("named", "obscure")]
    plan = plan_scout(requests)
    assert dict(plan.guesses["obscure"].columns) == {"user": "who", "item": "what", "timestamp": "then"}
    assert list(plan.requests) == ["named", "obscure"]


def test_logs_of_one_name_are_refused_and_names_are_made_valid(tmp_path):
    for name in ("a b.csv", "A-B.parquet"):
        (tmp_path / name).write_text("")
    with pytest.raises(SettingsError, match="would both be called a_b"):
        find_logs(tmp_path)
    assert [domain_key(text) for text in ("2024 Sales", "Hotels & Travel", "–")] == ["log_2024_sales", "hotels_travel", "log"]


def test_folders_of_files_are_logs_and_hidden_files_are_not(tmp_path):
    (tmp_path / "food").mkdir()
    (tmp_path / "food" / "part-0.parquet").write_text("")
    (tmp_path / "docs").mkdir()
    (tmp_path / ".hidden.csv").write_text("")
    (tmp_path / "kitchen.csv.gz").write_text("")
    found = find_logs(tmp_path)
    assert list(found.locations) == ["food", "kitchen"]
    assert found.left_out == ("docs",)
