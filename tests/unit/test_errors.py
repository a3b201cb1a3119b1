"""Errors: complete, documented, picklable, with an exit code."""

from __future__ import annotations

import ast
import pickle
import re
from pathlib import Path

import pytest
import typer.main

from scalr_prod import errors
from scalr_prod.cli import app
from scalr_prod.settings import Settings

KINDS = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_crosses_process_borders_whole(kind):
    error = kind("found this", where="a.csv", next_step="do that").at(stage="ingest", run_id="run_1")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(again) is kind
    assert again.to_json() == error.to_json()
    assert str(again) == "a.csv, stage ingest, run run_1: found this\n  next: do that"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_stands_in_the_tree_and_has_an_exit_code(kind):
    assert issubclass(kind, errors.ScalrError)
    assert kind.__name__ in (errors.__doc__ or "")
    assert kind.exit_code == (3 if kind is errors.QualityGateFailed else 1)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_has_a_cure_of_its_own_that_stands_in_the_docs(kind):
    assert "cure" in vars(kind)
    assert sum(kind.cure == other.cure for other in KINDS) == 1
    page = (Path(__file__).resolve().parents[2] / "docs/reference/errors.md").read_text(encoding="utf-8")
    assert [kind.cure in line for line in page.splitlines() if line.startswith(f"| `{kind.__name__}` |")] == [True]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_command_and_setting_that_a_cure_names_is_there(kind):
    """A cure that names a command of a former version helps nobody."""
    command = typer.main.get_command(app)
    for named in re.findall(r"`scalr ([^`]+)`", kind.cure):
        found = command
        for word in named.split():
            if word.startswith("--"):
                assert word in {option for one in found.params for option in one.opts}, named
            elif hasattr(found, "commands") and found.commands:
                assert word in found.commands, named
                found = found.commands[word]
    for section, key in re.findall(r"`\[(\w+)\](?: (\w+)[^`]*)?`", kind.cure):
        assert section in Settings.model_fields, section
        assert not key or key in Settings.model_fields[section].annotation.model_fields, key


def test_stage_and_run_are_set_once():
    error = errors.ScalrError("x").at(stage="first").at(stage="second", run_id="r")
    assert (error.stage, error.run_id) == ("first", "r")


def test_every_error_that_is_raised_says_where_and_what_to_do_next():
    raised, wrong = 0, []
    for path in sorted(Path(errors.__file__).parents[1].rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in errors.__all__:
                raised += 1
                named = {one.arg for one in node.keywords}
                if None not in named and not {"where", "next_step"} <= named:
                    wrong.append(f"{path.name}:{node.lineno}")
    assert wrong == []
    assert raised > 300
