# SPDX-License-Identifier: Apache-2.0
"""HTML reports: one page per run with its inputs, outputs and quality figures, and an index over all runs."""

from __future__ import annotations

from scalr_prod.reporting.writer import WrittenReport, write_report

__all__ = ["WrittenReport", "write_report"]
