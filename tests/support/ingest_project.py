"""Two small logs and their project, for tests of the ingest."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from scalr_prod.config.settings import load_settings
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table

DAY = pd.Timestamp("2024-03-01T12:00:00Z")


def log(*rows, **more) -> pd.DataFrame:
    """Rows (user, item, days after DAY) as a log; ``more`` are further columns."""
    made = pd.DataFrame(
        {
            "user_id": [row[0] for row in rows],
            "item_id": [row[1] for row in rows],
            "timestamp": pd.to_datetime([DAY + pd.Timedelta(row[2], "D") for row in rows]).astype("datetime64[us, UTC]"),
        }
    )
    return made.assign(**more)


SOURCE = log(("u1", "s1", 0), ("u1", "s2", 1), ("u2", "s1", 2))
TARGET = log(("u1", "t1", 0), ("u3", "t2", 1))


def project_in(folder: Path):
    """A function that writes two logs and a scalr.toml into a folder, and gives the settings.

    A log is a frame (written as Parquet) or TOML lines.
    """

    def make(source=SOURCE, target=TARGET, *, source_toml="", target_toml="", extra=""):
        lines = []
        for name, events, toml in (("source", source, source_toml), ("target", target, target_toml)):
            lines += [f"[domains.{name}]", f'name = "{name}"']
            if isinstance(events, pd.DataFrame):
                events.to_parquet(folder / f"{name}.parquet", index=False)
                lines.append(f'events = "{name}.parquet"')
            else:
                lines.append(events)
            lines.append(toml)
        (folder / "scalr.toml").write_text("\n".join([*lines, extra]))
        return load_settings(folder / "scalr.toml")

    return make


def rows_of(settings, table=Table.SOURCE_EVENTS):
    return Lake.open(settings).read(table).sort_by([("event_timestamp", "ascending")]).to_pylist()


def triples(settings, table=Table.SOURCE_EVENTS):
    return sorted((row["user_id"], row["item_id"], row["event_timestamp"]) for row in rows_of(settings, table))
