# SPDX-License-Identifier: Apache-2.0
"""Where a training set is cut by label time: UTC days of late, whole months and years further back where they are small.

The cut is a function of the rows and the cutoff alone. What is new comes into days, and no part is larger than what is joined at
once, unless a single day is. So a day that brings rows for a few periods leaves the files of all others as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from scalr_prod.instants import datetime_of, micros

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    Level = Callable[[int], "Period"]

__all__ = ["DAY_US", "Period", "cut", "day_of", "gaps", "horizon_of", "may_grow_into"]

DAY_US = 86_400_000_000


@dataclass(frozen=True, order=True)
class Period:
    """Label times of ``[start, end)``, µs since 1970: a day, a month or a year of UTC."""

    start: int
    end: int

    @property
    def name(self) -> str:
        """Its first day: no two periods of one cut have the same."""
        return datetime_of(self.start).strftime("%Y-%m-%d").rjust(10, "0")

    def holds(self, other: Period) -> bool:
        """Whether the other one lies in it."""
        return self.start <= other.start and other.end <= self.end

    def meets(self, low: int, high: int) -> bool:
        """Whether it has an instant in common with ``[low, high]``."""
        return self.start <= high and low < self.end


def day_of(instant: int) -> Period:
    """The UTC day of an instant (µs)."""
    start = instant // DAY_US * DAY_US
    return Period(start, start + DAY_US)


def may_grow_into(day: Period, horizon: int) -> list[Period]:
    """The larger periods that a period may become a part of, the smallest first: those that end by the horizon."""
    return [larger for larger in (level(day.start) for level in _LARGER) if larger.end <= horizon and larger.holds(day)]


def horizon_of(cutoff: int) -> int:
    """Up to when labels are old: the first instant of the month before the one of the last instant before the cutoff."""
    return _month_of(_month_of(cutoff - 1).start - 1).start


def cut(rows: Mapping[Period, int], *, cutoff: int, limit: int) -> list[Period]:
    """Join periods into larger ones where they are old, and the larger one has no more rows than the limit.

    Args:
        rows: Rows of each period, those of none left out; days, or larger ones of a former cut that this one would make as well.
        cutoff: All labels are from before, µs.
        limit: Rows.
    """
    horizon = horizon_of(cutoff)
    periods = dict(rows)
    for level in _LARGER:
        inside: dict[Period, list[Period]] = {}
        for period in periods:
            larger = level(period.start)
            if larger.end <= horizon and larger.holds(period):
                inside.setdefault(larger, []).append(period)
        for larger, parts in inside.items():
            total = sum(periods[part] for part in parts)
            if total <= limit:
                for part in parts:
                    del periods[part]
                periods[larger] = total
    return sorted(periods)


def gaps(periods: Iterable[Period], start: int, end: int) -> list[tuple[int, int]]:
    """What of ``[start, end)`` lies in none of the periods, half-open, ascending."""
    found, since = [], start
    for period in sorted(periods):
        if period.start > since:
            found.append((since, min(period.start, end)))
        since = max(since, period.end)
    if since < end:
        found.append((since, end))
    return [(low, high) for low, high in found if low < high]


def _month_of(instant: int) -> Period:
    first = datetime_of(instant).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return Period(micros(first), micros((first + timedelta(days=32)).replace(day=1)))


def _year_of(instant: int) -> Period:
    year = datetime_of(instant).year
    return Period(micros(datetime(year, 1, 1, tzinfo=UTC)), micros(datetime(year + 1, 1, 1, tzinfo=UTC)))


_LARGER: tuple[Level, ...] = (_month_of, _year_of)
