# SPDX-License-Identifier: Apache-2.0
"""Ingest: external logs → event tables and item catalogues in the lake.

All input is validated before anything is written. Ingest is idempotent: the same input adds nothing, a log that has grown adds its new
rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.ingest.ingest_report import DomainReport, IngestReport
    from scalr_prod.ingest.pipeline import ingest
    from scalr_prod.ingest.sources.protocol import Batch, LogReader, LogSource

__all__ = ["Batch", "DomainReport", "IngestReport", "LogReader", "LogSource", "ingest"]

__getattr__ = lazy_exports(
    __name__,
    {
        "Batch": "protocol",
        "DomainReport": "report",
        "IngestReport": "report",
        "LogReader": "protocol",
        "LogSource": "protocol",
        "ingest": "work",
    },
)
