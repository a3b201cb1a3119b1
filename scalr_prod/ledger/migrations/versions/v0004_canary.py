# SPDX-License-Identifier: Apache-2.0
"""Publications may be for a share of users; those from before were for everybody."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("publications", sa.Column("canary", sa.JSON(none_as_null=True)))
    op.add_column("publications", sa.Column("widens", sa.Integer()))


def downgrade() -> None:
    """Remove it: what was published for a share counts as published for everybody."""
    with op.batch_alter_table("publications") as table:
        table.drop_column("canary")
        table.drop_column("widens")
