# SPDX-License-Identifier: Apache-2.0
"""`scalr ui`: a page on this machine over ledger and lake, to look at runs and to translate one user."""

from __future__ import annotations

from scalr_prod.ui.server import serve

__all__ = ["serve"]
