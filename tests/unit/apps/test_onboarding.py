"""`scalr init`: two logs → a scalr.toml that `scalr ingest` takes, or what is wrong with them."""

from __future__ import annotations

import json
import sqlite3
import tomllib
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
from support.onboarding_log import START, csv, form, frame, seconds
from typer.testing import CliRunner

from scalr_prod.apps.cli import app
from scalr_prod.apps.onboarding import LogRequest, apply_corrections, confirm_interactively, plan_init
from scalr_prod.apps.onboarding.names import match_columns, normalize_name
from scalr_prod.errors import BadValue, ColumnNotFound, EmptyInput, SettingsError, UnreadableInput

runner = CliRunner()


@pytest.fixture
def target(tmp_path):
    rows = frame("user_id", "item_id", "timestamp", seconds())
    rows["user_id"] = rows["user_id"].astype(str)
    rows["item_id"] = rows["item_id"].to_numpy()[::-1]  # the same log in both domains is refused
    path = tmp_path / "dishes.csv"
    rows.to_csv(path, index=False)
    return path


def test_items_and_names_come_along(tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    csv(frame("userId", "movieId", "timestamp", seconds()), "ratings.csv")(tmp_path)
    movies = pd.DataFrame({"movieId": range(100, 105), "title": ["a"] * 5, "genres": ["b|c"] * 5, "price": ["1.5"] * 5})
    movies.to_csv("movies.csv", index=False)
    asked = ["init", "--yes", "--source", "ratings.csv", "--target", str(target), "--source-items", "movies.csv"]
    done = runner.invoke(app, [*asked, "--source-name", "films"])
    assert done.exit_code == 0, done.output
    assert "userId" in done.stdout
    assert "2023-03-14T09:26:53+00:00" in done.stdout
    found = tomllib.loads(Path("scalr.toml").read_text())["domains"]
    assert found["source"]["name"] == "films"
    assert found["source"]["items"] == "movies.csv"
    assert found["source"]["item_columns"] == {"item": "movieId", "title": "title", "category": "genres", "value": "price"}
    assert found["target"]["events"] == "dishes.csv"
    assert found["target"]["name"] == "dishes"
    assert runner.invoke(app, ["ingest"]).exit_code == 0


def test_a_query_is_read_and_its_password_is_not_written(tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    with sqlite3.connect(tmp_path / "shop.db") as db:
        frame("customer_id", "product_id", "ordered_at", form("%Y-%m-%dT%H:%M:%SZ")).astype({"customer_id": str}).to_sql(
            "orders", db
        )
    url = f"sqlite:///{tmp_path}/shop.db"
    query = "SELECT customer_id, product_id, ordered_at FROM orders"
    done = runner.invoke(app, ["init", "--yes", "--source", url, "--source-query", query, "--target", str(target)])
    assert done.exit_code == 0, done.output
    found = tomllib.loads(Path("scalr.toml").read_text())["domains"]["source"]
    assert (found["url"], found["query"]) == (url, query)
    assert (
        runner.invoke(
            app, ["init", "--yes", "--force", "--source", f"{url}?timeout=3", "--source-query", query, "--target", str(target)]
        ).exit_code
        == 0
    )
    text = Path("scalr.toml").read_text()
    assert "timeout" not in text
    assert "SCALR_DOMAINS__SOURCE__URL" in text


def test_a_file_that_is_there_is_never_written_over(tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    Path("scalr.toml").write_text("# mine\n")
    asked = ["init", "--yes", "--source", str(target), "--target", str(target), "--json"]
    done = runner.invoke(app, asked)
    assert done.exit_code == 1
    assert json.loads(done.stdout)["found"] == "already exists and was not changed"
    assert Path("scalr.toml").read_text() == "# mine\n"
    assert runner.invoke(app, [*asked, "--force"]).exit_code == 0
    assert "[domains.target]" in Path("scalr.toml").read_text()
    assert not list(tmp_path.glob(".scalr.toml*"))


@pytest.mark.parametrize("config", ["dishes.csv/scalr.toml", "folder"])
def test_settings_that_cannot_be_written_are_an_error_and_leave_nothing(config, tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    asked = ["init", "--yes", "--force", "--source", str(target), "--target", str(target), "--config", config, "--json"]
    done = runner.invoke(app, asked)
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert told["found"].startswith("cannot be written")
    assert told["where"] == config
    assert sorted(tmp_path.rglob("*")) == before


def test_where_nothing_can_be_asked_usage_says_so(target):
    assert runner.invoke(app, ["init", "--source", str(target), "--target", str(target)]).exit_code == 2
    assert runner.invoke(app, ["init", "--yes", "--source", str(target)]).exit_code == 2


@pytest.fixture
def two_sources(tmp_path, monkeypatch, target):
    """Two logs whose columns go by other names; the folder is the current one."""
    monkeypatch.chdir(tmp_path)
    csv(frame("userId", "movieId", "timestamp", seconds()), "ratings.csv")(tmp_path)
    csv(frame("customer_no", "sku", "ordered_at", form("%Y-%m-%dT%H:%M:%SZ")), "orders.csv")(tmp_path)
    return ["init", "--yes", "--source", "films=ratings.csv", "--source", "shop=orders.csv", "--target", str(target)]


def test_several_sources_are_written_and_ingested(two_sources):
    pd.DataFrame({"sku": range(100, 105), "name": ["a"] * 5}).to_csv("products.csv", index=False)
    done = runner.invoke(app, [*two_sources, "--source-items", "shop=products.csv", "--json"])
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)["sources"]) == {"films", "shop"}
    found = tomllib.loads(Path("scalr.toml").read_text())["domains"]
    assert found["sources"]["films"] == {
        "events": "ratings.csv", "columns": {"user": "userId", "item": "movieId", "timestamp": "timestamp"},
    }  # fmt: skip
    assert found["sources"]["shop"]["columns"] == {"user": "customer_no", "item": "sku", "timestamp": "ordered_at"}
    assert found["sources"]["shop"]["item_columns"] == {"item": "sku", "title": "name"}
    assert found["target"]["name"] == "dishes"
    done = runner.invoke(app, ["ingest", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert [report["sources"][name]["rows_added"] for name in ("films", "shop")] == [12, 12]


def test_columns_that_are_missing_in_several_sources_are_named_at_once(two_sources, target):
    for name in ("ratings.csv", "orders.csv", str(target)):
        Path(name).write_text("a,item_id,b\n1,2,x\n")
    done = runner.invoke(app, [*two_sources, "--json"])
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    for place in ("sources.films", "sources.shop", "target"):
        for role in ("user", "timestamp"):
            assert f"--column {place}.{role}=NAME" in told["next_step"]
    assert not Path("scalr.toml").exists()


def test_a_column_of_one_of_several_sources_can_be_named(two_sources):
    csv(frame("a", "sku", "b", form("%Y-%m-%dT%H:%M:%SZ")), "orders.csv")(Path.cwd())
    named = ["--column", "sources.shop.user=a", "--column", "sources.shop.timestamp=b"]
    done = runner.invoke(app, [*two_sources, *named])
    assert done.exit_code == 0, done.output
    found = tomllib.loads(Path("scalr.toml").read_text())["domains"]["sources"]["shop"]
    assert found["columns"] == {"user": "a", "item": "sku", "timestamp": "b"}


def test_several_sources_of_a_database_have_a_query_each(two_sources, target):
    with sqlite3.connect("shop.db") as db:
        for table in ("orders", "visits"):
            frame("customer_id", "product_id", "ordered_at", form("%Y-%m-%dT%H:%M:%SZ")).to_sql(table, db)
    url = f"sqlite:///{Path.cwd()}/shop.db?timeout=3"
    asked = ["init", "--yes", "--target", str(target), "--source", f"a={url}", "--source", "b=shop.db"]
    done = runner.invoke(app, [*asked, "--source-query", "a=SELECT * FROM orders", "--json"])
    assert done.exit_code == 1
    assert '--source-query "b=SELECT * FROM orders"' in json.loads(done.stdout)["next_step"]
    done = runner.invoke(app, [*asked, "--source-query", "a=SELECT * FROM orders", "--source-query", "b=SELECT * FROM visits"])
    assert done.exit_code == 0, done.output
    text = Path("scalr.toml").read_text()
    assert "SCALR_DOMAINS__SOURCES__A__URL" in text
    assert "timeout" not in text
    assert tomllib.loads(text)["domains"]["sources"]["b"]["query"] == "SELECT * FROM visits"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--source", "ratings.csv"], "write NAME=VALUE"),
        (["--source", "a b=ratings.csv"], "write NAME=VALUE"),
        (["--source", "films=ratings.csv"], "films is given twice"),
        (["--source-items", "books=ratings.csv"], "no --source is named books"),
        (["--source-query", "SELECT 1"], "write NAME=VALUE"),
        (["--source-name", "films"], "named by --source NAME=LOG"),
    ],
)
def test_options_of_several_sources_say_which_one(two_sources, more, message):
    done = runner.invoke(app, [*two_sources, *more], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert message in done.output


def look(tmp_path: Path, target: Path, log: str, **more):
    asked = [LogRequest("source", str(tmp_path / log), **more), LogRequest("target", str(target))]
    return plan_init(tmp_path / "scalr.toml", asked)


def test_what_was_decided_is_told(tmp_path, target):
    rows = frame("user_id", "asin", "time", form("%d/%m/%Y")[:1] * 12, customer_id=[7] * 12, parent_asin=["p"] * 12)
    rows["time"] = "03/04/2024"
    rows.to_csv(tmp_path / "log.csv", index=False)
    found = look(tmp_path, target, "log.csv")
    assert found.domains["source"].log_guess.columns == {"user": "user_id", "item": "parent_asin", "timestamp": "time"}
    assert found.domains["source"].rows[0]["time"] == "2024-04-03T00:00:00+00:00"
    notes = "\n".join(found.notes)
    assert "user_id was taken; customer_id would do too" in notes
    assert "parent_asin was taken; asin would do too" in notes
    assert "read as %d/%m/%Y; %m/%d/%Y would do too" in notes
    assert "taken as UTC" in notes
    for note in found.domains["source"].log_guess.notes:
        assert note.split("] ")[1] in found.text


def test_the_file_names_commands_that_read_it(tmp_path, target):
    asked = [LogRequest(place, str(target)) for place in ("source", "target")]
    said = {name: plan_init(tmp_path / name, asked).text.splitlines()[1] for name in ("scalr.toml", "shop.toml")}
    assert said["scalr.toml"].endswith("--config scalr.toml    Go on: scalr ingest, or everything at once: scalr run")
    assert said["shop.toml"].endswith("scalr ingest --config shop.toml, or everything at once: scalr run --config shop.toml")


def test_one_log_for_both_is_remarked_on(tmp_path, target):
    assert look(tmp_path, target, target.name).notes == ["[target] log: it is the source's log, too (--target)"]


@pytest.mark.parametrize(("rows", "common", "noted"), [(12, 0, True), (12, 1, False), (12_000, 1, False)])
def test_logs_without_a_common_user_are_remarked_on(tmp_path, target, rows, common, noted):
    """The common user may be in a later row than those that the columns' names are found in."""
    users = [*(f"u{number}" for number in range(rows - common)), *["1"] * common]
    log = pd.DataFrame({"user_id": users, "item_id": "a", "timestamp": 1_700_000_000})
    log.to_csv(tmp_path / "log.csv", index=False)
    found = look(tmp_path, target, "log.csv").notes
    assert bool(found) == noted
    assert all(
        "none of the 12 users of its first 12 rows is among the 4 users of the target's first 12 rows" in note
        and "users-and-domains.md says (--column source.user=NAME)" in note
        for note in found
    )


def test_a_zone_that_is_named_is_used_and_not_remarked_on(tmp_path, target):
    csv(frame("user_id", "item_id", "ts", form("%d.%m.%Y %H:%M", "Europe/Paris")), "log.csv")(tmp_path)
    found = look(tmp_path, target, "log.csv", timezone="Europe/Paris")
    assert found.domains["source"].rows[0]["time"] == START.replace(second=0).isoformat()
    assert not [note for note in found.notes if "zone" in note]


def test_what_the_user_says_goes_before_every_guess(tmp_path, target):
    csv(frame("item_id", "user_id", "timestamp", seconds()), "log.csv")(tmp_path)
    swapped = look(tmp_path, target, "log.csv", columns={"user": "item_id", "item": "user_id"})
    assert swapped.domains["source"].log_guess.columns == {"user": "item_id", "item": "user_id", "timestamp": "timestamp"}


def written(text: str):
    return lambda path: path.write_text(text)


UNFIT = {
    "no column looks like the user's id; there are: a, item_id, timestamp": (
        "a,item_id,timestamp\n1,2,1700000000\n",
        ColumnNotFound,
    ),
    "no column looks like the item's id; there are: user_id, foo_id, bar_id": (
        "user_id,foo_id,bar_id,timestamp\n1,2,3,1700000000\n",
        ColumnNotFound,
    ),
    "no column looks like the time of the event": ("user_id,item_id,moment_of\n1,2,1700000000\n", ColumnNotFound),
    "'timestamp' looks like the time of the event, but": ("user_id,item_id,timestamp\n1,2,soon\n", BadValue),
    "epoch numbers of unclear unit": ("user_id,item_id,timestamp\n1,2,37\n", BadValue),
    "null or empty id": ("user_id,item_id,timestamp\n1,,1700000000\n", BadValue),
    "has no line of column names": ("196,242,3,881250949\n186,302,3,891717742\n", ColumnNotFound),
    "has no rows": ("user_id,item_id,timestamp\n", EmptyInput),
}


@pytest.mark.parametrize("found", UNFIT)
def test_where_nothing_fits_the_columns_and_the_option_are_named(found, tmp_path, target):
    text, kind = UNFIT[found]
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(kind, match=found.replace("'", ".")) as caught:
        look(tmp_path, target, "log.csv")
    assert "log.csv" in caught.value.where
    if "looks like" in found:
        assert "--column source." in caught.value.next_step
    assert not (tmp_path / "scalr.toml").exists()


def test_all_that_is_missing_is_named_at_once(tmp_path, target):
    (tmp_path / "log.csv").write_text("a,item_id,b\n1,2,x\n")
    with pytest.raises(ColumnNotFound) as caught:
        look(tmp_path, target, "log.csv", columns={"item": "nobody"})
    assert caught.value.found == (
        "no column 'nobody'; no column looks like the user's id; no column looks like the time of the event; "
        "there are: a, item_id, b"
    )
    for role in ("item", "user", "timestamp"):
        assert f"--column source.{role}=NAME" in caught.value.next_step
    log = str(tmp_path / "log.csv")
    with pytest.raises(ColumnNotFound) as caught:
        plan_init(tmp_path / "scalr.toml", [LogRequest("source", log), LogRequest("target", log)])
    assert "--column source.user=NAME" in caught.value.next_step
    assert "--column target.user=NAME" in caught.value.next_step


def test_a_cell_that_is_in_the_way_is_named_by_its_row(tmp_path, target):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n1,2,1700000000\n1,,1700000000\n1,,1700000000\n")
    with pytest.raises(BadValue, match="2 null or empty ids, the first one here") as caught:
        look(tmp_path, target, "log.csv")
    assert caught.value.where.endswith("log.csv, column 'item_id', row 2")
    assert caught.value.next_step.startswith("remove these rows or give them an id")


def test_other_mistakes_are_clear_errors(tmp_path, target):
    with pytest.raises(UnreadableInput, match="no such file") as caught:
        look(tmp_path, target, "nothing.csv")
    assert caught.value.next_step == "correct --source"
    asked = [LogRequest("source", str(target)), LogRequest("target", str(tmp_path / "nothing-*.csv"))]
    with pytest.raises(UnreadableInput, match="no file matches") as caught:
        plan_init(tmp_path / "scalr.toml", asked)
    assert caught.value.next_step == "correct --target"
    asked[1] = LogRequest("target", str(target))
    with pytest.raises(UnreadableInput, match="no such file") as caught:
        plan_init(tmp_path / "scalr.toml", asked, items={"target": str(tmp_path / "nothing.csv")})
    assert "--target-items" in caught.value.next_step
    (tmp_path / "log.xlsx").write_bytes(b"PK")
    with pytest.raises(UnreadableInput, match="does not show its format"):
        look(tmp_path, target, "log.xlsx")
    with pytest.raises(ColumnNotFound, match="no column 'nobody'"):
        look(tmp_path, target, "dishes.csv", columns={"user": "nobody"})
    csv(frame("user_id", "item_id", "ts", form("%Y-%m-%d")), "naive.csv")(tmp_path)
    with pytest.raises(SettingsError, match="not an IANA time zone") as caught:
        look(tmp_path, target, "naive.csv", timezone="Mars/Base")
    assert caught.value.where == "--timezone"
    asked = [LogRequest("source", str(target)), LogRequest("target", str(target))]
    with pytest.raises(SettingsError, match="1 to 64 letters") as caught:
        plan_init(tmp_path / "scalr.toml", asked, names={"target": "/"})
    assert caught.value.where == "--source-name, --target-name"
    frame("user_id", "item_id", "timestamp", seconds()).to_parquet(tmp_path / "typed.parquet")
    rows = frame("user_id", "item_id", "timestamp", seconds())
    rows["user_id"] = "u" + rows["user_id"].astype(str)
    rows.to_csv(tmp_path / "text.csv", index=False)
    with pytest.raises(BadValue, match="is not an int64"):
        plan_init(
            tmp_path / "scalr.toml",
            [LogRequest("source", str(tmp_path / "typed.parquet")), LogRequest("target", str(tmp_path / "text.csv"))],
        )
    for correction in ("user=x", "source.colour=x", "middle.user=x", "source.user="):
        with pytest.raises(SettingsError, match="is not a correction"):
            apply_corrections([LogRequest("source", "a"), LogRequest("target", "b")], [correction])


def test_a_wrong_guess_is_one_prompt_away(tmp_path, target):
    rows = frame("customer_id", "item_id", "ts", form("%Y-%m-%d %H:%M:%S"), user_id=["staff"] * 12)
    rows.to_csv(tmp_path / "log.csv", index=False)
    answers = iter(["source.user=nobody", "source.user=customer_id", "what", "timezone=Asia/Tokyo", ""])
    shown: list = []
    asked = [LogRequest("source", str(tmp_path / "log.csv")), LogRequest("target", str(target))]
    found = confirm_interactively(
        tmp_path / "scalr.toml", asked, items={}, names={}, show=shown.append, ask=lambda _: next(answers)
    )
    assert [type(one).__name__ for one in shown] == ["InitPlan", "ColumnNotFound", "InitPlan", "SettingsError", "InitPlan"]
    assert found.domains["source"].log_guess.columns["user"] == "customer_id"
    assert found.domains["source"].rows[0]["time"] == (START - timedelta(hours=9)).isoformat()
    with pytest.raises(UnreadableInput):
        confirm_interactively(
            tmp_path / "x",
            [LogRequest("source", "none.csv"), asked[1]],
            items={},
            names={},
            show=shown.append,
            ask=lambda _: "",
        )


@pytest.mark.parametrize(
    ("name", "found"),
    [("userId", "user_id"), ("userid", "user_id"), ("reviewerID", "reviewer_id"), ("item_id:token", "item_id"), ("User Id", "user_id"),
     ("unixReviewTime", "unix_review_time"), ("paid", "paid"), ("isbn", "isbn")],
)  # fmt: skip
def test_names_are_compared_in_one_form(name, found):
    assert normalize_name(name) == found


def test_an_item_of_unknown_name_is_taken_where_it_is_the_only_id():
    assert match_columns("item", ["user_id", "garment_code", "rating"], ["user_id"]) == ["garment_code"]
    assert match_columns("item", ["user_id", "garment_code", "shelf_no"], ["user_id"]) == []
