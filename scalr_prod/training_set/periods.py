# SPDX-License-Identifier: Apache-2.0
"""Periods of a training set by label time: recent UTC days, and older months and years if they are small.

The periods depend only on the rows and the cutoff. New rows come into days, and no period exceeds one join, unless a single day does.
So new rows in a few periods leave the files of all others unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from scalr_prod.core.timestamps import DAY_US, micros_to_datetime, to_micros

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    Level = Callable[[int], "Period"]


@dataclass(frozen=True, order=True)
class Period:
    """Label times ``[start, end)``, µs since 1970: a UTC day, month or year."""

    start: int
    end: int

    @property
    def name(self) -> str:
        """Its first day, unique among the periods of one version."""
        return micros_to_datetime(self.start).strftime("%Y-%m-%d").rjust(10, "0")

    def contains(self, other: Period) -> bool:
        """Whether the other period lies within this one."""
        return self.start <= other.start and other.end <= self.end

    def overlaps(self, low: int, high: int) -> bool:
        """Whether it overlaps ``[low, high]``."""
        return self.start <= high and low < self.end


def utc_day(instant: int) -> Period:
    """Return the UTC day of an instant (µs)."""
    start = instant // DAY_US * DAY_US
    return Period(start, start + DAY_US)


def enclosing_periods(period: Period, horizon: int) -> list[Period]:
    """Return the larger periods that end by the horizon and contain this one, the smallest first."""
    return [
        larger for larger in (level(period.start) for level in _LARGER) if larger.end <= horizon and larger.contains(period)
    ]


def merge_horizon(cutoff: int) -> int:
    """Return the time before which periods may be merged: the start of the month before the last label's month."""
    return _month_of(_month_of(cutoff - 1).start - 1).start


def merge_periods(rows: Mapping[Period, int], *, cutoff: int, limit: int) -> list[Period]:
    """Merge old periods into larger ones, as long as the larger one has at most ``limit`` rows.

    Args:
        rows: Period → rows, without empty periods; days, or larger periods of a previous version that would result again.
        cutoff: All labels are before this, µs.
        limit: Maximum rows of a merged period.
    """
    horizon = merge_horizon(cutoff)
    periods = dict(rows)
    for level in _LARGER:
        inside: dict[Period, list[Period]] = {}
        for period in periods:
            larger = level(period.start)
            if larger.end <= horizon and larger.contains(period):
                inside.setdefault(larger, []).append(period)
        for larger, parts in inside.items():
            total = sum(periods[part] for part in parts)
            if total <= limit:
                for part in parts:
                    del periods[part]
                periods[larger] = total
    return sorted(periods)


def uncovered_spans(periods: Iterable[Period], start: int, end: int) -> list[tuple[int, int]]:
    """Return the spans of ``[start, end)`` outside all periods, half-open, ascending."""
    found, since = [], start
    for period in sorted(periods):
        if period.start > since:
            found.append((since, min(period.start, end)))
        since = max(since, period.end)
    if since < end:
        found.append((since, end))
    return [(low, high) for low, high in found if low < high]


def _month_of(instant: int) -> Period:
    first = micros_to_datetime(instant).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return Period(to_micros(first), to_micros((first + timedelta(days=32)).replace(day=1)))


def _year_of(instant: int) -> Period:
    year = micros_to_datetime(instant).year
    return Period(to_micros(datetime(year, 1, 1, tzinfo=UTC)), to_micros(datetime(year + 1, 1, 1, tzinfo=UTC)))


_LARGER: tuple[Level, ...] = (_month_of, _year_of)
