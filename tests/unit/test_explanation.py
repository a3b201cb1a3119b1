"""Every key has a sentence, the reference is up to date, and what is in force says where it came from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scalr_prod.cli import app
from scalr_prod.explanation import effective, every_key, reference
from scalr_prod.settings import Settings, load_settings, make_settings

ROOT = Path(__file__).resolve().parents[2]
TOML = """
[project]
storage_options = { AWS_SECRET_ACCESS_KEY = "hush" }
[domains.sources.shop]
query = "SELECT 1"
url = "postgresql://me:hush@db/shop"
[domains.target]
name = "films"
events = "films.csv"
columns = { user = "userId" }
[generation]
seed = 3
[ledger]
url = "postgresql://me:hush@db/ledger"
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "scalr.toml").write_text(TOML)
    return tmp_path / "scalr.toml"


@pytest.mark.parametrize("key", every_key(), ids=lambda key: f"{key.section}.{key.name}")
def test_every_key_has_a_sentence(key):
    assert len(key.says.split()) > 1
    assert key.type


def test_no_section_and_no_domain_key_is_left_out():
    sections = {key.section.split(".")[0] for key in every_key()}
    assert sections == set(Settings.model_fields) - {"base"}
    for name in ("columns", "item_columns"):
        assert [key for key in every_key() if key.section == f"domains.<place>.{name}"]


def test_the_reference_is_what_is_generated():
    """Write it anew: make docs."""
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == reference()


def test_a_value_says_where_it_came_from(config, monkeypatch):
    monkeypatch.setenv("SCALR_TRANSLATOR__DIM", "8")
    monkeypatch.setenv("SCALR_COMPUTE", '{"memory_mb": 512}')
    found = {one.key: (one.value, one.source) for one in effective(load_settings(config, histories={"length": 7}))}
    assert found["[generation] seed"] == (3, "file")
    assert found["[generation] mode"] == ("backfill", "default")
    assert found["[translator] dim"] == (8, "environment SCALR_TRANSLATOR__DIM")
    assert found["[compute] memory_mb"] == (512, "environment SCALR_COMPUTE")
    assert found["[histories] length"] == (7, "override")
    assert found["[domains.target.columns] user"] == ("userId", "file")
    assert found["[domains.target.columns] item"] == ("item_id", "default")
    assert found["[domains.sources.shop] query"] == ("SELECT 1", "file")


def test_settings_that_were_changed_in_python_say_so(config):
    changed = load_settings(config).with_sections(generation={"seed": 5})
    found = {one.key: (one.value, one.source) for one in effective(changed)}
    assert found["[generation] seed"] == (5, "override")
    assert found["[domains.target] events"] == ("films.csv", "file")
    made = make_settings({"domains": {place: {"name": place, "events": "x.csv"} for place in ("source", "target")}})
    assert {one.source for one in effective(made) if one.key == "[domains.source] events"} == {"override"}


def test_the_command_shows_it_and_no_secret(config):
    done = CliRunner().invoke(app, ["config", "show", "--config", str(config), "--json"])
    assert done.exit_code == 0, done.output
    assert "hush" not in done.output
    found = {one["key"]: one for one in json.loads(done.stdout)["keys"]}
    assert found["[ledger] url"]["value"] == "***"
    assert found["[feast] redis"]["value"] == "localhost:6379"
    assert found["[generation] seed"]["says"].startswith("of the draws")
    text = CliRunner().invoke(app, ["config", "show", "--config", str(config), "--named"])
    assert "[generation] seed" in text.stdout
    assert "default" not in text.stdout
    assert "hush" not in text.output
