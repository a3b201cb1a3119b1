"""Every code block of the docs: settings are accepted, commands and options are there, imports exist.

They are run elsewhere: the tutorial and the page on training sets in tests/integration/test_docs.py, the classes of plugins.md in
unit/core/test_plugins.py, the model of evaluation.md in unit/evaluation/test_models.py, and the blocks of all other pages in
test_docs_run.py.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer.main
import yaml

from scalr_prod.apps.cli import app
from scalr_prod.config.settings import load_settings
from scalr_prod.plugins import ESTIMATORS, MODELS, READERS, RULES

ROOT = Path(__file__).resolve().parents[3]
SCALR = typer.main.get_command(app)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    pytest.param(language, text, id=f"{page.relative_to(ROOT)}-{number}-{language}")
    for page in PAGES
    if "adr" not in page.parts
    for number, (language, text) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
    if language
]
DOMAIN = {"name": "named", "events": "there.parquet"}


def of(*languages: str) -> list:
    return [block for block in BLOCKS if block.values[0] in languages]


def test_no_block_is_of_a_language_that_nothing_looks_at():
    assert {block.values[0] for block in BLOCKS} == {"console", "sh", "toml", "python", "yaml", "text"}


@pytest.mark.parametrize(("_language", "text"), of("toml"))
def test_settings_are_accepted(_language, text, tmp_path):
    """A block may leave out what others have: domains, and their names."""
    settings = tomllib.loads(text)
    if groups := settings.get("project", {}).get("entry-points"):  # of a package's own pyproject.toml
        assert set(groups) <= {group.entry_points for group in (ESTIMATORS, MODELS, READERS, RULES)}
        return
    domains = settings.setdefault("domains", {})
    sides = ("sources", "target") if "sources" in domains else ("source", "target")
    for side in sides:
        if side != "sources":
            domains[side] = DOMAIN | domains.get(side, {})
    (tmp_path / "scalr.toml").write_text("")
    sections = {name: value for name, value in settings.items() if name != "domains"}
    (tmp_path / "scalr.toml").write_text("\n".join(_lines("domains", domains)))
    load_settings(tmp_path / "scalr.toml", **sections)


def _lines(name: str, table: dict) -> list[str]:
    """A table as TOML."""
    own = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict)]
    below = [line for key, value in table.items() if isinstance(value, dict) for line in _lines(f"{name}.{key}", value)]
    return [f"[{name}]", *own, *below]


@pytest.mark.parametrize(("_language", "text"), of("console", "sh"))
def test_commands_and_their_options_are_there(_language, text):
    """What begins with scalr is parsed as the command would; nothing is run."""
    for line in text.splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if not words or words[0] != "scalr":
            continue
        command, rest, name = SCALR, words[1:], "scalr"
        while hasattr(command, "resolve_command") and rest:
            if command.invoke_without_command and rest[0].startswith("-"):  # a group that is a command, too
                break
            context = command.make_context(name, list(rest), resilient_parsing=True)
            name, found, rest = command.resolve_command(context, list(rest))
            command = found
        command.make_context(name, list(rest)).close()


@pytest.mark.parametrize(("_language", "text"), of("python"))
def test_imports_exist(_language, text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "scalr_prod":
            try:
                module = importlib.import_module(node.module)
            except ModuleNotFoundError as error:
                if error.name != "dagster":
                    raise
                pytest.skip("dagster is not installed: scalr-prod[dagster]")
            assert [one.name for one in node.names if not hasattr(module, one.name)] == []


@pytest.mark.parametrize(("language", "text"), of("yaml"))
def test_data_can_be_read(language, text):
    assert yaml.safe_load(text)
