"""The built-in suite `leaks`: each kind of leak is planted alone and found with its count and rows; sets without a leak pass."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from scalr_prod.apps.cli import app
from scalr_prod.errors import SettingsError
from scalr_prod.quality import check_dataset

DAY = timedelta(days=1)
START = datetime(2024, 1, 1, tzinfo=UTC)
STAMP = pa.timestamp("us", tz="UTC")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def clean() -> list[dict]:
    """Sixty labels of seven users in parts by time; a feature's time, its list of times, and when its values were known."""
    return [
        {
            "user_id": f"u{number % 7}",
            "item_id": number,
            "event_timestamp": (now := START + number * DAY),
            "label": 1,
            "is_synthetic": number % 4 == 0 and number < 40,
            "split": "train" if number < 40 else "validation" if number < 50 else "test",
            "created_timestamp": now,
            "profile_at": now - DAY if number % 2 else None,
            "history__event_timestamps": [now - 2 * DAY, now - timedelta(microseconds=1)],
        }
        for number in range(60)
    ]


SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.int64()),
        ("event_timestamp", STAMP),
        ("label", pa.int8()),
        ("is_synthetic", pa.bool_()),
        ("split", pa.string()),
        ("created_timestamp", STAMP),
        ("profile_at", STAMP),
        ("history__event_timestamps", pa.list_(STAMP)),
    ]
)


def audit(rows: list[dict], tmp_path, *, without: tuple[str, ...] = ()):
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA).drop_columns(list(without)), tmp_path / "rows.parquet")
    return check_dataset(tmp_path / "rows.parquet", suite="leaks")


def findings(verdict) -> dict[str, int]:
    return {rule.rule: rule.observed for rule in verdict.rules if rule.outcome == "failed"}


def by_user(rows: list[dict]) -> None:
    """Parts of users in place of parts by time."""
    for row in rows:
        row["split"] = "test" if row["user_id"] == "u3" else "train"
        row["is_synthetic"] = False


def test_a_set_without_a_leak_passes_every_rule(tmp_path):
    verdict = audit(clean(), tmp_path)
    assert verdict.passed
    assert {rule.outcome for rule in verdict.rules} == {"passed"}
    assert [rule.rule for rule in verdict.rules] == [
        "has_timestamp",
        "profile_at_before_the_label",
        "history__event_timestamps_before_the_label",
        "known_by_the_label",
        "synthetic_rows_are_in_train",
        "copies_are_in_one_split",
        "users_are_in_one_split",
    ]


@pytest.mark.parametrize(
    ("column", "value", "place", "rule"),
    [
        ("profile_at", START + 30 * DAY, 30, "profile_at_before_the_label"),  # at the label's own time
        ("history__event_timestamps", [START, START + 99 * DAY], 31, "history__event_timestamps_before_the_label"),
        ("created_timestamp", START + 99 * DAY, 32, "known_by_the_label"),
        ("is_synthetic", True, 45, "synthetic_rows_are_in_train"),
        ("is_synthetic", True, 55, "synthetic_rows_are_in_train"),
    ],
)
def test_a_leak_in_one_row_is_found_alone_and_shown(tmp_path, column, value, place, rule):
    rows = clean()
    rows[place][column] = value
    verdict = audit(rows, tmp_path)
    assert findings(verdict) == {rule: 1}
    (found,) = (one for one in verdict.rules if one.rule == rule)
    assert f"'item_id': {place}" in found.examples[0]
    assert not verdict.passed


def test_copies_of_a_label_in_two_parts_are_found_and_those_in_one_part_are_not(tmp_path):
    rows = clean()
    rows.append(dict(rows[50]))
    assert audit(rows, tmp_path).passed, "a log may hold an event twice"
    rows[-1]["split"] = "validation"
    verdict = audit(rows, tmp_path)
    assert findings(verdict)["copies_are_in_one_split"] == 1
    (found,) = (one for one in verdict.rules if one.rule == "copies_are_in_one_split")
    assert "['test', 'validation']" in found.examples[0]


def test_without_parts_copies_of_a_label_are_found(tmp_path):
    rows = clean()
    assert audit(rows, tmp_path, without=("split",)).passed
    rows += [dict(rows[3]), dict(rows[3]), dict(rows[9])]
    verdict = audit(rows, tmp_path, without=("split",))
    assert findings(verdict) == {"labels_are_unique": 2}


def test_users_in_two_parts_are_found_where_parts_are_by_user(tmp_path):
    rows = clean()
    by_user(rows)
    assert audit(rows, tmp_path).passed
    rows[5]["split"] = "test"
    verdict = audit(rows, tmp_path)
    assert findings(verdict) == {"users_are_in_one_split": 1}
    (found,) = (one for one in verdict.rules if one.rule == "users_are_in_one_split")
    assert "u5" in found.examples[0]


def test_a_set_with_the_least_columns_is_audited_as_far_as_it_goes(tmp_path):
    least = ("split", "created_timestamp", "is_synthetic", "label", "profile_at", "history__event_timestamps")
    verdict = audit(clean(), tmp_path, without=least)
    assert verdict.passed
    assert {rule.rule for rule in verdict.rules if rule.outcome == "passed"} == {"has_timestamp", "labels_are_unique"}
    refused = audit(clean(), tmp_path, without=("event_timestamp",))
    assert list(findings(refused)) == ["has_timestamp"]


def test_the_command_has_one_exit_code_and_names_of_columns(tmp_path):
    rows = clean()
    rows[45]["is_synthetic"] = True
    table = pa.Table.from_pylist(rows, SCHEMA).rename_columns(
        {"event_timestamp": "ts", "is_synthetic": "made", "split": "part"}
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    names = ["--timestamp", "ts", "--synthetic", "made", "--split", "part"]
    assert CliRunner().invoke(app, ["quality", "init-suite", "--suite", "leaks", *names]).exit_code == 0
    done = CliRunner().invoke(app, ["quality", "check", "rows.parquet", "--suite", "leaks", "--json"])
    assert done.exit_code == 3
    told = json.loads(done.stdout)
    assert told["suite_file"] == str(tmp_path / "quality" / "leaks.yaml")
    assert [(rule["rule"], rule["observed"]) for rule in told["rules"] if rule["outcome"] == "failed"] == [
        ("synthetic_rows_are_in_train", 1)
    ]


@pytest.mark.parametrize("meta", [{"unless": "split"}, {"each": {"columns": ["*"], "except": "a"}}])
def test_keys_of_a_suite_that_are_no_lists_are_named(tmp_path, meta):
    entry = {"type": "expect_column_to_exist", "kwargs": {"column": "a"}, "meta": meta}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({"name": "bad", "expectations": [entry]}))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "rows.parquet")
    with pytest.raises(SettingsError, match="not a list of names"):
        check_dataset(tmp_path / "rows.parquet", suite="bad.yaml")
