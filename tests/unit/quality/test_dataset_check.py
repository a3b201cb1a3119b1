"""Checks of anybody's training set: every rule of the suite that is built in is broken once and named; suites are the user's."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from deltalake import write_deltalake
from pyarrow import csv
from support.examples import sweep
from support.training_set_folder import write_version
from training_set.test_matrix import table_of
from typer.testing import CliRunner

from scalr_prod import Project
from scalr_prod.apps.cli import app
from scalr_prod.errors import (
    EmptyInput,
    ForeignFiles,
    QualityError,
    QualityGateFailed,
    SettingsError,
    TrainingSetError,
    UnreadableInput,
)
from scalr_prod.quality import check_dataset
from scalr_prod.quality.suites import read_suite, resolve_rules, write_suite

#: Reads the same rows in another form; one form of each reader is checked by the others.
long = pytest.mark.long

runner = CliRunner()
DAY = timedelta(days=1)
START = datetime(2024, 1, 1, tzinfo=UTC)
STAMP = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.int64()),
        ("event_timestamp", STAMP),
        ("label", pa.int8()),
        ("weight", pa.float32()),
        ("is_synthetic", pa.bool_()),
        ("history__event_timestamps", pa.list_(STAMP)),
        ("stats__first_seen", STAMP),
        ("stats__count", pa.int64()),
    ]
)


def good(rows: int = 60) -> list[dict]:
    return [
        {
            "user_id": f"u{number % 7}",
            "item_id": number,
            "event_timestamp": START + number * DAY,
            "label": int(number % 3 > 0),
            "weight": 0.5,
            "is_synthetic": number % 2 == 0,
            "history__event_timestamps": [START - DAY, START + number * DAY - timedelta(microseconds=1)],
            "stats__first_seen": START - DAY if number % 2 else None,
            "stats__count": number,
        }
        for number in range(rows)
    ]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Without a project: where data docs go by default is below the current folder."""
    monkeypatch.chdir(tmp_path)


def put(rows: list[dict], path: Path, schema: pa.Schema = SCHEMA) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


def failed(verdict) -> list[str]:
    return [rule.rule for rule in verdict.rules if rule.outcome == "failed"]


def test_a_good_data_set_passes_without_a_project(tmp_path):
    verdict = check_dataset(put(good(), tmp_path / "rows.parquet"))
    assert verdict.passed
    assert (verdict.kind, verdict.rows, verdict.suite_file) == ("parquet", 60, "built in")
    assert {rule.outcome for rule in verdict.rules} == {"passed"}
    assert len(verdict.rules) > 20
    assert verdict.require() is verdict
    docs = Path(verdict.docs)
    assert docs == tmp_path / "scalr_quality" / "data_docs" / "index.html"
    assert "training" in docs.read_text()
    pages = "".join(page.read_text() for page in docs.parent.rglob("*.html"))
    assert "history__event_timestamps is from before" in pages
    assert not list((tmp_path / "scalr_quality" / "staging").glob("quality-*"))


@pytest.mark.parametrize(
    ("collapsed", "refused"),
    sweep([(450, ["item_shares", "effective_items"]), (60, []), (150, ["item_shares"]), (0, [])], keep=1),
)
def test_synthetic_rows_that_collapse_to_an_item_are_refused(tmp_path, collapsed, refused):
    rows = [
        row | {"user_id": f"u{number // 2}", "is_synthetic": number % 2 == 0, "label": 1, "item_id": number // 2 % 300}
        for number, row in enumerate(good(900))
    ]
    for row in [row for row in rows if row["is_synthetic"]][:collapsed]:
        row["item_id"] = 7
    verdict = check_dataset(put(rows, tmp_path / "rows.parquet"))
    assert failed(verdict) == refused
    few = check_dataset(put([row for row in rows if int(row["user_id"][1:]) < 190], tmp_path / "few.parquet"))
    assert failed(few) == [], "of 190 users it could be chance"


@pytest.mark.parametrize(("items", "refused"), sweep([(15, []), (5, ["effective_items"])], keep=1))
def test_synthetic_rows_of_few_items_are_judged_as_the_gate_judges_them(tmp_path, items, refused):
    """The default temperature draws few items where demand is of a season: the gate accepts a ratio of 0.03, and so does this suite."""
    rows = [
        row | {"user_id": f"u{number // 2}", "is_synthetic": number % 2 == 0, "label": 1, "item_id": number // 2 % 300}
        for number, row in enumerate(good(900))
    ]
    for number, row in enumerate(row for row in rows if row["is_synthetic"]):
        row["item_id"] = number % items
    assert [rule for rule in failed(check_dataset(put(rows, tmp_path / "rows.parquet"))) if rule != "item_shares"] == refused


def change(row: int, **values: object):
    return lambda rows: rows[row].update(values)


def every(**values: object):
    return lambda rows: [row.update(values) for row in rows]


BROKEN = {
    "user_is_present": {"user_id": None},
    "item_is_present": {"item_id": None},
    "timestamp_is_present": {"event_timestamp": None},
    "label_is_present": {"label": None},
    "label_is_0_or_1": {"label": 2},
    "weight_is_finite": {"weight": math.nan},
    "weight_is_finite (infinite)": {"weight": math.inf},
    "weight_is_finite (negative)": {"weight": -0.1},
    "weight_is_finite (null)": {"weight": None},
    "history__event_timestamps_before_the_label": {"history__event_timestamps": [START + 100 * DAY]},
    "stats__first_seen_before_the_label": {"stats__first_seen": START + 100 * DAY},
}


def test_each_broken_rule_is_named_with_the_rows_that_break_it(tmp_path):
    rows = good()
    for number, values in enumerate(BROKEN.values()):
        rows[number].update(values)
    rows.append(dict(rows[30]))
    verdict = check_dataset(put(rows, tmp_path / "rows.parquet"))
    assert not verdict.passed
    assert set(failed(verdict)) == {*(name.split(" ")[0] for name in BROKEN), "synthetic_rows_are_unique"}
    broken = {rule.rule: rule.observed if rule.failed is None else rule.failed for rule in verdict.rules}
    assert {name: broken[name] for name in failed(verdict)} == {
        **dict.fromkeys((name for name in BROKEN if "(" not in name), 1),
        "weight_is_finite": 4,
        "synthetic_rows_are_unique": 1,
    }
    with pytest.raises(QualityGateFailed, match="label_is_0_or_1") as caught:
        verdict.require()
    assert caught.value.exit_code == 3
    assert caught.value.where == verdict.docs


SHARES = {
    "share_of_synthetic_weight": lambda rows: [row.update(weight=0.01) for row in rows if not row["is_synthetic"]],
    "positives": lambda rows: [row.update(label=0) for row in rows],
}


@pytest.mark.parametrize("name", sweep(SHARES, keep=1))
def test_a_share_out_of_bounds_is_named_alone(name, tmp_path):
    rows = good()
    SHARES[name](rows)
    verdict = check_dataset(put(rows, tmp_path / "rows.parquet"))
    assert failed(verdict) == [name]
    (told,) = (str(rule) for rule in verdict.rules if rule.rule == name)
    assert re.search(r": found 1: \{'share': 0(\.\d+)?\}$", told), told


def test_a_warning_does_not_refuse(tmp_path):
    rows = good()
    for number, row in enumerate(rows):
        row.update(stats__first_seen=None, label=1, is_synthetic=number > 0, weight=50.0 if number == 0 else 0.5)
    verdict = check_dataset(put(rows, tmp_path / "rows.parquet"))
    assert verdict.passed
    warned = [rule.rule for rule in verdict.rules if rule.outcome == "warning"]
    assert warned == ["stats__first_seen_mostly_null", "share_of_synthetic_rows"], "a set of positives alone is for ranking"


@long
def test_labels_may_be_true_and_false_and_a_real_event_may_be_there_twice(tmp_path):
    rows = [{**row, "label": bool(row["label"])} for row in good()]
    schema = SCHEMA.set(3, pa.field("label", pa.bool_()))
    verdict = check_dataset(put([*rows, rows[3]], tmp_path / "rows.parquet", schema))
    assert {rule.outcome for rule in verdict.rules} == {"passed"}
    every(label=False)(rows)
    assert failed(check_dataset(put(rows, tmp_path / "rows.parquet", schema))) == ["positives"]


def test_what_is_wrong_is_told_with_counts_and_examples(tmp_path):
    rows = good()
    rows[1]["label"] = rows[2]["label"] = 7
    rows[4]["stats__first_seen"] = START + 40 * DAY
    found = {rule.rule: rule for rule in check_dataset(put(rows, tmp_path / "rows.parquet")).rules}
    assert (found["label_is_0_or_1"].checked, found["label_is_0_or_1"].failed) == (60, 2)
    assert found["label_is_0_or_1"].examples == ("7", "7")
    leak = found["stats__first_seen_before_the_label"]
    assert leak.observed == 1
    assert "2024-02-10" in leak.examples[0]


def test_columns_of_the_wrong_type_are_named(tmp_path):
    rows = [{**row, "event_timestamp": "yesterday", "user_id": 1.5, "label": "yes"} for row in good()]
    schema = SCHEMA.set(2, pa.field("event_timestamp", pa.string())).set(0, pa.field("user_id", pa.float64()))
    schema = schema.set(3, pa.field("label", pa.string()))
    verdict = check_dataset(put(rows, tmp_path / "rows.parquet", schema))
    assert {"user_type", "timestamp_type", "label_type", "label_is_0_or_1"} <= set(failed(verdict))


def test_a_column_that_is_not_there_is_missed_once_and_its_other_rules_are_skipped(tmp_path):
    rows = [{key: value for key, value in row.items() if key not in {"label", "weight"}} for row in good()]
    schema = pa.schema([field for field in SCHEMA if field.name not in {"label", "weight"}])
    verdict = check_dataset(put(rows, tmp_path / "rows.parquet", schema))
    assert failed(verdict) == ["has_label"]
    skipped = {rule.rule: rule.reason for rule in verdict.rules if rule.outcome == "skipped"}
    assert skipped["weight_is_finite"] == "no column weight"
    assert "label_is_0_or_1" in skipped
    rows, schema = [{"user_id": "u"}], pa.schema([("user_id", pa.string())])
    assert set(failed(check_dataset(put(rows, tmp_path / "one.parquet", schema)))) == {"has_item", "has_timestamp", "has_label"}


@long
def test_a_folder_by_date_a_glob_and_a_url_are_the_same_rows(tmp_path):
    rows = good()
    for part in range(3):
        put(rows[part * 20 : part * 20 + 20], tmp_path / "rows" / f"date=2024-01-0{part + 1}" / "part.parquet")
    (tmp_path / "rows" / "_SUCCESS").touch()
    (tmp_path / "rows" / "_temporary").mkdir()
    (tmp_path / "rows" / "_temporary" / "half.parquet").write_bytes(b"PAR1")
    folder = check_dataset(tmp_path / "rows")
    assert folder.passed
    assert "date" in folder.columns
    assert check_dataset("rows/*/part.parquet").rows == 60
    put(rows, tmp_path / "one.parquet")
    assert check_dataset(f"file://{tmp_path}/one.parquet").rows == 60


@pytest.mark.parametrize("name", sweep(["rows.csv.gz", "rows.csv"], keep=1))
def test_a_csv_file_is_checked_by_the_same_rules(name, tmp_path):
    """As `scalr dataset export` writes it: without lists, times with their zone."""
    columns = [name for name in SCHEMA.names if not name.startswith("history")]
    rows = good()
    rows[3]["weight"] = -0.1
    table = pa.Table.from_pylist(rows, schema=SCHEMA).select(columns)
    with pa.output_stream(tmp_path / name, compression="gzip" if name.endswith(".gz") else None) as stream:
        csv.write_csv(table, stream)
    verdict = check_dataset(tmp_path / name)
    assert (verdict.kind, verdict.rows, failed(verdict)) == ("csv", 60, ["weight_is_finite"])


@long
def test_a_file_of_which_the_name_is_a_pattern_is_that_file_alone(tmp_path, monkeypatch):
    put(good(), tmp_path / "a" / "part1.parquet")
    bad = put([{**row, "user_id": "other", "label": 7} for row in good(20)], tmp_path / "a" / "part[1].parquet")
    folder = check_dataset("a")
    assert (folder.rows, failed(folder)) == (80, ["label_is_0_or_1"])
    assert failed(check_dataset(bad)) == ["label_is_0_or_1"]
    assert failed(check_dataset("a/*.parquet")) == ["label_is_0_or_1"]
    # Nor is the folder that a pattern starts from one.
    (tmp_path / "[a]").mkdir()
    put(good(), tmp_path / "[a]" / "part1.parquet")
    monkeypatch.chdir(tmp_path / "[a]")
    assert check_dataset("*.parquet").passed
    write_deltalake(tmp_path / "table", pa.Table.from_pylist(good(), schema=SCHEMA))
    (tmp_path / "table").rename(tmp_path / "table?")
    assert check_dataset(tmp_path / "table?").kind == "delta"


def test_a_delta_table_is_read_by_its_log(tmp_path):
    rows = good()
    write_deltalake(tmp_path / "table", pa.Table.from_pylist([dict(rows[1], label=9), rows[2]], schema=SCHEMA))
    assert failed(check_dataset(tmp_path / "table")) == ["label_is_0_or_1"]
    write_deltalake(tmp_path / "table", pa.Table.from_pylist(rows, schema=SCHEMA), mode="overwrite")
    verdict = check_dataset(tmp_path / "table")
    assert (verdict.kind, verdict.passed, verdict.rows) == ("delta", True, 60)


def test_a_data_set_that_is_saved_in_feast_is_found_by_its_name(own, tmp_path):
    from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
    from feast.saved_dataset import SavedDataset

    path = put(good(), tmp_path / "saved" / "rows.parquet")
    with Project(own) as project:
        store = project.feature_store
        theirs = SavedDataset(
            name="theirs", features=["view:x"], join_keys=["user_id"], storage=SavedDatasetFileStorage(path=str(path))
        )
        theirs.min_event_timestamp, theirs.max_event_timestamp = START, START + 60 * DAY
        store.registry.apply_saved_dataset(theirs, store.project, commit=True)
        verdict = project.check_quality("theirs")
        assert (verdict.kind, verdict.location, verdict.rows) == ("feast", str(path), 60)
        assert verdict.docs == str(own.home / "data_docs" / "index.html")
        with pytest.raises(UnreadableInput, match="there are: theirs"):
            project.check_quality("others")
        put([*good(), good()[4]], path)
        with pytest.raises(QualityGateFailed, match="synthetic_rows_are_unique"):
            project.check_quality("theirs")


def test_a_damaged_vocabulary_of_the_own_training_set_is_named(own, tmp_path):
    version = write_version(own.home / "datasets" / own.training_set.name, table_of([("u", "i", 1, 1.0, False)] * 4)).path
    damaged = version / "vocabulary" / "users.parquet"
    damaged.write_bytes(damaged.read_bytes()[:20])
    with Project(own) as project, pytest.raises(TrainingSetError, match="its SHA-256 differs") as caught:
        project.check_quality()
    assert caught.value.where == str(damaged)
    assert "scalr dataset build" in caught.value.next_step
    done = runner.invoke(app, ["quality", "check", "--json"])  # in the folder of scalr.toml
    assert done.exit_code == 1
    assert json.loads(done.stdout)["where"] == str(damaged)


def test_a_suite_that_is_written_is_edited_and_found_by_its_name(tmp_path):
    path = put(good(), tmp_path / "rows.parquet")
    write_suite(tmp_path / "quality" / "training.yaml")
    content = yaml.safe_load((tmp_path / "quality" / "training.yaml").read_text())
    assert check_dataset(path).suite_file == str(tmp_path / "quality" / "training.yaml")
    content["expectations"].append(
        {"type": "expect_column_max_to_be_between", "kwargs": {"column": "stats__count", "max_value": 3}}
    )
    (tmp_path / "mine.json").write_text(json.dumps(content | {"name": "mine"}))
    verdict = check_dataset(path, suite="mine.json")
    assert failed(verdict) == ["column_max_to_be_between_stats__count"]
    assert verdict.rules[-1].observed == 59
    assert verdict.suite == "mine"
    with pytest.raises(QualityError, match="already exists"):
        write_suite(tmp_path / "quality" / "training.yaml")


def test_each_rule_of_a_suite_has_a_name_of_its_own(tmp_path):
    entries = [
        {"type": "expect_column_values_to_be_between", "kwargs": {"column": column, "max_value": most}}
        for column, most in (("price", 1), ("price", 2), ("price_2", 3), ("price", 4))
    ]
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"expectations": entries}))
    rules = resolve_rules(read_suite(str(file), tmp_path), {"price": "DOUBLE", "price_2": "DOUBLE"})
    assert {rule.name.removeprefix("column_values_to_be_between_"): rule.kwargs["max_value"] for rule in rules} == {
        "price": 1,
        "price_2": 2,
        "price_2_2": 3,
        "price_3": 4,
    }


@long
def test_a_suite_is_written_with_other_names_of_columns(tmp_path):
    names = {"user_id": "customer", "event_timestamp": "ts", "label": "clicked"}
    rows = [{names.get(key, key): value for key, value in row.items()} for row in good()]
    path = put(
        rows, tmp_path / "rows.parquet", SCHEMA.empty_table().rename_columns([names.get(n, n) for n in SCHEMA.names]).schema
    )
    command = ["quality", "init-suite", "mine.yaml", "--user", "customer", "--timestamp", "ts", "--label", "clicked", "--json"]
    assert json.loads(runner.invoke(app, command).stdout) == {"suite": "mine.yaml"}
    assert check_dataset(path, suite="mine.yaml").passed
    assert not check_dataset(path).passed
    for name in ("a: {b", "off", "Null"):  # the last two are no text to YAML
        with pytest.raises(QualityError, match="cannot be written"):
            write_suite(tmp_path / "other.yaml", {"user": name})
    assert not (tmp_path / "other.yaml").exists()


BAD_SUITES = {
    "no list of expectations": ("expectations: 3", SettingsError),
    "cannot be read as a suite": ("expectations: [", SettingsError),
    "has no type": ("expectations: [{kwargs: {}}]", SettingsError),
    "there is no expectation 'expect_column_to_exis'": ("expectations: [{type: expect_column_to_exis}]", SettingsError),
    "severity is 'grave'": ("expectations: [{type: expect_column_to_exist, severity: grave}]", SettingsError),
    "meta.each.kind": (
        "expectations: [{type: expect_column_to_exist, meta: {each: {columns: ['*'], kind: colour}}}]",
        SettingsError,
    ),
    "[(]mine[)]: kwargs.column_list is 5": (
        "expectations: [{type: expect_compound_columns_to_be_unique, kwargs: {column_list: 5}, meta: {rule: mine}}]",
        SettingsError,
    ),
    "kwargs.column_list is 'user_id'": (
        "expectations: [{type: expect_compound_columns_to_be_unique, kwargs: {column_list: user_id}}]",
        SettingsError,
    ),
    "kwargs.column is 5": ("expectations: [{type: expect_column_to_exist, kwargs: {column: 5}}]", SettingsError),
    "kwargs.unexpected_rows_query is": (
        "expectations: [{type: unexpected_rows_expectation, kwargs: {unexpected_rows_query: [x]}}]",
        SettingsError,
    ),
    "meta.needs is 'label'": ("expectations: [{type: expect_column_to_exist, meta: {needs: label}}]", SettingsError),
    "meta.each.columns is None": ("expectations: [{type: expect_column_to_exist, meta: {each: {columns: []}}}]", SettingsError),
    "meta.each.kind is .'time'.": (
        "expectations: [{type: expect_column_to_exist, meta: {each: {columns: ['*'], kind: [time]}}}]",
        SettingsError,
    ),
    "rejected the expectation": ("expectations: [{type: expect_column_to_exist, kwargs: {row: 3}}]", QualityError),
    "cannot be computed": (
        'expectations: [{type: unexpected_rows_expectation, kwargs: {unexpected_rows_query: "SELECT colour FROM {batch}"}}]',
        QualityError,
    ),
    "Parser Error": (
        'expectations: [{type: unexpected_rows_expectation, kwargs: {unexpected_rows_query: "SELEKT 1 FROM {batch}"}}]',
        QualityError,
    ),
}


@pytest.mark.parametrize("found", sweep(BAD_SUITES, keep=6))
def test_a_bad_suite_is_a_clear_error(found, tmp_path):
    text, kind = BAD_SUITES[found]
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(kind, match=found) as caught:
        check_dataset(put(good(), tmp_path / "rows.parquet"), suite="bad.yaml")
    assert caught.value.exit_code == 1
    assert "bad.yaml" in caught.value.where
    assert caught.value.next_step


def test_a_query_may_end_in_a_semicolon_and_fail_on_a_value(tmp_path):
    queries = {
        "semicolon": "SELECT label FROM {batch} WHERE label = 1;\n",
        "values": "SELECT user_id::INTEGER AS number FROM {batch}",
    }
    entries = [
        {"type": "unexpected_rows_expectation", "kwargs": {"unexpected_rows_query": query}, "meta": {"rule": name}}
        for name, query in queries.items()
    ]
    (tmp_path / "mine.json").write_text(json.dumps({"expectations": entries}))
    verdict = check_dataset(put(good(), tmp_path / "rows.parquet"), suite="mine.json")
    assert failed(verdict) == list(queries)
    found = {rule.rule: rule for rule in verdict.rules}
    assert (found["semicolon"].observed, found["semicolon"].examples) == (40, ("{'label': 1}",) * 3)
    assert "Conversion Error" in found["values"].reason


def test_bad_input_is_a_clear_error(tmp_path):
    with pytest.raises(UnreadableInput, match="no such file"):
        check_dataset("nothing.parquet")
    with pytest.raises(EmptyInput, match="no row"):
        check_dataset(put([], tmp_path / "empty.parquet"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UnreadableInput, match="cannot be read"):
        check_dataset("broken.parquet")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnreadableInput, match="no Parquet file"):
        check_dataset("folder")
    with pytest.raises(SettingsError, match="no suite 'mine'"):
        check_dataset(put(good(), tmp_path / "rows.parquet"), suite="mine")
    (tmp_path / "scalr_quality").rename(tmp_path / "before")
    (tmp_path / "scalr_quality" / "gx").mkdir(parents=True)
    (tmp_path / "scalr_quality" / "gx" / "theirs").touch()
    with pytest.raises(ForeignFiles, match="gx"):
        check_dataset("rows.parquet")


def test_the_command_gives_one_verdict_and_exits_by_it(tmp_path):
    put(good(), tmp_path / "rows.parquet")
    done = runner.invoke(app, ["quality", "check", "rows.parquet", "--suite", "training", "--json"])
    assert done.exit_code == 0, done.output
    verdict = json.loads(done.stdout)
    assert verdict["passed"] is True
    assert {rule["outcome"] for rule in verdict["rules"]} == {"passed"}
    rows = good()
    rows[0]["label"] = 5
    put(rows, tmp_path / "rows.parquet")
    done = runner.invoke(app, ["quality", "check", "rows.parquet", "--json", "--docs", "elsewhere"])
    assert done.exit_code == 3
    verdict = json.loads(done.stdout)
    assert verdict["passed"] is False
    assert verdict["docs"] == str(tmp_path / "elsewhere" / "data_docs" / "index.html")
    text = runner.invoke(app, ["quality", "check", "rows.parquet"])
    assert "label_is_0_or_1 (a label is 0 or 1): 1 of 60 rows break it" in text.stdout
    assert text.stdout.rstrip().endswith("REFUSED")
    done = runner.invoke(app, ["quality", "check", "nothing.parquet", "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["error"] == "UnreadableInput"
    assert runner.invoke(app, ["quality", "check"]).exit_code == 2
