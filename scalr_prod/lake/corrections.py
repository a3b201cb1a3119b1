# SPDX-License-Identifier: Apache-2.0
"""Corrections: commits that replaced events, and whether a result was computed from events that were replaced since.

Events tables are otherwise append-only. A replacement records the earliest changed event in its commit. A result that read an earlier
version, and could read events from that time on, is stale.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.lake.commits import CommitMetadata
from scalr_prod.schemas import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deltalake import DeltaTable

    from scalr_prod.lake.tables import Lake


#: App id in a table's log (`Lake.transaction_version`) whose value is the version made by the latest replacement.
CORRECTION_APP_ID: Final = "scalr.replaced"
_BEGINNING: Final = datetime(1, 1, 1, tzinfo=UTC)
_EVENTS: Final = (Table.SOURCE_EVENTS, Table.TARGET_EVENTS)


@dataclass(frozen=True)
class Correction:
    """One commit that replaced events.

    Attributes:
        since: Time of the earliest changed event (UTC).
        removed: Rows removed.
        added: Rows added.
    """

    since: datetime
    removed: int
    added: int

    def commit_metadata(self, version: int) -> CommitMetadata:
        """Return the metadata of its commit, which makes this version of the table."""
        content = {"since": self.since.astimezone(UTC).isoformat(), "removed": self.removed, "added": self.added}
        return CommitMetadata(json.dumps({"replaced": content}), {CORRECTION_APP_ID: version})

    @classmethod
    def from_record(cls, record: str) -> Correction | None:
        """Parse a commit's record, or None if it is not of a replacement."""
        content: Any = json.loads(record).get("replaced")
        return None if content is None else cls(datetime.fromisoformat(content["since"]), content["removed"], content["added"])


def corrections_since(lake: Lake, table: Table, version: int, *, opened: DeltaTable | None = None) -> list[Correction]:
    """List the replacements in an events table after a version, oldest first; ``opened``: the table, if already open."""
    opened = lake.find_table(table) if opened is None else opened
    latest = None if opened is None else opened.transaction_version(CORRECTION_APP_ID)
    if opened is None or latest is None or latest <= version:
        return []
    records = lake.commit_records(table, after=version, opened=opened)
    corrections = {at: correction for at, record in records if (correction := Correction.from_record(record)) is not None}
    # A log that was truncated (`scalr forget`) still shows that there was a replacement, but not its time: assume all events changed.
    truncated = [] if latest in corrections else [Correction(_BEGINNING, 0, 0)]
    return [*truncated, *corrections.values()]


def stale_since(lake: Lake, versions: Mapping[str, int], known_by: datetime) -> datetime | None:
    """Return the earliest time from which a result's input events were replaced; None: the result is not stale.

    Args:
        lake: The lake.
        versions: Delta versions that the result was computed from, by table.
        known_by: The result read nothing that happened, or became known, later (UTC).
    """
    stale = [
        correction.since
        for table, opened in lake.find_tables(table for table in _EVENTS if table.value in versions).items()
        for correction in corrections_since(lake, table, versions[table.value], opened=opened)
        if correction.since < known_by
    ]
    return min(stale, default=None)
