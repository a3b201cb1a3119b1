# SPDX-License-Identifier: Apache-2.0
"""One history for all that has a state: the runs' transitions move into it, with the rest of the ledger's subjects beside them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from scalr_prod.ledger.orm_tables import UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the new table, carry the runs' transitions over in their order, and remove the old one."""
    op.create_table(
        "transitions",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("subject", sa.String(16), nullable=False),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("run_id", sa.String(64), sa.ForeignKey("runs.run_id")),
        sa.Column("from_state", sa.String(200)),
        sa.Column("to_state", sa.String(200), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(200)),
    )
    op.create_index("ix_transitions_run_id", "transitions", ["run_id"])
    op.create_index("ix_transitions_subject", "transitions", ["subject", "key"])
    op.execute(
        "INSERT INTO transitions (subject, key, run_id, from_state, to_state, at, cause) "
        "SELECT 'run', run_id, run_id, from_state, to_state, at, cause FROM run_transitions ORDER BY id"
    )
    op.drop_table("run_transitions")


def downgrade() -> None:
    """Back to the runs' transitions alone."""
    op.create_table(
        "run_transitions",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("run_id", sa.String(64), sa.ForeignKey("runs.run_id"), nullable=False),
        sa.Column("from_state", sa.String(16)),
        sa.Column("to_state", sa.String(16), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
    )
    op.create_index("ix_run_transitions_run_id", "run_transitions", ["run_id"])
    op.execute(
        "INSERT INTO run_transitions (run_id, from_state, to_state, at, cause) "
        "SELECT run_id, from_state, to_state, at, cause FROM transitions WHERE subject = 'run' ORDER BY id"
    )
    op.drop_table("transitions")
