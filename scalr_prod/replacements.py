# SPDX-License-Identifier: Apache-2.0
"""Events that were taken back: which commits replaced rows of the lake's events, and whether something was made from what was there before.

Events tables are otherwise only ever added to. A replacement says so in its commit: since when events differ. Whatever read a former
version, and could read events from then on, is stale.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.contracts import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deltalake import DeltaTable

    from scalr_prod.lake import Lake

__all__ = ["REPLACED", "Replacement", "replaced_since", "stale_since"]

#: The number in a table's log (`Lake.note`) that says which version the latest replacement made.
REPLACED: Final = "scalr.replaced"
_BEGINNING: Final = datetime(1, 1, 1, tzinfo=UTC)
_EVENTS: Final = (Table.SOURCE_EVENTS, Table.TARGET_EVENTS)


@dataclass(frozen=True)
class Replacement:
    """One commit that replaced events.

    Attributes:
        since: The earliest event that came or went (UTC).
        removed: Rows that went.
        added: Rows that came.
    """

    since: datetime
    removed: int
    added: int

    def to_json(self) -> str:
        """As the commit keeps it."""
        content = {"since": self.since.astimezone(UTC).isoformat(), "removed": self.removed, "added": self.added}
        return json.dumps({"replaced": content})

    @classmethod
    def read(cls, record: str) -> Replacement | None:
        """What a commit kept; None where it kept something else."""
        found: Any = json.loads(record).get("replaced")
        return None if found is None else cls(datetime.fromisoformat(found["since"]), found["removed"], found["added"])


def replaced_since(lake: Lake, table: Table, version: int, *, now: DeltaTable | None = None) -> list[Replacement]:
    """The replacements of an events table after one of its versions, the oldest first; ``now``: the table, where it is open already."""
    if now is None and lake.exists(table):
        now = lake.open_table(table)
    latest = None if now is None else now.transaction_version(REPLACED)
    if latest is None or latest <= version:
        return []
    records = lake.records(table, after=version)
    found = {at: one for at, record in records if (one := Replacement.read(record)) is not None}
    # A table's log that was cut since (`scalr forget`) knows that there was one, not since when: anything may have changed.
    before = [] if latest in found else [Replacement(_BEGINNING, 0, 0)]
    return [*before, *found.values()]


def stale_since(lake: Lake, versions: Mapping[str, int], known_by: datetime) -> datetime | None:
    """From which time on the events that something was made from have been replaced since; None: it is not stale.

    Args:
        lake: The lake.
        versions: Delta versions that it was made from, by table.
        known_by: It read nothing that happened, or became known, later (UTC).
    """
    found = [
        one.since
        for table in _EVENTS
        if table.value in versions
        for one in replaced_since(lake, table, versions[table.value])
        if one.since < known_by
    ]
    return min(found, default=None)
