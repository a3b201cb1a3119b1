# SPDX-License-Identifier: Apache-2.0
"""The lake: one Delta table per member of `schemas.Table`, on disk or at an object-store URL.

Every commit has an idempotency *key*, stored as a Delta app transaction: a retry changes nothing. A failed commit is distinguished from one
with an unknown outcome. `storage` finds and opens tables, `commits` makes idempotent commits, `windows` handles windows of event time, and
`tables` holds the operations on tables.
"""

from __future__ import annotations

from scalr_prod.lake.commits import CommitResult, commit_record, retry_on_new_version
from scalr_prod.lake.tables import Lake
from scalr_prod.lake.time_windows import files_in_window, window_sql

__all__ = ["CommitResult", "Lake", "commit_record", "files_in_window", "retry_on_new_version", "window_sql"]
