# SPDX-License-Identifier: Apache-2.0
"""Rows of erased users and items in a log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scalr_prod.schemas import ITEM_ID, USER_ID
from scalr_prod.workspace import quote_literal

if TYPE_CHECKING:
    from scalr_prod.schemas import Domain
    from scalr_prod.workspace import SuppressedKind, SuppressionList


def exclude_suppressed(db: Any, suppressed: SuppressionList, query: str, domain: Domain, *, user_sql: str = USER_ID) -> str:
    """Return a staged log's query without the rows of erased users and erased target items.

    Args:
        db: DuckDB connection.
        suppressed: The suppression list.
        query: Query of all rows, with ids in the lake's types.
        domain: The log's side.
        user_sql: SQL expression of the user's id.
    """
    columns: dict[SuppressedKind, str] = {"user": user_sql} if domain == "source" else {"user": user_sql, "item": ITEM_ID}
    for kind, column in columns.items():
        if not suppressed.entries(kind):
            continue
        ids = db.sql(f"SELECT DISTINCT {column} FROM ({query})").to_arrow_table().column(0).to_pylist()
        if erased := suppressed.suppressed_ids(ids, kind):
            query = f"SELECT * FROM ({query}) WHERE {column} NOT IN ({', '.join(map(quote_literal, erased))})"
    return query
