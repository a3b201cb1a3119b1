# SPDX-License-Identifier: Apache-2.0
"""How Great Expectations asks DuckDB: duckdb-engine's SQLAlchemy dialect, for a database that is only read.

A result stays with DuckDB's connection until it is fetched, and Great Expectations fetches after SQLAlchemy has let the connection
go, with a rollback that throws the result away. Nothing is written here, so that there is nothing to roll back or commit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import duckdb_engine
import sqlalchemy as sa
from sqlalchemy.dialects import registry

from scalr_prod.quality.dataset import duckdb_options

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ReadOnlyDialect", "url_of"]

_NAME: Final = "scalr_duckdb"
#: DuckDB's types by SQLAlchemy's names, which a suite uses; the longest name that fits counts.
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
    """DuckDB for SQLAlchemy, without transactions, and with columns that are described by DuckDB itself."""

    supports_statement_cache = False

    def connect(self, *arguments: Any, **options: Any) -> Any:
        """A connection in UTC that draws nothing on stdout."""
        connection = super().connect(*arguments, **options)
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET enable_progress_bar = false")
        return connection

    def do_begin(self, connection: Any) -> None:
        """Do nothing."""

    def do_rollback(self, connection: Any) -> None:
        """Do nothing: the result is still to be fetched."""

    def do_commit(self, connection: Any) -> None:
        """Do nothing."""

    def get_columns(self, connection: Any, table_name: str, schema: str | None = None, **_: Any) -> list[Any]:
        """Names and types of a table's columns; DuckDB is not asked through PostgreSQL's catalogue, which it has in part."""
        del schema
        quoted = self.identifier_preparer.quote_identifier(str(table_name))
        rows = connection.exec_driver_sql(f"DESCRIBE {quoted}").fetchall()
        return [{"name": row[0], "type": _type(row[1]), "nullable": True, "default": None} for row in rows]

    def get_pk_constraint(self, connection: Any, table_name: str, schema: str | None = None, **_: Any) -> Any:
        """No table has a primary key."""
        del connection, table_name, schema
        return {"constrained_columns": [], "name": None}


def url_of(database: Path, *, memory_mb: int, threads: int) -> str:
    """SQLAlchemy's URL of a DuckDB file.

    Args:
        database: The file.
        memory_mb: What DuckDB may hold; beyond it, it spills beside the file.
        threads: How many it may use.
    """
    registry.register(_NAME, __name__, ReadOnlyDialect.__name__)
    query = {"access_mode": "READ_ONLY"} | duckdb_options(database, memory_mb=memory_mb, threads=threads)
    return sa.URL.create(_NAME, database=str(database), query=query).render_as_string()


def _type(name: str) -> Any:
    if name.endswith("]"):
        return sa.ARRAY(_type(name[: name.rindex("[")]))
    fitting = [kind for kind in _TYPES if name.startswith(kind)]
    found = _TYPES[max(fitting, key=len)] if fitting else None
    if found is sa.TIMESTAMP:
        return sa.TIMESTAMP(timezone="TIME ZONE" in name)
    return found() if found is not None else sa.types.NullType()
