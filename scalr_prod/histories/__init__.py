# SPDX-License-Identifier: Apache-2.0
"""Events → what was known of each user and each item as of every event: the tables that point-in-time joins read.

A *user history* row (user, t, c) holds the user's last L events that happened by t and were known by c. An *item statistics*
row (item, t, c) says when the item was first seen and how often, over the events that happened by t and were known by c. There
is one row for each time t at which something happened, with c the earliest time at which an event at t was known, and one more
for each later time at which an event of up to t became known. To read as of T with the knowledge of K: the greatest t ≤ T among
the rows with c ≤ K, then the greatest c ≤ K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalr_prod.settings import Settings

__all__ = ["HistoriesReport", "TableReport", "build_histories", "histories_built"]


@dataclass(frozen=True)
class TableReport:
    """What became of one table.

    Attributes:
        events: Events it was made from.
        rows: Its rows.
        version: Its Delta version.
        events_version: Delta version of the events it was made from.
        built: False where it was up to date already.
        appended: Whether only the rows of new events were written, after those that were there.
    """

    events: int
    rows: int
    version: int
    events_version: int
    built: bool
    appended: bool = False


@dataclass(frozen=True)
class HistoriesReport:
    """What was built.

    Attributes:
        tables: By table.
    """

    tables: dict[str, TableReport]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {name: vars(report).copy() for name, report in self.tables.items()}


def build_histories(settings: Settings, *, progress: bool = False) -> HistoriesReport:
    """Build both domains' user histories and the target's item statistics; what is up to date is left alone.

    Events are sorted by DuckDB within ``[compute] memory_mb`` (beyond it, it spills) and streamed, a bounded number of whole
    users at a time, into one commit for each table.

    Args:
        settings: The project's settings.
        progress: Show progress bars on stderr.

    Raises:
        TableNotFound: Nothing has been ingested yet.
        ProjectsMixed: Home or lake are another project's. Nothing was written.
        DomainsMixed: The lake's tables were made for other domains.
        CommitFailed: The lake refused a commit; the tables are as they were.
    """
    from scalr_prod.binding import check_domains
    from scalr_prod.histories.build import build_tables
    from scalr_prod.lake import Lake

    lake = Lake.open(settings)
    opened = check_domains(settings, lake)
    return HistoriesReport(build_tables(settings, lake, opened, progress=progress))


def histories_built(settings: Settings) -> bool:
    """Whether all of the tables were made from the events that there are, with these settings."""
    from scalr_prod.histories.build import all_built
    from scalr_prod.lake import Lake

    return all_built(settings, Lake.open(settings))
