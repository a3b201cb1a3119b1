"""A project's name: where it comes from, and the home and lake that bear it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from support.examples import sweep
from typer.testing import CliRunner

from scalr_prod.apps.cli import app
from scalr_prod.config.settings import load_settings
from scalr_prod.errors import ProjectsMixed, SettingsError
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.ledger import Ledger
from scalr_prod.schemas import Table


@pytest.fixture
def project(tmp_path: Path):
    """Settings in a folder of their own below the test's."""

    def make(folder: str, source: str = "food", target: str = "kitchen", toml: str = "", **sections):
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        for name in ("food", "kitchen", "tools"):
            at = pd.to_datetime(["2024-05-01T00:00:00Z"] * 2)
            rows = {"user_id": ["u1", "u2"], "item_id": [f"{name}1", f"{name}2"], "timestamp": at}
            pd.DataFrame(rows).to_parquet(root / f"{name}.parquet")
        (root / "scalr.toml").write_text(
            f'{toml}\n[domains.source]\nname = "{source}"\nevents = "food.parquet"\n'
            f'[domains.target]\nname = "{target}"\nevents = "kitchen.parquet"\n'
        )
        return load_settings(root / "scalr.toml", **sections)

    return make


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_default_is_made_of_the_domains_and_a_long_one_is_cut_with_a_checksum(project):
    assert project("a").project_name == "food_to_kitchen"
    assert project("a", "Amazon Food", "Kitchen & Co".replace("&", "-")).project_name == "amazon_food_to_kitchen_co"
    long = [project("a", "s" * 64, target * 64).project_name for target in "tu"]
    assert all(len(name) == 63 for name in long)
    assert long[0] != long[1]
    assert project("a", toml='[project]\nname = "shop_1"').project_name == "shop_1"


@pytest.mark.parametrize("name", ["", "My Shop", "shop-1", "_shop", "../shop", "x" * 64, "shop'"])
def test_a_name_that_is_none_is_refused(project, name):
    with pytest.raises(SettingsError, match=r"\[project\] name"):
        project("a", toml=f'[project]\nname = "{name}"')


def test_a_home_keeps_the_name_that_it_was_made_with(project):
    """A domain that is renamed makes no other project."""
    first = project("a")
    ingest(first)
    renamed = project("a", "groceries", domains={"source": {"formerly": "food"}})
    assert renamed.domains.default_project_name == "groceries_to_kitchen"
    assert renamed.project_name == "food_to_kitchen"
    ingest(renamed)


def test_an_explicit_name_on_a_home_of_another_is_refused_until_it_says_what_it_was(project):
    ingest(project("a"))
    home = project("a").home
    before = contents(home)
    with pytest.raises(ProjectsMixed, match="belongs to project 'food_to_kitchen'") as caught:
        ingest(project("a", project={"name": "shop"}))
    assert 'formerly = "food_to_kitchen"' in caught.value.next_step
    assert contents(home) == before
    renamed = project("a", project={"name": "shop", "formerly": "food_to_kitchen"})
    ingest(renamed)
    assert Lake.open(renamed).description(Table.SYNTHETIC_QUARANTINE) == "Project: shop"
    assert project("a").project_name == "shop"
    with pytest.raises(ProjectsMixed, match="'shop'"):
        ingest(project("a", project={"name": "food_to_kitchen"}))


def test_a_lake_of_another_project_is_refused_though_homes_and_ledgers_are_apart(project, tmp_path):
    lake = {"lake": str(tmp_path / "lake")}
    ingest(project("a", project=lake))
    before = contents(tmp_path / "lake")
    with pytest.raises(ProjectsMixed, match="lake belongs to project 'food_to_kitchen'"):
        ingest(project("b", project=lake | {"name": "shop"}))
    assert contents(tmp_path / "lake") == before


def test_a_second_home_on_one_lake_is_refused_though_their_ledgers_are_apart(project, tmp_path):
    """Their leases would not know of each other."""
    lake = {"lake": str(tmp_path / "lake")}
    ingest(project("a", project=lake))
    before = contents(tmp_path / "lake")
    home = str(project("a").home)
    with pytest.raises(ProjectsMixed, match=f"from home {home}") as caught:
        ingest(project("b", project=lake))
    assert caught.value.next_step.endswith(f'moved_from = "{home}"')
    assert contents(tmp_path / "lake") == before
    ingest(project("a", project={"lake": f"file://{tmp_path}/lake"}))
    assert contents(tmp_path / "lake") == before

    moved = project("b", project=lake | {"moved_from": home})
    ingest(moved)
    ingest(project("b", project=lake))
    with pytest.raises(ProjectsMixed, match=str(moved.home)):
        ingest(project("a", project=lake))


def test_a_lake_of_before_projects_is_bound_by_the_next_ingest_and_nothing_else_moves(project):
    settings = project("a")
    ingest(settings)
    lake = Lake.open(settings)
    lake.set_description(Table.SYNTHETIC_QUARANTINE, "", key="as it was")
    others = {table: lake.version(table) for table in Table if table != Table.SYNTHETIC_QUARANTINE and lake.exists(table)}
    ingest(settings)
    assert lake.description(Table.SYNTHETIC_QUARANTINE) == "Project: food_to_kitchen"
    assert {table: lake.version(table) for table in others} == others


def test_a_home_with_its_ledger_moves_freely(project, tmp_path):
    settings = project("a")
    ingest(settings)
    run = _planned(settings)
    shutil.move(tmp_path / "a", tmp_path / "moved")
    with Ledger.open(load_settings(tmp_path / "moved" / "scalr.toml")) as ledger:
        assert ledger.runs.get(run)


def test_two_projects_of_one_name_on_one_ledger_are_refused_with_both_lakes(project, tmp_path):
    """As staging and production, copied from one scalr.toml."""
    shared = {"url": f"sqlite:///{tmp_path / 'shared.db'}"}
    first, second = project("a", ledger=shared), project("b", ledger=shared)
    _planned(first)
    with pytest.raises(ProjectsMixed) as caught:
        Ledger.open(second)
    assert str(first.home / "lake") in str(caught.value)
    assert str(second.home / "lake") in str(caught.value)
    assert 'formerly = "food_to_kitchen"' in caught.value.next_step
    with Ledger.open(project("b", ledger=shared, project={"name": "staging", "formerly": "food_to_kitchen"})) as ledger:
        assert ledger.runs.find() == []


COMMANDS = {
    "show": ["runs", "show"],
    "resume": ["runs", "resume"],
    "roll back": ["runs", "rollback"],
    "validate": ["validate"],
    "publish": ["publish"],
}


@pytest.mark.parametrize("command", sweep(COMMANDS, keep=2))
def test_no_command_touches_a_run_of_another_project(project, tmp_path, command, monkeypatch):
    monkeypatch.setenv("SCALR_LEDGER__URL", f"sqlite:///{tmp_path / 'shared.db'}")
    first, second = project("a"), project("b", "tools")
    ingest(first)
    ingest(second)
    run_id = _planned(second)
    with Ledger.open(second) as ledger:
        for state in ("generating", "generated", "validated"):
            ledger.runs.set_state(run_id, state, cause="x")
        ledger.publications.record_intent(run_id, base_version=0, rows=1, replaced={})
        ledger.publications.confirm(run_id, attempt=1, delta_version=1, rows=1, cause="x")
        before = [ledger.runs.get(run_id), ledger.changes.find(), ledger.publications.find()]
        lakes = [contents(one.home / "lake") for one in (first, second)]
        done = CliRunner().invoke(app, [*COMMANDS[command], run_id, "-c", str(first.base / "scalr.toml"), "--json"])
        assert done.exit_code == 1
        said = json.loads(done.stdout)
        assert said["error"] == "RunOfOtherProject"
        assert "'tools_to_kitchen'" in said["found"]
        assert [ledger.runs.get(run_id), ledger.changes.find(), ledger.publications.find()] == before
        assert [contents(one.home / "lake") for one in (first, second)] == lakes


def _planned(settings) -> str:
    from support.ledger_runs import make_spec

    with Ledger.open(settings) as ledger:
        return ledger.runs.begin(make_spec()).run_id
