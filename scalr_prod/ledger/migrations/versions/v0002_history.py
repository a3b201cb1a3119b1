# SPDX-License-Identifier: Apache-2.0
"""One history for all that has a state: the runs' transitions move into it, with the rest of the ledger's subjects beside them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from scalr_prod.ledger.orm_tables import UtcDateTime

revision = "0002"
down_revision = "0001"


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
