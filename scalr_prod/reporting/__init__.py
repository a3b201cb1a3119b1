# SPDX-License-Identifier: Apache-2.0
"""HTML reports: one page per run with its inputs, outputs and quality figures, an index over all runs, and pairs of domains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.reporting.scout_page import write_scout_page
    from scalr_prod.reporting.ui import serve
    from scalr_prod.reporting.writer import WrittenReport, write_report

__all__ = ["WrittenReport", "serve", "write_report", "write_scout_page"]

__getattr__ = lazy_exports(
    __name__, {"WrittenReport": "writer", "serve": "ui", "write_report": "writer", "write_scout_page": "scout_page"}
)
