# SPDX-License-Identifier: Apache-2.0
"""Import of Feast without what this package does not use, which takes three quarters of its import time.

Feast decorates its classes with typeguard, which compiles every one of them again when it is imported, and imports torch for tensors of
online features. After `prepare_feast_import`, Feast's classes are left as they are written, and torch is imported for a tensor alone.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def prepare_feast_import() -> None:
    """Skip the checks and defer torch; to be called before Feast is imported."""
    _skip_type_checks()
    _defer_torch()


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
