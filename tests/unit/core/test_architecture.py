# SPDX-License-Identifier: Apache-2.0
"""The structure of the package and of its offline store, read from their source.

No circle of imports, rooms entered by their doors, one class a name, short signatures.

Imports inside functions and under ``TYPE_CHECKING`` count as well. Layers are held by import-linter (`make lint`).
"""

import ast
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

import feast_delta
import scalr_prod

PACKAGE = Path(scalr_prod.__file__).parent
#: Rooms whose modules other rooms import from the room itself.
ROOMS = {
    "config", "workspace", "lake", "ledger", "compute", "ingest", "histories", "features", "translator", "serving", "generation", "privacy",
    "quality", "publication", "training_set", "pipeline", "evaluation", "operations", "reporting",
}  # fmt: skip
#: Modules at the root; the former place of the offline store stays for feature_store.yaml files that name it.
ROOT = {"__init__", "errors", "plugins", "project", "schemas", "version"}


#: The distribution below the package.
STORE = Path(feast_delta.__file__).parent


def module_name(path, package=PACKAGE):
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def trees_of(package):
    return {module_name(path, package): ast.parse(path.read_text(encoding="utf-8")) for path in package.rglob("*.py")}


@pytest.fixture(scope="module")
def trees():
    return trees_of(PACKAGE)


@pytest.fixture(scope="module")
def store_trees():
    return trees_of(STORE)


def imported(tree, modules, package="scalr_prod"):
    """Names of a package's modules that a module imports, wherever the import stands, with the line."""

    def closest(name):
        while name not in modules:
            name = name.rpartition(".")[0]
        return name

    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in modules else closest(node.module)), node.lineno
        elif isinstance(node, ast.Import):
            yield from ((closest(alias.name), node.lineno) for alias in node.names if alias.name.split(".")[0] == package)


def circles(graph):
    """Strongly connected components of more than one module (Tarjan 1972)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            place = stack.index(node)
            component = stack[place:]
            del stack[place:]
            if len(component) > 1:
                found.append(sorted(component))

    for node in list(graph):
        if node not in index:
            visit(node)
    return found


def test_no_circle_of_imports(trees, store_trees):
    for modules, package in ((trees, "scalr_prod"), (store_trees, "feast_delta")):
        graph = defaultdict(set) | {
            name: {other for other, _ in imported(tree, modules, package) if other != name} for name, tree in modules.items()
        }
        assert any(graph.values())
        assert not circles(graph)
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_rooms_are_entered_by_their_doors(trees):
    def room(name):
        return name.split(".")[1] if "." in name else ""

    inside = [
        f"{name}:{line} imports {other}"
        for name, tree in trees.items()
        for other, line in imported(tree, trees)
        if room(other) in ROOMS and room(other) != room(name) and other.count(".") > 1 and room(name) != "feast_store"
    ]
    assert not inside


def test_the_offline_store_imports_nothing_of_the_package(trees, store_trees):
    """Only the package's rooms that read Delta logs, open DuckDB or import Feast import the store."""
    assert not [name for name, tree in store_trees.items() if any(imported(tree, trees))]
    users = {name for name, tree in trees.items() if any(imported(tree, store_trees, "feast_delta"))}
    assert {name for name in users if not name.startswith("scalr_prod.features.")} == {
        "scalr_prod.core.delta_log",
        "scalr_prod.core.store_errors",
        "scalr_prod.workspace.duckdb",
    }


def test_a_class_name_stands_once(trees, store_trees):
    """The config of the project's offline store has the name that Feast prescribes."""
    names = Counter(
        node.name
        for name, tree in {**trees, **store_trees}.items()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not name.startswith("scalr_prod.ledger.migrations")
    )
    assert [name for name, count in names.items() if count > 1] == ["DeltaOfflineStoreConfig"]


def test_a_function_takes_at_most_seven_values(trees, store_trees):
    """Exceptions: kernels, the command line's options, and methods whose parameters Feast prescribes."""
    free = ("scalr_prod.translator.kernels.", "scalr_prod.apps.cli.", "feast_delta.offline_store")
    long = [
        f"{name}:{node.lineno} {node.name}"
        for name, tree in {**trees, **store_trees}.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not name.startswith(free)
        if len({one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)} - {"self", "cls"}) > 7
    ]
    assert not long


def test_a_function_of_several_modules_returns_no_bare_tuple_of_three(trees):
    """Equal types are a vector, such as a value by segment."""

    def is_record(node):
        if not isinstance(node, ast.Subscript) or ast.unparse(node.value) != "tuple" or not isinstance(node.slice, ast.Tuple):
            return False
        kinds = [ast.unparse(kind) for kind in node.slice.elts]
        return len(kinds) > 2 and len(set(kinds)) > 1

    public = [
        (name, node)
        for name, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.returns is not None
    ]
    assert not [f"{name}:{node.lineno} {node.name}" for name, node in public if any(map(is_record, ast.walk(node.returns)))]


def test_no_folder_above_a_file_is_read_as_a_column():
    """DuckDB would read 5 for every row of a file below a folder ``user_id=5``."""
    for path in [*PACKAGE.rglob("*.py"), *STORE.rglob("*.py")]:
        for call in re.finditer(r"(?<!pl\.)(?<!pd\.)\bread_parquet\(.{0,120}", path.read_text(encoding="utf-8"), re.DOTALL):
            assert "hive_partitioning" in call[0], f"{path}: {call[0]}"


def test_the_root_holds_the_public_modules_alone():
    assert {path.stem for path in PACKAGE.glob("*.py")} == ROOT
