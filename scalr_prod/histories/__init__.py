# SPDX-License-Identifier: Apache-2.0
"""Point-in-time user histories and item statistics, built from events for the feature joins.

A *user history* row (user, t, c) holds the user's last L events that happened by t and were known by c. An *item statistics* row
(item, t, c) holds when the item was first seen and how often, over the events that happened by t and were known by c. Each event
time t has one row, where c is the earliest time at which an event at t was known, and one more row for each later time at which an
event up to t became known. To read as of event time T and knowledge time K: among the rows with c ≤ K take the greatest t ≤ T, then
the greatest c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.histories.build import HistoriesReport, are_histories_current, build_histories, rebuild_reason
    from scalr_prod.histories.incremental import BuildRecord

__all__ = [
    "BuildRecord",
    "HistoriesReport",
    "are_histories_current",
    "build_histories",
    "rebuild_reason",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "BuildRecord": "incremental",
        "HistoriesReport": "build",
        "are_histories_current": "build",
        "build_histories": "build",
        "rebuild_reason": "build",
    },
)
