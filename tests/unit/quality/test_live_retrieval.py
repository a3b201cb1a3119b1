"""Checks of what a live Feast repository returns: a view's window, and a service joined to entity rows."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from deltalake import write_deltalake
from feast import FeatureService, Field
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64
from support.feast_project import STAMP, hours
from support.meter_tables import METER, READINGS, source_of, store_in, view_of
from typer.testing import CliRunner

from scalr_prod.apps.cli import app
from scalr_prod.errors import EmptyInput, FeatureStoreError, SettingsError, UnreadableInput
from scalr_prod.features import FeatureRetrieval, retrieve_features
from scalr_prod.quality import check_dataset

runner = CliRunner()
RULES = [
    {"type": "expect_table_row_count_to_equal", "kwargs": {"value": 3}},
    {"type": "expect_column_max_to_be_between", "kwargs": {"column": "event_count", "max_value": 2}},
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def suite(rules: list, name: str = "checks.yaml") -> str:
    Path(name).write_text(yaml.safe_dump({"expectations": rules}), encoding="utf-8")
    return name


def entities(times: list, **more: list) -> str:
    rows = {"user_id": ["a", "b", "b"], "item_id": [1, 2, 9], "event_timestamp": pa.array(times, STAMP)}
    pq.write_table(pa.table(rows | more), "spine.parquet")
    return "spine.parquet"


def test_a_view_is_retrieved_and_judged(feast_project):
    repo = str(feast_project.feast_repo)
    done = runner.invoke(app, ["quality", "check", "target_user_history", "--feast", repo, "--suite", suite(RULES), "--json"])
    found = json.loads(done.stdout)
    assert (done.exit_code, found["passed"], found["kind"], found["rows"], found["location"]) == (0, True, "feast", 3, repo)
    assert {"user_id", "item_ids", "event_count"} <= set(found["columns"])
    rest = ["--feast", repo, "--suite", "checks.yaml", "--start", "2024-01-01T02:00:00", "--json"]
    late = runner.invoke(app, ["quality", "check", "target_user_history", *rest])
    assert (late.exit_code, json.loads(late.stdout)["rows"]) == (3, 2)


def test_a_service_is_joined_to_entity_rows(feast_project):
    rules = [
        {"type": "expect_table_row_count_to_equal", "kwargs": {"value": 3}},
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "target_user_history__event_count"}},
        {
            "type": "expect_column_values_to_not_be_null",
            "kwargs": {"column": "target_item_stats__event_count"},
            "severity": "warning",
        },
    ]
    asked = FeatureRetrieval(feast_project.feast_repo, Path(entities(hours(9, 9, 9))))
    verdict = check_dataset("target_training_v1", suite=suite(rules), retrieval=asked)
    assert verdict.passed
    assert [(rule.outcome, rule.failed) for rule in verdict.rules][1:] == [("passed", 0), ("warning", 1)]
    early = FeatureRetrieval(feast_project.feast_repo, Path(entities(hours(0, 9, 9))))
    assert not check_dataset("target_training_v1", suite="checks.yaml", retrieval=early).passed


def test_the_project_s_own_repository_needs_no_name(own):
    verdict = check_dataset("target_item_stats", suite=suite(RULES[1:]), settings=own, retrieval=FeatureRetrieval())
    assert (verdict.passed, verdict.rows) == (True, 2)
    assert not list((own.home / "staging").glob("quality-*"))


def test_what_cannot_be_retrieved_is_told(feast_project, tmp_path):
    repo, checks = feast_project.feast_repo, suite(RULES)

    def check(name: str = "target_item_stats", **asked):
        return check_dataset(name, suite=checks, retrieval=FeatureRetrieval(**{"repo": repo} | asked))

    with pytest.raises(FeatureStoreError, match="no feature view or service gone; there are: downstream_training_v1"):
        check("gone")
    with pytest.raises(FeatureStoreError, match=r"no feature_store\.yaml"):
        check(repo=tmp_path)
    with pytest.raises(SettingsError, match="no project"):
        check(repo=None)
    with pytest.raises(SettingsError, match="their own times"):
        check(entities=tmp_path / "spine.parquet", start=hours(1)[0])
    with pytest.raises(UnreadableInput, match="cannot be read"):
        check(entities=tmp_path / "spine.parquet")
    pq.write_table(pa.table({"item_id": [1]}), "spine.parquet")
    with pytest.raises(UnreadableInput, match="no column event_timestamp"):
        check(entities=tmp_path / "spine.parquet")
    with pytest.raises(EmptyInput):
        check(start=hours(100)[0])
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    registry = "registry: {registry_type: sql, path: 'nodriver://me:hush-hush@db/feast'}"
    (theirs / "feature_store.yaml").write_text(f"project: theirs\nprovider: local\n{registry}\n")
    with pytest.raises(FeatureStoreError, match="Feast cannot open the repository") as caught:
        check(repo=theirs)
    assert "hush" not in str(caught.value)
    for options in (["x", "--start", "2024-01-01"], ["--feast", str(repo)]):
        assert runner.invoke(app, ["quality", "check", *options]).exit_code == 2


@pytest.mark.filterwarnings("ignore:.*experimental.*:RuntimeWarning")
def test_on_demand_features_are_read_and_text_keys_of_a_csv_file_stay_text(tmp_path):
    """Feast's own streams have no on-demand features, and pandas reads 007 as a number."""
    rows = READINGS | {"meter_no": ["007", "007", "007", "8"]}
    write_deltalake(str(tmp_path / "readings"), pa.table(rows))
    power = view_of(source_of(tmp_path / "readings"))

    @on_demand_feature_view(sources=[power], schema=[Field(name="half", dtype=Float64)])
    def halved(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"half": inputs["kwh"] / 2})

    store = store_in(tmp_path)
    store.apply([METER, power, halved, FeatureService(name="halves", features=[power[["kwh"]], halved])])
    offline = {"type": "feast_delta.DeltaOfflineStore"}
    online = {"type": "sqlite", "path": str(tmp_path / "online.db")}
    config = {"project": "meters", "provider": "local", "registry": str(tmp_path / "registry.db"), "offline_store": offline}
    (tmp_path / "feature_store.yaml").write_text(
        yaml.safe_dump(config | {"online_store": online, "entity_key_serialization_version": 3})
    )
    (tmp_path / "spine.csv").write_text("meter,event_timestamp\n007,2024-01-01T01:30:00\n8,2024-01-01T09:00:00\n")
    retrieve_features("halves", FeatureRetrieval(tmp_path, tmp_path / "spine.csv"), None, tmp_path / "rows.parquet")
    found = pq.read_table(tmp_path / "rows.parquet").sort_by("meter").select(["meter", "power__kwh", "halved__half"])
    assert found.to_pylist() == [
        {"meter": "007", "power__kwh": 10.0, "halved__half": 5.0},
        {"meter": "8", "power__kwh": 30.0, "halved__half": 15.0},
    ]
