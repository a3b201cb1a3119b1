# SPDX-License-Identifier: Apache-2.0
"""Reports of an ingest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalr_prod.core.jsonable import Jsonable

if TYPE_CHECKING:
    from datetime import datetime

    from scalr_prod.ingest.known_users import IdMappingCounts
    from scalr_prod.schemas import IdType


@dataclass(frozen=True)
class DomainReport(Jsonable):
    """Result of ingesting one domain's log.

    Attributes:
        name: The domain's name in the settings.
        rows_read: Rows of the log.
        users_read: Distinct users of the log.
        items_read: Distinct items of the log.
        first_read: The log's earliest event (UTC).
        last_read: The log's latest event (UTC).
        rows_added: Rows that were not in the lake before.
        rows_removed: Rows that a replacement removed because the log does not hold them, or that exceed ``max_user_day``.
        rows_forgotten: Rows of the log that were left out because their user or item was erased.
        rows: The domain's rows in the lake afterwards.
        users: Their distinct users.
        items: Their distinct items.
        first_event: Their earliest event (UTC).
        last_event: Their latest event (UTC).
        rows_updated: Rows of the lake that a row with the same event id updated.
        left_out: Rows of the log that were left out, by reason.
        duplicates: Rows of the log that repeat another one, or have the event id of a later one.
        unused_columns: Columns of the log that the settings do not map.
        items_not_in_file: Items of the log that the item file lacks; None without an item file.
        created_lifted: Rows whose created time was before their event time, and was raised to it.
        recommended: Rows of the log that a recommendation led to, by ``columns.recommended_by``.
        catalogue: The domain's rows of the item catalogue afterwards.
        catalogue_duplicates: Rows of the item file that a later row with the same id replaced.
        user_id: Type of the user ids.
        item_id: Type of the item ids in its own log.
        version: Delta version of the events table afterwards.
    """

    name: str
    rows_read: int
    users_read: int
    items_read: int
    first_read: datetime
    last_read: datetime
    rows_added: int
    rows_removed: int
    rows_forgotten: int
    rows: int
    users: int
    items: int
    first_event: datetime
    last_event: datetime
    rows_updated: int
    left_out: dict[str, int]
    duplicates: int
    unused_columns: list[str]
    items_not_in_file: int | None
    created_lifted: int
    recommended: int
    catalogue: int
    catalogue_duplicates: int
    user_id: IdType
    item_id: IdType
    version: int


@dataclass(frozen=True)
class IngestReport:
    """Result of an ingest.

    Attributes:
        domains: Reports of the ingested domains, by settings key: ``source`` or ``sources.<name>``, and ``target``.
        common_users: Users with events in the target domain and in a source domain; None if only one side has events.
        mapped: How ``[users] map`` mapped the source logs' users; None without a map or a source log.
    """

    domains: dict[str, DomainReport]
    common_users: int | None
    mapped: IdMappingCounts | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values, nested as the settings are."""
        content: dict[str, Any] = {}
        for place, report in self.domains.items():
            outer, _, name = place.rpartition(".")
            (content.setdefault(outer, {}) if outer else content)[name] = report.to_json()
        users = {} if self.mapped is None else {"users": self.mapped.to_json()}
        return content | {"common_users": self.common_users} | users
