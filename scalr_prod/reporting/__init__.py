# SPDX-License-Identifier: Apache-2.0
"""HTML reports: one page per run with its inputs, outputs and quality figures, and an index over all runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.reporting.ui import serve
    from scalr_prod.reporting.writer import WrittenReport, write_report

__all__ = ["WrittenReport", "serve", "write_report"]

__getattr__ = lazy_exports(__name__, {"WrittenReport": "writer", "serve": "ui", "write_report": "writer"})
