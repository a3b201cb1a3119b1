# SPDX-License-Identifier: Apache-2.0
"""What the feature view holds by day, and items and users found by id or title."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from scalr_prod.lake import Lake
from scalr_prod.reporting.ui.users import register_titles
from scalr_prod.schemas import (
    EVENT_TIMESTAMP,
    ITEM_ID,
    USER_ID,
    Table,
    source_domain_sql,
    source_item_id_sql,
)
from scalr_prod.workspace import open_duckdb, staging_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from scalr_prod.config import Settings


#: Days of the table, items found, and users shown for each of them.
_MAX_DAYS: Final = 30
_MAX_ITEMS: Final = 20
_MAX_USERS: Final = 5


@dataclass(frozen=True)
class DayOfEvents:
    """Synthetic events in the feature view by the day of their time (UTC).

    Attributes:
        day: The day.
        events: Number of events.
        runs: Number of runs that published them.
    """

    day: date
    events: int
    runs: int


@dataclass(frozen=True)
class FoundItem:
    """An item of one domain.

    Attributes:
        domain: Its domain.
        item: Its id as in its event log, as text.
        title: None if it has none.
        real: Number of real events.
        synthetic: Number of events in the feature view; None for items of a source domain.
        users: Users with the most probable of these events, most probable first.
    """

    domain: str
    item: str
    title: str | None
    real: int
    synthetic: int | None
    users: Sequence[str]


@dataclass(frozen=True)
class SearchResult:
    """What was found.

    Attributes:
        user_events: Number of source events of the user with this id; 0: there is none.
        items: Items with this id first, then those whose title contains the text, most real events first; at most 20.
    """

    user_events: int
    items: Sequence[FoundItem]


def events_by_day(settings: Settings) -> list[DayOfEvents]:
    """Count the events in the feature view on each of its last 30 days with events, latest first."""
    with staging_folder(settings, "ui") as folder, open_duckdb(settings, folder) as db:
        db.register("published", Lake.open(settings).dataset(Table.SYNTHETIC_TARGET_EVENTS))
        rows = db.execute(
            f"""SELECT ({EVENT_TIMESTAMP} AT TIME ZONE 'UTC')::DATE AS day, count(*), count(DISTINCT run_id) FROM published
                GROUP BY day ORDER BY day DESC LIMIT {_MAX_DAYS}"""
        ).fetchall()
    return [DayOfEvents(*row) for row in rows]


def search(settings: Settings, text: str) -> SearchResult:
    """Find the user with an id, and items by id or by a part of their title, ignoring case.

    Args:
        settings: The project's settings.
        text: At least one character.
    """
    lake, names = Lake.open(settings), settings.domains.source_names
    with staging_folder(settings, "ui") as folder, open_duckdb(settings, folder) as db:
        for name, table in (
            ("source_events", Table.SOURCE_EVENTS),
            ("target_events", Table.TARGET_EVENTS),
            ("published", Table.SYNTHETIC_TARGET_EVENTS),
        ):
            db.register(name, lake.dataset(table))
        for name, table in (("source_titles", Table.SOURCE_ITEMS), ("target_titles", Table.TARGET_ITEMS)):
            register_titles(db, lake, table, name)
        of_user = db.execute(f"SELECT count(*) FROM source_events WHERE {USER_ID}::VARCHAR = $text", {"text": text}).fetchall()[
            0
        ][0]
        source_item = f"CAST({source_item_id_sql(ITEM_ID, names, 'string')} AS VARCHAR)"
        rows = db.execute(
            f"""WITH items AS (
                    SELECT $target AS domain, {ITEM_ID}::VARCHAR AS item, title, events, {ITEM_ID}::VARCHAR AS target_item FROM (
                        SELECT {ITEM_ID}, count(*) AS events FROM target_events GROUP BY {ITEM_ID}
                    ) LEFT JOIN target_titles USING ({ITEM_ID})
                    UNION ALL
                    SELECT {source_domain_sql(ITEM_ID, names)}, {source_item}, title, events, NULL FROM (
                        SELECT {ITEM_ID}, count(*) AS events FROM source_events GROUP BY {ITEM_ID}
                    ) LEFT JOIN source_titles USING ({ITEM_ID})
                ), found AS (
                    SELECT * FROM items WHERE item = $text OR contains(lower(title), lower($text))
                    ORDER BY item = $text DESC, events DESC, domain, item LIMIT {_MAX_ITEMS}
                ), synthetic AS (
                    SELECT {ITEM_ID}::VARCHAR AS target_item, count(*) AS events,
                        list({USER_ID}::VARCHAR ORDER BY probability DESC, {USER_ID})[:{_MAX_USERS}] AS users
                    FROM published WHERE {ITEM_ID}::VARCHAR IN (SELECT target_item FROM found) GROUP BY target_item
                )
                SELECT domain, item, title, found.events,
                    CASE WHEN target_item IS NOT NULL THEN coalesce(synthetic.events, 0) END, coalesce(users, [])
                FROM found LEFT JOIN synthetic USING (target_item)
                ORDER BY item = $text DESC, found.events DESC, domain, item""",
            {"text": text, "target": settings.domains.target.name},
        ).fetchall()
    return SearchResult(int(of_user), [FoundItem(*row) for row in rows])
