# SPDX-License-Identifier: Apache-2.0
"""`scalr ui`: a local web page over ledger and lake, to browse runs and to translate one user."""

from __future__ import annotations

from scalr_prod.reporting.ui.server import serve

__all__ = ["serve"]
