"""Days of a project's calendar across changes of clocks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from scalr_prod.core.calendar import add_days, day_windows

#: Changes of clocks: zone, a day some days before, and the lengths of the days around the change that are not of 24 hours.
CHANGES = [
    ("America/Sao_Paulo", "2018-11-01", {"2018-11-04": 23}),  # at midnight: 00:00 does not exist
    ("America/Sao_Paulo", "2019-02-13", {"2019-02-16": 25}),  # at midnight: 23:00 to 24:00 is twice
    ("Europe/Berlin", "2024-03-28", {"2024-03-31": 23}),
    ("Europe/Berlin", "2024-10-24", {"2024-10-27": 25}),
]


def midnight(zone: str, day: str) -> datetime:
    """The first instant of a local day."""
    first = datetime.fromisoformat(day).replace(tzinfo=UTC) - timedelta(days=1)
    hours = (first + timedelta(minutes=15 * number) for number in range(4 * 48))
    return next(at for at in hours if at.astimezone(ZoneInfo(zone)).strftime("%Y-%m-%d") == day)


@pytest.mark.parametrize(("zone", "first", "odd"), CHANGES)
def test_every_local_day_is_one_window(zone, first, odd):
    days = [str(datetime.fromisoformat(first).date() + timedelta(days=number)) for number in range(8)]
    windows = day_windows(midnight(zone, days[0]), midnight(zone, days[-1]), zone)
    assert windows == list(pairwise(midnight(zone, day) for day in days))
    lengths = {day: (end - start) / timedelta(hours=1) for day, (start, end) in zip(days, windows, strict=False)}
    assert {day: hours for day, hours in lengths.items() if hours != 24} == odd
    assert {moment.utcoffset() for window in windows for moment in window} == {timedelta(0)}


@pytest.mark.parametrize(("zone", "first", "odd"), CHANGES)
def test_a_range_that_begins_on_the_day_of_the_change_has_the_same_windows(zone, first, odd):
    (day,) = odd
    whole = day_windows(midnight(zone, first), midnight(zone, first) + timedelta(days=7), zone)
    later = day_windows(midnight(zone, day), midnight(zone, first) + timedelta(days=7), zone)
    assert later == [window for window in whole if window[0] >= midnight(zone, day)]


def test_a_range_is_cut_at_the_time_of_day_at_which_it_begins():
    start, end = datetime(2024, 3, 29, 2, tzinfo=UTC), datetime(2024, 4, 2, 12, tzinfo=UTC)
    windows = day_windows(start, end, "Europe/Berlin")
    assert [start.astimezone(ZoneInfo("Europe/Berlin")).hour for start, _ in windows] == [3, 3, 3, 3, 3]
    assert windows[-1][1] == end, "the last ends with the range"


def test_windows_of_several_days_and_a_day_that_a_zone_left_out():
    start = datetime(2024, 10, 20, 22, tzinfo=UTC)
    weeks = day_windows(start, datetime(2024, 11, 3, 23, tzinfo=UTC), "Europe/Berlin", days=7)
    assert [end - start for start, end in weeks] == [timedelta(days=7, hours=1), timedelta(days=7)]
    apia = day_windows(midnight("Pacific/Apia", "2011-12-28"), midnight("Pacific/Apia", "2012-01-01"), "Pacific/Apia")
    assert len(apia) == 3, "there was no 30 December 2011"


def test_adding_days_keeps_the_time_of_day():
    noon = datetime(2024, 10, 27, 11, tzinfo=UTC)  # 12:00 in Berlin
    assert add_days(noon, -1, "Europe/Berlin") == datetime(2024, 10, 26, 10, tzinfo=UTC)
    assert add_days(noon, -1, "UTC") == noon - timedelta(days=1)
