"""Every key has a sentence, the reference is up to date, and what is in force says where it came from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scalr_prod.apps.cli import app
from scalr_prod.config.sections import LedgerSettings
from scalr_prod.config.settings import Settings, load_settings, settings_from_dict
from scalr_prod.config.settings_reference import effective_settings, list_setting_keys, render_reference
from scalr_prod.core.redaction import redact_url, url_host, url_secrets

ROOT = Path(__file__).resolve().parents[3]
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


@pytest.mark.parametrize("key", list_setting_keys(), ids=lambda key: f"{key.section}.{key.name}")
def test_every_key_has_a_sentence(key):
    assert len(key.description.split()) > 1
    assert key.type


def test_no_section_and_no_domain_key_is_left_out():
    sections = {key.section.split(".")[0] for key in list_setting_keys()}
    assert sections == set(Settings.model_fields) - {"base"}
    for name in ("columns", "item_columns"):
        assert [key for key in list_setting_keys() if key.section == f"domains.<domain>.{name}"]


def test_the_reference_is_what_is_generated():
    """Write it anew: make docs."""
    assert (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8") == render_reference()


def test_a_value_says_where_it_came_from(config, monkeypatch):
    monkeypatch.setenv("SCALR_TRANSLATOR__DIM", "8")
    monkeypatch.setenv("SCALR_COMPUTE", '{"memory_mb": 512}')
    found = {one.key: (one.value, one.source) for one in effective_settings(load_settings(config, histories={"length": 7}))}
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
    found = {one.key: (one.value, one.source) for one in effective_settings(changed)}
    assert found["[generation] seed"] == (5, "override")
    assert found["[domains.target] events"] == ("films.csv", "file")
    made = settings_from_dict({"domains": {place: {"name": place, "events": "x.csv"} for place in ("source", "target")}})
    assert {one.source for one in effective_settings(made) if one.key == "[domains.source] events"} == {"override"}


def test_the_command_shows_it_and_no_secret(config):
    done = CliRunner().invoke(app, ["config", "show", "--config", str(config), "--json"])
    assert done.exit_code == 0, done.output
    assert "hush" not in done.output
    found = {one["key"]: one for one in json.loads(done.stdout)["keys"]}
    assert found["[ledger] url"]["value"] == "***"
    assert found["[feast] redis"]["value"] == "localhost:6379"
    assert found["[generation] seed"]["says"].startswith("random seed of the draws")
    text = CliRunner().invoke(app, ["config", "show", "--config", str(config), "--named"])
    assert "[generation] seed" in text.stdout
    assert "default" not in text.stdout
    assert "hush" not in text.output


@pytest.mark.parametrize(
    "variable", ["SCALR_PROJECT__STORAGE_OPTIONS__AWS_TOKEN", "SCALR_DOMAINS__TARGET__STORAGE_OPTIONS__KEY"]
)
def test_a_secret_of_the_environment_below_a_key_is_shown_as_from_there_and_not_told(config, monkeypatch, variable):
    monkeypatch.setenv(variable, "hush-hush")
    section = "project" if "PROJECT" in variable else "domains.target"
    for more in ((), ("--named",)):
        done = CliRunner().invoke(app, ["config", "show", "--config", str(config), "--json", *more])
        assert "hush" not in done.output
        found = {one["key"]: (one["value"], one["source"]) for one in json.loads(done.stdout)["keys"]}
        assert found[f"[{section}] storage_options"] == ("***", f"environment {variable}")


def test_no_value_of_any_key_shows_the_secret_of_a_url(config):
    url = "s3://key:hu@sh/hush@bucket/lake"
    settings = load_settings(config, project={"lake": url}, feast={"writable": ["s3://plain/table", url]})
    found = {one.key: one.value for one in effective_settings(settings)}
    assert found["[project] lake"] == "s3://***@bucket/lake"
    assert found["[feast] writable"] == ["s3://plain/table", "s3://***@bucket/lake"]


def test_a_secret_equal_to_its_default_is_shown_and_another_is_not_wherever_it_comes_from(config):
    settings = load_settings(config).model_copy(update={"ledger": LedgerSettings(url="sqlite:///hush")})  # of no known origin
    found = {one.key: one.value for one in effective_settings(settings)}
    assert found["[ledger] url"] == "***"
    assert found["[feast] redis"] == "localhost:6379"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:hush@bucket/a", "s3://***@bucket/a"),
        ("s3://key:hu@sh@bucket/a@b", "s3://***@b"),
        ("s3://key:hu/sh@bucket/a", "s3://***@bucket/a"),
        ("https://hush@host/a", "https://***@host/a"),
        ("simplecache::s3://key:hush@bucket/a", "simplecache::s3://***@bucket/a"),
        ("https://host/a.csv?sv=2&sig=hu/sh%3D&hush#hush", "https://host/a.csv?sv=***&sig=***&***#***"),
        ("https://me:hush@host/a?sig=hush", "https://***@host/a?sig=***"),
        ("https://host:90/a?sig=hu@sh", "https://***"),
        ("s3://key:hu?s=h@bucket", "s3://***"),
        ("SELECT * FROM 'https://host/a', 's3://key:hush@bucket/b'", "SELECT * FROM 'https://host/a', 's3://***@bucket/b'"),
        ("s3://bucket/part-?.csv", "s3://bucket/part-?.csv"),
        ("s3://bucket/day=1/a@b", "s3://bucket/day=1/a@b"),
        ("data/a@b?c=d", "data/a@b?c=d"),
    ],
)
def test_what_is_secret_in_a_text_is_masked(text, shown):
    assert redact_url(text) == shown


@pytest.mark.parametrize(
    ("url", "secrets", "host"),
    [
        ("http://me:p%40ss@host:9/a", ["p%40ss", "p@ss"], "host:9"),
        ("http://me:p[w@host", ["p[w"], "host"),
        ("http://me:p@/w@host/a", ["p@/w"], "host"),
        ("http://token@host", ["token"], "host"),
        ("https://host/a?sig=x%3D&mode=y", ["x%3D", "x=", "y"], "host"),
        ("http://host:9", [], "host:9"),
        ("nothing", [], ""),
        (None, [], None),
    ],
)
def test_secrets_and_host_of_a_url_are_found_in_one_that_cannot_be_read_too(url, secrets, host):
    assert url_secrets(url) == secrets
    assert url is None or url_host(url) == host
