# SPDX-License-Identifier: Apache-2.0
"""Report of an erasure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scalr_prod.core.jsonable import Jsonable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

__all__ = ["ErasureReport"]


@dataclass(frozen=True)
class ErasureReport(Jsonable):
    """Summary of what was removed; contains no user or item id.

    Attributes:
        users: Number of requested users.
        items: Number of requested items.
        known: How many of them had been erased before.
        removed: Number of removed rows, files or entries by location.
        translators: Versions trained on events of these users.
        retrain_by: Time (UTC) from which runs refuse these versions; None without such versions.
    """

    users: int
    items: int
    known: int
    removed: Mapping[str, int]
    translators: Sequence[int]
    retrain_by: datetime | None
