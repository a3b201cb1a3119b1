# SPDX-License-Identifier: Apache-2.0
"""Rows of users and items that were forgotten, left out of a log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scalr_prod.contracts import ITEM_ID, USER_ID
from scalr_prod.duck import literal

if TYPE_CHECKING:
    from scalr_prod.contracts import Domain
    from scalr_prod.tombstones import Kind, Tombstones

__all__ = ["without_forgotten"]


def without_forgotten(db: Any, stones: Tombstones, query: str, domain: Domain, *, user: str = USER_ID) -> str:
    """A query of a staged log, without the rows of users and of target items that were forgotten.

    Args:
        db: DuckDB connection.
        stones: Who was forgotten.
        query: Of all rows, with ids in the types of the lake.
        domain: Which side the log is of.
        user: The user's id, in SQL.
    """
    columns: dict[Kind, str] = {"user": user} if domain == "source" else {"user": user, "item": ITEM_ID}
    for kind, column in columns.items():
        if not stones.of(kind):
            continue
        ids = db.sql(f"SELECT DISTINCT {column} FROM ({query})").to_arrow_table().column(0).to_pylist()
        if found := stones.held(ids, kind):
            query = f"SELECT * FROM ({query}) WHERE {column} NOT IN ({', '.join(map(literal, found))})"
    return query
