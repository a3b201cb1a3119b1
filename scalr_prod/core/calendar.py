# SPDX-License-Identifier: Apache-2.0
"""Days of a time zone's calendar, which are 23 or 25 hours long where clocks change.

A local time that does not exist (clocks go forward) is moved by the length of the gap; of an ambiguous one (clocks go back), the second
occurrence is used. Airflow's cron schedules do the same, so that a backfill has the windows of the daily schedule.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo


def add_days(moment: datetime, days: int, zone: str) -> datetime:
    """Return the same time of day some calendar days later, in UTC.

    Args:
        moment: A timezone-aware datetime. The first instant of a local day counts as its midnight, even if 00:00 does not exist.
        days: Number of days; negative for earlier ones.
        zone: IANA name of the time zone.
    """
    info = ZoneInfo(zone)
    local = moment.astimezone(info).replace(tzinfo=None, fold=0)
    midnight = datetime(local.year, local.month, local.day)  # noqa: DTZ001 - local time
    return _to_utc((midnight if _to_utc(midnight, info) == moment else local) + timedelta(days=days), info)


def day_windows(start: datetime, end: datetime, zone: str, *, days: int = 1) -> list[tuple[datetime, datetime]]:
    """Cut a range into consecutive windows of calendar days, in UTC; the last ends with the range.

    Args:
        start: Start of the first window; the others start at the same time of day.
        end: End of the last window (exclusive).
        zone: IANA name of the time zone.
        days: Length of a window.
    """
    windows, first, number = [], start.astimezone(UTC), 0
    while first < end:
        number += days
        following = min(add_days(start, number, zone), end.astimezone(UTC))
        if first < following:  # a day that the zone left out, such as 30 December 2011 in Apia, has no window
            windows.append((first, following))
            first = following
    return windows


def local_to_utc(moment: datetime, zone: str) -> datetime:
    """Return a time in UTC; one without a zone is local.

    Args:
        moment: A datetime, timezone-aware or naive.
        zone: IANA name of the time zone of naive ones.
    """
    return moment.astimezone(UTC) if moment.tzinfo is not None else _to_utc(moment, ZoneInfo(zone))


def _to_utc(local: datetime, info: ZoneInfo) -> datetime:
    """Return a local time in UTC; see the module for times that a change of clocks leaves out or repeats."""
    first, second = (local.replace(tzinfo=info, fold=fold).astimezone(UTC) for fold in (0, 1))
    return max(first, second)
