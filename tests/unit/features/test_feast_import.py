"""Feast is imported without torch and without typeguard's checks, and nothing else notices."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PROGRAM = """
import sys
import scalr_prod.features
assert not {"feast", "typeguard"} & set(sys.modules), "nothing is imported before it is needed"
import feast
assert "torch" not in sys.modules
print(feast.FeatureView.__init__.__code__.co_filename)

import typeguard

@typeguard.typechecked
def double(x: int) -> int:
    return 2 * x

try:
    double("1")
except typeguard.TypeCheckError:
    print("checked")

from feast.infra.offline_stores.offline_store import get_torch
print(get_torch().__name__)
"""


@pytest.mark.long
def test_feast_is_imported_as_it_is_written(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)  # typeguard reads its source
    found = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == 0, found.stderr
    code, checked, torch = found.stdout.splitlines()
    assert code.endswith("feature_view.py")
    assert (checked, torch) == ("checked", "torch")


def test_what_is_replaced_has_no_other_public_functions():
    """A release of Feast that adds to its wrapper of torch needs the import hook to follow."""
    (folder,) = find_spec("feast").submodule_search_locations
    tree = ast.parse((Path(folder) / "torch_wrapper.py").read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}
    assert functions == {"get_torch"}
