"""A small project of two source domains that know different items by the same ids, and users in any subset of the domains.

Both logs come from one source log of `conftest.make_two_domains`: every other item of a taste goes to ``music``, under the id of the
item before it, which ``books`` has. So ids alone say half of what domain and id say.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from conftest import TASTES, make_two_domains

TOML = """
[domains.sources.books]
events = "books.parquet"
items = "books_items.parquet"
[domains.sources.music]
events = "music.parquet"
[domains.target]
name = "dishes"
events = "t.parquet"
[serving]
scorer = "local"
[compute]
workers = 1
[generation]
contexts = "events"
partitions = 2
[translator]
folds = 2
dim = 16
epochs = 2
threads = 1
"""


def make_sources(folder: Path, extra: str = "", *, users: int = 120, toml: str = TOML) -> Path:
    """The logs and a scalr.toml; gives the latter's path."""
    made = make_two_domains(folder, users=users, ids="int64")
    source = pd.read_parquet(made.source)
    in_music = (source["item_id"] // TASTES) % 2 == 1
    books, music = source[~in_music], source[in_music].assign(item_id=lambda rows: rows["item_id"] - TASTES)
    # Every third user reads no book, every seventh hears no music; some are in one of the three domains only, or in none.
    books[books["user_id"] % 3 != 0].to_parquet(folder / "books.parquet")
    music[music["user_id"] % 7 != 0].to_parquet(folder / "music.parquet")
    pd.read_parquet(made.source_items).to_parquet(folder / "books_items.parquet")
    path = folder / "scalr.toml"
    path.write_text(toml + extra)
    return path
