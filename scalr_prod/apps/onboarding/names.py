# SPDX-License-Identifier: Apache-2.0
"""Rules by which `scalr init` recognises columns by their names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence


#: Required roles of an event's columns.
EVENT_ROLES: Final = ("user", "item", "timestamp")
#: Optional roles of an item file's columns, besides the item.
ITEM_ROLES: Final = ("title", "category", "value")

#: Normalized names, the most specific first: the first existing one is used.
_NAMES: Final[dict[str, list[str]]] = {
    role: names.split()
    for role, names in {
        "user": """
            user_id user uid user_no customer_id customer client_id client member_id member account_id reviewer_id
            visitor_id visitor household_id household_key household person_id buyer_id buyer shopper_id reader_id
            listener_id subscriber_id device_id cookie_id session_id
        """,
        "item": """
            item_id item iid parent_asin asin product_id product sku article_id movie_id film_id book_id isbn stock_code
            track_id song_id artist_id album_id video_id show_id business_id gmap_id place_id venue_id poi_id recipe_id
            game_id app_id news_id content_id course_id listing_id offer_id movie film book track song artist video
            article
        """,
        "timestamp": """
            timestamp event_timestamp event_time event_ts datetime date_time time ts unix_review_time unix_time
            occurred_at happened_at created_at created purchased_at ordered_at viewed_at played_at transaction_timestamp
            purchase_timestamp order_timestamp transaction_time transaction_date order_time order_date purchase_date
            invoice_date event_date review_time review_date rated_at date day t_dat when at
        """,
        "title": "title name item_title item_name product_title product_name movie_title book_title",
        "category": "category main_category categories genre genres department class product_category type",
        "value": "value price sales_price unit_price cost",
    }.items()
}
#: Unit suffixes of time columns: ``ts_ms``, ``time_s``. The unit itself is inferred from the numbers.
_UNIT: Final = re.compile(r"_(s|ms|us|ns|sec|secs|millis|seconds)$")
#: Name endings of possible ids, used if no known name matches.
_LIKE_ID: Final = ("_id", "_key", "_code", "_no", "_nr", "_number", "_sku")
#: Name endings of possible times.
_LIKE_TIME: Final = ("_at", "_on", "_ts", "_time", "_date", "_datetime", "_timestamp")


def normalize_name(name: str) -> str:
    """Normalize a column's name: snake case, without RecBole's type (``user_id:token``)."""
    name = re.sub(r":(token|token_seq|float|float_seq)$", "", name.strip())
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    name = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower()
    # userid, movieid: no separator before id.
    joined = re.fullmatch(r"([a-z]{3,})id", name)
    return f"{joined[1]}_id" if joined and f"{joined[1]}_id" in _KNOWN else name


_KNOWN: Final = frozenset(name for names in _NAMES.values() for name in names)


def match_columns(role: str, columns: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    """Return the columns that match a role, best match first.

    Args:
        role: One of `EVENT_ROLES` or `ITEM_ROLES`.
        columns: All columns.
        taken: Columns that already have a role.
    """
    free = [column for column in columns if column not in taken]
    ranks = {name: rank for rank, name in enumerate(_NAMES[role])}
    for spelled in (normalize_name, _without_unit if role == "timestamp" else _as_id):
        named = sorted((column for column in free if spelled(column) in ranks), key=lambda column: ranks[spelled(column)])
        if named:
            return named
    # Items and times have many names: if exactly one remaining column has a typical ending, use it.
    endings = {"item": _LIKE_ID, "timestamp": _LIKE_TIME}.get(role)
    if endings is None:
        return []
    others = {name for other in ("user", "item", "timestamp") if other != role for name in _NAMES[other]}
    left = [
        column
        for column in free
        if _without_unit(column).endswith(endings) and not others & {normalize_name(column), _as_id(column)}
    ]
    return left if len(left) == 1 else []


def has_known_name(role: str, column: str) -> bool:
    """Return whether a column's name is in the list of a role."""
    spelled = _without_unit if role == "timestamp" else _as_id
    return normalize_name(column) in _NAMES[role] or spelled(column) in _NAMES[role]


def _without_unit(name: str) -> str:
    """Remove the unit from a time's name: ``ts_ms`` → ``ts``."""
    return _UNIT.sub("", normalize_name(name))


def _as_id(name: str) -> str:
    """Replace another id suffix by ``_id``: ``CUSTOMER_NO`` → ``customer_id``."""
    name = normalize_name(name)
    ending = next((ending for ending in _LIKE_ID if name.endswith(ending)), "")
    return f"{name.removesuffix(ending)}_id" if ending else name
