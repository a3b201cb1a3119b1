# SPDX-License-Identifier: Apache-2.0
"""Point-in-time user histories and item statistics, built from events for the feature joins.

A *user history* row (user, t, c) holds the user's last L events that happened by t and were known by c. An *item statistics* row
(item, t, c) holds when the item was first seen and how often, over the events that happened by t and were known by c. Each event
time t has one row, where c is the earliest time at which an event at t was known, and one more row for each later time at which an
event up to t became known. To read as of event time T and knowledge time K: among the rows with c ≤ K take the greatest t ≤ T, then
the greatest c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalr_prod.settings import Settings

__all__ = ["HistoriesReport", "TableReport", "build_histories", "histories_built"]


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
class HistoriesReport:
    """Result of building the histories.

    Attributes:
        tables: Results by table name.
    """

    tables: dict[str, TableReport]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {name: vars(report).copy() for name, report in self.tables.items()}


def build_histories(settings: Settings, *, progress: bool = False) -> HistoriesReport:
    """Build both domains' user histories and the target's item statistics; tables that are up to date are skipped.

    DuckDB sorts the events within ``[compute] memory_mb``, spilling to disk beyond it. They are streamed in batches of complete
    users into one commit per table.

    Args:
        settings: The project's settings.
        progress: Show progress bars on stderr.

    Raises:
        TableNotFound: Nothing has been ingested yet.
        ProjectsMixed: Home or lake belongs to another project. Nothing was written.
        DomainsMixed: The lake's tables were created for other domains.
        CommitFailed: The lake rejected a commit; that table is unchanged.
    """
    from scalr_prod.binding import check_domains
    from scalr_prod.histories.build import build_tables
    from scalr_prod.lake import Lake

    lake = Lake.open(settings)
    opened = check_domains(settings, lake)
    return HistoriesReport(build_tables(settings, lake, opened, progress=progress))


def histories_built(settings: Settings) -> bool:
    """Return whether all tables were built from the current events with these settings."""
    from scalr_prod.histories.build import all_built
    from scalr_prod.lake import Lake

    return all_built(settings, Lake.open(settings))
