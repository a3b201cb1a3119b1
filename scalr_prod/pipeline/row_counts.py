# SPDX-License-Identifier: Apache-2.0
"""Row counts of a stage's report, for its line in the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["row_counts"]

#: Stage → the report's counts to show.
_COUNTS: Final[dict[str, tuple[str, ...]]] = {
    "generate": ("contexts", "events"),
    "validate": ("accepted", "quarantined"),
    "publish": ("rows",),
    "dataset": ("rows", "real", "synthetic", "negatives"),
}


def row_counts(stage: str, report: Mapping[str, Any]) -> dict[str, int]:
    """Return the row counts of a stage by their names; empty for a stage that has none.

    Args:
        stage: The stage's name.
        report: Its report, as JSON values.
    """
    if stage == "ingest":
        domains = list(_domain_reports(report))
        return {"rows": sum(domain["rows"] for domain in domains), "added": sum(domain["rows_added"] for domain in domains)}
    if stage == "histories":
        return {"rows": sum(table["rows"] for table in report.values())}
    return {name: report[name] for name in _COUNTS.get(stage, ()) if name in report}


def _domain_reports(report: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the reports of the domains; those of several source domains are nested."""
    for value in report.values():
        if isinstance(value, dict):
            if "rows_added" in value:
                yield value
            else:
                yield from _domain_reports(value)
