"""Write the tables that definitions.py reads: a made-up log of 40 users and 30 items, and what follows from it.

The same events each time; the tables in data/ are overwritten.
"""

import random
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
from deltalake import write_deltalake

DATA = Path(__file__).parent / "data"
USERS, ITEMS, EVENTS, LAST = 40, 30, 1000, 5
START = datetime(2024, 1, 1, tzinfo=UTC)
TIME = pa.timestamp("us", tz="UTC")
CLOCKS = [("event_timestamp", TIME), ("created_timestamp", TIME)]


def make_events() -> list[dict]:
    """Return the log in order of time: a user prefers a third of the items, and a row is known a minute after its event."""
    draw = random.Random(7)
    times = sorted(START + timedelta(minutes=draw.randrange(30 * 24 * 60)) for _ in range(EVENTS))
    rows = []
    for at in times:
        user = draw.randrange(USERS)
        item = user % 3 + 3 * draw.randrange(ITEMS // 3) if draw.random() < 0.8 else draw.randrange(ITEMS)
        rows.append(
            {
                "user_id": user,
                "item_id": item,
                "weight": draw.choice([0.5, 1.0]),
                "event_timestamp": at,
                "created_timestamp": at + timedelta(minutes=1),
            }
        )
    return rows


def make_histories(events: list[dict]) -> list[dict]:
    """Return a row of each user for each event: the last items, and the number of events so far."""
    items, rows = defaultdict(list), []
    for event in events:
        items[event["user_id"]].append(event["item_id"])
        seen = items[event["user_id"]]
        rows.append({**clocks(event), "user_id": event["user_id"], "item_ids": seen[-LAST:], "event_count": len(seen)})
    return rows


def make_popularity(events: list[dict]) -> list[dict]:
    """Return a row of each item for each event: the number of its events so far."""
    counts, rows = defaultdict(int), []
    for event in events:
        counts[event["item_id"]] += 1
        rows.append({**clocks(event), "item_id": event["item_id"], "event_count": counts[event["item_id"]]})
    return rows


def clocks(event: dict) -> dict:
    """Return the event time and the creation time of an event."""
    return {name: event[name] for name, _ in CLOCKS}


def write(name: str, rows: list[dict], columns: list) -> None:
    """Write a Delta table."""
    table = pa.Table.from_pylist(rows, schema=pa.schema([*columns, *CLOCKS]))
    write_deltalake(DATA / name, table, mode="overwrite")
    print(f"{name}: {table.num_rows} rows")


if __name__ == "__main__":
    log = make_events()
    write("events", log, [("user_id", pa.int64()), ("item_id", pa.int64()), ("weight", pa.float32())])
    write(
        "user_history",
        make_histories(log),
        [("user_id", pa.int64()), ("item_ids", pa.list_(pa.int64())), ("event_count", pa.int64())],
    )
    write("item_popularity", make_popularity(log), [("item_id", pa.int64()), ("event_count", pa.int64())])
