# SPDX-License-Identifier: Apache-2.0
"""Import of Feast without what this package does not use, which takes three quarters of its import time.

Feast decorates its classes with typeguard, which compiles every one of them again when it is imported, and imports torch for tensors of
online features. With `install_import_hook`, Feast's classes are left as they are written, and torch is imported when a tensor is asked for.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec

__all__ = ["install_import_hook"]


def install_import_hook() -> None:
    """Prepare the first import of Feast in this process; does nothing if Feast is already imported."""
    if "feast" not in sys.modules and not any(isinstance(finder, _FeastImportHook) for finder in sys.meta_path):
        sys.meta_path.insert(0, _FeastImportHook())


class _FeastImportHook:
    """A finder of `sys.meta_path` that runs once, before Feast is imported, and finds no module itself."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Prepare the import if the module is Feast."""
        del path, target
        if fullname == "feast":
            sys.meta_path.remove(self)
            _skip_type_checks()
            _defer_torch()
        return None


def _skip_type_checks() -> None:
    import typeguard

    typechecked = typeguard.typechecked

    def typechecked_outside_feast(target: Any = None, /, **options: Any) -> Any:
        if target is not None and target.__module__.partition(".")[0] == "feast":
            return target
        return typechecked(target, **options)

    typeguard.typechecked = typechecked_outside_feast


def _defer_torch() -> None:
    wrapper = ModuleType("feast.torch_wrapper")
    get_torch: Callable[[], ModuleType] = lambda: importlib.import_module("torch")  # noqa: E731 - one expression
    wrapper.get_torch = get_torch  # type: ignore[attr-defined]
    sys.modules.setdefault(wrapper.__name__, wrapper)
