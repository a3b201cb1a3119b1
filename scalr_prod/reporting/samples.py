# SPDX-License-Identifier: Apache-2.0
"""Example synthetic events of a run. They show nothing of the users' source logs: the page is for readers of the target domain too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from scalr_prod.generation import LIFT_SQL
from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table

if TYPE_CHECKING:
    from datetime import datetime

    from duckdb import DuckDBPyConnection

    from scalr_prod.lake import Lake


_SAMPLED_USERS: Final = 12


@dataclass(frozen=True)
class TranslationSample:
    """One synthetic event.

    Attributes:
        event_id: The event's id.
        user: The user's id, as text.
        drawn: The target item's title or id.
        time: The synthetic event's time (UTC).
        probability: Of the draw.
        lift: Its lift over popularity.
    """

    event_id: str
    user: str
    drawn: str
    time: datetime
    probability: float
    lift: float


def sample_translations(connection: DuckDBPyConnection, lake: Lake) -> list[TranslationSample]:
    """Choose synthetic events, one per user, by the lowest event id: ids are hashes, so the choice is arbitrary but stable.

    Args:
        connection: Has the table ``synthetic``.
        lake: For titles.
    """
    connection.register("target_items", lake.dataset(Table.TARGET_ITEMS))
    connection.execute(
        f"""CREATE TEMP TABLE chosen AS
            SELECT * FROM (SELECT * FROM synthetic ORDER BY event_id LIMIT {_SAMPLED_USERS * 20})
            QUALIFY row_number() OVER (PARTITION BY {USER_ID} ORDER BY event_id) = 1 ORDER BY event_id LIMIT {_SAMPLED_USERS}"""
    )
    rows = connection.execute(
        f"""SELECT event_id, {USER_ID}::VARCHAR, coalesce(title, chosen.{ITEM_ID}::VARCHAR),
                   chosen.{EVENT_TIMESTAMP} AT TIME ZONE 'UTC', probability, {LIFT_SQL}
            FROM chosen LEFT JOIN target_items i ON i.{ITEM_ID}::VARCHAR = chosen.{ITEM_ID}::VARCHAR ORDER BY event_id"""
    ).fetchall()
    return [
        TranslationSample(event_id, user, drawn, time, float(probability), float(lift))
        for event_id, user, drawn, time, probability, lift in rows
    ]
