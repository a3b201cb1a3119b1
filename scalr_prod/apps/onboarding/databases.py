# SPDX-License-Identifier: Apache-2.0
"""Databases without a query: find the table that looks like a log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scalr_prod.apps.onboarding.column_profiles import LogProfile
from scalr_prod.apps.onboarding.evidence import is_event_log
from scalr_prod.apps.onboarding.log_samples import read_table_sample
from scalr_prod.apps.onboarding.names import EVENT_ROLES, match_columns
from scalr_prod.errors import ColumnNotFound, InputError
from scalr_prod.ingest import list_tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scalr_prod.apps.onboarding.log_request import LogRequest


_SQLITE: Final = {".db", ".sqlite", ".sqlite3"}
#: Largest number of tables and columns in an error.
_LISTED: Final = 20


def resolve_log(request: LogRequest) -> LogRequest:
    """Resolve a log's location: make its path absolute or, for a database, its URL, and add the query that reads it.

    SQLite files are recognised by their suffix. The default query reads the only table or view whose column names match a user, an
    item and a time; if there is none, the only one whose values do.

    Raises:
        UnreadableInput: The database cannot be read.
        ColumnNotFound: No table matches, or several do; lists them.
    """
    location = request.location
    if "://" not in location:
        path = str(Path(location).expanduser().absolute())
        if Path(path).suffix.lower() not in _SQLITE:
            return replace(request, location=path)
        location = f"sqlite:///{path}"
    if request.query is None and not _is_database(location):
        return request
    location = _from_here(location)
    if request.query is not None:
        return replace(request, location=location)
    table = _table(replace(request, location=location), list_tables(location))
    return replace(request, location=location, query=f"SELECT * FROM {table}", table=table)


def _table(asked: LogRequest, tables: dict[str, list[str]]) -> str:
    fitting = [name for name, columns in tables.items() if _is_log(columns, asked)]
    if not fitting and len(tables) <= _LISTED:
        fitting = [name for name, columns in tables.items() if _has_log_values(name, columns, asked)]
    if len(fitting) == 1:
        return fitting[0]
    listed = "; ".join(f"{name} ({', '.join(columns[:_LISTED])})" for name, columns in list(tables.items())[:_LISTED])
    found = f"several tables look like a log: {', '.join(fitting)}" if fitting else "no table looks like a log"
    raise ColumnNotFound(
        f"{found}; there are: {listed or 'none'}",
        where=f"the database of {asked.option}",
        next_step=f'name one: {asked.option}-query "{asked.value_prefix}SELECT * FROM {(fitting or list(tables) or ["TABLE"])[0]}"',
    )


def _is_log(columns: Sequence[str], asked: LogRequest) -> bool:
    taken = [column for column in asked.columns.values() if column in columns]
    if len(taken) < len(asked.columns):
        return False
    for role in EVENT_ROLES:
        if role in asked.columns:
            continue
        fitting = match_columns(role, columns, taken)
        if not fitting:
            return False
        taken.append(fitting[0])
    return True


def _has_log_values(table: str, columns: Sequence[str], asked: LogRequest) -> bool:
    if len(columns) < len(EVENT_ROLES) or not set(asked.columns.values()) <= set(columns):
        return False
    try:
        sample = read_table_sample(asked.location, table)
    except InputError:  # an empty table, or a view that cannot be read
        return False
    return is_event_log(LogProfile.from_sample(sample, asked.timezone or "UTC"))


def _is_database(location: str) -> bool:
    import sqlalchemy as sa

    try:
        sa.make_url(location).get_dialect()
    except (sa.exc.ArgumentError, ImportError, ValueError):  # another kind of URL, such as s3://
        return False
    return True


def _from_here(url: str) -> str:
    """Make the path in a SQLite URL absolute: commands may run in another folder."""
    import sqlalchemy as sa

    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        return url  # reported when it is opened
    path = parsed.database
    if parsed.get_backend_name() != "sqlite" or not path or path.startswith((":", "file:")):
        return url
    absolute = str(Path(path).expanduser().absolute())
    return parsed.set(database=absolute).render_as_string(hide_password=False) if absolute != path else url
