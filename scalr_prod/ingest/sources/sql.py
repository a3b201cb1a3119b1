# SPDX-License-Identifier: Apache-2.0
"""SQL reader: stream a query on any SQLAlchemy URL as Arrow batches, with a server-side cursor where available."""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalr_prod.core.redaction import redact
from scalr_prod.errors import UnreadableInput
from scalr_prod.ingest.column_mapping import resolve_columns
from scalr_prod.ingest.sources.files import to_record_batch
from scalr_prod.ingest.sources.protocol import Batch

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from sqlalchemy import URL, Connection, Engine

    from scalr_prod.ingest.column_mapping import ColumnSelection


_ROWS = 20_000
#: Packages that provide SQLAlchemy dialects.
_PACKAGES = {
    "awsathena": "PyAthena[SQLAlchemy]",
    "bigquery": "sqlalchemy-bigquery",
    "clickhouse": "clickhouse-sqlalchemy",
    "databricks": "databricks-sqlalchemy",
    "duckdb": "duckdb-engine",
    "redshift": "sqlalchemy-redshift",
    "snowflake": "snowflake-sqlalchemy",
    "trino": "trino[sqlalchemy]",
}
_READ_ONLY = {
    "sqlite": "PRAGMA query_only = ON",
    "postgresql": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "mysql": "SET SESSION TRANSACTION READ ONLY",
    "mariadb": "SET SESSION TRANSACTION READ ONLY",
}


def read_query(url: str, query: str, wanted: ColumnSelection) -> Generator[Batch, None, None]:
    """Stream a query's rows. Messages show only driver, host and database of the URL.

    Raises:
        UnreadableInput: The URL or its driver is unknown, the database cannot be reached, or the query fails.
        ColumnNotFound: The query lacks a required column.
        BadValue: It returns a column twice, or one with values of several types.
    """
    with _connected(url) as (connection, origin):
        # exec_driver_sql and no_parameters: a ':' or '%' in the query is literal, not a parameter.
        streamed = connection.execution_options(stream_results=True, yield_per=_ROWS, no_parameters=True)
        result = streamed.exec_driver_sql(query)
        names = list(result.keys())
        columns = [names.index(name) for name in resolve_columns(names, wanted, origin)]
        row = 0
        for rows in result.partitions(_ROWS):
            values = ([_plain(record[at]) for record in rows] for at in columns)
            batch = to_record_batch([names[at] for at in columns], values, origin, row)
            yield Batch(origin, row, batch)
            row += len(rows)


def check_connection(url: str) -> str:
    """Connect to the database once; return its address without secrets.

    Raises:
        UnreadableInput: As `read_query`.
    """
    with _connected(url) as (_, origin):
        return origin


def list_tables(url: str) -> dict[str, list[str]]:
    """Return the columns of each table and view of a database's default schema, by quoted name.

    Raises:
        UnreadableInput: As `read_query`.
    """
    import sqlalchemy as sa

    with _connected(url) as (connection, _):
        inspector = sa.inspect(connection)
        quote = connection.dialect.identifier_preparer.quote
        names = sorted({*inspector.get_table_names(), *inspector.get_view_names()})
        return {quote(name): [str(column["name"]) for column in inspector.get_columns(name)] for name in names}


@contextmanager
def _connected(url: str) -> Iterator[tuple[Connection, str]]:
    """Open a read-only connection; yield it and the database's address. Errors inside the block hide secrets.

    Raises:
        UnreadableInput: The URL or its driver is unknown, the database cannot be reached, or a query fails.
    """
    import sqlalchemy as sa

    from scalr_prod.ledger import with_psycopg_driver

    try:
        parsed = with_psycopg_driver(sa.make_url(url))
        engine = sa.create_engine(parsed, poolclass=sa.NullPool)
    except (sa.exc.ArgumentError, ImportError, ValueError) as error:
        # from None: SQLAlchemy's own message may repeat the URL.
        raise _unusable(error, url) from None
    origin = _public(parsed)
    _read_only(engine, origin)
    try:
        with engine.connect() as connection:
            yield connection, origin
    except sa.exc.SQLAlchemyError as error:
        raise UnreadableInput(
            f"the query failed: {_scrubbed(error, parsed)}",
            where=origin,
            next_step="check that the database can be reached and run the query by hand",
        ) from None
    finally:
        engine.dispose()


def _unusable(error: Exception, url: str) -> UnreadableInput:
    import sqlalchemy as sa

    next_step = "write it as the SQLAlchemy URL dialect+driver://user:password@host/database"
    if isinstance(error, ImportError):
        reason, next_step = f"its driver is not installed ({error.name})", f"pip install {error.name}"
    elif isinstance(error, sa.exc.NoSuchModuleError):
        dialect = url.split("://", 1)[0]
        name = dialect.split("+", 1)[0]
        reason = f"the driver of '{dialect}' is not installed"
        known = _PACKAGES.get(name)
        next_step = (
            f"pip install {known}" if known else f"install the package that brings '{name}' to SQLAlchemy, or {next_step}"
        )
    else:
        reason = "it is not a SQLAlchemy URL"
    return UnreadableInput(f"the database URL cannot be used: {reason}", where="SQL url", next_step=next_step)


def _read_only(engine: Engine, origin: str) -> None:
    """Make the database session read-only: the user's query must not change data.

    Raises:
        UnreadableInput: A SQLite file does not exist; connecting would create it.
    """
    import sqlalchemy as sa

    backend, database = engine.url.get_backend_name(), engine.url.database
    if backend == "sqlite" and database and not database.startswith((":", "file:")) and not Path(database).exists():
        raise UnreadableInput("no such file", where=origin, next_step="correct the path in the database URL")
    statement = _READ_ONLY.get(backend)
    if statement is not None:

        @sa.event.listens_for(engine, "connect")
        def on_connect(connection: Any, _record: object) -> None:
            connection.cursor().execute(statement)
            connection.commit()


def _public(url: URL) -> str:
    host = f"{url.host or ''}{f':{url.port}' if url.port else ''}"
    return f"{url.get_backend_name()}://{host}/{url.database or ''}"


def _scrubbed(error: Exception, url: URL) -> str:
    """Return the first line of the driver's message, without secrets of the URL."""
    message = (str(getattr(error, "orig", None) or error).splitlines() or [""])[0]
    return redact(message, [url.password, *_flat(url.query.values())])[:300]


def _flat(values: Any) -> Sequence[str]:
    return [text for value in values for text in ((value,) if isinstance(value, str) else value)]


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, uuid.UUID) else value
