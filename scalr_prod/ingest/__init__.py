# SPDX-License-Identifier: Apache-2.0
"""Foreign logs → events and item catalogues in the lake: everything is checked before anything is written.

Reading the same input again adds nothing; reading a log that has grown adds its new rows.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from scalr_prod.ingest.protocol import Batch, LogReader, LogSource
from scalr_prod.ingest.report import DomainReport, IngestReport

if TYPE_CHECKING:
    from datetime import datetime

    from scalr_prod.ingest.staging import StagedEvents, StagedItems
    from scalr_prod.settings import Settings

__all__ = ["Batch", "DomainReport", "IngestReport", "LogReader", "LogSource", "ingest"]


def ingest(
    settings: Settings, *, domain: str | None = None, replace: datetime | None = None, progress: bool = False
) -> IngestReport:
    """Read all domains' logs and item files into the lake, and make every later stage's table, empty, where it is missing.

    Args:
        settings: The project's settings.
        domain: Read ``source`` (all source domains), ``target``, or one of several, ``sources.<name>``; default: all.
        replace: Make the lake's events from then on (UTC) equal to those of the logs: rows that a log does not hold any more leave
            the lake. Rows of a log from before are not looked at. Default: what the lake lacks is added, and nothing leaves it.
        progress: Show progress bars on stderr.

    Raises:
        ProjectsMixed: Home or lake are another project's. Nothing was written.
        DomainsMixed: The lake's tables were made for other domains. Nothing was written.
        ForeignFiles: Home or lake holds what this package did not make. Nothing was written.
        InputError: An input was refused; names file, column and row. Nothing was written.
        NoCommonUsers: No user has events in the target domain and in a source domain. Nothing was written.
        SettingsError: There is no such domain.
        CommitFailed: The lake refused a commit; it is safe to repeat the ingest.
    """
    from scalr_prod.binding import check_domains
    from scalr_prod.duck import open_duckdb, staging_folder
    from scalr_prod.ingest.probe import probe
    from scalr_prod.ingest.staging import stage_events, stage_items
    from scalr_prod.ingest.usermap import UserMap
    from scalr_prod.ingest.work import Work
    from scalr_prod.lake import Lake
    from scalr_prod.progress import counting

    places = _places(settings, domain)
    events: dict[str, StagedEvents] = {}
    items: dict[str, StagedItems | None] = {}
    lake = Lake.open(settings)
    opened = lake.check_ours(check_domains(settings, lake))
    user_map = UserMap.read(settings)
    if not settings.home.exists():  # before it is made: a log that is not there leaves nothing behind
        for one in places:
            probe(settings, one)
    with ExitStack() as stack:
        folder = stack.enter_context(staging_folder(settings, "ingest"))
        for one in places:
            with counting(f"read {one}", show=progress) as count:
                events[one] = stage_events(settings, one, folder, count=count)
            items[one] = stage_items(settings, one, folder)
        db = stack.enter_context(open_duckdb(settings, folder))
        work = Work(settings, db, lake, opened, events, items, folder, since=replace, user_map=user_map)
        common = work.common_users()
        work.compare()
        work.create_tables()
        reports = {one: work.commit(one, progress=progress) for one in places}
    return IngestReport(reports, common, work.users.mapped)


def _places(settings: Settings, domain: str | None) -> tuple[str, ...]:
    """Places of the logs to read.

    Raises:
        SettingsError: There is no such domain.
    """
    from scalr_prod.errors import SettingsError

    source, target = settings.domains.places("source"), settings.domains.places("target")
    known = {place: (place,) for place in (*source, *target)} | {None: (*source, *target), "source": source}
    if domain not in known:
        there = ", ".join(str(name) for name in known if name)
        raise SettingsError(f"there is no domain '{domain}'; there are: {there}", where="domain", next_step="name one of those")
    return known[domain]
