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

    from scalr_prod.reporting.report_data import Distributions


#: Distinguishable with colour blindness; contrast of at least 3 : 1 against the light and the dark page.
COLOURS: Final = {"real": "#4d7fb5", "synthetic": "#c9660f"}
_TEXT_COLOUR: Final = "#010203"
_VEGA_LITE_VERSION: Final = "5.20"
_WIDTH: Final = 560
#: Least and greatest ratio on a logarithmic axis.
_LEAST_RATIO, _GREATEST_RATIO = 0.05, 100.0


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


def popularity_chart(distributions: Distributions) -> str:
    """Draw the share of the events that falls on the most popular items."""
    labelled = [{**row, "of": f"top {row['head']:.0%}"} for row in distributions.popularity]
    order = list(dict.fromkeys(row["of"] for row in labelled))
    return _render_svg(
        labelled, _bar_chart("of", order, "most popular items, as a share of the catalogue", "share of the events")
    )


def events_over_time_chart(distributions: Distributions) -> str:
    """Draw the share of the events over time."""
    x = {"field": "period", "type": "temporal", "title": None, "axis": {"tickCount": 6}}
    return _render_svg(
        list(distributions.time),
        {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"x": x, **_share_encoding("share of the events")}},
    )


def events_per_user_chart(distributions: Distributions) -> str:
    """Draw the distribution of events per user."""
    order = [row["events"] for row in sorted(distributions.per_user, key=lambda row: row["place"])]
    return _render_svg(
        distributions.per_user, _bar_chart("events", list(dict.fromkeys(order)), "events per user", "share of the users")
    )


def lift_chart(distributions: Distributions) -> str:
    """Draw the distribution of the events' lift over popularity."""
    order = [row["lift"] for row in distributions.lift]
    title = "lift over popularity (probability divided by the prior)"
    return _render_svg(distributions.lift, _bar_chart("lift", order, title, "share of the synthetic events"))


def calibration_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw observed frequency against predicted probability; each row is a bin with ``predicted`` and ``observed``."""
    ends = [min(row["predicted"] for row in rows), max(row["predicted"] for row in rows)]
    non_empty = [row for row in rows if row["observed"] > 0]  # the axis is logarithmic

    def axis(field: str, title: str) -> dict[str, Any]:
        ticks = {"format": "~g", "tickCount": 5}
        return {"field": field, "type": "quantitative", "scale": {"type": "log"}, "title": title, "axis": ticks}

    encoding = {"x": axis("predicted", "predicted probability"), "y": axis("observed", "observed frequency")}
    line = {
        "data": {"values": [{"predicted": end, "observed": end} for end in ends]},
        "mark": {"type": "line", "color": _TEXT_COLOUR, "strokeDash": [4, 4], "opacity": 0.6},
    }
    points = {"mark": {"type": "line", "color": COLOURS["synthetic"], "point": {"size": 50, "color": COLOURS["synthetic"]}}}
    return _render_svg(non_empty, {"layer": [line | {"encoding": encoding}, points | {"encoding": encoding}]})


def trend_chart(rows: Sequence[Mapping[str, Any]], field: str, title: str) -> str:
    """Draw a figure over the runs; each row has ``at`` (ISO 8601) and the field."""
    x = {"field": "at", "type": "temporal", "title": None, "axis": {"tickCount": 6}}
    y = {"field": field, "type": "quantitative", "title": title}
    mark = {"type": "line", "point": {"size": 50, "color": COLOURS["synthetic"]}, "color": COLOURS["synthetic"]}
    return _render_svg(rows, {"mark": mark, "encoding": {"x": x, "y": y}}, height=140)


def lift_interval_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw lifts with their intervals; each row has ``users``, ``lift_pct``, ``low`` and ``high`` in percent."""
    ratios = [
        {"users": row["users"]}
        | {name: min(max(1 + row[name] / 100, _LEAST_RATIO), _GREATEST_RATIO) for name in ("lift_pct", "low", "high")}
        for row in rows
    ]
    order = [row["users"] for row in rows]
    y = {"field": "users", "type": "nominal", "sort": order, "title": None, "axis": {"minExtent": 150, "labelLimit": 150}}
    axis = {"format": "~g", "tickCount": 6}
    x = {"type": "quantitative", "scale": {"type": "log"}, "title": "NDCG, times that of the best other method", "axis": axis}
    colour = COLOURS["synthetic"]
    same = {
        "data": {"values": [{"same": 1}]},
        "mark": {"type": "rule", "color": _TEXT_COLOUR, "strokeDash": [4, 4], "opacity": 0.6},
    }
    interval = {"mark": {"type": "rule", "color": colour, "strokeWidth": 2}}
    points = {"mark": {"type": "point", "filled": True, "size": 80, "color": colour}}
    layers = [
        same | {"encoding": {"x": {**x, "field": "same"}}},
        interval | {"encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": y}},
        points | {"encoding": {"x": {**x, "field": "lift_pct"}, "y": y}},
    ]
    return _render_svg(ratios, {"layer": layers}, height=40 + 28 * len(order))


def _bar_chart(field: str, order: list[str], title: str, share: str) -> dict[str, Any]:
    x = {"field": field, "type": "nominal", "sort": order, "title": title, "axis": {"labelAngle": 0}}
    encoding = {
        "x": x,
        "xOffset": {"field": "kind", "type": "nominal", "sort": ["real", "synthetic"]},
        **_share_encoding(share),
    }
    return {"mark": {"type": "bar"}, "encoding": encoding}


def _share_encoding(title: str) -> dict[str, Any]:
    colour = {"domain": list(COLOURS), "range": list(COLOURS.values())}
    legend = {"title": None, "orient": "top"}
    return {
        "y": {"field": "share", "type": "quantitative", "title": title, "axis": {"format": "%", "tickCount": 5}},
        "color": {"field": "kind", "type": "nominal", "scale": colour, "legend": legend},
    }


def _render_svg(rows: Sequence[Mapping[str, Any]], chart_spec: dict[str, Any], *, height: int = 220) -> str:
    """Render a chart as SVG, hidden from screen readers: the page's caption and table hold its content."""
    import vl_convert

    text_style = {
        "labelColor": _TEXT_COLOUR,
        "titleColor": _TEXT_COLOUR,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    }
    axis = {
        **text_style,
        "gridColor": _TEXT_COLOUR,
        "gridOpacity": 0.15,
        "domainColor": _TEXT_COLOUR,
        "tickColor": _TEXT_COLOUR,
    }
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
        **chart_spec,
    }
    try:
        svg = str(vl_convert.vegalite_to_svg(spec, vl_version=_VEGA_LITE_VERSION))
    except ValueError as error:
        raise ReportError(
            f"a chart cannot be drawn: {error}", where="vl-convert", next_step="report this, with the run's id"
        ) from error
    svg = svg.replace(_TEXT_COLOUR, "currentColor")
    return re.sub(r'width="[\d.]+" height="[\d.]+" (viewBox=)', r'aria-hidden="true" focusable="false" \1', svg, count=1)
