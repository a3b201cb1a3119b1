# SPDX-License-Identifier: Apache-2.0
"""Lean imports of heavy libraries: prepare a package's first import, and defer modules that it imports but hardly uses."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec


def before_import(package: str, prepare: Callable[[], None]) -> None:
    """Call a function once, just before a package is first imported in this process; does nothing if it is already imported."""
    hooked = {finder.package for finder in sys.meta_path if isinstance(finder, _ImportHook)}
    if package not in sys.modules and package not in hooked:
        sys.meta_path.insert(0, _ImportHook(package, prepare))


def defer_import(name: str) -> None:
    """Import a module at the first use of one of its attributes, instead of at its import; does nothing if it is already imported.

    An import of names from the module (``from module import name``) is a use.
    """
    sys.modules.setdefault(name, _DeferredModule(name))


class _ImportHook:
    """A finder of `sys.meta_path` that runs once, before its package is imported, and finds no module itself."""

    def __init__(self, package: str, prepare: Callable[[], None]) -> None:
        self.package, self._prepare = package, prepare

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Prepare the import if the module is the package."""
        del path, target
        if fullname == self.package:
            sys.meta_path.remove(self)
            self._prepare()
        return None


class _DeferredModule(ModuleType):
    """Stands for a module until one of its attributes is needed. Not the standard `LazyLoader`, which every import statement triggers."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # asked of all modules, by `inspect` and the import system
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)
