"""Rows of users and items that were forgotten, left out of a log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scalr_prod.contracts import ITEM_ID, USER_ID

if TYPE_CHECKING:
    from scalr_prod.contracts import Domain
    from scalr_prod.tombstones import Kind, Tombstones

__all__ = ["without_forgotten"]


def without_forgotten(db: Any, stones: Tombstones, domain: Domain, query: str) -> str:
    """A query of a staged log, without the rows of users and of target items that were forgotten.

    Args:
        db: DuckDB connection.
        stones: Who was forgotten.
        domain: Which side the log is of.
        query: Of all rows, with ids in the types of the lake.
    """
    columns: dict[Kind, str] = {"user": USER_ID} if domain == "source" else {"user": USER_ID, "item": ITEM_ID}
    for kind, column in columns.items():
        if not stones.of(kind):
            continue
        ids = db.sql(f"SELECT DISTINCT {column} FROM ({query})").to_arrow_table().column(0).to_pylist()
        if found := stones.held(ids, kind):
            listed = ", ".join(str(one) if isinstance(one, int) else "'" + one.replace("'", "''") + "'" for one in found)
            query = f"SELECT * FROM ({query}) WHERE {column} NOT IN ({listed})"
    return query
