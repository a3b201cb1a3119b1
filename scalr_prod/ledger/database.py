# SPDX-License-Identifier: Apache-2.0
"""Connection to the ledger's database: migration to the current schema, sessions, and translation of its errors."""

from __future__ import annotations

import contextlib
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from scalr_prod.core.file_lock import file_lock
from scalr_prod.core.redaction import redact, redact_url, url_secrets
from scalr_prod.errors import LedgerError
from scalr_prod.ledger.migrations import HEAD, OLDEST
from scalr_prod.ledger.orm_tables import Base

if TYPE_CHECKING:
    from collections.abc import Iterator


Row = TypeVar("Row", bound=Base)

logger = logging.getLogger(__name__)

_BUSY_TIMEOUT_S: Final = 30
_CONNECT_TIMEOUT_S: Final = 10
#: Any fixed number: the advisory lock of processes that migrate the same PostgreSQL database.
_MIGRATION_LOCK: Final = 0x5CA1_4001
_WRITES: Final = "scalr_writes"


class LedgerDatabase:
    """A connected database with the current schema. Each process opens its own; this is cheap once it is migrated.

    Args:
        url: SQLAlchemy URL.

    Raises:
        LedgerError: It cannot be reached, its driver is missing, or its schema is newer than this package, or older than 0.1.0.
    """

    def __init__(self, url: str) -> None:
        self._url = parse_url(url)
        #: The address without its secrets.
        self.address = redact_url(url)
        self._secrets = url_secrets(url)
        self.engine = self._connect()
        try:
            self._migrate()
        except BaseException:
            self.engine.dispose()
            raise

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextlib.contextmanager
    def read_session(self) -> Iterator[Session]:
        """Open a session in one read transaction."""
        with self._translate_errors(), Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def write_session(self) -> Iterator[Session]:
        """Open a session in one write transaction."""
        engine = self.engine.execution_options(**{_WRITES: True})
        with self._translate_errors(), Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a SQLite file, whose locks are for processes of one machine."""
        return self._url.get_backend_name() == "sqlite"

    def now(self, session: Session) -> datetime:
        """Return the database's time, which all drivers share (for SQLite, the machine's clock)."""
        if self.is_sqlite:
            return datetime.now(UTC)
        now: datetime = session.scalar(sa.select(sa.func.clock_timestamp(type_=sa.DateTime(timezone=True))))  # type: ignore[assignment]  # never null
        return now.astimezone(UTC)

    def _connect(self) -> sa.Engine:
        sqlite = self.is_sqlite
        options: dict[str, Any] = {"connect_args": {"timeout": _BUSY_TIMEOUT_S}} if sqlite else {"pool_pre_ping": True}
        if sqlite:
            options["poolclass"] = sa.NullPool
        else:
            options["connect_args"] = {"connect_timeout": _CONNECT_TIMEOUT_S}
        try:
            engine = sa.create_engine(self._url, **options)
        except ImportError as error:
            raise LedgerError(
                f"the driver of this database is not installed ({error.name})",
                where=self.address,
                next_step="pip install 'scalr-prod[postgres]'",
            ) from error
        if sqlite:
            _prepare_sqlite(engine)
        return engine

    def _migrate(self) -> None:
        with self._translate_errors():
            if self._schema_version() == HEAD:
                return
            if self.is_sqlite:
                self._migrate_sqlite(Path(self._url.database or ""))
            else:
                with self.engine.begin() as connection:
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
                    self._upgrade(connection)

    def _migrate_sqlite(self, path: Path) -> None:
        busy = LedgerError(
            f"another process has held the migration lock for {_BUSY_TIMEOUT_S} s",
            where=f"{path}.lock",
            next_step="wait for the other command to end, then run the command again",
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with file_lock(Path(f"{path}.lock"), busy, timeout_s=_BUSY_TIMEOUT_S):
                _enable_wal(self.engine)
                with self.engine.execution_options(**{_WRITES: True}).begin() as connection:
                    self._upgrade(connection)
        except OSError as error:
            raise LedgerError(
                f"the ledger's file cannot be created: {error.strerror or error}",
                where=str(path),
                next_step="make its folder writable, or name another with [ledger] url",
            ) from error

    def _upgrade(self, connection: sa.Connection) -> None:
        from scalr_prod.ledger.migrations import upgrade

        current = self._schema_version(connection)
        if current == HEAD:
            return
        if current is not None:
            logger.info("migrating the ledger from schema %s to %s at %s", current, HEAD, self.address)
        upgrade(connection)

    def _schema_version(self, connection: sa.Connection | None = None) -> str | None:
        if connection is None:
            if self.is_sqlite and not Path(self._url.database or "").exists():
                return None
            with self.engine.connect() as new_connection:
                return self._schema_version(new_connection)
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        version: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
        if version is not None and version > HEAD:
            raise LedgerError(
                f"its schema is {version}; this version of the package knows it up to {HEAD}",
                where=self.address,
                next_step="upgrade scalr-prod, or name another ledger with [ledger] url",
            )
        if version is not None and version < OLDEST:
            raise LedgerError(
                f"its schema {version} is of before version 0.1.0; this version of the package knows it from {OLDEST} on",
                where=self.address,
                next_step="open it once with scalr-prod 0.1.0, which upgrades it: scalr status; or name another ledger with [ledger] url",
            )
        return version

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            raise LedgerError(
                f"the ledger refused the row: {self._plain_message(error)}",
                where=self.address,
                next_step="see what it contains: scalr runs list; then run the command again",
            ) from error
        except OperationalError as error:
            raise LedgerError(
                f"the ledger cannot be reached: {self._plain_message(error)}",
                where=self.address,
                next_step=f"{self._availability_hint}; then run the command again: nothing is done twice",
            ) from error
        except SQLAlchemyError as error:
            raise LedgerError(
                f"the ledger failed: {self._plain_message(error)}",
                where=self.address,
                next_step="check that [ledger] url names a ledger and that it is intact; restore it from a copy if it is not",
            ) from error

    @property
    def _availability_hint(self) -> str:
        """Advice for a database that does not answer."""
        if self._url.get_backend_name() == "sqlite":
            return "check that this file and its folder are writable and that the disk has space"
        return "check that the database runs and that [ledger] url names it"

    def _plain_message(self, error: SQLAlchemyError) -> str:
        text = str(error.orig) if isinstance(error, DBAPIError) and error.orig else str(error)
        return " ".join(redact(text, self._secrets).split()) or type(error).__name__


def insert_or_get(session: Session, row: Row) -> tuple[Row, bool]:
    """Insert a row and return it with True; if another process was faster, return its row with False."""
    kind = type(row)
    key = sa.inspect(kind).primary_key_from_instance(row)
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:  # on PostgreSQL; SQLite lets in one writer at a time
        return session.get_one(kind, tuple(key)), False
    return row, True


def with_psycopg_driver(url: sa.URL) -> sa.URL:
    """Set psycopg 3, which this package installs, as driver of a PostgreSQL URL that names none; SQLAlchemy's default is psycopg2."""
    return url.set(drivername="postgresql+psycopg") if url.drivername in {"postgresql", "postgres"} else url


def parse_url(url: str) -> sa.URL:
    """Parse the URL of a SQLite file or a PostgreSQL database.

    Raises:
        LedgerError: It is invalid, names another kind of database, or one in memory.
    """
    step = "write it as sqlite:////folder/ledger.db or postgresql://user:password@host/database"
    try:
        parsed = with_psycopg_driver(sa.make_url(url))
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        # The text may hold a password: do not repeat it.
        raise LedgerError("invalid database URL", where="[ledger] url", next_step=step) from error
    if backend not in {"sqlite", "postgresql"}:
        raise LedgerError(f"the ledger cannot be kept in {backend}", where="[ledger] url", next_step=step)
    if backend == "sqlite" and parsed.database in {None, "", ":memory:"}:
        raise LedgerError("an in-memory ledger would be lost when the command ends", where="[ledger] url", next_step=step)
    return parsed


def _enable_wal(engine: sa.Engine) -> None:
    """Enable write-ahead logging, so that readers and the writer do not block each other.

    The file keeps the setting; it cannot be set inside a transaction.
    """
    connection = engine.raw_connection()
    try:
        connection.cursor().execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()


def _prepare_sqlite(engine: sa.Engine) -> None:
    @sa.event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: object) -> None:
        # BEGIN is sent by the handler below: the driver's own comes too late for a transaction that reads first.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = NORMAL")

    @sa.event.listens_for(engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
