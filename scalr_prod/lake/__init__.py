# SPDX-License-Identifier: Apache-2.0
"""The lake: one Delta table per member of `contracts.Table`, on disk or at an object-store URL.

Every commit has an idempotency *key*, stored as a Delta app transaction: a retry changes nothing. A failed commit is distinguished from one
with an unknown outcome. `storage` finds and opens tables, `commits` makes idempotent commits, `windows` handles windows of event time, and
`tables` holds the operations on tables.
"""

from __future__ import annotations

from scalr_prod.lake.commits import Commit, record_of, repeat_while_moving
from scalr_prod.lake.tables import Lake
from scalr_prod.lake.windows import files_within, window_sql

__all__ = ["Commit", "Lake", "files_within", "record_of", "repeat_while_moving", "window_sql"]
