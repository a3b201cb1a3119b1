"""What each module exports is documented whole: arguments as in the signature, and the errors of ours that it raises.

`feast_delta`, the distribution below the package, is one of the places.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import feast_delta.errors
import scalr_prod
import scalr_prod.errors

CHECKOUT = Path(__file__).resolve().parents[3]
ROOT = CHECKOUT / "scalr_prod"
STORE = CHECKOUT / "packages" / "feast-delta" / "src"
ERRORS = {name: getattr(module, name) for module in (scalr_prod.errors, feast_delta.errors) for name in module.__all__}
#: What docs/reference/python.md promises, and what docs/guides/plugins.md gives to those who write a plug-in.
OF_PLUGINS = {"Fitted", "ProductEstimator", "Pairs", "Batch", "Knob", "heed_stop", "check_dataset"}
PUBLIC = {*scalr_prod.__all__, "ReportWritten", *OF_PLUGINS}
#: Called by a library alone, as it asks for.
HOOKS = {"Settings.settings_customise_sources"}


def exported_by(path: Path) -> set[str]:
    """What `__all__` lists; in a module without one, all names that begin with no underscore."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        if any(isinstance(one, ast.Name) and one.id == "__all__" for one in targets):
            return set(ast.literal_eval(node.value))
    return {name for node in body if not (name := getattr(node, "name", "_")).startswith("_")}


def documented() -> list[tuple[str, ast.FunctionDef]]:
    """Every exported function, and every public method of an exported class, by a name that tells where it is."""
    found = []
    for root, path in ((top, path) for top in (ROOT, STORE) for path in sorted(top.rglob("*.py"))):
        exported, place = exported_by(path), path.relative_to(root).with_suffix("").as_posix()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if getattr(node, "name", None) not in exported:
                continue
            if isinstance(node, ast.FunctionDef):
                found.append((f"{place}:{node.name}", node))
            elif isinstance(node, ast.ClassDef):
                methods = [one for one in node.body if isinstance(one, ast.FunctionDef) and not one.name.startswith("_")]
                found += [(f"{place}:{node.name}.{one.name}", one) for one in methods]
    #: The docstring of a command is its help.
    others = ("overload", ".command(")
    return [
        (name, node)
        for name, node in found
        if not any(other in ast.unparse(one) for one in node.decorator_list for other in others)
    ]


FOUND = documented()


def parameters(node: ast.FunctionDef) -> set[str]:
    named = node.args
    several = [one for one in (named.vararg, named.kwarg) if one]
    return {one.arg for one in (*named.posonlyargs, *named.args, *named.kwonlyargs, *several)} - {"self", "cls"}


def section(text: str, title: str) -> set[str] | None:
    """The names that a section of a docstring explains; None where there is no such section."""
    lines = re.search(rf"^{title}:\n((?: +.*\n?|\n)+)", text, flags=re.MULTILINE)
    if lines is None:
        return None
    entries = [line.strip() for line in lines.group(1).splitlines() if re.match(r" {4}\S", line)]
    return {name.strip().lstrip("*") for entry in entries for name in entry.partition(":")[0].split(",")}


def test_the_walk_finds_what_is_there():
    names = {name for name, _ in FOUND}
    assert {
        "project:Project.run",
        "config/settings:load_settings",
        "training_set/reader:TrainingSet.torch",
        "lake/tables:Lake.append",
        "feast_delta/scan:scan_delta",
    } <= names
    assert len(names) > 900


@pytest.mark.parametrize("place", sorted({name.partition(":")[0].partition("/")[0] for name, _ in FOUND}))
def test_arguments_are_those_of_the_signature(place):
    wrong = {}
    for name, node in FOUND:
        if name.partition(":")[0].partition("/")[0] == place:
            text = ast.get_docstring(node)
            assert text, f"{name} has no docstring"
            told = section(text, "Args")
            if told is not None and told != parameters(node):
                wrong[name] = told ^ parameters(node)
    assert wrong == {}


def test_errors_of_ours_that_are_raised_are_told():
    """Its own class or a more general one, under Raises or in the text; or the docstring names the function that tells."""
    wrong = {}
    for name, node in FOUND:
        text = ast.get_docstring(node) or ""
        raised = {
            ERRORS[one.exc.func.id]
            for one in ast.walk(node)
            if isinstance(one, ast.Raise)
            and isinstance(one.exc, ast.Call)
            and isinstance(one.exc.func, ast.Name)
            and one.exc.func.id in ERRORS
        }
        told = [ERRORS[word] for word in re.findall(r"\w+", text) if word in ERRORS]
        missing = {kind.__name__ for kind in raised if not any(issubclass(kind, one) for one in told)}
        if missing and not re.search(r"\b[Ss]ee `", text):
            wrong[name] = missing
    assert wrong == {}


def public() -> list[tuple[str, ast.FunctionDef, str]]:
    """Those of the public interface, with their docstrings; a docstring may name another function that tells the rest."""
    found = []
    for name, node in FOUND:
        where, text = name.partition(":")[2], ast.get_docstring(node) or ""
        if where.partition(".")[0] in PUBLIC and where not in HOOKS and not re.search(r"\b[Ss]ee `", text):
            found.append((name, node, text))
    return found


def test_every_argument_of_the_public_interface_is_explained():
    wrong = {name: missing for name, node, text in public() if (missing := parameters(node) - (section(text, "Args") or set()))}
    assert wrong == {}


def test_what_the_public_interface_gives_is_told():
    """Of what takes arguments and gives something; what takes none may say what it gives in its one line."""
    wrong = []
    for name, node, text in public():
        gives = ast.unparse(node.returns) != "None" if node.returns else False
        if parameters(node) and gives and not re.search(r"^(Returns|Yields):", text, flags=re.MULTILINE):
            wrong.append(name)
    assert wrong == []
