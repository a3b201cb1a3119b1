"""What the package did not make is never written over, whatever folder the settings name; what it made before is recognised."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from support.feast_project import make_project

from scalr_prod.config.settings import load_settings, settings_from_dict
from scalr_prod.core import assets
from scalr_prod.errors import ForeignFiles, LakeError
from scalr_prod.features import apply_feature_repo
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.ledger import Ledger
from scalr_prod.quality.gx_engine import open_gx_session
from scalr_prod.schemas import Table, table_schema
from scalr_prod.serving.model_repository import configured_instances, write_config
from scalr_prod.workspace.ownership import claim_home

SCHEMA = table_schema(Table.SOURCE_EVENTS, user="string", item="string")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(folder: Path, files: dict[str, str]) -> dict[str, bytes]:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return contents(folder)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A scalr.toml beside two small logs."""
    for name in ("s", "t"):
        at = pd.to_datetime(["2024-05-01T00:00:00Z"] * 2)
        rows = {"user_id": ["u1", "u2"], "item_id": [f"{name}1", f"{name}2"], "timestamp": at}
        pd.DataFrame(rows).to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "scalr.toml").write_text(
        '[domains.source]\nname = "s"\nevents = "s.parquet"\n[domains.target]\nname = "t"\nevents = "t.parquet"\n'
    )
    return tmp_path / "scalr.toml"


# --- the feature repository


@pytest.mark.parametrize(
    "files",
    [
        {"feature_store.yaml": "project: mine\n", "definitions.py": "import feast\n"},
        {"definitions.py": "import feast\n"},
        {"lake.json": "{}"},
        {"feature_store.yaml": "project: mine\n", ".applied.json": "{}"},
    ],
)
def test_a_foreign_feature_repository_stays_as_it_is(tmp_path, files):
    before = put(tmp_path / "mine", files)
    with pytest.raises(ForeignFiles) as caught:
        make_project(tmp_path, '[feast]\nrepo = "mine"\n')
    assert contents(tmp_path / "mine") == before
    assert str(tmp_path / "mine") in str(caught.value.where)
    assert "[feast] repo" in str(caught.value.next_step)


def test_the_template_itself_is_no_repository(tmp_path):
    shutil.copytree(assets.asset_folder("feature_repo"), tmp_path / "template")
    before = contents(tmp_path / "template")
    with pytest.raises(ForeignFiles):
        make_project(tmp_path, '[feast]\nrepo = "template"\n')
    assert contents(tmp_path / "template") == before


def test_a_repository_without_its_marker_is_left_alone_and_the_error_names_it(tmp_path):
    settings = make_project(tmp_path)
    marker = settings.feast_repo / ".scalr-feature-repository"
    text = marker.read_text()
    marker.unlink()
    (settings.feast_repo / "definitions.py").write_text("# out of date\n")
    with pytest.raises(ForeignFiles) as caught:
        apply_feature_repo(settings)
    assert caught.value.next_step.endswith("restore .scalr-feature-repository with them")
    marker.write_text(text)
    assert apply_feature_repo(settings).applied


def test_files_beside_ours_are_left_alone(tmp_path):
    before = put(tmp_path / "mine", {"notes.md": "mine", "more.py": "x = 1\n"})
    settings = make_project(tmp_path, '[feast]\nrepo = "mine"\n')
    assert (settings.feast_repo / "definitions.py").exists()
    assert {name: text for name, text in contents(tmp_path / "mine").items() if name in before} == before
    put(settings.feast_repo, {"still_mine.py": "y = 2\n"})
    assert not apply_feature_repo(settings).applied


# --- the project's home


FOREIGN_HOMES = {
    "staging": {"staging/precious/data.csv": "a\n"},
    "models": {"models/translator/1/weights.bin": "w"},
    "data docs": {"data_docs/index.html": "<p>mine</p>"},
    "ledger": {"ledger.db": "no database"},
    "lake": {"lake/source_events/part.parquet": "p"},
    "datasets": {"datasets/training_set/v1/rows.csv": "r"},
}


@pytest.mark.parametrize("files", FOREIGN_HOMES.values(), ids=FOREIGN_HOMES)
def test_a_foreign_home_stays_as_it_is(logs, files):
    settings = load_settings(logs, project={"home": "mine"})
    before = put(settings.home, files)
    openers = (
        ingest,
        lambda settings: Ledger.open(settings).runs.find(),
        lambda settings: open_gx_session(settings).__enter__(),
    )
    for opened in openers:
        with pytest.raises(ForeignFiles) as caught:
            opened(settings)
        assert "[project] home" in str(caught.value.next_step)
    assert contents(settings.home) == before


@pytest.mark.parametrize("home", ["/proc/scalr", "file/home"])
def test_a_home_that_cannot_be_made_is_a_clear_error(tmp_path, home):
    (tmp_path / "file").write_text("")
    domains = {place: {"name": place, "events": "x"} for place in ("source", "target")}
    settings = settings_from_dict({"project": {"home": home}, "domains": domains}, base=tmp_path)
    with pytest.raises(LakeError, match="cannot be written to: ") as caught:
        claim_home(settings)
    assert caught.value.where == str(settings.home)
    assert "set [project] home to a writable folder" in caught.value.next_step


def test_a_home_may_hold_other_files(logs):
    settings = load_settings(logs, project={"home": "."})
    ingest(settings)
    assert ingest(settings).domains["source"].rows_added == 0
    assert (logs.parent / "lake" / "source_events").is_dir()


def test_a_home_without_its_marker_is_left_alone_until_the_marker_is_restored(logs):
    settings = load_settings(logs)
    ingest(settings)
    marker = settings.home / ".scalr-home"
    text = marker.read_text()
    marker.unlink()
    before = contents(settings.home)
    with pytest.raises(ForeignFiles, match=r"ingested\.json, lake") as caught:
        ingest(settings)
    assert caught.value.next_step.endswith("restore .scalr-home with them")
    assert contents(settings.home) == before
    marker.write_text(text)
    assert ingest(settings).domains["source"].rows_added == 0


def test_another_project_s_lake_makes_no_home_of_a_folder(logs, tmp_path):
    """Its lake is in ``shared/lake``, its home elsewhere; what else lies in ``shared`` is somebody's."""
    ingest(load_settings(logs, project={"home": "first", "lake": "shared/lake"}))
    theirs = {"staging/mine/x.txt": "x", "reports/mine.html": "<p>mine</p>"}
    put(tmp_path / "shared", theirs)
    with pytest.raises(ForeignFiles, match="staging"):
        ingest(load_settings(logs, project={"home": "shared", "lake": "second"}))
    assert {name: (tmp_path / "shared" / name).read_text() for name in theirs} == theirs


def test_a_mark_that_cannot_be_read_now_is_not_written_over(tmp_path, monkeypatch):
    from pathlib import Path

    from scalr_prod.core.directory_marker import ensure_marker, read_marker

    mark = ensure_marker(tmp_path, "first")

    def stale(self, *args, **kwargs):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(Path, "read_text", stale)
    with pytest.raises(OSError, match="Stale"):
        ensure_marker(tmp_path, "second")
    monkeypatch.undo()
    assert read_marker(tmp_path) == mark


def test_an_empty_home_of_a_refused_ingest_is_taken(logs):
    settings = load_settings(logs)
    (settings.home / "staging").mkdir(parents=True)
    ingest(settings)


def test_a_foreign_database_is_no_ledger_of_ours(logs):
    settings = load_settings(logs)
    settings.home.mkdir()
    with sqlite3.connect(settings.home / "ledger.db") as db:
        db.execute("CREATE TABLE accounts (id INTEGER)")
    db.close()
    with pytest.raises(ForeignFiles):
        Ledger.open(settings)


def test_many_at_once_share_a_new_home(logs):
    settings = load_settings(logs)
    start = threading.Barrier(16)

    def work(number: int) -> None:
        start.wait()
        claim_home(settings)
        # Nothing is read here: the others' marks come and go under the names of files that are not whole yet.
        (settings.home / "models").mkdir(exist_ok=True)
        (settings.home / "models" / f"{number}.json").write_text("{}")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    assert len(list((settings.home / "models").iterdir())) == 16


# --- the lake


def test_a_foreign_delta_table_is_not_written_to(logs, tmp_path):
    settings = load_settings(logs, project={"lake": "warehouse"})
    mine = tmp_path / "warehouse" / "source_events"
    write_deltalake(mine, pa.table({"user_id": ["x"], "amount": [1.0]}))
    before = contents(tmp_path / "warehouse")
    with pytest.raises(ForeignFiles) as caught:
        ingest(settings)
    assert "[project] home or lake" in str(caught.value.next_step)
    assert contents(tmp_path / "warehouse") == before


def test_no_table_is_made_among_loose_files(tmp_path):
    lake = Lake(str(tmp_path))
    before = put(tmp_path / "source_events", {"part.parquet": "p"})
    with pytest.raises(ForeignFiles):
        lake.create(Table.SOURCE_EVENTS, SCHEMA)
    assert contents(tmp_path / "source_events") == before


def test_a_foreign_table_of_our_columns_is_not_changed(tmp_path):
    """By its columns alone a table is not ours: the log says who made it."""
    lake = Lake(str(tmp_path))
    empty = SCHEMA.empty_table()
    write_deltalake(lake.uri(Table.SOURCE_EVENTS), empty)
    before = contents(tmp_path)
    for write in (
        lambda: lake.append(Table.SOURCE_EVENTS, empty, key="a"),
        lambda: lake.replace(Table.SOURCE_EVENTS, empty, key="a"),
        lambda: lake.delete(Table.SOURCE_EVENTS, "weight > 1", key="a"),
        lambda: lake.vacuum(Table.SOURCE_EVENTS),
        lambda: lake.create(Table.SOURCE_EVENTS, SCHEMA),
    ):
        with pytest.raises(ForeignFiles, match="source_events"):
            write()
    assert contents(tmp_path) == before
    # A copy of one of ours becomes ours by its name, as the error says.
    DeltaTable(lake.uri(Table.SOURCE_EVENTS)).alter.set_table_name("source_events")
    lake.append(Table.SOURCE_EVENTS, empty, key="a")


def test_a_foreign_table_is_found_before_any_of_ours_is_made(logs, tmp_path):
    settings = load_settings(logs, project={"lake": "warehouse"})
    write_deltalake(tmp_path / "warehouse" / "target_item_stats", pa.table({"item_id": ["x"]}))
    with pytest.raises(ForeignFiles, match="target_item_stats"):
        ingest(settings)
    assert [path.name for path in (tmp_path / "warehouse").iterdir()] == ["target_item_stats"]


# --- the model repository


@pytest.mark.parametrize(
    "files", [{"config.pbtxt": 'name: "translator"\n'}, {"1/model.onnx": "o"}, {"1/model.py": "class TritonPythonModel: ...\n"}]
)
def test_a_foreign_model_stays_as_it_is(logs, tmp_path, files):
    settings = load_settings(logs, serving={"repository": "models"})
    before = put(tmp_path / "models" / "translator", files)
    with pytest.raises(ForeignFiles) as caught:
        write_config(settings, [])
    assert "[serving]" in str(caught.value.next_step)
    assert contents(tmp_path / "models" / "translator") == before


def test_models_beside_ours_are_no_hindrance(logs, tmp_path):
    settings = load_settings(logs, serving={"repository": "models"})
    before = put(tmp_path / "models" / "ranker", {"config.pbtxt": 'name: "ranker"\n'})
    write_config(settings, [])
    assert contents(tmp_path / "models" / "ranker") == before


@pytest.mark.parametrize(
    ("serving", "bytes_of_a_version", "count"),
    [
        ({"threads": 2}, 1, 2),
        ({"threads": 64}, 1, 2),
        ({"threads": 1}, 1, 1),
        ({"threads": 2}, (256 << 20) + 1, 1),
        ({"threads": 2, "url": "gpu:8001"}, 1, 1),
        ({"threads": 2, "instances": 1}, 1, 1),
        ({"threads": 1, "instances": 3, "url": "gpu:8001"}, (256 << 20) + 1, 3),
    ],
)
def test_a_small_model_has_two_processes_where_a_local_server_has_threads_for_them(
    logs, tmp_path, serving, bytes_of_a_version, count
):
    settings = load_settings(logs, serving={"repository": "models", **serving})
    assert configured_instances(settings) == 0
    write_config(settings, [])
    folder = tmp_path / "models" / settings.served_model
    for version, size in ((1, 5), (2, bytes_of_a_version)):
        (folder / str(version)).mkdir()
        (folder / str(version) / "model.py").touch()
        with (folder / str(version) / "translator.safetensors").open("wb") as file:
            file.truncate(size)
    (folder / "3").mkdir()  # what lost its weights is for the server to tell of
    (folder / "3" / "model.py").touch()
    write_config(settings, [1, 2, 3])
    assert configured_instances(settings) == count
    assert f"count: {count}" in (folder / "config.pbtxt").read_text()


@pytest.mark.parametrize(("shortlist", "said"), [(None, "no"), (500, "yes")])
def test_a_server_makes_what_shortlists_need_where_runs_draw_from_them(logs, tmp_path, shortlist, said):
    settings = load_settings(logs, serving={"repository": "models"}, generation={"shortlist": shortlist})
    write_config(settings, [])
    config = (tmp_path / "models" / settings.served_model / "config.pbtxt").read_text()
    assert f'parameters: {{ key: "shortlists" value: {{ string_value: "{said}" }} }}' in config


def test_of_two_first_marks_the_first_stays(tmp_path, monkeypatch):
    """Another process writes its mark between this one's look and its write."""
    from scalr_prod.core import directory_marker

    read, others = directory_marker._read, []

    def then_another(folder):
        found = read(folder)
        if not others:
            others.append("written")
            others.append(directory_marker.ensure_marker(folder, "theirs"))
        return found

    monkeypatch.setattr(directory_marker, "_read", then_another)
    assert directory_marker.ensure_marker(tmp_path, "mine") == others[1] == read(tmp_path)


def test_an_invalid_mark_is_replaced(tmp_path):
    from scalr_prod.core.directory_marker import ensure_marker, read_marker

    ensure_marker(tmp_path, "first")
    (mark,) = tmp_path.iterdir()
    mark.write_text("{")
    assert ensure_marker(tmp_path, "second") == read_marker(tmp_path)
    assert read_marker(tmp_path).project == "second"
