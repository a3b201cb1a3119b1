# SPDX-License-Identifier: Apache-2.0
"""Run by Alembic: migrates the connection that `scalr_prod.ledger.migrations.alembic_config` was given."""

from __future__ import annotations

from alembic import context

from scalr_prod.ledger.orm_tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite cannot alter a column in place
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
