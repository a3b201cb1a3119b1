"""The points of a calibration curve: nothing is lost, and each has events enough."""

from __future__ import annotations

import pytest

from scalr_prod.reporting.page import _calibration_section


def classes(*expected):
    return [{"pairs": 10 * (place + 1), "expected": each, "events": round(each)} for place, each in enumerate(expected)]


def test_neighbours_are_put_together_until_each_point_expects_five_events():
    rows = classes(0.4, 3.0, 2.0, 9.0, 1.0, 4.5, 0.2)
    told = _calibration_section(rows)["rows"]
    assert [row["expected"] for row in told] == pytest.approx([5.4, 9.0, 5.7])
    for name in ("pairs", "expected", "events"):
        assert sum(row[name] for row in told) == pytest.approx(sum(row[name] for row in rows))
    assert told[0]["predicted"] == pytest.approx(5.4 / 60)
    assert told[0]["observed"] == pytest.approx(5 / 60)


@pytest.mark.parametrize("rows", [[], classes(4.0), classes(5.0, 1.0), classes(1.0, 1.0, 1.0)])
def test_a_single_point_is_no_curve(rows):
    assert _calibration_section(rows) is None


def test_it_says_how_much_went_wrong():
    summary = _calibration_section(
        [{"pairs": 50, "expected": 10.0, "events": 6}, {"pairs": 500, "expected": 10.0, "events": 14}]
    )["summary"]
    assert "Of 20 target events" in summary
    assert "20.0%" in summary, "four of the 20, which are missing in one bin and too many in the other"
    assert "Not drawn" not in summary


def test_it_names_what_a_logarithmic_axis_cannot_show():
    rows = [{"pairs": 80, "expected": 40.0, "events": 0}, {"pairs": 500, "expected": 10.0, "events": 14}]
    assert "no event occurred, where 40 were expected" in _calibration_section(rows)["summary"]
