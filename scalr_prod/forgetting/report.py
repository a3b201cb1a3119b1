# SPDX-License-Identifier: Apache-2.0
"""What came of forgetting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scalr_prod.jsonable import Jsonable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

__all__ = ["ForgetReport"]


@dataclass(frozen=True)
class ForgetReport(Jsonable):
    """What was removed; it names no user and no item.

    Attributes:
        users: How many were asked for.
        items: Likewise.
        known: How many of them had been forgotten before.
        removed: Rows, files or entries that went, by where they were.
        translators: Versions that learned from events of these users.
        retrain_by: From then on (UTC) runs refuse those versions; None: there are none.
    """

    users: int
    items: int
    known: int
    removed: Mapping[str, int]
    translators: Sequence[int]
    retrain_by: datetime | None
