# SPDX-License-Identifier: Apache-2.0
"""Suppression of erased users and items at ingest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scalr_prod.contracts import ITEM_ID, USER_ID
from scalr_prod.duck import literal

if TYPE_CHECKING:
    from scalr_prod.contracts import Domain
    from scalr_prod.tombstones import Kind, Tombstones

__all__ = ["without_forgotten"]


def without_forgotten(db: Any, stones: Tombstones, query: str, domain: Domain, *, user: str = USER_ID) -> str:
    """Return a staged log's query without the rows of erased users and erased target items.

    Args:
        db: DuckDB connection.
        stones: The erased users and items.
        query: Query of all rows, with ids in the lake's types.
        domain: The log's side.
        user: SQL expression of the user's id.
    """
    columns: dict[Kind, str] = {"user": user} if domain == "source" else {"user": user, "item": ITEM_ID}
    for kind, column in columns.items():
        if not stones.of(kind):
            continue
        ids = db.sql(f"SELECT DISTINCT {column} FROM ({query})").to_arrow_table().column(0).to_pylist()
        if found := stones.held(ids, kind):
            query = f"SELECT * FROM ({query}) WHERE {column} NOT IN ({', '.join(map(literal, found))})"
    return query
