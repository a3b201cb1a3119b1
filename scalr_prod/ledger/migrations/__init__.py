# SPDX-License-Identifier: Apache-2.0
"""Alembic migrations of the ledger, shipped inside the package and run when a ledger is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

__all__ = ["HEAD", "OLDEST", "alembic_config", "upgrade"]

#: The newest revision. Revisions are numbers as text, so that newer and older schemas can be compared.
HEAD: Final = "0005"
#: That of version 0.1.0; no release had an older one.
OLDEST: Final = "0004"


def upgrade(connection: Connection) -> None:
    """Bring the schema to `HEAD` in the connection's transaction: migrate the tables, or create them in a new database.

    The caller holds the lock and commits.
    """
    import sqlalchemy as sa
    from alembic import command

    from scalr_prod.ledger.orm_tables import Base

    config = alembic_config(connection)
    if sa.inspect(connection).has_table("alembic_version"):
        command.upgrade(config, HEAD)
    else:
        Base.metadata.create_all(connection, checkfirst=False)  # a table of that name that is not ours is an error
        command.stamp(config, HEAD)


def alembic_config(connection: Connection) -> Config:
    """Return Alembic's configuration for these scripts on an open connection; prints nothing."""
    import io

    from alembic.config import Config

    made = Config(stdout=io.StringIO())
    made.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    made.set_main_option("path_separator", "os")
    made.attributes["connection"] = connection
    return made
