# SPDX-License-Identifier: Apache-2.0
"""Page of `scalr scout`: a heat map of all pairs of domains, and the figures of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from scalr_prod.reporting.page import template_environment
from scalr_prod.reporting.writer import write_page

if TYPE_CHECKING:
    from pathlib import Path

    from scalr_prod.evaluation import ScoutReport


#: Opacity of the colour of the largest gain; text on it stays readable in both themes.
_MAX_OPACITY: Final = 0.5


def write_scout_page(path: Path, report: ScoutReport) -> None:
    """Write the page.

    Raises:
        ReportError: The path is a folder, or a file that is no page.
        LakeError: The disk is full, or the folder cannot be written to.
    """
    template = template_environment().get_template("scout.html.j2")
    names = [domain.name for domain in report.domains]
    page = template.render(report=report, names=names, cells=_cells(report), rows=report.rows())
    write_page(path, page)


def _cells(report: ScoutReport) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the heat map's cells by source and target: text, colour's name and opacity."""
    gains = [abs(pair.expected_gain_pct or 0.0) for pair in report.pairs]
    largest = max(gains) or 1.0
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for pair in report.pairs:
        gain = pair.expected_gain_pct or 0.0
        cells.setdefault(pair.source, {})[pair.target] = {
            "text": f"{gain:+z.0f} %" if gain else (pair.reason or "no gain").partition(":")[0],
            "colour": "synthetic" if gain >= 0 else "real",
            "opacity": round(_MAX_OPACITY * abs(gain) / largest, 3),
        }
    return cells
