"""A package's first import is prepared, and a deferred module is imported at its first use."""

from __future__ import annotations

import importlib
import sys

import pytest

from scalr_prod.core.import_hook import before_import, defer_import


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that is not imported yet, with a module that counts its imports."""
    folder = tmp_path / "lean_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("from lean_package import heavy\n\n\ndef total():\n    return heavy.ANSWER + 1\n")
    (folder / "heavy.py").write_text("import sys\nsys.lean_imports = getattr(sys, 'lean_imports', 0) + 1\nANSWER = 41\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield "lean_package"
    for name in [name for name in sys.modules if name.startswith("lean_package")]:
        del sys.modules[name]
    vars(sys).pop("lean_imports", None)


def test_a_first_import_is_prepared_once(package):
    prepared = []
    for _ in range(2):
        before_import(package, lambda: prepared.append(package))
    importlib.import_module(package)
    assert prepared == [package]
    before_import(package, lambda: prepared.append("too late"))
    importlib.reload(sys.modules[package])
    assert prepared == [package]


def test_a_deferred_module_is_imported_when_it_is_used(package):
    before_import(package, lambda: defer_import(f"{package}.heavy"))
    found = importlib.import_module(package)
    stand_in = sys.modules[f"{package}.heavy"]
    assert not hasattr(stand_in, "__file__"), "what inspects all modules imports nothing"
    assert not hasattr(sys, "lean_imports")
    assert (found.total(), found.total()) == (42, 42)
    assert (stand_in.ANSWER, sys.lean_imports) == (41, 1)
    assert sys.modules[f"{package}.heavy"] is not stand_in
    with pytest.raises(AttributeError):
        _ = stand_in.missing


def test_an_imported_module_is_not_deferred(package):
    importlib.import_module(package)
    before = sys.modules[f"{package}.heavy"]
    defer_import(f"{package}.heavy")
    assert sys.modules[f"{package}.heavy"] is before
