"""Three pairs of logs as strangers have them: their names, types, times and folders. Made from a seed, with a taste in every user.

In each pair the target follows the tastes that the source shows, so that there is something to translate.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_TASTES = 6
_START = pd.Timestamp("2023-02-01", tz="UTC")


@dataclass(frozen=True)
class ForeignPair:
    """What `scalr init` is told of two logs.

    Attributes:
        make: Writes them into a folder.
        source: As the option ``--source`` has it.
        target: Likewise.
        options: Further ones.
    """

    make: Callable[[Path], None]
    source: str
    target: str
    options: tuple[str, ...] = field(default=())


def made_log(*, users: int, items: int, each: float, share: float, seed: int) -> pd.DataFrame:
    """A log of ``user`` and ``item`` (numbers from 0) and ``at`` (UTC, whole seconds), in the order of time.

    Args:
        users: How many there are; the taste of user u is u modulo the tastes.
        items: How many there are; likewise.
        each: Events of a user on average.
        share: Of users that have any.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    some = np.flatnonzero(rng.random(users) < share)
    user = rng.choice(some, size=int(each * len(some)))
    taste = np.where(rng.random(user.size) < 0.85, user % _TASTES, rng.integers(_TASTES, size=user.size))
    item = taste + _TASTES * (rng.zipf(1.5, size=user.size) % (items // _TASTES))
    at = _START + pd.to_timedelta(rng.integers(0, 200 * 86_400, size=user.size), unit="s")
    return pd.DataFrame({"user": user, "item": item, "at": at}).sort_values(["at", "user", "item"], ignore_index=True)


def _pair(seed: int, users: int = 240) -> tuple[pd.DataFrame, pd.DataFrame]:
    source = made_log(users=users, items=96, each=18, share=1.0, seed=seed)
    return source, made_log(users=users, items=72, each=5, share=0.8, seed=seed + 1)


def _seconds(at: pd.Series) -> pd.Series:
    return at.astype("datetime64[s, UTC]").astype("int64")


def movielens_and_recbole(folder: Path) -> None:
    """``ratings.csv`` of whole numbers; ``books.inter`` that pandas wrote from a frame of floats, ids included."""
    films, books = _pair(11)
    rating = np.random.default_rng(1).integers(1, 11, size=len(films)) / 2
    pd.DataFrame(
        {"userId": films["user"] + 1, "movieId": films["item"] + 1, "rating": rating, "timestamp": _seconds(films["at"])}
    ).sort_values(["userId", "movieId"]).to_csv(folder / "ratings.csv", index=False)
    pd.DataFrame(
        {
            "user_id:token": (books["user"] + 1).astype(float),
            "item_id:token": (books["item"] + 1).astype(float),
            "rating:float": 4.0,
            "timestamp:float": _seconds(books["at"]).astype(float),
        }
    ).to_csv(folder / "books.inter", index=False, sep="\t")


def amazon_and_lake(folder: Path) -> None:
    """``Kitchen.jsonl`` with milliseconds and nested cells; ``lake/date=…/`` of Parquet with naive times and what jobs leave behind."""
    kitchen, food = _pair(22)
    rng = np.random.default_rng(2)
    with (folder / "Kitchen.jsonl").open("w", encoding="utf-8") as file:
        for row, stars in zip(kitchen.itertuples(), rng.integers(1, 6, size=len(kitchen)), strict=True):
            review = {
                "rating": float(stars),
                "title": "Würde ich wieder kaufen" if row.user % 3 else "",
                "text": 'Good,\n"as described".',
                "images": []
                if row.item % 4
                else [{"small_image_url": "https://example.org/1.jpg", "attachment_type": "IMAGE"}],
                "asin": f"B0{row.item:08d}",
                "parent_asin": f"B1{row.item:08d}",
                "user_id": f"AE{row.user:010d}XQ",
                "timestamp": int(row.at.timestamp() * 1000) + int(row.user) % 1000,
                "helpful_vote": int(row.item) % 3,
                "verified_purchase": bool(row.item % 2),
            }
            file.write(json.dumps(review) + "\n")
    orders = pd.DataFrame(
        {
            "order_id": np.arange(len(food)),
            "customer_id": [f"AE{user:010d}XQ" for user in food["user"]],
            "product_id": [f"F{item:05d}" for item in food["item"]],
            "quantity": 1,
            "event_ts": food["at"].dt.tz_localize(None).astype("datetime64[ns]"),
        }
    )
    for day, rows in orders.groupby(orders["event_ts"].dt.strftime("%Y-%m-%d")):
        part = folder / "lake" / f"date={day}"
        part.mkdir(parents=True)
        rows.to_parquet(part / "part-00000.snappy.parquet", index=False)
    (folder / "lake" / "_SUCCESS").touch()


def shop_and_sqlite(folder: Path) -> None:
    """``TILL.CSV`` with semicolons, capitals, a byte order mark and local dates; the table ``loans`` of ``library.db``, beside another."""
    shop, library = _pair(33)
    local = shop["at"].dt.tz_convert("Europe/Berlin").dt.strftime("%d.%m.%Y %H:%M")
    pd.DataFrame(
        {
            "RECEIPT": np.arange(len(shop)) + 70_000,
            "CUSTOMER_NO": shop["user"] + 4_000,
            "ARTICLE_NO": shop["item"] + 100,
            "SOLD_ON": local,
            "AMOUNT": "12,50",
        }
    ).to_csv(folder / "TILL.CSV", index=False, sep=";", encoding="utf-8-sig")
    with sqlite3.connect(folder / "library.db") as db:
        db.execute("CREATE TABLE members (id INTEGER PRIMARY KEY, name TEXT)")
        db.execute("CREATE TABLE loans (id INTEGER PRIMARY KEY, customer_id INTEGER, book_id INTEGER, loaned_at TEXT)")
        rows = zip(library["user"] + 4_000, library["item"] + 1, library["at"].dt.strftime("%Y-%m-%d %H:%M:%S"), strict=True)
        db.executemany(
            "INSERT INTO loans (customer_id, book_id, loaned_at) VALUES (?, ?, ?)", [(int(u), int(i), t) for u, i, t in rows]
        )
    db.close()


PAIRS = {
    "MovieLens and RecBole": ForeignPair(movielens_and_recbole, "ratings.csv", "books.inter"),
    "Amazon Reviews and a lake": ForeignPair(amazon_and_lake, "Kitchen.jsonl", "lake"),
    "a till and SQLite": ForeignPair(shop_and_sqlite, "TILL.CSV", "sqlite:///library.db"),
}
