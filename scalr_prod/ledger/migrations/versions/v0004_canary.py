# SPDX-License-Identifier: Apache-2.0
"""Publications may be for a share of users; those from before were for everybody."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the columns."""
    op.add_column("publications", sa.Column("canary", sa.JSON(none_as_null=True)))
    op.add_column("publications", sa.Column("widens", sa.Integer()))
