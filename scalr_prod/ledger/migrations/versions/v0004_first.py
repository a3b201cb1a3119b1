# SPDX-License-Identifier: Apache-2.0
"""The schema of version 0.1.0, the first release. A new ledger does not start here: it gets the current tables at once."""

from __future__ import annotations

revision = "0004"
down_revision = None


def upgrade() -> None:
    """Change nothing: a ledger of version 0.1.0 has this schema."""
