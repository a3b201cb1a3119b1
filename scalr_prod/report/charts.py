# SPDX-License-Identifier: Apache-2.0
"""SVG charts of the reports, rendered by Vega-Lite without a browser, a network or scripts on the page.

Text and axes use the page's text colour, so that one drawing serves the light and the dark theme.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import ReportError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scalr_prod.report.facts import Distributions

__all__ = ["COLOURS", "by_lift", "by_popularity", "by_time", "by_user", "calibration", "require_charts", "trend"]

#: Distinguishable with colour blindness; contrast of at least 3 : 1 against the light and the dark page.
COLOURS: Final = {"real": "#4d7fb5", "synthetic": "#c9660f"}
_INK: Final = "#010203"
_VERSION: Final = "5.20"
_WIDTH: Final = 560


def require_charts() -> None:
    """Check that the chart library is installed.

    Raises:
        ReportError: The library is not installed.
    """
    try:
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise ReportError(
            "the chart library is not installed",
            where="vl-convert-python",
            next_step="pip install 'scalr-prod[report]'",
        ) from error


def by_popularity(rows: Distributions) -> str:
    """Draw the share of the events that falls on the most popular items."""
    labelled = [{**row, "of": f"top {row['head']:.0%}"} for row in rows.popularity]
    order = list(dict.fromkeys(row["of"] for row in labelled))
    return _svg(labelled, _bars("of", order, "most popular items, as a share of the catalogue", "share of the events"))


def by_time(rows: Distributions) -> str:
    """Draw the share of the events over time."""
    x = {"field": "period", "type": "temporal", "title": None, "axis": {"tickCount": 6}}
    return _svg(
        list(rows.time), {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"x": x, **_share("share of the events")}}
    )


def by_user(rows: Distributions) -> str:
    """Draw the distribution of events per user."""
    order = [row["events"] for row in sorted(rows.per_user, key=lambda row: row["place"])]
    return _svg(rows.per_user, _bars("events", list(dict.fromkeys(order)), "events per user", "share of the users"))


def by_lift(rows: Distributions) -> str:
    """Draw the distribution of lift: an item's probability for the user over its share of the real events."""
    order = [row["lift"] for row in rows.lift]
    title = "probability of the drawn item over its share of the real events"
    return _svg(rows.lift, _bars("lift", order, title, "share of the synthetic events"))


def calibration(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw observed frequency against predicted probability; each row is a bin with ``predicted`` and ``observed``."""
    ends = [min(row["predicted"] for row in rows), max(row["predicted"] for row in rows)]
    non_empty = [row for row in rows if row["observed"] > 0]  # the axis is logarithmic

    def axis(field: str, title: str) -> dict[str, Any]:
        ticks = {"format": "~g", "tickCount": 5}
        return {"field": field, "type": "quantitative", "scale": {"type": "log"}, "title": title, "axis": ticks}

    encoding = {"x": axis("predicted", "predicted probability"), "y": axis("observed", "observed frequency")}
    line = {
        "data": {"values": [{"predicted": end, "observed": end} for end in ends]},
        "mark": {"type": "line", "color": _INK, "strokeDash": [4, 4], "opacity": 0.6},
    }
    points = {"mark": {"type": "line", "color": COLOURS["synthetic"], "point": {"size": 50, "color": COLOURS["synthetic"]}}}
    return _svg(non_empty, {"layer": [line | {"encoding": encoding}, points | {"encoding": encoding}]})


def trend(rows: Sequence[Mapping[str, Any]], field: str, title: str) -> str:
    """Draw a figure over the runs; each row has ``at`` (ISO 8601) and the field."""
    x = {"field": "at", "type": "temporal", "title": None, "axis": {"tickCount": 6}}
    y = {"field": field, "type": "quantitative", "title": title}
    mark = {"type": "line", "point": {"size": 50, "color": COLOURS["synthetic"]}, "color": COLOURS["synthetic"]}
    return _svg(rows, {"mark": mark, "encoding": {"x": x, "y": y}}, height=140)


def _bars(field: str, order: list[str], title: str, share: str) -> dict[str, Any]:
    x = {"field": field, "type": "nominal", "sort": order, "title": title, "axis": {"labelAngle": 0}}
    encoding = {"x": x, "xOffset": {"field": "kind", "type": "nominal", "sort": ["real", "synthetic"]}, **_share(share)}
    return {"mark": {"type": "bar"}, "encoding": encoding}


def _share(title: str) -> dict[str, Any]:
    colour = {"domain": list(COLOURS), "range": list(COLOURS.values())}
    legend = {"title": None, "orient": "top"}
    return {
        "y": {"field": "share", "type": "quantitative", "title": title, "axis": {"format": "%", "tickCount": 5}},
        "color": {"field": "kind", "type": "nominal", "scale": colour, "legend": legend},
    }


def _svg(rows: Sequence[Mapping[str, Any]], chart: dict[str, Any], *, height: int = 220) -> str:
    """Render a chart as SVG, hidden from screen readers: the page's caption and table hold its content."""
    import vl_convert

    text_style = {"labelColor": _INK, "titleColor": _INK, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    axis = {**text_style, "gridColor": _INK, "gridOpacity": 0.15, "domainColor": _INK, "tickColor": _INK}
    config = {
        "background": None,
        "aria": False,
        "view": {"stroke": None},
        "axis": axis,
        "legend": {**text_style, "symbolType": "square"},
    }
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": _WIDTH,
        "height": height,
        "data": {"values": list(rows)},
        "config": config,
        **chart,
    }
    try:
        svg = str(vl_convert.vegalite_to_svg(spec, vl_version=_VERSION))
    except ValueError as error:
        raise ReportError(
            f"a chart cannot be drawn: {error}", where="vl-convert", next_step="report this, with the run's id"
        ) from error
    svg = svg.replace(_INK, "currentColor")
    return re.sub(r'width="[\d.]+" height="[\d.]+" (viewBox=)', r'aria-hidden="true" focusable="false" \1', svg, count=1)
