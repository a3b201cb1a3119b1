# SPDX-License-Identifier: Apache-2.0
"""Ingest: external logs → event tables and item catalogues in the lake.

All input is validated before anything is written. Ingest is idempotent: the same input adds nothing, a log that has grown adds its new
rows.
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
    """Ingest the logs and item files of all domains, and create the tables of later stages where they are missing.

    Args:
        settings: The project's settings.
        domain: Read ``source`` (all source domains), ``target``, or one of several, ``sources.<name>``; default: all.
        replace: Make the lake's events from this time on (UTC) equal to those of the logs: rows that a log no longer holds are
            removed. Earlier rows of the logs are ignored. Default: missing rows are added, nothing is removed.
        progress: Show progress bars on stderr.

    Raises:
        ProjectsMixed: Home or lake belongs to another project. Nothing was written.
        DomainsMixed: The lake's tables were created for other domains. Nothing was written.
        ForeignFiles: Home or lake holds files that this package did not create. Nothing was written.
        InputError: An input was rejected; names file, column and row. Nothing was written.
        NoCommonUsers: No user has events in the target domain and in a source domain. Nothing was written.
        SettingsError: There is no such domain.
        CommitFailed: The lake rejected a commit; it is safe to repeat the ingest.
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
    if not settings.home.exists():  # checked before the home is created, so that a missing log leaves no files behind
        for place in places:
            probe(settings, place)
    with ExitStack() as stack:
        folder = stack.enter_context(staging_folder(settings, "ingest"))
        for place in places:
            with counting(f"read {place}", show=progress) as count:
                events[place] = stage_events(settings, place, folder, count=count)
            items[place] = stage_items(settings, place, folder)
        db = stack.enter_context(open_duckdb(settings, folder))
        work = Work(settings, db, lake, opened, events, items, folder, since=replace, user_map=user_map)
        common = work.common_users()
        work.compare()
        work.create_tables()
        reports = {place: work.commit(place, progress=progress) for place in places}
    return IngestReport(reports, common, work.users.mapped)


def _places(settings: Settings, domain: str | None) -> tuple[str, ...]:
    """Return the settings keys of the logs to read.

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
