# SPDX-License-Identifier: Apache-2.0
"""Evidence of a row: how many real users had its target item in the events on which the translator was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scalr_prod.schemas import ITEM_ID, USER_ID

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


#: Numbers of users below which the share of rows is given.
EVIDENCE_USERS: Final = (2, 5, 10)


def measure_evidence(connection: DuckDBPyConnection) -> dict[str, float]:
    """Return the share of the run's rows whose item fewer than k users had, by k; the row's own user does not count.

    Args:
        connection: The connection of `open_run_rows`.
    """
    shares = ", ".join(f"coalesce(avg((users < {k})::DOUBLE), 0)" for k in EVIDENCE_USERS)
    row = connection.execute(
        f"""WITH pairs AS (SELECT DISTINCT {USER_ID}, {ITEM_ID} FROM known_target_events WHERE trained),
            items AS (SELECT {ITEM_ID}, count(*) AS users FROM pairs GROUP BY {ITEM_ID})
        SELECT {shares} FROM (
            SELECT coalesce(i.users, 0) - (p.{USER_ID} IS NOT NULL)::INT AS users FROM run_rows r
            LEFT JOIN items i USING ({ITEM_ID})
            LEFT JOIN pairs p ON p.{USER_ID} = r.{USER_ID} AND p.{ITEM_ID} = r.{ITEM_ID})"""
    ).fetchall()[0]
    return {str(k): float(share) for k, share in zip(EVIDENCE_USERS, row, strict=True)}
