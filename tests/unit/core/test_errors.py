"""Errors: complete, documented, picklable, with an exit code."""

from __future__ import annotations

import ast
import pickle
import re
from pathlib import Path

import pytest
import typer.main

from scalr_prod import errors
from scalr_prod.apps.cli import app
from scalr_prod.config.settings import Settings
from scalr_prod.lake.storage import _MADE_BY

KINDS = [getattr(errors, name) for name in errors.__all__]
SCALR = typer.main.get_command(app)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_crosses_process_borders_whole(kind):
    error = kind("found this", where="a.csv", next_step="do that").add_context(stage="ingest", run_id="run_1")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(again) is kind
    assert again.to_json() == error.to_json()
    assert str(again) == "a.csv, stage ingest, run run_1: found this\n  next: do that"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_is_of_the_packages_own_kind_and_has_an_exit_code(kind):
    assert issubclass(kind, errors.ScalrError)
    assert kind.exit_code == (3 if kind is errors.QualityGateFailed else 1)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_has_a_cure_of_its_own_that_stands_in_the_docs(kind):
    assert "cure" in vars(kind)
    assert sum(kind.cure == other.cure for other in KINDS) == 1
    page = (Path(__file__).resolve().parents[3] / "docs/reference/errors.md").read_text(encoding="utf-8")
    assert [kind.cure in line for line in page.splitlines() if line.startswith(f"| `{kind.__name__}` |")] == [True]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_command_and_setting_that_a_cure_names_is_there(kind):
    """A cure that names a command of a former version helps nobody."""
    for named in re.findall(r"`scalr ([^`]+)`", kind.cure):
        found = SCALR
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
    error = errors.ScalrError("x").add_context(stage="first").add_context(stage="second", run_id="r")
    assert (error.stage, error.run_id) == ("first", "r")


def test_every_error_that_is_raised_says_where_and_what_to_do_next():
    raised, wrong = 0, []
    for path in sorted(Path(errors.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in errors.__all__:
                raised += 1
                named = {one.arg for one in node.keywords}
                if None not in named and not {"where", "next_step"} <= named:
                    wrong.append(f"{path.name}:{node.lineno}")
    assert wrong == []
    assert raised > 300


def test_every_command_that_an_error_tells_to_run_can_be_run_as_it_is_written():
    """A next step that ends with a usage error is none: the command, its options and what it needs all have to be there."""
    told, wrong = 0, []
    for path in sorted(Path(errors.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.keyword) or node.arg != "next_step":
                continue
            for text in _texts(node.value):
                for named in re.findall(r"scalr ((?:[a-z][a-z-]*)(?: [\w=./-]+)*)", text):
                    told += 1
                    wrong += [f"{path.name}:{node.value.lineno}: scalr {named}: {why}" for why in _unusable(named.split())]
    for command in _MADE_BY.values():
        wrong += [f"{command}: {why}" for why in _unusable(command.split()[1:])]
    assert wrong == []
    assert told > 60


def _texts(node: ast.expr) -> list[str]:
    """The texts that an expression can be; what is filled in reads as X."""
    if isinstance(node, ast.JoinedStr):
        return ["".join(str(one.value) if isinstance(one, ast.Constant) else "X" for one in node.values)]
    if isinstance(node, ast.IfExp):
        return _texts(node.body) + _texts(node.orelse)
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def _unusable(words: list[str]) -> list[str]:
    """What is wrong with a command line that follows `scalr`; text may go on behind it."""
    found = SCALR
    while words and getattr(found, "commands", None) and not (found.invoke_without_command and words[0].startswith("--")):
        if words[0] not in found.commands:
            return [f"there is no {words[0]}"]
        found = found.commands[words.pop(0)]
    if getattr(found, "commands", None) and not found.invoke_without_command:
        return ["a group of commands"]
    given = [word.split("=")[0] for word in words if word.startswith("--")]
    options = {option for one in found.params for option in one.opts}
    needed = [one.name for one in found.params if one.required and one.param_type_name == "argument"]
    return [f"no option {one}" for one in given if one not in options] + (needed if not words else [])
