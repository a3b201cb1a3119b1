"""Contracts of the Open Data Contract Standard: what is exported comes back, and what has no counterpart is told."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from scalr_prod.apps.cli import app
from scalr_prod.config import DomainSettings
from scalr_prod.config.settings import load_settings
from scalr_prod.errors import QualityError, SettingsError, UnreadableInput
from scalr_prod.quality import check_dataset, export_contract, import_contract, write_contract_suite
from scalr_prod.quality.contract_terms import from_contract_format, to_contract_format

runner = CliRunner()

TOML = """
[domains.source]
name = "kitchen"
events = "s3://bucket/kitchen"
format = "delta"
version = 3
duplicates = "drop"
max_user_day = 500
over_user_day = "cap"
bad_times = "drop"
weights_for = "downstream"
unknown_types = "drop"
max_left_out = 0.07
ahead_days = 0.5
storage_options = { AWS_SECRET_ACCESS_KEY = "hush" }
types = { view = 0.1, "add to cart" = 1 }

[domains.source.columns]
user = "customer id"
timestamp = "at"
created = "loaded"
weight = "w"
event_id = "id"
event_type = "kind"
value = "price"
consent = "agreed"

[domains.target]
name = "food"
events = "food.csv"
timezone = "Europe/Paris"
timestamp_format = "%d.%m.%Y %H:%M"
earliest = 2020-01-01T00:00:00Z
bad_ids = "drop"
items = "food.item"
items_version = 2
item_columns = { title = "label" }
columns = { recommended_by = "model" }
"""
SUITE = {
    "expectations": [
        {"type": "expect_column_values_to_be_between", "kwargs": {"column": "price", "min_value": 0}, "severity": "warning"}
    ]
}


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "scalr.toml").write_text(TOML)
    (tmp_path / "checks.yaml").write_text(yaml.safe_dump(SUITE))
    return load_settings(tmp_path / "scalr.toml")


@pytest.mark.parametrize("place", ["source", "target"])
def test_what_is_exported_is_imported_again(settings, tmp_path, place):
    path = tmp_path / "contracts" / "log.yaml"
    report = export_contract(settings, place, path, suite="checks.yaml")
    found = import_contract(path, place=place)
    section = settings.domains[place]
    secrets = {"storage_options": section.storage_options} if place == "source" else {}
    assert DomainSettings.model_validate(dict(found.settings) | secrets) == section
    assert report.left_out == tuple(secrets)
    assert "hush" not in path.read_text()
    assert found.not_expressed == []
    assert found.expectations == SUITE["expectations"]
    assert tomllib.loads(found.toml) == {"domains": {place: dict(found.settings)}}
    assert import_contract(path, place="sources.other").toml.startswith("[domains.sources.other]\nevents = ")


def test_a_query_comes_back_without_its_address(tmp_path):
    text = '[domains.source]\nname = "s"\nquery = "SELECT * FROM \\"log\\""\nurl = "postgresql://me:hush@db/shop"\n'
    (tmp_path / "scalr.toml").write_text(f'{text}[domains.target]\nname = "t"\nevents = "t.parquet"\n')
    settings = load_settings(tmp_path / "scalr.toml")
    assert export_contract(settings, "source", tmp_path / "log.yaml").left_out == ("url",)
    found = import_contract(tmp_path / "log.yaml", place="source")
    assert found.settings == {"name": "s", "query": 'SELECT * FROM "log"'}
    assert [part for part in found.not_expressed if "url" in part]
    assert "hush" not in (tmp_path / "log.yaml").read_text()


def test_a_location_with_a_secret_is_left_out(tmp_path):
    text = '[domains.source]\nname = "s"\nevents = "https://shop/log.parquet?sig=hush"\nitems = "https://me:hush@shop/i.csv"\n'
    text += 'items_version = 2\n[domains.target]\nname = "t"\nevents = "t.parquet"\n'
    (tmp_path / "scalr.toml").write_text(text)
    report = export_contract(load_settings(tmp_path / "scalr.toml"), "source", tmp_path / "log.yaml")
    assert report.left_out == ("events", "items")
    assert "hush" not in (tmp_path / "log.yaml").read_text()
    found = import_contract(tmp_path / "log.yaml", place="source")
    assert found.settings == {"name": "s"}
    assert found.not_expressed == ["the log's location: set events"]


def test_the_contract_says_it_in_the_terms_of_the_standard(settings, tmp_path):
    export_contract(settings, "target", tmp_path / "food.yaml")
    contract = yaml.safe_load((tmp_path / "food.yaml").read_text())
    assert (contract["apiVersion"], contract["kind"], contract["domain"]) == ("v3.1.0", "DataContract", "food")
    assert contract["servers"][0] == {"server": "events", "type": "local", "path": "food.csv", "format": "detected"}
    columns = {one["name"]: one for one in contract["schema"][0]["properties"]}
    assert columns["timestamp"]["logicalTypeOptions"] == {
        "format": "dd.MM.yyyy HH:mm",
        "minimum": "2020-01-01T00:00:00+00:00",
        "timezone": False,
        "defaultTimezone": "Europe/Paris",
    }
    share = {"mustBeLessOrEqualTo": 5.0, "unit": "percent"}
    assert columns["user_id"]["quality"] == [{"type": "library", "metric": "nullValues", **share}]
    assert contract["id"] == export_contract(settings, "target", tmp_path / "again.yaml").id


def foreign(**changes) -> dict:
    """A contract as another tool writes it."""
    properties = [
        {
            "name": "customer",
            "physicalName": "customer_id",
            "logicalType": "string",
            "required": True,
            "classification": "restricted",
        },
        {"name": "sku", "logicalType": "string", "required": True, "logicalTypeOptions": {"pattern": "^[A-Z]{2}[0-9]+$"}},
        {
            "name": "at",
            "logicalType": "timestamp",
            "logicalTypeOptions": {"format": "yyyy-MM-dd HH:mm:ss", "maximum": "2030-01-01"},
        },
        {
            "name": "price",
            "logicalType": "number",
            "required": True,
            "logicalTypeOptions": {"minimum": 0, "exclusiveMaximum": 100, "multipleOf": 0.5},
            "quality": [{"metric": "nullValues", "mustBeGreaterThan": 3}, {"type": "text", "description": "looks right"}],
        },
        {
            "name": "code",
            "unique": True,
            "quality": [{"metric": "missingValues", "mustBe": 0, "arguments": {"missingValues": ["N/A", None]}}],
        },
    ]
    rules = [
        {"metric": "rowCount", "mustBeGreaterThan": 2, "severity": "warning"},
        {"type": "sql", "query": "SELECT max(price) FROM ${table}", "mustBeLessThan": 9, "description": "cheap"},
        {"type": "sql", "query": "SELECT count(*) FROM ${other}", "mustBe": 0},
        {"type": "custom", "engine": "soda", "implementation": "checks: []"},
    ]
    return {
        "apiVersion": "v3.0.2",
        "kind": "DataContract",
        "id": "orders",
        "version": "2.0.0",
        "status": "active",
        "domain": "shop",
        "team": [{"username": "ann"}],
        "servers": [{"server": "lake", "type": "s3", "location": "s3://shop/orders.avro", "format": "avro"}],
        "schema": [
            {"name": "orders", "properties": properties, "quality": rules, "dataGranularityDescription": "one row per order"}
        ],
        "customProperties": [{"property": "scalrUrl", "value": "sqlite:///theirs.db"}, {"property": "costCentre", "value": 7}],
    } | changes


def put(path: Path, contract: object) -> Path:
    path.write_text(yaml.safe_dump(contract))
    return path


COLUMNS = {"user": "customer_id", "item": "sku", "timestamp": "at"}


def test_a_foreign_contract_gives_what_it_can_and_tells_the_rest(tmp_path):
    found = import_contract(put(tmp_path / "orders.yaml", foreign()), columns=COLUMNS)
    assert found.settings == {
        "name": "shop",
        "events": "s3://shop/orders.avro",
        "columns": {"user": "customer_id", "item": "sku", "timestamp": "at"},
    }
    assert set(found.not_expressed) == {
        "team",
        "servers.lake.format (avro)",
        "customProperties.scalrUrl",
        "customProperties.costCentre",
        "schema.orders.dataGranularityDescription",
        "schema.orders.customer_id.classification",
        "schema.orders.price.logicalTypeOptions.multipleOf",
        "schema.orders.price.quality[0] (nullValues)",
        "schema.orders.price.quality[1] (text)",
        "schema.orders.quality[2] (sql)",
        "schema.orders.quality[3] (custom)",
    }


def test_a_form_of_times_with_fractions_is_told_where_it_is_not_iso_8601(tmp_path):
    contract = foreign()
    contract["schema"][0]["properties"][2]["logicalTypeOptions"]["format"] = "dd.MM.yyyy HH:mm:ss.SSSSSS"
    found = import_contract(put(tmp_path / "orders.yaml", contract), columns=COLUMNS)
    assert "timestamp_format" not in found.settings
    assert "schema.orders.at.logicalTypeOptions.format" in found.not_expressed


def test_the_suite_of_a_contract_finds_what_breaks_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = import_contract(put(tmp_path / "orders.yaml", foreign()), columns=COLUMNS)
    suite = write_contract_suite(tmp_path / "checks.yaml", found)

    def judge(**changes) -> set[str]:
        rows = {
            "customer_id": ["a", "b", "c"],
            "sku": ["AB1", "CD2", "EF3"],
            "at": [datetime(2024, 1, day, tzinfo=UTC) for day in (1, 2, 3)],
            "price": [0.0, 1.0, 8.0],
            "code": ["x", "y", "z"],
        }
        pq.write_table(pa.table(rows | changes), tmp_path / "rows.parquet")
        verdict = check_dataset("rows.parquet", suite=suite)
        assert len(verdict.rules) == len(found.expectations) == 8
        return {
            str(found.expectations[number]["kwargs"]) for number, rule in enumerate(verdict.rules) if rule.outcome != "passed"
        }

    assert judge() == set()
    (pattern,) = judge(sku=["AB1", "ABC2", "EF3"])
    assert "regexp_matches" in pattern
    (late,) = judge(at=[datetime(2024, 1, 1, tzinfo=UTC)] * 2 + [datetime(2031, 1, 1, tzinfo=UTC)])
    assert "2030-01-01" in late
    (missing,) = judge(code=["x", "y", "N/A"])
    assert "N/A" in missing
    assert len(judge(code=["x", "x", "y"])) == 1
    assert len(judge(price=[1.0, None, 2.0])) == 1
    assert len(judge(price=[1.0, 100.0, 2.0])) == 2, "strictly below 100, and the query's maximum"
    with pytest.raises(QualityError, match="already exists"):
        write_contract_suite(tmp_path / "checks.yaml", found)


@pytest.mark.parametrize(
    ("contract", "error", "says"),
    [
        ([1], UnreadableInput, "no contract"),
        (foreign(apiVersion="v2.2.2"), UnreadableInput, "apiVersion"),
        (foreign(kind="Other"), UnreadableInput, "kind"),
        (foreign(schema=[]), SettingsError, "there are: none"),
        (foreign(schema=[{"name": "a"}, {"name": "b"}]), SettingsError, "there are: a, b"),
        (foreign(schema=[{"name": "orders", "properties": [{"name": "x"}]}]), SettingsError, "known to be the user"),
        (foreign(customProperties=[{"property": "scalrMaxUserDay", "value": 0}]), SettingsError, "max_user_day"),
    ],
    ids=["no mapping", "version", "kind", "no object", "two objects", "no column", "bad value"],
)
def test_what_cannot_be_read_is_refused(tmp_path, contract, error, says):
    columns = {} if says.startswith("known") else COLUMNS
    with pytest.raises(error, match=says):
        import_contract(put(tmp_path / "orders.yaml", contract), columns=columns)


def test_a_file_that_is_no_yaml_and_logs_that_are_not_there(settings, tmp_path):
    (tmp_path / "bad.yaml").write_text("{")
    for path in (tmp_path / "bad.yaml", tmp_path / "gone.yaml"):
        with pytest.raises(UnreadableInput, match="cannot be read"):
            import_contract(path)
    with pytest.raises(SettingsError, match="there are: source, target"):
        export_contract(settings, "sources.x", tmp_path / "new.yaml")
    with pytest.raises(SettingsError, match="no log"):
        import_contract(put(tmp_path / "orders.yaml", foreign()), place="elsewhere")
    with pytest.raises(QualityError, match="already exists"):
        export_contract(settings, "target", tmp_path / "bad.yaml")
    with pytest.raises(SettingsError, match="known to be the weight"):
        import_contract(tmp_path / "orders.yaml", columns=COLUMNS | {"weight": "gone"})
    with pytest.raises(SettingsError, match=r"columns\.colour"):
        import_contract(tmp_path / "orders.yaml", columns=COLUMNS | {"colour": "code"})
    assert not (tmp_path / "new.yaml").exists()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("%d.%m.%Y %H:%M:%S", "dd.MM.yyyy HH:mm:ss"),
        ("%Y-%m-%dT%H:%M", "yyyy-MM-dd'T'HH:mm"),
        ("%Y'%m", "yyyy''MM"),
        ("%b %Y", None),
    ],
)
def test_formats_of_times(ours, theirs):
    assert to_contract_format(ours) == theirs
    if theirs is not None:
        assert from_contract_format(theirs) == ours
    assert from_contract_format("EEE, dd MMM yyyy") is None


def test_the_commands(settings, tmp_path):
    config = str(settings.base / "scalr.toml")
    path = str(tmp_path / "food.yaml")
    done = runner.invoke(app, ["quality", "export-contract", "target", path, "--json", "--config", config])
    assert json.loads(done.stdout)["path"] == path
    shown = runner.invoke(app, ["quality", "import-contract", path])
    assert tomllib.loads(shown.stdout) == {"domains": {"target": dict(import_contract(Path(path)).settings)}}
    orders = str(put(tmp_path / "orders.yaml", foreign()))
    columns = [part for role, name in COLUMNS.items() for part in ("--column", f"{role}={name}")]
    shown = runner.invoke(app, ["quality", "import-contract", orders, *columns])
    assert "# not expressed: team\n" in shown.stdout
    assert tomllib.loads(shown.stdout)["domains"]["target"]["name"] == "shop"
    said = runner.invoke(app, ["quality", "import-contract", orders, *columns, "--json", "--suite", str(tmp_path / "s.yaml")])
    assert json.loads(said.stdout)["suite"] == str(tmp_path / "s.yaml")
    assert runner.invoke(app, ["quality", "import-contract", orders, "--column", "user"]).exit_code == 2


@pytest.mark.parametrize(
    ("options", "broken"),
    [
        ({"maximum": 100, "exclusiveMaximum": True}, 1),
        ({"exclusiveMaximum": True, "maximum": 100}, 1),
        ({"maximum": 100, "exclusiveMaximum": False, "minimum": 0, "exclusiveMinimum": False}, 0),
        ({"exclusiveMaximum": 100}, 1),
    ],
)
def test_before_version_3_1_an_exclusive_bound_is_yes_or_no(tmp_path, monkeypatch, options, broken):
    monkeypatch.chdir(tmp_path)
    properties = [
        {"name": "customer_id", "logicalType": "string"},
        {"name": "sku", "logicalType": "string"},
        {"name": "at", "logicalType": "timestamp"},
        {"name": "price", "logicalType": "number", "logicalTypeOptions": options},
    ]
    contract = foreign(schema=[{"name": "orders", "properties": properties}])
    found = import_contract(put(tmp_path / "orders.yaml", contract), columns=COLUMNS)
    rows = {
        "price": [0.0, 99.0, 100.0],
        "customer_id": ["a"] * 3,
        "sku": ["b"] * 3,
        "at": [datetime(2024, 1, 1, tzinfo=UTC)] * 3,
    }
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    verdict = check_dataset("rows.parquet", suite=write_contract_suite(tmp_path / "checks.yaml", found))
    assert sum(rule.outcome != "passed" for rule in verdict.rules) == broken


def test_values_that_stand_for_a_missing_one_may_be_of_another_type(tmp_path, monkeypatch):
    """The standard's own example, at a column of numbers; and a number at a column of texts."""
    monkeypatch.chdir(tmp_path)
    rule = {"metric": "missingValues", "mustBe": 0, "arguments": {"missingValues": [None, "", "N/A", -1]}}
    properties = [
        {"name": "customer_id", "logicalType": "string"},
        {"name": "sku", "logicalType": "string", "quality": [rule]},
        {"name": "at", "logicalType": "timestamp"},
        {"name": "price", "logicalType": "number", "quality": [rule]},
    ]
    contract = foreign(schema=[{"name": "orders", "properties": properties}])
    found = import_contract(put(tmp_path / "orders.yaml", contract), columns=COLUMNS)
    suite = write_contract_suite(tmp_path / "checks.yaml", found)

    def outcomes(prices: list[float]) -> list[str]:
        rows = {"price": prices, "customer_id": ["a"] * 2, "sku": ["b"] * 2, "at": [datetime(2024, 1, 1, tzinfo=UTC)] * 2}
        pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
        return sorted(rule.outcome for rule in check_dataset("rows.parquet", suite=suite).rules)

    assert outcomes([0.0, 5.0]) == ["passed", "passed"]
    assert outcomes([0.0, -1.0]) == ["failed", "passed"]


def test_a_folder_with_a_dollar_in_its_name_is_no_variable(tmp_path, monkeypatch):
    folder = tmp_path / "a$b"
    folder.mkdir()
    monkeypatch.chdir(folder)
    pq.write_table(pa.table({"customer_id": ["a"]}), folder / "rows.parquet")
    suite = folder / "checks.yaml"
    suite.write_text("expectations:\n- type: expect_column_values_to_not_be_null\n  kwargs: {column: customer_id}\n")
    assert check_dataset("rows.parquet", suite=suite).passed
