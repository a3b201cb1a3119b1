"""A ledger's migrations, worked out once a process.

An empty ledger comes to its schema through every migration that there has been, which takes longer than most of what is then asked of
it, and hundreds of tests make one. Here the first of each kind of database is migrated, and what that sent is sent again to the others.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["migrate_once"]

_LIBRARY = "scalr_prod.ledger.migrations"
#: What changes nothing is not sent again.
_ASKS = ("SELECT", "PRAGMA")


def migrate_once() -> None:
    """From now on, in this process; nothing where the library is not imported yet, or where this is done."""
    library = sys.modules.get(_LIBRARY)
    migrate: Callable[..., None] | None = getattr(library, "upgrade", None)  # None: it is being imported
    if migrate is None or hasattr(migrate, "sent"):
        return
    sent: dict[str, list[tuple[str, Any]]] = {}

    @functools.wraps(migrate)
    def upgrade(connection: sa.Connection, **options: Any) -> None:
        kind = connection.dialect.name
        if sa.inspect(connection).get_table_names():
            migrate(connection, **options)
        elif kind in sent:
            for statement, parameters in sent[kind]:
                connection.exec_driver_sql(statement, parameters)
        else:
            sent[kind] = _watched(connection, lambda: migrate(connection, **options))

    upgrade.sent = sent  # type: ignore[attr-defined]
    library.upgrade = upgrade  # type: ignore[union-attr]


def _watched(connection: sa.Connection, work: Callable[[], None]) -> list[tuple[str, Any]]:
    """What the work sends over the connection to change it."""
    found: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not statement.lstrip().upper().startswith(_ASKS):
            found.append((statement, parameters))

    sa.event.listen(connection, "before_cursor_execute", note)
    try:
        work()
    finally:
        sa.event.remove(connection, "before_cursor_execute", note)
    return found
