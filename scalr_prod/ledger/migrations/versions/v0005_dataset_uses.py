# SPDX-License-Identifier: Apache-2.0
"""Models that were trained on versions of training sets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from scalr_prod.ledger.orm_tables import UtcDateTime

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "dataset_uses",
        sa.Column("project_id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("model", sa.String(100), primary_key=True),
        sa.Column("model_version", sa.String(100), primary_key=True),
        sa.Column("dataset", sa.String(64), primary_key=True),
        sa.Column("dataset_version", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id", "dataset", "dataset_version"], ["datasets.project_id", "datasets.name", "datasets.version"]
        ),
    )
