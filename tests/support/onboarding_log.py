"""A small log as strangers write it, for tests of `scalr init`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pandas as pd

START = datetime(2023, 3, 14, 9, 26, 53, tzinfo=UTC)
#: (user, item, time) of the log that each shape writes; twelve days apart, so that a day stands after the twelfth.
EVENTS = [(number % 4 + 1, number % 5 + 100, START + timedelta(days=12 * number)) for number in range(12)]


def frame(user: str, item: str, time: str, times: list, **more: list) -> pd.DataFrame:
    return pd.DataFrame({user: [e[0] for e in EVENTS], item: [e[1] for e in EVENTS], **more, time: times})


def seconds() -> list[int]:
    return [int(at.timestamp()) for _, _, at in EVENTS]


def form(pattern: str, zone: str = "UTC") -> list[str]:
    return [at.astimezone(ZoneInfo(zone)).strftime(pattern) for _, _, at in EVENTS]


def csv(rows: pd.DataFrame, name: str, sep: str = ","):
    def write(folder: Path) -> str:
        rows.to_csv(folder / name, index=False, sep=sep)
        return name

    return write
