# SPDX-License-Identifier: Apache-2.0
"""A run as one page that anybody can read: what went in, what came out, and whether to believe it."""

from __future__ import annotations

from scalr_prod.report.write import ReportWritten, write_report

__all__ = ["ReportWritten", "write_report"]
