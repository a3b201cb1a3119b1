# SPDX-License-Identifier: Apache-2.0
"""The lake: one Delta table per member of `schemas.Table`, on disk or at an object-store URL.

Every commit has an idempotency *key*, stored as a Delta app transaction: a retry changes nothing. A failed commit is distinguished from one
with an unknown outcome. `storage` finds and opens tables, `commits` makes idempotent commits, `table_files` writes files that
are committed later, `time_windows` handles windows of event time, and `tables` holds the operations on tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.lake.binding import (
        PROJECT_MARKED_TABLE,
        check_domains,
        domain_description,
        open_project_lake,
        project_description,
    )
    from scalr_prod.lake.commits import CommitMetadata, CommitResult, commit_record, retry_on_new_version
    from scalr_prod.lake.corrections import CORRECTION_APP_ID, Correction, corrections_since, stale_since
    from scalr_prod.lake.exclusive_commits import check_exclusive_commits
    from scalr_prod.lake.table_files import TableFile, commit_id_of
    from scalr_prod.lake.tables import Lake
    from scalr_prod.lake.time_windows import checked_window, files_in_window, window_sql

__all__ = [
    "CORRECTION_APP_ID",
    "PROJECT_MARKED_TABLE",
    "CommitMetadata",
    "CommitResult",
    "Correction",
    "Lake",
    "TableFile",
    "check_domains",
    "check_exclusive_commits",
    "checked_window",
    "commit_id_of",
    "commit_record",
    "corrections_since",
    "domain_description",
    "files_in_window",
    "open_project_lake",
    "project_description",
    "retry_on_new_version",
    "stale_since",
    "window_sql",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "CORRECTION_APP_ID": "corrections",
        "CommitMetadata": "commits",
        "CommitResult": "commits",
        "Correction": "corrections",
        "Lake": "tables",
        "PROJECT_MARKED_TABLE": "binding",
        "TableFile": "table_files",
        "commit_id_of": "table_files",
        "check_domains": "binding",
        "commit_record": "commits",
        "corrections_since": "corrections",
        "domain_description": "binding",
        "check_exclusive_commits": "exclusive_commits",
        "checked_window": "time_windows",
        "files_in_window": "time_windows",
        "open_project_lake": "binding",
        "project_description": "binding",
        "retry_on_new_version": "commits",
        "stale_since": "corrections",
        "window_sql": "time_windows",
    },
)
