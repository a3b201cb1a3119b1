"""A project's folder may be called anything: blanks, letters of any language, what URLs and patterns take for something else."""

from __future__ import annotations

import shutil

import pytest
from conftest import make_two_domains, write_toml
from support.examples import sweep

from scalr_prod import Project
from scalr_prod.config.settings import load_settings
from scalr_prod.errors import LakeError, SettingsError
from scalr_prod.features import apply_feature_repo
from scalr_prod.histories import build_histories
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.operations.erasure import erase_users
from scalr_prod.operations.erasure.tables import purge
from scalr_prod.schemas import Table

#: Reads logs, or runs, once more in a folder with another name.
long = pytest.mark.long

NAMES = ["user_id=5", "größe #1", "my project", "50% off", "{a}*b", "it's & so"]
REFUSED = ["g[1]", "a?b", "a^b", "a|b", "a\\b", "x%20y", "tab\there"]


def files(settings) -> set[str]:
    return {path.name for path in (settings.home / "lake").rglob("part-*.parquet")}


@pytest.mark.parametrize("name", sweep(NAMES, 1))
def test_logs_are_read_built_and_forgotten_in_any_folder(name, tmp_path):
    settings = load_settings(write_toml(make_two_domains(tmp_path / name)))
    ingest(settings)
    build_histories(settings)
    lake = Lake.open(settings)
    before = {table: lake.read(table).num_rows for table in (Table.SOURCE_EVENTS, Table.SOURCE_USER_HISTORY)}
    user = lake.read(Table.SOURCE_EVENTS)["user_id"][0].as_py()
    report = erase_users(settings, [str(user)])
    assert report.removed["source_events"] == before[Table.SOURCE_EVENTS] - lake.read(Table.SOURCE_EVENTS).num_rows > 0
    assert user not in lake.read(Table.SOURCE_EVENTS)["user_id"].to_pylist()
    with Project(settings) as project:
        project.maintain()
    assert lake.read(Table.SOURCE_USER_HISTORY).num_rows < before[Table.SOURCE_USER_HISTORY]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_home_whose_ledger_would_be_elsewhere_is_refused(tmp_path):
    """A database's URL ends its path at a question mark."""
    config = write_toml(make_two_domains(tmp_path / "project"))
    settings = load_settings(config, project={"home": "a?b", "lake": str(tmp_path / "lake")})
    with pytest.raises(SettingsError, match=r"contains '[?]'"):
        ingest(settings)
    with pytest.raises(SettingsError, match=r"contains '[?]'"):
        Project(settings).status()
    assert sorted(path.name for path in tmp_path.rglob("a*")) == []


@pytest.mark.parametrize("name", sweep(REFUSED, 1))
def test_a_folder_in_which_no_delta_table_can_be_is_refused_before_anything_is_written(name, tmp_path):
    config = write_toml(make_two_domains(tmp_path / name))
    with pytest.raises(SettingsError, match="tables and databases cannot be kept in a folder whose path contains"):
        ingest(load_settings(config))
    assert not (config.parent / ".scalr").exists()
    assert not list(tmp_path.rglob("_delta_log"))


@long
@pytest.mark.slow
def test_a_run_a_training_set_and_upkeep_in_a_folder_with_blanks(trained_home, tmp_path, here):
    folder = tmp_path / "user_id=5" / "größe #1 50%"
    shutil.copytree(trained_home.parent, folder)
    shutil.rmtree(folder / ".scalr" / "feature_repo", ignore_errors=True)
    config = folder / trained_home.name
    config.write_text(
        config.read_text().replace("[generation]\n", "[generation]\npartitions = 2\n") + '[serving]\nscorer = "local"\n'
    )
    settings = load_settings(config, compute={"workers": 1, "dask": here})
    apply_feature_repo(settings)
    with Project(settings) as project:
        project.run()
        rows = project.training_set().to_arrow()
        assert rows["is_synthetic"].to_pylist().count(True) > 0
        kept = files(settings)
        project.maintain()
        assert files(settings) <= kept
        user = next(row for row in rows["user_id"].to_pylist() if row is not None)
        project.forget([str(user)])
        for table in Table:
            if project.lake.exists(table):
                project.lake.read(table)  # each of its files is there
        project.run()
        assert user not in project.lake.read(Table.SYNTHETIC_TARGET_EVENTS)["user_id"].to_pylist()


def test_nothing_is_removed_from_a_table_that_lacks_a_file(tmp_path):
    from datetime import UTC, datetime

    settings = load_settings(write_toml(make_two_domains(tmp_path)))
    ingest(settings)
    lake = Lake.open(settings)
    (settings.home / "lake" / "source_events" / "later.parquet").write_bytes(b"")
    next((settings.home / "lake" / "source_events").glob("part-*")).unlink()
    with pytest.raises(LakeError, match=r"of the table's \d+ files are missing"):
        purge(lake, Table.SOURCE_EVENTS, before=datetime.now(UTC))
    assert (settings.home / "lake" / "source_events" / "later.parquet").exists()


@pytest.mark.parametrize("table", [Table.SOURCE_EVENTS, pytest.param(Table.TARGET_EVENTS, marks=long)])
@pytest.mark.parametrize("is_lost", [True, False], ids=["lost", "cut off"])
def test_a_file_that_is_lost_or_cut_off_is_named_by_whoever_reads_it(table, is_lost, tmp_path):
    """A stream over a lost one waited for ever."""
    settings = load_settings(write_toml(make_two_domains(tmp_path)))
    ingest(settings)
    lost = next((settings.home / "lake" / table.value).glob("part-*"))
    if is_lost:
        lost.unlink()
    else:
        lost.write_bytes(lost.read_bytes()[:500])
    for read in (lambda: ingest(settings), lambda: Lake.open(settings).read(table), lambda: build_histories(settings)):
        with pytest.raises(
            LakeError, match="is missing, though the table's log names it" if is_lost else "has 500 bytes of the"
        ) as caught:
            read()
        assert lost.name in str(caught.value)
        assert "scalr run" in caught.value.next_step
