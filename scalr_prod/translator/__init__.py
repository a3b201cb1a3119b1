"""The translator: a mixture of estimators of P(target item | user, source event, history).

Only the names asked for are imported, so that the serving environment, which has torch and numpy alone, can load the module.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalr_prod.translator.contexts import Contexts, Samples

__all__ = ["Contexts", "Samples"]

_HOMES = {"Contexts": "contexts", "Samples": "contexts"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
