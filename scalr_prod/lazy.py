# SPDX-License-Identifier: Apache-2.0
"""A room's names, each imported when it is first asked for (PEP 562): importing the room stays cheap."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["exports"]


def exports(room: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """What a room's ``__getattr__`` is.

    Args:
        room: The room's ``__name__``.
        homes: The module of the room that each name is in.
    """

    def of(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{room}.{homes[name]}"), name)

    return of
