# SPDX-License-Identifier: Apache-2.0
"""SQLAlchemy dialect for Great Expectations: duckdb-engine's, for a read-only database.

DuckDB keeps a result in its connection until it is fetched. Great Expectations fetches after SQLAlchemy has released the connection with a
rollback, which would discard the result. The database is read-only, so transactions are not needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import duckdb_engine
import sqlalchemy as sa
from sqlalchemy.dialects import registry

from scalr_prod.quality.dataset_source import duckdb_options

if TYPE_CHECKING:
    from pathlib import Path


_NAME: Final = "scalr_duckdb"
#: DuckDB type prefix → SQLAlchemy type, by whose names a suite refers to types; the longest matching prefix wins.
_TYPES: Final[dict[str, Any]] = {
    "VARCHAR": sa.VARCHAR,
    "UUID": sa.VARCHAR,
    "ENUM": sa.VARCHAR,
    "BOOLEAN": sa.BOOLEAN,
    "TINYINT": sa.SMALLINT,
    "SMALLINT": sa.SMALLINT,
    "INTEGER": sa.INTEGER,
    "BIGINT": sa.BIGINT,
    "HUGEINT": sa.BIGINT,
    "UTINYINT": sa.SMALLINT,
    "USMALLINT": sa.INTEGER,
    "UINTEGER": sa.BIGINT,
    "UBIGINT": sa.BIGINT,
    "FLOAT": sa.REAL,
    "DOUBLE": sa.DOUBLE,
    "DECIMAL": sa.NUMERIC,
    "TIMESTAMP": sa.TIMESTAMP,
    "DATE": sa.DATE,
    "TIME": sa.TIME,
    "BLOB": sa.BLOB,
}


class ReadOnlyDialect(duckdb_engine.Dialect):
    """DuckDB for SQLAlchemy without transactions; DuckDB itself describes the columns."""

    supports_statement_cache = False

    def connect(self, *arguments: Any, **options: Any) -> Any:
        """Connect in UTC, without a progress bar on stdout."""
        connection = super().connect(*arguments, **options)
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET enable_progress_bar = false")
        return connection

    def do_begin(self, connection: Any) -> None:
        """Do nothing."""

    def do_rollback(self, connection: Any) -> None:
        """Do nothing: the result has yet to be fetched."""

    def do_commit(self, connection: Any) -> None:
        """Do nothing."""

    def get_columns(self, connection: Any, table_name: str, schema: str | None = None, **_: Any) -> list[Any]:
        """Return names and types of a table's columns with DESCRIBE: DuckDB has PostgreSQL's catalogue only in part."""
        del schema
        quoted = self.identifier_preparer.quote_identifier(str(table_name))
        rows = connection.exec_driver_sql(f"DESCRIBE {quoted}").fetchall()
        return [{"name": row[0], "type": _type(row[1]), "nullable": True, "default": None} for row in rows]

    def get_pk_constraint(self, connection: Any, table_name: str, schema: str | None = None, **_: Any) -> Any:
        """Return no primary key: the tables have none."""
        del connection, table_name, schema
        return {"constrained_columns": [], "name": None}


def database_url(database: Path, *, memory_mb: int) -> str:
    """Return the SQLAlchemy URL of a DuckDB file.

    Args:
        database: The file.
        memory_mb: DuckDB's memory limit; it spills next to the file.
    """
    registry.register(_NAME, __name__, ReadOnlyDialect.__name__)
    query = {"access_mode": "READ_ONLY"} | duckdb_options(database, memory_mb=memory_mb)
    return sa.URL.create(_NAME, database=str(database), query=query).render_as_string()


def _type(name: str) -> Any:
    if name.endswith("]"):
        return sa.ARRAY(_type(name[: name.rindex("[")]))
    matching = [prefix for prefix in _TYPES if name.startswith(prefix)]
    found = _TYPES[max(matching, key=len)] if matching else None
    if found is sa.TIMESTAMP:
        return sa.TIMESTAMP(timezone="TIME ZONE" in name)
    return found() if found is not None else sa.types.NullType()
