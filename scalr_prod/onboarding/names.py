# SPDX-License-Identifier: Apache-2.0
"""Which column is what, by its name: the rules that `scalr init` states."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ITEM_ROLES", "ROLES", "by_name", "plain"]

#: Of an event: what must be found.
ROLES: Final = ("user", "item", "timestamp")
#: Of an item file, beside the item: what may be found.
ITEM_ROLES: Final = ("title", "category", "value")

#: Names as `plain` gives them, the most telling first: the first that is there is taken.
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
#: What a time's name may say of its unit: ``ts_ms``, ``time_s``. The numbers tell it, too.
_UNIT: Final = re.compile(r"_(s|ms|us|ns|sec|secs|millis|seconds)$")
#: A column whose name ends like this may be an id where no name tells more.
_LIKE_ID: Final = ("_id", "_key", "_code", "_no", "_nr", "_number", "_sku")
#: Likewise a time.
_LIKE_TIME: Final = ("_at", "_on", "_ts", "_time", "_date", "_datetime", "_timestamp")


def plain(name: str) -> str:
    """A column's name in small letters with ``_`` between words, without RecBole's type (``user_id:token``)."""
    name = re.sub(r":(token|token_seq|float|float_seq)$", "", name.strip())
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    name = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower()
    # userid, movieid: an id without a seam.
    seamless = re.fullmatch(r"([a-z]{3,})id", name)
    return f"{seamless[1]}_id" if seamless and f"{seamless[1]}_id" in _KNOWN else name


_KNOWN: Final = frozenset(name for names in _NAMES.values() for name in names)


def by_name(role: str, columns: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    """The columns that may play a role, the most telling first.

    Args:
        role: Of `ROLES` or `ITEM_ROLES`.
        columns: Those that are there.
        taken: Those that play another role.
    """
    free = [column for column in columns if column not in taken]
    ranks = {name: rank for rank, name in enumerate(_NAMES[role])}
    for spelled in (plain, _without_unit if role == "timestamp" else _as_id):
        named = sorted((column for column in free if spelled(column) in ranks), key=lambda column: ranks[spelled(column)])
        if named:
            return named
    # Items and times go by many names: where a single column is left that is called like one, it is that.
    endings = {"item": _LIKE_ID, "timestamp": _LIKE_TIME}.get(role)
    if endings is None:
        return []
    others = {name for other in ("user", "item", "timestamp") if other != role for name in _NAMES[other]}
    left = [
        column for column in free if _without_unit(column).endswith(endings) and not others & {plain(column), _as_id(column)}
    ]
    return left if len(left) == 1 else []


def _without_unit(name: str) -> str:
    """A time's name without its unit: ``ts_ms`` is ``ts``."""
    return _UNIT.sub("", plain(name))


def _as_id(name: str) -> str:
    """A column's name with ``_id`` in place of another word for it: ``CUSTOMER_NO`` is ``customer_id``."""
    name = plain(name)
    ending = next((ending for ending in _LIKE_ID if name.endswith(ending)), "")
    return f"{name.removesuffix(ending)}_id" if ending else name
