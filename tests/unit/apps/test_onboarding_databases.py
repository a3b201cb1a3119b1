"""`scalr init` on a database without a query, and what it does with ids and zones that only strangers have."""

from __future__ import annotations

import sqlite3
import tomllib
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from scalr_prod.apps.cli import app
from scalr_prod.apps.onboarding import LogRequest, apply_corrections, plan_init
from scalr_prod.apps.onboarding.names import match_columns
from scalr_prod.config.settings import load_settings
from scalr_prod.errors import ColumnNotFound
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table

runner = CliRunner()
TIMES = [f"2024-03-{day:02d} 10:00:00" for day in range(1, 13)]


def database(path: Path, **tables: dict) -> None:
    with sqlite3.connect(path) as db:
        for name, columns in tables.items():
            pd.DataFrame(columns).to_sql(name, db, index=False)
    db.close()


def loans(user: str = "customer_id") -> dict:
    return {user: [1, 2, 3] * 4, "book_id": range(12), "loaned_at": TIMES}


@pytest.fixture
def ratings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"userId": [1, 2, 3] * 4, "movieId": range(12), "timestamp": range(1_700_000_000, 1_700_000_012)}).to_csv(
        "ratings.csv", index=False
    )
    return tmp_path


@pytest.mark.parametrize("location", ["sqlite:///library.db", "library.db"])
def test_the_only_table_that_looks_like_a_log_is_read(ratings, monkeypatch, location):
    database(ratings / "library.db", members={"id": [1], "name": ["a"]}, **{"all loans": loans()})
    done = runner.invoke(app, ["init", "--yes", "--source", "ratings.csv", "--target", location])
    assert done.exit_code == 0, done.output
    found = tomllib.loads(Path("scalr.toml").read_text())["domains"]["target"]
    assert found["query"] == 'SELECT * FROM "all loans"'
    assert found["name"] == "all loans"
    monkeypatch.chdir("/")  # a schedule starts the command somewhere else
    config = str(ratings / "scalr.toml")
    assert runner.invoke(app, ["ingest", "--config", config]).exit_code == 0
    assert len(Lake.open(load_settings(config)).read(Table.TARGET_EVENTS)) == 12


@pytest.mark.parametrize(
    ("tables", "said", "next_step"),
    [
        ({"loans": loans(), "returns": loans("user_id")}, "several tables look like a log: loans, returns", "FROM loans"),
        ({"members": {"id": [1], "name": ["a"]}}, "no table looks like a log; there are: members (id, name)", "FROM members"),
        ({}, "no table looks like a log; there are: none", "FROM TABLE"),
    ],
)
def test_where_no_single_table_fits_they_are_listed(ratings, tables, said, next_step):
    database(ratings / "library.db", **tables)
    with pytest.raises(ColumnNotFound) as caught:
        plan_init(ratings / "scalr.toml", [LogRequest("source", "ratings.csv"), LogRequest("target", "sqlite:///library.db")])
    assert said in caught.value.found
    assert "--target-query" in caught.value.next_step
    assert next_step in caught.value.next_step


def test_a_column_that_is_named_tells_tables_apart(ratings):
    database(ratings / "library.db", loans=loans(), returns=loans("who"))
    asked = [LogRequest("source", "ratings.csv"), LogRequest("target", "library.db", columns={"user": "who"})]
    assert plan_init(ratings / "scalr.toml", asked).domains["target"].request.table == "returns"


def test_a_zone_may_be_of_one_log_alone(ratings):
    database(ratings / "library.db", loans=loans())
    asked = apply_corrections(
        [LogRequest("source", "ratings.csv"), LogRequest("target", "library.db")], ["target.timezone=Asia/Tokyo"]
    )
    rows = plan_init(ratings / "scalr.toml", asked).domains["target"].rows
    assert rows[0]["time"] == "2024-03-01T01:00:00+00:00"


def test_ids_that_pandas_wrote_as_floats_are_the_same_users(ratings):
    rows = {
        "user_id:token": [1.0, 2.0, 3.0] * 4,
        "item_id:token": [float(n) for n in range(12)],
        "timestamp:float": [1.7e9] * 12,
    }
    pd.DataFrame(rows).to_csv("books.inter", sep="\t", index=False)
    beginning = plan_init(ratings / "scalr.toml", [LogRequest("source", "ratings.csv"), LogRequest("target", "books.inter")])
    assert [row["user"] for row in beginning.domains["target"].rows[:3]] == ["1", "2", "3"]
    beginning.write()
    assert runner.invoke(app, ["ingest"]).exit_code == 0
    found = Lake.open(load_settings("scalr.toml")).read(Table.TARGET_EVENTS)
    assert sorted(set(found["user_id"].to_pylist())) == [1, 2, 3]


def test_names_in_capitals_with_other_words_for_an_id():
    header = ["RECEIPT", "CUSTOMER_NO", "ARTICLE_NO", "SOLD_ON", "AMOUNT"]
    assert [match_columns(role, header) for role in ("user", "item", "timestamp")] == [
        ["CUSTOMER_NO"],
        ["ARTICLE_NO"],
        ["SOLD_ON"],
    ]
    assert match_columns("timestamp", ["sold_on", "shipped_on"]) == []


def test_an_error_does_not_print_the_url_s_secrets(ratings):
    database(ratings / "library.db", loans={"one": ["a", "b"] * 6, "two": ["c", "d", "e"] * 4})
    url = "sqlite:///library.db?timeout=567"
    done = runner.invoke(
        app, ["init", "--yes", "--source", "ratings.csv", "--target", url, "--target-query", "SELECT * FROM loans"]
    )
    assert done.exit_code == 1, done.output
    assert "library.db?timeout=***" in done.output
    assert "567" not in done.output
