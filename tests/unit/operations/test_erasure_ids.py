"""`scalr forget`: ids are the log's, to the letter."""

from __future__ import annotations

import html
import json

import markupsafe
import pandas as pd
import pytest
from jinja2.utils import htmlsafe_json_dumps
from support.examples import sweep
from typer.testing import CliRunner

from scalr_prod.apps.cli import app
from scalr_prod.config.settings import load_settings
from scalr_prod.errors import ForgettingError
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.ledger import Ledger
from scalr_prod.operations.erasure import erase_users
from scalr_prod.operations.erasure.scrubbing import ItemSubjects, UserSubjects
from scalr_prod.schemas import Table
from scalr_prod.workspace import suppression_list


@pytest.fixture
def settings(tmp_path):
    """A lake in which 'ada' and 'ada ' are two people, and ' bob' has no namesake."""
    times = pd.date_range("2024-01-01", periods=4, tz="UTC").as_unit("us")
    for name in ("source", "target"):
        rows = {"user_id": ["ada", "ada ", " bob", "cleo"], "item_id": ["a", "b", "c", "d"], "timestamp": times}
        pd.DataFrame(rows).to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "scalr.toml").write_text(
        '[project]\nname = "blanks"\n[domains.source]\nname = "shop"\nevents = "source.parquet"\n'
        '[domains.target]\nname = "films"\nevents = "target.parquet"\n'
    )
    found = load_settings(tmp_path / "scalr.toml")
    ingest(found)
    return found


def users(settings) -> set[str]:
    return set(Lake.open(settings).read(Table.SOURCE_EVENTS).column("user_id").to_pylist())


def test_an_id_with_blanks_is_its_own(settings):
    assert erase_users(settings, ["ada "]).removed["source_events"] == 1
    assert users(settings) == {"ada", " bob", "cleo"}
    again = erase_users(settings, ["ada "])  # the lake has no such user any more, and yet the id is known
    assert again.known == 1
    assert users(settings) == {"ada", " bob", "cleo"}


def test_an_id_with_blanks_that_nobody_has_is_refused(settings):
    """In place of success, or of another user's removal."""
    with pytest.raises(ForgettingError, match=r"no such user: 'cleo ' \(1 in all\)"):
        erase_users(settings, ["cleo ", " bob"])
    assert users(settings) == {"ada", "ada ", " bob", "cleo"}


def test_ids_without_an_event_are_counted_and_suppressed_all_the_same(settings, caplog):
    assert erase_users(settings, ["ada", "dora", "emil"]).removed["source_events"] == 1
    assert "no event was found of 2 of 3 users" in caplog.text
    assert "dora" not in caplog.text
    caplog.clear()
    assert erase_users(settings, ["dora"]).known == 1
    assert "no event was found" not in caplog.text, "they are known to be suppressed"


def test_a_file_of_ids_is_taken_to_the_letter(settings, tmp_path):
    (tmp_path / "ids.txt").write_bytes(b"ada \r\n\r\n   \r\n bob\r\n")
    done = CliRunner().invoke(
        app, ["forget", "--config", str(tmp_path / "scalr.toml"), "--file", str(tmp_path / "ids.txt"), "--json"]
    )
    assert done.exit_code == 0, done.output
    assert users(settings) == {"ada", "cleo"}


def test_json_lines_name_ids_that_contain_newlines(settings, tmp_path):
    rows = pd.read_parquet(tmp_path / "source.parquet")
    pd.concat([rows, rows.tail(1).assign(user_id="dora\nde\u2028la")]).to_parquet(tmp_path / "source.parquet")
    ingest(settings)
    assert "dora\nde\u2028la" in users(settings)
    listed, config = tmp_path / "ids.jsonl", ["--config", str(tmp_path / "scalr.toml"), "--json"]
    listed.write_text(json.dumps("dora\nde\u2028la") + "\n\n" + json.dumps("ada ") + "\n")
    found = CliRunner().invoke(app, ["forget", "--file", str(listed), *config])
    assert found.exit_code == 0, found.output
    assert users(settings) == {"ada", " bob", "cleo"}


@pytest.mark.parametrize("line", sweep(["cleo", "[" * 100_000, "[1]", "true", "null", "1.5", '{"user_id": "cleo"}'], keep=2))
def test_a_json_line_that_is_no_id_is_an_error_that_names_it(settings, tmp_path, line):
    listed = tmp_path / "ids.jsonl"
    listed.write_text(f'"cleo"\n{line}\n')
    found = CliRunner().invoke(app, ["forget", "--config", str(tmp_path / "scalr.toml"), "--file", str(listed), "--json"])
    assert found.exit_code == 1
    assert json.loads(found.stdout)["where"] == f"{listed}, line 2"
    assert "cleo" in users(settings)


def test_numbers_of_the_package_s_own_are_no_ids():
    document = {
        "versions": {"source_user_history": 5, "target_user_history": {"version": 5}},
        "rows": 5,
        "users": {"all": 5, "cold": 3},
        "vocabulary": {"users.parquet": {"rows": 5, "bytes": 5}},
        "result": {"unexpected_count": 5, "element_count": 5, "observed_value": 5},
    }
    for ids in (UserSubjects([5]), ItemSubjects([5])):
        assert ids.scrub_json(document) == (document, 0)


def test_numbers_that_show_values_of_rows_are_taken_out():
    document = {
        "partial_unexpected_list": [5, 7],
        "partial_unexpected_counts": [{"value": 5, "count": 5}],
        "examples": {"user_id": 5, "item_id": 5},
        "observed_value": [5],
        "rows": [{"user_id": 5, "item_id": 1}, {"user_id": 7, "item_id": 5}],
    }
    gone = "[forgotten]"
    assert UserSubjects([5]).scrub_json(document)[0] == {
        "partial_unexpected_list": [gone, 7],
        "partial_unexpected_counts": [{"value": gone, "count": 5}],
        "examples": {"user_id": gone, "item_id": 5},
        "observed_value": [gone],
        "rows": [{"user_id": 7, "item_id": 5}],
    }
    assert ItemSubjects([5]).scrub_json(document)[0]["examples"] == {"user_id": 5, "item_id": gone}


def test_other_people_s_files_in_the_home_stay_as_they_are(settings, tmp_path):
    """The home may be a folder with other files in it, as the project's own."""
    home = settings.with_sections(project={"home": ".", "name": "beside"})
    theirs = {
        "notes.txt": "ada called",
        "src/main.py": "ada = 1",
        "package.json": '{"user": "ada"}',
        ".hidden/ada.csv": "ada,1",
    }
    for name, text in theirs.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    ingest(home)
    logs = {path: path.read_bytes() for path in tmp_path.glob("*.parquet")}
    (home.home / "reports").mkdir()
    (home.home / "reports" / "run.html").write_text("<td>ada</td>")
    assert erase_users(home, ["ada"]).removed["source_events"] == 1
    assert {name: (tmp_path / name).read_text() for name in theirs} == theirs
    assert logs == {path: path.read_bytes() for path in logs}
    assert (home.home / "reports" / "run.html").read_text() == "<td>[forgotten]</td>"


def test_an_id_called_none_is_no_missing_key():
    document = {"files": [{"path": "a"}, {"path": "b", "user": None}], "users": [{"user": "None"}, {"user": "ada"}]}
    assert UserSubjects(["None"]).scrub_json(document)[0] == {"files": document["files"], "users": [{"user": "ada"}]}


def test_a_short_number_is_an_id_where_a_page_says_so():
    page = (
        '<meta content="initial-scale=5"><rect x="5"/><p>5 events, version 5</p><td>5</td><span>3 May, user 5</span>user_id = 5'
    )
    shown, number = UserSubjects([5]).scrub_text(page)
    gone = "[forgotten]"
    assert shown == (
        f'<meta content="initial-scale=5"><rect x="5"/><p>5 events, version 5</p><td>{gone}</td><span>3 May, user {gone}</span>'
        f"user_id = {gone}"
    )
    assert number == 3
    assert UserSubjects([55]).scrub_text("user 5, user 555, user 5.5") == ("user 5, user 555, user 5.5", 0)


@pytest.mark.parametrize("identifier", ["o'brien@x.com", "R&D-17", 'a"b', "x<y", "müller"])
@pytest.mark.parametrize("write", [str, html.escape, markupsafe.escape, json.dumps, htmlsafe_json_dumps])
def test_an_id_is_removed_from_pages_and_logs_however_they_escape_it(identifier, write, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(f"<td>{write(identifier)}</td>")
    assert UserSubjects([identifier]).scrub_file(page) == 1
    assert page.read_text() in {"<td>[forgotten]</td>", '<td>"[forgotten]"</td>'}


@pytest.mark.parametrize("spelled", sweep(["1_2", "", "+12", "\u0661\u0662", "12.0", "0x0c"], keep=2))
def test_an_integer_is_spelled_as_the_log_spells_it(spelled, tmp_path):
    """Python would take most of these for 12: another user, who was not named, would be gone for good."""
    times = pd.date_range("2024-01-01", periods=2, tz="UTC").as_unit("us")
    for name in ("source", "target"):
        pd.DataFrame({"user_id": [12, 7], "item_id": [1, 2], "timestamp": times}).to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "scalr.toml").write_text(
        '[domains.source]\nname = "shop"\nevents = "source.parquet"\n[domains.target]\nname = "films"\nevents = "target.parquet"\n'
    )
    settings = load_settings(tmp_path / "scalr.toml")
    ingest(settings)
    with pytest.raises(ForgettingError):
        erase_users(settings, [spelled])
    assert users(settings) == {12, 7}


def test_delta_logs_of_evaluations_stay_and_a_damaged_file_is_named(settings):
    log = settings.home / "evaluations" / "test-0" / "lake" / "source_events" / "_delta_log" / "0.json"
    log.parent.mkdir(parents=True)
    log.write_text('{"add": {"stats": "ada"}}\n{"add": {}}\n')
    damaged = settings.home / "evaluations" / "report" / "arms.parquet"
    damaged.parent.mkdir()
    damaged.write_bytes(b"PAR1")
    with pytest.raises(ForgettingError, match="the file is damaged") as caught:
        erase_users(settings, ["ada"])
    assert caught.value.where == str(damaged)
    damaged.unlink()
    erase_users(settings, ["ada"])
    assert "ada" in log.read_text()
    assert users(settings) == {"ada ", " bob", "cleo"}


def test_many_ids_are_two_writes_of_the_list(settings, monkeypatch):
    """One with what is to be erased, one when it is: a write for each id would take time with the square of their number."""
    written = []
    write = suppression_list._write
    monkeypatch.setattr(suppression_list, "_write", lambda path, text: written.append(path.name) or write(path, text))
    assert erase_users(settings, ["ada", "ada ", " bob", "cleo"]).users == 4
    assert written == ["secret", "tombstones.json", "tombstones.json"]
    entries = suppression_list.SuppressionList.open(settings).users
    assert [entry.done for entry in entries.values()] == [True] * 4
    with Ledger.open(settings) as ledger:
        assert {change.key for change in ledger.changes.find(subject="forgotten")} == set(entries)
