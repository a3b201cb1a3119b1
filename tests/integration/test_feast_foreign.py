"""A feature repository that is not ours, in the place that the settings name: every command leaves each of its bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import typer
from support.small import LOCAL, lean
from typer.testing import CliRunner

from scalr_prod import Project
from scalr_prod.apps.cli import app

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Runs every command on a repository that is not ours; unit/features/test_tenancy.py keeps what others have applied.
pytestmark = [pytest.mark.slow, pytest.mark.long]

RUN = "run_00c51a83e2b7f904"
#: What commands need to be told.
NAMED = {
    "validate": [RUN],
    "publish": [RUN],
    "runs show": [RUN],
    "runs resume": [RUN],
    "runs rollback": [RUN],
    "explain": ["0" * 32],
    "translator promote": ["1"],
    "forget": ["nobody"],
    "quality check": ["t.parquet"],
    "feast export": ["exported"],  # into a folder of theirs it adds files of its own: test_feast_export.py
    "dataset export": ["out"],
    "evaluate": ["--quick"],
    "init": ["--yes", "--source", "s.parquet", "--target", "t.parquet"],
}
#: They serve until they are stopped, or install what another test installs.
LEFT_OUT = {"ui", "serving install", "triton start"}
FILES = {
    "feature_store.yaml": "project: mine\nregistry: data/registry.db\nprovider: local\n",
    "definitions.py": "# ours, and nobody else's\n",
    "data/registry.db": "bytes",
    ".gitignore": "data\n",
}


def commands(group: typer.core.TyperGroup | None = None, before: str = "") -> Iterator[str]:
    """Names of all commands, as they are typed."""
    found = typer.main.get_command(app) if group is None else group
    for name, one in found.commands.items():
        if hasattr(one, "commands"):
            yield from commands(one, f"{before}{name} ")
        else:
            yield f"{before}{name}"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_command_leaves_a_foreign_repository_as_it_is(make_project, tmp_path, monkeypatch):
    config = lean(make_project(tmp_path / "logs", LOCAL, users=40).base / "scalr.toml")
    with Project.open(config) as project:
        project.ingest()
        project.histories()
    monkeypatch.chdir(config.parent)
    folder = config.parent / "mine"
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    before = contents(folder)
    config.write_text(f'{config.read_text()}\n[feast]\nrepo = "mine"\n')
    runner, refused = CliRunner(), []
    for command in commands():
        if command in LEFT_OUT:
            continue
        told = runner.invoke(app, [*command.split(), *NAMED.get(command, []), "--config", str(config)])
        assert contents(folder) == before, command
        assert told.exit_code in {0, 1, 2, 3}, (command, told.output)
        assert told.exception is None or isinstance(told.exception, SystemExit), (command, told.exception)
        if "[feast] repo" in told.output:
            refused.append(command)
    assert {"ingest", "histories", "run"} & set(refused), refused
