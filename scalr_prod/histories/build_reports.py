# SPDX-License-Identifier: Apache-2.0
"""Reports of building the histories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scalr_prod.core.jsonable import Jsonable

__all__ = ["HistoriesReport", "TableReport"]


@dataclass(frozen=True)
class TableReport:
    """Result of building one table.

    Attributes:
        events: Number of events that it was built from.
        rows: Its rows.
        version: Its Delta version.
        events_version: Delta version of those events.
        built: False if it was already up to date.
        appended: Whether the rows of new events were appended, instead of rebuilding the table.
    """

    events: int
    rows: int
    version: int
    events_version: int
    built: bool
    appended: bool = False


@dataclass(frozen=True)
class HistoriesReport(Jsonable):
    """Result of building the histories.

    Attributes:
        tables: Results by table name.
    """

    tables: dict[str, TableReport]

    def to_json(self) -> dict[str, Any]:
        """Return the tables' reports as JSON values, by name."""
        found: dict[str, Any] = super().to_json()["tables"]
        return found
