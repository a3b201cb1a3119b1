"""Draw the charts of docs from what the benchmarks left in `benchmarks/results/`.

Usage: python scripts/charts.py [--check]. A chart that shows these figures stays as it is. With ``--check`` nothing is written, and a chart
that shows others is exit code 1.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import results
import vl_convert

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
#: Told apart by the colour-blind, each at least 3 : 1 against white.
BAR, AIM, INK = "#4d7fb5", "#c9660f", "#333333"
WIDTH = 300

Row = dict[str, Any]


def beside_limits() -> list[Row]:
    """How fast each part is, as a share of its limit's speed, and which share is aimed at."""
    return [
        {"part": f"{row.part}: {row.beside}", "value": row.share, "aim": row.aim, "text": f"{row.share:.0%}"}
        for row in results.speeds()
    ]


def ten_times(what: str) -> list[Row]:
    """What ten times the events cost each stage: ``cpu_ratio`` or ``memory_ratio``, times that of 1 M source events."""
    scale = results.figures("scale")
    (ratios,) = scale["ratios"].values()
    aim = scale["limits"][what]
    return [
        {"part": stage.replace("_", " "), "value": found[what], "aim": aim, "text": f"{found[what]:.2f}"}
        for stage, found in ratios.items()
    ]


def bars(rows: list[Row], title: str, form: str) -> Row:
    """One bar a row, a stroke where its aim is, and its figure to the right."""
    order = [row["part"] for row in rows]
    y = {
        "field": "part",
        "type": "nominal",
        "sort": order,
        "title": None,
        "axis": {"labelLimit": 320, "ticks": False, "domain": False},
    }

    beside = {"x": {"value": WIDTH + 8}, "text": {"field": "text"}}

    def x(field: str) -> Row:
        return {"x": {"field": field, "type": "quantitative", "title": title, "axis": {"format": form, "tickCount": 5}}, "y": y}

    return {
        "height": {"step": 24},
        "width": WIDTH,
        "data": {"values": rows},
        "layer": [
            {"mark": {"type": "bar", "color": BAR, "height": 14}, "encoding": x("value")},
            {"mark": {"type": "tick", "color": AIM, "opacity": 1, "thickness": 3, "size": 20}, "encoding": x("aim")},
            {"mark": {"type": "text", "align": "left", "color": INK, "fontSize": 12}, "encoding": {"y": y, **beside}},
        ],
    }


def drawn(chart: Row) -> str:
    """As SVG, on white."""
    text = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    config = {"background": "white", "view": {"stroke": None}, "axis": {**text, "gridOpacity": 0.5}, "padding": 12}
    return str(vl_convert.vegalite_to_svg({**chart, "config": config}, vl_version="5.20"))


def charts() -> dict[str, tuple[list[Row], Row]]:
    """Each chart by its file's name: the rows that it shows, and its drawing's description."""
    limits, seconds, memory = beside_limits(), ten_times("cpu_ratio"), ten_times("memory_ratio")
    both = [bars(seconds, "times the processor time", ".0f"), bars(memory, "times the memory", ".1f")]
    return {
        "limits.svg": (limits, bars(limits, "share of the limit's speed", ".0%")),
        "scale.svg": ([*seconds, *memory], {"vconcat": both}),
    }


def shows(svg: str, rows: list[Row]) -> bool:
    """Whether a drawing says every figure, in the order of the rows. Where its words stand depends on the machine's fonts."""
    said = iter(re.findall(r">([^<>]+)</text>", svg))
    return all(row["text"] in said for row in rows)


def main(check: bool) -> None:
    """Draw those that do not show these figures yet, or name the first of them."""
    for name, (rows, chart) in charts().items():
        file = IMAGES / name
        if file.is_file() and shows(file.read_text(), rows):
            continue
        if check:
            sys.exit(f"{file.relative_to(ROOT)} shows other figures than benchmarks/results: python scripts/charts.py")
        file.write_text(drawn(chart) + "\n")


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
