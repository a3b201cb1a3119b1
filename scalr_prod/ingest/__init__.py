"""Foreign logs → events and item catalogues in the lake: everything is checked before anything is written.

Reading the same input again adds nothing; reading a log that has grown adds its new rows.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from scalr_prod.ingest.report import DomainReport, IngestReport

if TYPE_CHECKING:
    from scalr_prod.contracts import Domain
    from scalr_prod.ingest.staging import StagedEvents, StagedItems
    from scalr_prod.settings import Settings

__all__ = ["DomainReport", "IngestReport", "ingest"]


def ingest(settings: Settings, *, domain: Domain | None = None, progress: bool = False) -> IngestReport:
    """Read both domains' logs and item files into the lake, and make every later stage's table, empty, where it is missing.

    Args:
        settings: The project's settings.
        domain: Read this domain only; default: both.
        progress: Show progress bars on stderr.

    Raises:
        DomainsMixed: The lake's tables were made for other domains. Nothing was written.
        ForeignFiles: Home or lake holds what this package did not make. Nothing was written.
        InputError: An input was refused; names file, column and row. Nothing was written.
        NoCommonUsers: The two domains share no user. Nothing was written.
        CommitFailed: The lake refused a commit; it is safe to repeat the ingest.
    """
    from scalr_prod.binding import check_domains
    from scalr_prod.duck import open_duckdb, staging_folder
    from scalr_prod.ingest.staging import stage_events, stage_items
    from scalr_prod.ingest.work import Work
    from scalr_prod.lake import Lake
    from scalr_prod.progress import counting

    domains: tuple[Domain, ...] = (domain,) if domain else ("source", "target")
    events: dict[Domain, StagedEvents] = {}
    items: dict[Domain, StagedItems | None] = {}
    lake = Lake.open(settings)
    check_domains(settings, lake)
    lake.check_ours()
    with ExitStack() as stack:
        folder = stack.enter_context(staging_folder(settings, "ingest"))
        for one in domains:
            with counting(f"read {one}", show=progress) as count:
                events[one] = stage_events(settings, one, folder, count=count)
            items[one] = stage_items(settings, one, folder)
        db = stack.enter_context(open_duckdb(settings, folder))
        work = Work(db, lake, events, items)
        common = work.common_users(settings)
        work.compare()
        work.create_tables(settings)
        reports = {one: work.commit(one, settings.domains[one].name, progress=progress) for one in domains}
    return IngestReport(reports, common)
