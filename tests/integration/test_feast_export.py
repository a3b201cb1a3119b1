"""`scalr feast export` in a feature repository of somebody else's: Feast's own stores give what ours gives."""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from support import warm
from support.feast_project import STAMP, T0, make_project, synthetic
from typer.testing import CliRunner

from scalr_prod import Project
from scalr_prod.apps.cli import app
from scalr_prod.errors import FeatureStoreError, ForeignFiles, TableNotFound
from scalr_prod.features import export_definitions, open_feature_store
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table

#: Copies tables for Feast's own stores; test_feast_stock.py reads ours with Feast's commands and SDK.
pytestmark = pytest.mark.long

VIEW, HISTORY = Table.SYNTHETIC_TARGET_EVENTS.value, Table.SOURCE_USER_HISTORY.value
USERS = [f"u{number}" for number in range(12)]
FEATURES = {
    VIEW: ["event_id", "item_id", "probability", "source_domain", "run_id"],
    HISTORY: ["item_ids", "event_count"],
}
#: Feast applies the definitions of each repository and joins its rows to them; nothing of ours is imported there.
PROGRAM = """
import json, sys
from pathlib import Path
import pandas as pd
from click.testing import CliRunner
from feast import FeatureStore
from feast.cli.cli import cli
refs, repositories = json.loads(sys.argv[1])
said, path = {}, list(sys.path)
for repo, known in repositories.items():
    sys.path[:] = path  # Feast imports a repository's files by their names, which are the same in each
    for file in Path(repo).glob("*.py"):
        sys.modules.pop(file.stem, None)
    applied = CliRunner().invoke(cli, ["-c", repo, "apply"])
    assert applied.exit_code == 0, (applied.output, applied.exception)
    store = FeatureStore(repo)
    spine = pd.read_parquet(repo + "/spine.parquet")
    options = {"filter_by_created_timestamp": True} if known else {}
    rows = store.get_historical_features(entity_df=spine, features=refs, full_feature_names=True, **options).to_df()
    rows.to_parquet(repo + "/rows.parquet")
    said[repo] = [[view.name, view.owner, view.tags, view.join_keys] for view in store.list_feature_views()]
print(json.dumps({"views": said, "ours": [name for name in sys.modules if name.startswith("scalr_prod")]}))
"""


def instants(rng: np.random.Generator, count: int) -> list:
    """Distinct ones in the three days from T0 on."""
    return [T0 + timedelta(minutes=int(minute)) for minute in rng.choice(4320, count, replace=False)]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Tables of a dozen users; a third of the published events was rolled back again, and their files are still there."""
    settings = make_project(
        tmp_path_factory.mktemp("exported"),
        '[feast.export]\nkey = "customer_id"\nentity = "customer"\nowner = "us"\nsource_history = true\ntags = { team = "growth" }\n',
    )
    lake, rng = Lake.open(settings), np.random.default_rng(3)

    def columns(count: int) -> dict:
        at = instants(rng, count)
        known = [moment + timedelta(hours=float(late)) for moment, late in zip(at, rng.choice([0, 2, 30], count), strict=True)]
        return {"user_id": rng.choice(USERS, count).tolist(), "event_timestamp": at, "created_timestamp": known}

    def append(table: Table, rows: dict) -> None:
        lake.append(table, pa.table(rows).select(lake.schema(table).names).cast(lake.schema(table)), key="second")

    made = columns(300)
    events = synthetic(made["user_id"], rng.integers(1, 50, 300).tolist(), made["event_timestamp"], "x")
    append(Table.SYNTHETIC_TARGET_EVENTS, events | {"run_id": ["gone" if n % 3 == 0 else "run-2" for n in range(300)]} | made)
    made = columns(200)
    lists = {
        "item_ids": [[f"s{n}", "s1"] for n in range(200)],
        "event_timestamps": [[at, at] for at in made["event_timestamp"]],
    }
    append(Table.SOURCE_USER_HISTORY, made | lists | {"event_count": list(range(200))})
    lake.delete(Table.SYNTHETIC_TARGET_EVENTS, "run_id = 'gone'", key="rollback")
    return settings


def repository(folder: Path, offline: str) -> Path:
    """One as `feast init` lays it, with a file of its owner's and rows to be joined to."""
    folder.mkdir()
    (folder / "feature_store.yaml").write_text(
        f"project: theirs\nprovider: local\nregistry: registry.db\n{offline}"
        "online_store: {type: sqlite, path: online.db}\nentity_key_serialization_version: 3\n"
    )
    entity = 'from feast import Entity\n\ncustomer = Entity(name="customer", join_keys=["customer_id"])\n'
    (folder / "theirs.py").write_text(entity)  # ours of that name and key lies beside it
    rng = np.random.default_rng(4)
    users = rng.choice([*USERS, "nobody"], 150).tolist()
    spine = pa.table({"customer_id": users, "event_timestamp": pa.array(instants(rng, 150), STAMP)})
    pd.DataFrame(spine.to_pandas()).to_parquet(folder / "spine.parquet")
    return folder


@pytest.fixture(scope="module")
def theirs(project, tmp_path_factory):
    """Repositories, exported to and read by Feast alone: by store, the folder, the command's report and the rows."""
    root, prefix, told = tmp_path_factory.mktemp("theirs"), f"{project.project_name}_", {}
    for store in ("file", "duckdb", "feast_delta.DeltaOfflineStore", "none"):
        folder = repository(root / store, f"offline_store: {{type: {store}}}\n" if store != "none" else "")
        done = CliRunner().invoke(app, ["feast", "export", str(folder), "--json", "--config", str(project.base / "scalr.toml")])
        assert done.exit_code == 0, done.output
        told[store] = json.loads(done.stdout.splitlines()[-1])
    export_definitions(project, root / "none", "delta")
    refs = [f"{prefix}{view}:{name}" for view, names in FEATURES.items() for name in names]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SCALR_")}
    known = {str(root / store): store in {"file", "duckdb"} for store in told}
    command = [sys.executable, "-c", PROGRAM, json.dumps([refs, known])]
    done = warm.run(command, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["ours"] == []
    for views in said["views"].values():
        assert len(views) == 2
        assert all(owner == "us" and tags["team"] == "growth" and keys == ["customer_id"] for _, owner, tags, keys in views)
    given = {store: pd.read_parquet(root / store / "rows.parquet") for store in told}
    return {
        store: (root / store, told[store], given[store].sort_values("event_timestamp", ignore_index=True)) for store in told
    }


def ours(settings, folder: Path) -> pd.DataFrame:
    spine = pd.read_parquet(folder / "spine.parquet").rename(columns={"customer_id": "user_id"})
    refs = [f"{view}:{name}" for view, names in FEATURES.items() for name in names]
    rows = open_feature_store(settings).get_historical_features(spine, refs, full_feature_names=True).to_df()
    return rows.sort_values("event_timestamp", ignore_index=True)


def values(rows: pd.DataFrame, column: str) -> list:
    def plain(value: object) -> object:
        if isinstance(value, np.ndarray | list):
            return [str(one) for one in value]
        if value is None or value is pd.NaT or (isinstance(value, float) and np.isnan(value)):
            return None
        return pd.Timestamp(value).tz_convert("UTC") if isinstance(value, pd.Timestamp) else value

    return [plain(value) for value in rows[column]]


@pytest.mark.slow
@pytest.mark.parametrize("store", ["file", "duckdb"])
def test_feasts_own_stores_give_the_rows_of_ours(project, theirs, store):
    folder, told, rows = theirs[store]
    assert told["format"] == "parquet"
    assert told["rows"] == {f"{project.project_name}_{VIEW}": 202, f"{project.project_name}_{HISTORY}": 203}
    expected = ours(project, folder)
    assert expected[f"{VIEW}__event_id"].notna().sum() > 40
    # Feast's file store leaves out rows whose user had something only later; the others, and all of the DuckDB store's, are ours.
    given = expected["event_timestamp"].isin(rows["event_timestamp"])
    nothing_yet = expected[[f"{VIEW}__event_id", f"{HISTORY}__event_count"]].isna().any(axis="columns")
    assert (given | nothing_yet).all() if store == "file" else given.all()
    expected = expected[given]
    assert expected[f"{VIEW}__event_id"].isna().any()
    for view, names in FEATURES.items():
        for name in names:
            found = values(rows, f"{project.project_name}_{view}__{name}")
            assert found == values(expected, f"{view}__{name}"), name


@pytest.mark.slow
def test_the_offline_store_of_a_repository_of_somebody_else_reads_the_clock_from_the_tags(project, theirs):
    folder, told, rows = theirs["feast_delta.DeltaOfflineStore"]
    assert told["format"] == "delta"
    expected = ours(project, folder)
    for view, names in FEATURES.items():
        for name in names:
            assert values(rows, f"{project.project_name}_{view}__{name}") == values(expected, f"{view}__{name}"), name


@pytest.mark.slow
def test_what_the_file_says_of_other_readers_is_so(project, theirs):
    # The file store over a Delta table's folder reads rows that were rolled back; without the flag, rows count before they were known.
    folder, told, rows = theirs["none"]
    assert told["format"] == "parquet"  # Feast takes its file store where none is named
    assert "gone" in set(rows[f"{project.project_name}_{VIEW}__run_id"])
    both = rows.merge(ours(project, folder), on="event_timestamp", validate="one_to_one")
    names = (f"{project.project_name}_{HISTORY}__event_count", f"{HISTORY}__event_count")
    assert (both[names[0]].fillna(-1) != both[names[1]].fillna(-1)).sum() > 10


def test_a_copy_is_renewed_and_what_others_made_stays(project, tmp_path):
    with Project(project) as opened:
        first = opened.export_feast(tmp_path, "parquet")
        assert opened.export_feast(tmp_path, "parquet") == first
    copy = tmp_path / f"scalr_{project.project_name}" / f"{VIEW}.parquet"
    assert set(pd.read_parquet(copy)["run_id"]) == {"run-1", "run-2"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f".scalr-scalr_{project.project_name}-export",
        f"scalr_{project.project_name}",
        f"scalr_{project.project_name}.py",
    ]
    other = tmp_path / "other"
    other.mkdir()
    mine = other / f"scalr_{project.project_name}.py"
    mine.write_text("mine = 1\n")
    with pytest.raises(ForeignFiles, match="did not make") as refused:
        export_definitions(project, other, "delta")
    assert refused.value.next_step.startswith(
        "name another folder, or move these files away; if they are a copy of such a folder,"
    )
    assert [path.name for path in other.iterdir()] == [mine.name]
    assert mine.read_text() == "mine = 1\n"


def test_what_cannot_be_exported(project, tmp_path, settings):
    with pytest.raises(FeatureStoreError, match=r"no feature_store.yaml") as unknown:
        export_definitions(project, tmp_path / "features")
    assert "--format parquet" in unknown.value.next_step
    with pytest.raises(TableNotFound):
        export_definitions(settings, tmp_path / "features", "delta")
    (tmp_path / "feature_store.yaml").write_text("offline_store: {type: ")
    with pytest.raises(FeatureStoreError, match="cannot be read as YAML"):
        export_definitions(project, tmp_path / "features")
    (tmp_path / "feature_store.yaml").unlink()
    (tmp_path / "file").write_text("")
    with pytest.raises(FeatureStoreError, match="cannot be written to"):
        export_definitions(project, tmp_path / "file", "delta")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "logs"]
