# SPDX-License-Identifier: Apache-2.0
"""Report files: one page per run, and an index over all runs in the same folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scalr_prod.core.atomic_io import write_text
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import ReportError
from scalr_prod.reporting import charts
from scalr_prod.reporting.page import index_page, recent_runs, run_page, template_environment
from scalr_prod.reporting.report_data import collect_run_data

if TYPE_CHECKING:
    from scalr_prod.config import Settings
    from scalr_prod.ledger import Ledger


#: How every page begins.
_BEGINNING: Final = b'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'


@dataclass(frozen=True)
class WrittenReport(Jsonable):
    """Paths of a written report.

    Attributes:
        run_id: The run.
        path: The run's page.
        index: The page that lists all runs; None if an output path was given.
    """

    run_id: str
    path: str
    index: str | None


def write_report(settings: Settings, run_id: str | None = None, *, output: Path | None = None) -> WrittenReport:
    """Write a run's page, by default under ``<home>/reports`` together with the index over all runs.

    Args:
        settings: The project's settings.
        run_id: Default: the last changed run.
        output: The page's path; no index is written then.

    Raises:
        RunNotFound: The project has no such run, or none at all.
        ReportError: The page cannot be written, ``output`` is a file that is no page, or the chart library is not installed.
    """
    from scalr_prod.ledger import Ledger

    charts.require_charts()
    folder = settings.home / "reports"
    with Ledger.open(settings) as ledger:
        run_id = run_id or _latest_run_id(ledger)
        facts = collect_run_data(settings, ledger, run_id)
        path = Path(output) if output is not None else folder / f"{run_id}.html"
        templates = template_environment()
        docs = _relative_docs_url(facts.gate.get("docs"), path.parent)
        write_page(path, run_page(settings, facts, templates, index="index.html", docs=docs))
        index = None
        if output is None:
            index = folder / "index.html"
            rows = recent_runs(settings, ledger, lambda run: f"{run}.html" if (folder / f"{run}.html").exists() else None)
            write_page(index, index_page(settings, rows, templates))
    return WrittenReport(run_id, str(path.absolute()), str(index) if index else None)


def _latest_run_id(ledger: Ledger) -> str:
    runs = ledger.runs.find()
    if not runs:
        raise ReportError("there is no run yet", where="the ledger", next_step="scalr run")
    return max(runs, key=lambda run: run.updated_at).run_id


def write_page(path: Path, text: str) -> None:
    """Write a page atomically, in place of an earlier one.

    Raises:
        ReportError: The path is a folder, or a file that is no page.
        LakeError: The disk is full, or the folder cannot be written to.
    """
    from scalr_prod.core.disk_errors import translate_disk_errors

    if path.is_dir():
        raise ReportError("is a folder", where=str(path), next_step="name a file, such as page.html")
    with translate_disk_errors(path.parent):
        if path.is_file() and not _is_page(path):
            found = "the file is no page of this package, and is left as it is"
            raise ReportError(found, where=str(path), next_step="name another file")
        write_text(path, text)


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_BEGINNING)) == _BEGINNING


def _relative_docs_url(index: str | None, folder: Path) -> str | None:
    """Return the address of the data docs relative to the page, so that both can be moved together."""
    return None if index is None or not Path(index).exists() else Path(os.path.relpath(index, folder)).as_posix()
