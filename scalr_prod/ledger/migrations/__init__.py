# SPDX-License-Identifier: Apache-2.0
"""Alembic migrations of the ledger, shipped inside the package and run when a ledger is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

__all__ = ["HEAD", "alembic_config", "upgrade"]

#: The newest revision. Revisions are numbers as text, so that newer and older schemas can be compared.
HEAD: Final = "0005"


def upgrade(connection: Connection, *, single_project: bool = False) -> None:
    """Bring the schema to `HEAD` in the connection's transaction; the caller holds the lock and commits.

    Args:
        connection: To the ledger's database.
        single_project: Whether the database is known to hold one project only.
    """
    from alembic import command

    made = alembic_config(connection)
    made.attributes["alone"] = single_project
    command.upgrade(made, HEAD)


def alembic_config(connection: Connection) -> Config:
    """Return Alembic's configuration for these scripts on an open connection; prints nothing."""
    import io

    from alembic.config import Config

    made = Config(stdout=io.StringIO())
    made.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    made.set_main_option("path_separator", "os")
    made.attributes["connection"] = connection
    return made
