# SPDX-License-Identifier: Apache-2.0
"""The lake: one Delta table per name of `contracts.Table`, on disk or at any object-store URL.

Every commit carries a *key* as a Delta app transaction, so that repeating it changes nothing. A commit that fails is told apart
from one whose outcome is unknown. `storage` finds and opens tables, `commits` lands a commit once, `windows` are stretches of
event time, `tables` is what can be done with a table.
"""

from __future__ import annotations

from scalr_prod.lake.commits import Commit, record_of, repeat_while_moving
from scalr_prod.lake.tables import Lake
from scalr_prod.lake.windows import files_within, window_sql

__all__ = ["Commit", "Lake", "files_within", "record_of", "repeat_while_moving", "window_sql"]
