"""Timestamps of every spelling against Python's own datetime."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalr_prod.errors import BadValue
from scalr_prod.ingest.column_parsers import CellOrigin
from scalr_prod.ingest.timestamp_parser import TimestampParser

PLACE = CellOrigin("file", "timestamp")
KEY = "[domains.source] timezone"
#: Years for which every unit of epoch numbers is told apart, and every zone has rules.
MOMENTS = st.datetimes(datetime(1980, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - bounds are naive
OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


def read(values, zone: str | None = None) -> list[datetime]:
    return TimestampParser(zone, KEY).parse(values if isinstance(values, pa.Array) else pa.array(values), PLACE).to_pylist()


@settings(max_examples=100)
@given(st.lists(st.tuples(MOMENTS, OFFSETS, st.sampled_from(["T", " "])), min_size=1, max_size=10))
def test_iso_text_with_any_offset(made):
    assert read([moment.astimezone(zone).isoformat(sep=sep) for moment, zone, sep in made]) == [moment for moment, _, _ in made]


@settings(max_examples=50)
@given(st.lists(MOMENTS, min_size=1, max_size=10), st.sampled_from(["Z", " UTC", "UTC", " +00:00", "+0000", "+00"]))
def test_the_spellings_of_utc(moments, ending):
    assert read([f"{moment:%Y-%m-%dT%H:%M:%S.%f}{ending}" for moment in moments]) == moments


@settings(max_examples=50)
@given(
    st.lists(MOMENTS, min_size=1, max_size=10),
    st.sampled_from([("s", 1_000_000), ("ms", 1000), ("us", 1), ("ns", 1)]),
    st.sampled_from(["int", "text", "float"]),
)
def test_epoch_numbers_of_every_unit(moments, unit, kind):
    name, step = unit
    moments = [moment - timedelta(microseconds=moment.microsecond % step) for moment in moments]
    micros = [(moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) for moment in moments]
    numbers = [value * 1000 if name == "ns" else value // step for value in micros]
    if kind == "float" and name in {"us", "ns"}:
        return  # a float64 does not hold so many digits
    found = read([str(number) if kind == "text" else float(number) if kind == "float" else number for number in numbers])
    assert found == moments


@settings(max_examples=100)
@given(
    st.lists(MOMENTS, min_size=1, max_size=10), st.sampled_from(["Europe/Paris", "America/New_York", "Asia/Kathmandu", "UTC"])
)
def test_local_times_in_a_zone_and_never_too_early(moments, zone):
    local = [moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None) for moment in moments]
    for values in (pa.array(local, pa.timestamp("us")), pa.array([moment.isoformat(sep=" ") for moment in local])):
        for found, moment, wall in zip(read(values, zone), moments, local, strict=True):
            if (
                moment.fold
                or wall.replace(tzinfo=ZoneInfo(zone), fold=0).utcoffset()
                != wall.replace(tzinfo=ZoneInfo(zone), fold=1).utcoffset()
            ):
                # The hour that a clock shows twice: the later of the two, so that nothing is known before it can have been.
                assert found == wall.replace(tzinfo=ZoneInfo(zone), fold=1).astimezone(UTC)
                assert found >= moment
            else:
                assert found == moment


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-05-01T12:30Z", datetime(2024, 5, 1, 12, 30, tzinfo=UTC)),
        ("2024-05-01 12Z", datetime(2024, 5, 1, 12, tzinfo=UTC)),
        ("  2024-05-01T12:30:00Z ", datetime(2024, 5, 1, 12, 30, tzinfo=UTC)),
        ("2024-05-01T12:30:00.123456789Z", datetime(2024, 5, 1, 12, 30, 0, 123456, tzinfo=UTC)),
        ("1714566600.5", datetime(2024, 5, 1, 12, 30, 0, 500000, tzinfo=UTC)),
    ],
)
def test_other_spellings(text, expected):
    assert read([text]) == [expected]


FORMATS = ("%d.%m.%Y %H:%M:%S", "%m/%d/%Y %H:%M:%S", "%Y%m%d%H%M%S", "%d %b %Y %H:%M:%S")


@settings(max_examples=60)
@given(st.lists(MOMENTS, min_size=1, max_size=10), st.sampled_from(FORMATS), st.sampled_from(["UTC", "Asia/Tokyo"]))
def test_text_of_a_format_that_the_settings_name(moments, form, zone):
    moments = [moment.replace(microsecond=0) for moment in moments]
    reader = TimestampParser(zone, KEY, format=form)
    text = pa.array([moment.astimezone(ZoneInfo(zone)).strftime(form) for moment in moments])
    assert reader.parse(text, PLACE).to_pylist() == moments


@pytest.mark.parametrize(
    "text", ["31.02.2024", "00.01.2024", "01.13.2024", "01.02.24", "1.2", "01.02.2024 10:00", "2024-02-01", ""]
)
def test_what_is_not_of_the_format_is_named_with_it(text):
    reader = TimestampParser("UTC", KEY, format="%d.%m.%Y")
    assert reader.parse(pa.array(["1.2.2024", "01.02.2024"]), PLACE).to_pylist() == [datetime(2024, 2, 1, tzinfo=UTC)] * 2
    with pytest.raises(BadValue, match=r"not a timestamp of the form %d.%m.%Y|outside the years") as caught:
        reader.parse(pa.array(["01.02.2024", text]), PLACE)
    assert "row 2" in caught.value.where
    with pytest.raises(BadValue, match="naive"):
        TimestampParser(None, KEY, format="%d.%m.%Y").parse(pa.array(["01.02.2024"]), PLACE)


def test_dates_are_midnight_in_the_zone():
    values = pa.array([datetime(2024, 7, 1, tzinfo=UTC).date()])
    assert read(values, "Europe/Paris") == [datetime(2024, 6, 30, 22, tzinfo=UTC)]
    with pytest.raises(BadValue, match="naive"):
        read(values)


def test_zoned_and_naive_text_in_one_column_needs_the_zone_for_the_naive_only():
    mixed = ["2024-07-01T00:00:00Z", "2024-07-01 00:00:00"]
    expected = [datetime(2024, 7, 1, tzinfo=UTC), datetime(2024, 6, 30, 22, tzinfo=UTC)]
    assert read(mixed, "Europe/Paris") == expected
    with pytest.raises(BadValue, match="row 2"):
        read(mixed)


def test_an_hour_that_no_clock_shows_is_taken_late():
    missing = pa.array([datetime(2024, 3, 31, 2, 30)], pa.timestamp("us"))  # noqa: DTZ001 - naive on purpose
    assert read(missing, "Europe/Paris")[0] >= datetime(2024, 3, 31, 1, tzinfo=UTC)


def test_a_unit_that_changes_between_batches_is_refused():
    instants = TimestampParser(None, KEY)
    instants.parse(pa.array([1_714_566_600]), PLACE)
    with pytest.raises(BadValue, match="change from s to ms"):
        instants.parse(pa.array([1_714_566_600_000]), CellOrigin("file", "timestamp", 1))


@pytest.mark.parametrize("text", ["01/05/2024", "2024-13-01T00:00:00Z", "2024-05-01T25:00:00Z", "now", "12:30", "2024-W05-1"])
def test_what_is_no_timestamp_is_named(text):
    with pytest.raises(BadValue) as caught:
        read(["2024-05-01T12:30:00Z", text])
    assert "row 2" in str(caught.value)
    assert text in str(caught.value)
