# SPDX-License-Identifier: Apache-2.0
"""Rows of users who were forgotten, left out of a log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scalr_prod.contracts import USER_ID

if TYPE_CHECKING:
    from scalr_prod.tombstones import Tombstones

__all__ = ["without_forgotten"]


def without_forgotten(db: Any, stones: Tombstones, query: str, *, user: str = USER_ID) -> str:
    """A query of a staged log, without the rows of users who were forgotten.

    Args:
        db: DuckDB connection.
        stones: Who was forgotten.
        query: Of all rows, with ids in the types of the lake.
        user: The user's id, in SQL.
    """
    if not stones.users:
        return query
    users = db.sql(f"SELECT DISTINCT {user} FROM ({query})").to_arrow_table().column(0).to_pylist()
    found = stones.held(users)
    if not found:
        return query
    listed = ", ".join(str(one) if isinstance(one, int) else "'" + one.replace("'", "''") + "'" for one in found)
    return f"SELECT * FROM ({query}) WHERE {user} NOT IN ({listed})"
