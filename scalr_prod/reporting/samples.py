# SPDX-License-Identifier: Apache-2.0
"""Example translations: a user's source history and the synthetic event sampled from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.generation import LIFT_SQL
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from duckdb import DuckDBPyConnection

    from scalr_prod.lake import Lake

__all__ = ["TranslationSample", "sample_translations"]

_SAMPLED_USERS: Final = 12
_HISTORY_LENGTH: Final = 5


@dataclass(frozen=True)
class TranslationSample:
    """One synthetic event with the source history before it.

    Attributes:
        event_id: The event's id.
        user: The user's id, as text.
        history: The last source items up to the source event, latest first: title or id, and time (UTC).
        drawn: The target item's title or id.
        time: The synthetic event's time (UTC).
        probability: Of the draw.
        lift: Its lift over popularity.
    """

    event_id: str
    user: str
    history: Sequence[tuple[str, datetime]]
    drawn: str
    time: datetime
    probability: float
    lift: float


def sample_translations(connection: DuckDBPyConnection, lake: Lake, as_of: datetime) -> list[TranslationSample]:
    """Choose synthetic events, one per user, by the lowest event id: ids are hashes, so the choice is arbitrary but stable.

    Args:
        connection: Has the table ``synthetic``.
        lake: For source events and titles.
        as_of: Events that became known later are not in a history.
    """
    for view, table in (("source_events", Table.SOURCE_EVENTS), ("source_items", Table.SOURCE_ITEMS),
                        ("target_items", Table.TARGET_ITEMS)):  # fmt: skip
        if lake.exists(table):
            connection.register(view, lake.dataset(table))
        else:
            connection.execute(f"CREATE TEMP TABLE {view} AS SELECT NULL::VARCHAR AS {ITEM_ID}, NULL::VARCHAR AS title LIMIT 0")
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
    histories = _read_histories(connection, as_of)
    return [
        TranslationSample(event_id, user, histories.get(event_id, ()), drawn, time, float(probability), float(lift))
        for event_id, user, drawn, time, probability, lift in rows
    ]


def _read_histories(connection: DuckDBPyConnection, as_of: datetime) -> dict[str, list[tuple[str, datetime]]]:
    rows: list[tuple[Any, ...]] = connection.execute(
        f"""SELECT event_id, coalesce(title, e.{ITEM_ID}::VARCHAR), e.{EVENT_TIMESTAMP} AT TIME ZONE 'UTC'
            FROM chosen JOIN source_events e
              ON e.{USER_ID} = chosen.{USER_ID} AND e.{EVENT_TIMESTAMP} <= chosen.source_event_timestamp
             AND e.{CREATED_TIMESTAMP} <= $as_of
            LEFT JOIN source_items i ON i.{ITEM_ID}::VARCHAR = e.{ITEM_ID}::VARCHAR
            QUALIFY row_number() OVER (PARTITION BY event_id ORDER BY e.{EVENT_TIMESTAMP} DESC, e.{ITEM_ID}) <= {_HISTORY_LENGTH}
            ORDER BY event_id, e.{EVENT_TIMESTAMP} DESC, e.{ITEM_ID}""",
        {"as_of": as_of},
    ).fetchall()
    histories: dict[str, list[tuple[str, datetime]]] = {}
    for event_id, title, time in rows:
        histories.setdefault(event_id, []).append((title, time))
    return histories
