"""Feast's own command line and SDK on the repository that is laid, with nothing of ours but the class its settings name."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from support import warm
from support.feast_project import VIEWS, hours, make_project, synthetic

from scalr_prod.lake import Lake
from scalr_prod.schemas import Table

pytestmark = pytest.mark.slow
#: Runs Feast's own commands, or saves, resends or transforms once more; the SDK reads the same rows in `make test`.
long = pytest.mark.long


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


def feast(repo: Path, *commands: list[str]) -> list[str]:
    """What the stock commands print; in one process of their own, outside of the repository, since each start takes seconds."""
    program = """
import sys, json
from click.testing import CliRunner
from feast.cli.cli import cli
said = []
for arguments in json.loads(sys.argv[2]):
    result = CliRunner().invoke(cli, ["-c", sys.argv[1], *arguments])
    if result.exit_code:
        raise SystemExit(f"{arguments}: {result.output}") from result.exception
    said.append(result.stdout)
print(json.dumps(said))
"""
    done = run([sys.executable, "-c", program, str(repo), json.dumps(commands)], repo.parent)
    return json.loads(done.splitlines()[-1])


def run(command: list[str], cwd: Path, environment: dict[str, str] | None = None) -> str:
    done = warm.run(command, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def sdk(repo: Path, program: str) -> object:
    """Run a program that imports Feast and pandas only; gives the JSON of its last line."""
    head = f"import json, pandas as pd\nfrom feast import FeatureStore\nstore = FeatureStore({str(repo)!r})\n"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SCALR_")}
    said = run([sys.executable, "-c", head + program], repo.parent, environment)
    return json.loads(said.splitlines()[-1])


@long
def test_the_command_line(project):
    repo = project.feast_repo
    executable = str(Path(sys.executable).with_name("feast"))
    listed = run([executable, "-c", str(repo), "feature-views", "list"], repo.parent)
    assert {view.value for view in VIEWS} <= set(listed.split())

    dataframe = json.dumps([{"user_id": "a", "event_timestamp": "2024-01-02T00:00:00"}])
    synthetic_item = ["-f", "synthetic_target_events:item_id"]
    window = ["-s", "2024-01-01 00:00:00", "-e", "2024-01-01 02:30:00"]
    services, _, joined, windowed, _, online = feast(
        repo,
        ["feature-services", "list"],
        ["apply"],
        ["get-historical-features", "-d", dataframe, *synthetic_item, "-f", "source_user_history:item_ids"],
        ["get-historical-features", "-f", "synthetic_target_events:event_id", *window],
        ["materialize", "2024-01-01T00:00:00", "2024-01-02T00:00:00"],
        ["get-online-features", "-e", "user_id=b", *synthetic_item],
    )
    assert "downstream_training_v1" in services
    (row,) = json.loads(joined[joined.index("[") :])
    assert (row["item_id"], row["item_ids"]) == (7, ["s1", "s2"])
    assert [row["event_id"] for row in json.loads(windowed[windowed.index("[") :])] == ["e0"]
    assert "8" in online


def test_the_sdk_reads_synthetic_events(project):
    found = sdk(
        project.feast_repo,
        """
names = ["event_id", "item_id", "probability", "source_domain", "run_id"]
refs = [f"synthetic_target_events:{name}" for name in names]
at = pd.to_datetime(["2024-01-01T10:00Z", "2024-01-01T21:00Z", "2024-01-01T21:00Z"])
spine = pd.DataFrame({"user_id": ["a", "a", "nobody"], "event_timestamp": at})
historical = store.get_historical_features(entity_df=spine, features=refs).to_df()
query = "SELECT user_id, event_timestamp + INTERVAL 1 DAY AS event_timestamp FROM target_events ORDER BY item_id"
by_query = store.get_historical_features(entity_df=query, features=refs[:1]).to_df()
events = pd.DataFrame({"event_id": ["e1", "e9"], "event_timestamp": at[1:]})
provenance = store.get_historical_features(
    entity_df=events, features=["synthetic_event_provenance:source_item_id", "synthetic_event_provenance:source_event_timestamp"]
).to_df()
window = store.get_historical_features(
    features=refs, start_date=pd.Timestamp("2024-01-01T03:00Z"), end_date=pd.Timestamp("2024-01-01T04:00Z")
).to_df()
store.materialize(pd.Timestamp("2024-01-01", tz="UTC"), pd.Timestamp("2024-01-02", tz="UTC"))
online = store.get_online_features(features=refs, entity_rows=[{"user_id": "a"}, {"user_id": "nobody"}]).to_dict()
lists = store.get_online_features(
    features=["source_user_history:item_ids", "source_user_history:event_timestamps", "target_user_history:item_ids"],
    entity_rows=[{"user_id": "a"}], full_feature_names=True,
).to_dict()
import sys
parts = [name.split(".")[1:3] for name in sys.modules if name.startswith("scalr_prod.")]
rooms = sorted({part[0] if part[0] not in {"core", "workspace"} else ".".join(part) for part in parts} - {"core", "workspace"})
print(json.dumps({"rooms": rooms, "historical": historical.event_id.tolist(), "by_query": by_query.event_id.tolist(),
    "provenance": provenance.source_item_id.tolist(),
    "window": window.to_dict("records"), "online": online, "lists": lists}, default=str))
""",
    )
    assert set(found["rooms"]) == {
        "core.commit_events",
        "core.delta_log",
        "core.directory_marker",
        "core.disk_errors",
        "core.file_modes",
        "core.file_systems",
        "core.import_hook",
        "core.lazy_exports",
        "core.store_errors",
        "core.timestamps",
        "errors",
        "features",
        "lake",
        "schemas",
        "version",
        "workspace.duckdb",
        "workspace.identity",
        "workspace.ownership",
    }, "the class and what it stands on"
    assert found["historical"] == [None, "e0", None], "not known before the run's as_of"
    assert found["by_query"] == ["e0", "e1", "e1"]
    assert [row["event_id"] for row in found["window"]] == ["e1"]
    assert found["provenance"] == ["s8", None]
    assert not found["window"][0].keys() & {"source_item_id", "source_event_timestamp"}
    assert found["online"]["event_id"] == ["e0", None]
    assert found["lists"]["source_user_history__item_ids"] == [["s1", "s2"]]
    stamps = ["2024-01-01 01:00:00+00:00", "2024-01-01 02:00:00+00:00"]
    assert found["lists"]["source_user_history__event_timestamps"] == [stamps]
    assert found["lists"]["target_user_history__item_ids"] == [[1, 2]]


@long
def test_a_resend_to_the_offline_store_adds_nothing(project, tmp_path):
    lake, table = Lake.open(project), Table.SYNTHETIC_TARGET_EVENTS
    rows = pa.table(synthetic(["a", "c", "c"], [9, 9, 9], hours(5, 5, 6), "w"))
    rows.to_pandas().to_parquet(tmp_path / "rows.parquet")
    program = f"""
rows = pd.read_parquet({str(tmp_path / "rows.parquet")!r})
store.write_to_offline_store("synthetic_target_events", rows)
store.write_to_offline_store("synthetic_target_events", rows)
store.write_to_offline_store("synthetic_target_events", rows.iloc[1:])
print(json.dumps(len(rows)))
"""
    assert sdk(project.feast_repo, program) == 3
    assert sorted(lake.read(table)["event_id"].to_pylist()) == ["e0", "e1", "w0", "w1", "w2"]


def test_saved_datasets(project):
    """To a Parquet file, a folder of them and a Delta table; never over what is there, unless asked to."""
    found = sdk(
        project.feast_repo,
        """
import warnings; warnings.simplefilter("ignore")
from feast.data_format import DeltaFormat, ParquetFormat
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
times = pd.to_datetime(["2024-01-02T00:00Z"] * 3)
spine = pd.DataFrame({"user_id": ["b", "a", "b"], "item_id": [2, 1, 9], "event_timestamp": times})
service = store.get_feature_service("downstream_training_v1")
found = {}
for place, form in (("saved.parquet", ParquetFormat()), ("saved", ParquetFormat()), ("saved-delta", DeltaFormat())):
    storage = SavedDatasetFileStorage(place, file_format=form)
    job = store.get_historical_features(entity_df=spine, features=service, full_feature_names=True)
    store.create_saved_dataset(job, place, storage, feature_service=service)
    try:
        store.create_saved_dataset(job, place, storage, feature_service=service)
        again = "overwritten"
    except Exception as error:
        again = type(error).__name__
    store.create_saved_dataset(job, place, storage, feature_service=service, allow_overwrite=True)
    saved = store.get_saved_dataset(place).to_df()
    histories = [list(ids) for ids in saved.source_user_history__item_ids]
    found[place] = {"again": again, "columns": list(saved.columns), "users": saved.user_id.tolist(), "histories": histories}
print(json.dumps(found))
""",
    )
    assert list(found) == ["saved.parquet", "saved", "saved-delta"]
    for dataset in found.values():
        assert dataset["again"] == "SavedDatasetLocationAlreadyExists"
        assert dataset["users"] == ["b", "a", "b"]
        assert dataset["histories"] == [["s1"], ["s1", "s2"], ["s1"]]
        assert {"item_id", "event_timestamp", "target_item_stats__first_seen"} <= set(dataset["columns"])


@long
def test_on_demand_features_and_renamed_keys(project):
    """Feast's own means on top: a transformation of the result, and the same view joined on another column."""
    (project.feast_repo / "more.py").write_text(
        """
from feast import FeatureService, Field
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Int64
from definitions import source_user_history, target_user_history

@on_demand_feature_view(sources=[source_user_history], schema=[Field(name="twice", dtype=Int64)])
def doubled(inputs):
    import pandas as pd
    return pd.DataFrame({"twice": (inputs["event_count"] * 2).astype("Int64")})

friends = FeatureService(name="friends", features=[
    source_user_history.with_name("of_friend").with_join_key_map({"user_id": "friend"})[["event_count"]],
    target_user_history[["event_count"]],
])
"""
    )
    feast(project.feast_repo, ["apply"])
    found = sdk(
        project.feast_repo,
        """
times = pd.to_datetime(["2024-01-02T00:00Z"] * 2)
spine = pd.DataFrame({"user_id": ["b", "a"], "friend": ["a", "b"], "event_timestamp": times})
friends = store.get_feature_service("friends")
both = store.get_historical_features(entity_df=spine, features=friends, full_feature_names=True).to_df()
twice = store.get_historical_features(entity_df=spine, features=["doubled:twice"]).to_df()
print(json.dumps({"both": both.to_dict("list"), "twice": twice.twice.tolist()}, default=str))
""",
    )
    assert found["both"]["of_friend__event_count"] == [2, 1]
    assert found["both"]["target_user_history__event_count"] == [1, 2]
    assert found["twice"] == [2, 4]
