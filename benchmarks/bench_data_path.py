"""What reading and writing cost at two sizes of the log, in seconds of processor time, so that other work on the machine disturbs little.

`together`: what a run reads of the log (contexts, and what their users had), for 8, 32 and 128 partitions: the driver pass (`write_shards`)
and all tasks (`tasks`). `histories`: the point-in-time join of one slice of a task, at most 50 000 contexts, with histories of up to
50 events; `joined`: all joins of a run, as its tasks make them one after the other. `write_back`: what a publication of 10 000 rows does
to the feature view, with nothing, and with many events published in ten other windows: it opens the view, counts whose rows the window
holds, and commits, to an empty window (`new`), or in place of as many rows (`again`). Beside it a write of the same rows by pyarrow and a
rename, and Delta's own append. Medians, and for `write_back` also the least.

SCALR_BENCH_EVENTS changes the larger size.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Callable

    from scalr_prod.config.settings import Settings

LARGER = int(os.environ.get("SCALR_BENCH_EVENTS", "3000000"))
SIZES = (LARGER // 10, LARGER)
#: Events of a user; the log of the target domain has a tenth of the source's.
EACH, ITEMS = 20, 10_000
PARTITIONS, SLICE, WRITTEN, ROUNDS = (8, 32, 128), 50_000, 10_000, 3
#: A commit takes at most so many times the time of a plain write and a rename.
OF_PLAIN_LIMIT = 3
HISTORY = ["source_user_history:item_ids", "source_user_history:event_timestamps"]
START = datetime(2024, 1, 1, tzinfo=UTC)
DAY_US, DAYS = 86_400_000_000, 360
STAMP = pa.timestamp("us", tz="UTC")


def main() -> dict:
    figures: dict[str, Any] = {"source_events": list(SIZES)}
    read = {}
    for events in SIZES:
        with tempfile.TemporaryDirectory() as scratch:
            read[events] = reading(Path(scratch), events)
            print(f"  {events}: {read[events]}", flush=True)
    figures["reading"] = read
    smaller, larger = (read[events] for events in SIZES)
    figures["ratios"] = {name: round(larger[name] / smaller[name], 2) for name in smaller}
    figures["write_back"] = write_back()
    return figures


def reading(folder: Path, events: int) -> dict[str, float]:
    """Seconds of each step for a log of so many source events."""
    from scalr_prod.features import apply_feature_repo, join_point_in_time, open_feature_store
    from scalr_prod.generation import shards
    from scalr_prod.generation.plan import run_settings
    from scalr_prod.histories import build_histories
    from scalr_prod.ingest import ingest
    from scalr_prod.lake import Lake

    settings = settings_of(folder, events)
    figures = {"ingest_s": seconds(lambda: ingest(settings)), "build_histories_s": seconds(lambda: build_histories(settings))}
    apply_feature_repo(settings)
    lake, end = Lake.open(settings), START + timedelta(days=DAYS)
    spec: Any = SimpleNamespace(
        table_versions={table: lake.version(table) for table in lake_tables()},
        settings=run_settings(settings),
        mode="backfill",
        seed=0,
        start=START,
        end=end,
        as_of=end,
        run_id=f"run_{0:016x}",
    )
    for partitions in PARTITIONS:
        shards.remove_shards(settings.home, spec)
        figures[f"lay_out_{partitions}_s"] = seconds(lambda: shards.write_shards(settings, spec, partitions))  # noqa: B023
        figures[f"tasks_{partitions}_s"] = seconds(lambda: read_all(settings, spec, partitions))  # noqa: B023
        figures[f"together_{partitions}_s"] = round(figures[f"lay_out_{partitions}_s"] + figures[f"tasks_{partitions}_s"], 2)
        figures[f"joined_{partitions}_s"] = seconds(lambda: join_all(settings, spec, partitions))  # noqa: B023
        of_task = list(shards.read_shards(settings.home, spec, partitions // 2, partitions))
        asked = of_task[len(of_task) // 2][0].select(["user_id", "item_id", "event_timestamp"])
        store = open_feature_store(settings)
        took = [seconds(lambda: join_point_in_time(store, asked, HISTORY, known_by=end)) for _ in range(ROUNDS)]  # noqa: B023
        figures[f"histories_{partitions}_s"] = statistics.median(took)
        figures[f"contexts_of_a_slice_{partitions}"] = len(asked)
        figures[f"histories_{partitions}_s_per_50000"] = round(statistics.median(took) * SLICE / len(asked), 3)
    return figures


def read_all(settings: Settings, spec: Any, partitions: int) -> int:
    """What all tasks of a run read of its contexts."""
    from scalr_prod.generation.shards import read_shards

    return sum(len(rows) for number in range(partitions) for rows, _ in read_shards(settings.home, spec, number, partitions))


def join_all(settings: Settings, spec: Any, partitions: int) -> int:
    """The histories of all contexts of a run, joined as `generate_part` does it in one worker."""
    from scalr_prod.features import join_point_in_time, open_feature_store
    from scalr_prod.generation.shards import read_shards
    from scalr_prod.workspace.duckdb import open_duckdb, staging_folder

    store, joined = open_feature_store(settings), 0
    for number in range(partitions):
        with staging_folder(settings, "generate") as folder, open_duckdb(settings, folder) as connection:
            connection.execute("SET threads = 1")
            for rows, _ in read_shards(settings.home, spec, number, partitions):
                asked = rows.select(["user_id", "item_id", "event_timestamp"])
                known = {"known_by": spec.as_of, "versions": spec.table_versions}
                joined += len(join_point_in_time(store, asked, HISTORY, **known, connection=connection))
    return joined


def lake_tables() -> tuple:
    from scalr_prod.generation.plan import TABLES_READ

    return TABLES_READ


def settings_of(folder: Path, events: int) -> Settings:
    """A project whose logs are there: users with names, items with numbers as text."""
    from scalr_prod.config.settings import load_settings

    rng = np.random.default_rng(0)
    for name, count in (("source", events), ("target", events // 10)):
        users = rng.integers(0, events // EACH, count).astype(str).astype(object)
        log = {
            "user_id": pa.array("customer-" + users, pa.string()),
            "item_id": pa.array((rng.zipf(1.3, count) % ITEMS).astype(str)),
            "timestamp": pa.array(micros(START) + rng.integers(0, DAYS * DAY_US, count), STAMP),
        }
        pq.write_table(pa.table(log), folder / f"{name}.parquet")
    (folder / "scalr.toml").write_text(
        '[domains.source]\nname = "source"\nevents = "source.parquet"\n[domains.target]\nname = "target"\nevents = "target.parquet"\n'
        '[generation]\ncontexts = "events"\n'
    )
    return load_settings(folder / "scalr.toml")


def write_back() -> dict[str, float]:
    """Seconds of a publication's commit by how many events were published before, and its ratio to a plain write."""
    figures: dict[str, float] = {"rows": WRITTEN, "of_plain_limit": OF_PLAIN_LIMIT}
    with tempfile.TemporaryDirectory() as scratch:
        rows = published(WRITTEN, day=DAYS)
        plain = [seconds(lambda: plain_write(Path(scratch), rows)) for _ in range(3 * ROUNDS)]
        figures |= middle_and_least("pyarrow_write_and_rename", plain)
        figures |= bare_append(Path(scratch), rows)
        for held in (0, *SIZES):
            figures |= commits(Path(scratch), rows, held)
    plain_s = figures["pyarrow_write_and_rename_least_s"]
    for what in ("new", "again", "whole_new", "whole_again"):
        figures[f"{what}_of_plain"] = round(figures[f"{what}_beside_0_least_s"] / plain_s, 2)
        figures[f"{what}_of_plain_at_most"] = round(figures[f"{what}_beside_{SIZES[-1]}_least_s"] / plain_s, 2)
    return figures


def middle_and_least(name: str, took: list[float]) -> dict[str, float]:
    """Two figures of several measurements."""
    return {f"{name}_s": statistics.median(took), f"{name}_least_s": min(took)}


def bare_append(folder: Path, rows: pa.Table) -> dict[str, float]:
    """Seconds of Delta's own append, without anything of ours: of all rows by the table's address, and of ten to an open table."""
    from deltalake import DeltaTable, write_deltalake

    open_table = DeltaTable.create(str(folder / "bare"), schema=rows.schema)
    few = rows.slice(0, 10)
    took = [seconds(lambda: write_deltalake(str(folder / "bare"), rows, mode="append")) for _ in range(3 * ROUNDS)]
    open_table.update_incremental()
    least = [seconds(lambda: write_deltalake(open_table, few, mode="append")) for _ in range(3 * ROUNDS)]
    return {"bare_append_s": statistics.median(took), "bare_append_of_10_rows_s": statistics.median(least)}


def commits(folder: Path, rows: pa.Table, held: int) -> dict[str, float]:
    """Seconds of opening the view, of the look at a window, of the commit, and of all three, where so many events lie in other windows."""
    from scalr_prod.lake import Lake
    from scalr_prod.publication.regions import ViewRegion, count_rows_by_run
    from scalr_prod.schemas import Table

    table, lake = Table.SYNTHETIC_TARGET_EVENTS, Lake(str(folder / f"lake_{held}"))
    lake.create(table, rows.schema)
    for day in range(10 if held else 0):
        lake.replace_window(table, published(held // 10, day=day), key=f"day {day}", **window(day))
    took: dict[str, list[float]] = defaultdict(list)

    def publish(what: str, day: int, rows: pa.Table) -> None:
        parts = {"open": lambda: views.append(lake.open_table(table))}
        views: list[Any] = []
        parts["count"] = lambda: count_rows_by_run(lake, ViewRegion(*window(day).values()), opened=views[0])
        parts[what] = lambda: lake.replace_window_with_files(
            table,
            lambda: [lake.write_file(table, rows.to_batches(), rows.schema, number=0)],
            key=f"{what} {day} {len(took[what])}",
            expected_version=views[0].version(),
            opened=views[0],
            **window(day),
        )
        each = {name: seconds(work) for name, work in parts.items()}
        for name, one in (each | {f"whole_{what}": sum(each.values())}).items():
            took[name].append(round(one, 4))

    for day in range(DAYS, DAYS + 3 * ROUNDS):
        publish("new", day, published(WRITTEN, day=day))
    for _ in range(3 * ROUNDS):
        publish("again", DAYS, rows)
    found: dict[str, float] = {}
    for name, several in took.items():
        found |= middle_and_least(f"{name}_beside_{held}", several)
    return found


def window(day: int) -> dict[str, datetime]:
    return {"start": START + timedelta(days=day), "end": START + timedelta(days=day + 1)}


def plain_write(folder: Path, rows: pa.Table) -> None:
    pq.write_table(rows, folder / "rows.tmp", compression="zstd", compression_level=1, use_dictionary=False)
    (folder / "rows.tmp").replace(folder / "rows.parquet")


def published(count: int, *, day: int) -> pa.Table:
    """Rows of the feature view within one day."""
    from scalr_prod.schemas import Table, table_schema

    rng = np.random.default_rng(day)
    times = micros(START) + day * DAY_US + rng.integers(0, DAY_US, count)
    numbers = np.arange(count)
    columns = {
        "event_id": [f"{day:016x}{number:016x}" for number in numbers],
        "user_id": [f"customer-{user}" for user in rng.integers(0, max(count // EACH, 1), count)],
        "item_id": [str(item) for item in rng.integers(0, ITEMS, count)],
        "event_timestamp": times,
        "probability": rng.random(count),
        "weight": rng.random(count),
        "source_domain": ["source"] * count,
        "translator_version": [1] * count,
        "run_id": [f"run-of-day-{day}"] * count,
        "created_timestamp": times + DAY_US,
    }
    schema = table_schema(Table.SYNTHETIC_TARGET_EVENTS, user="string", item="string", source_item="string")
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in schema}, schema)


def micros(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000


def seconds(work: Callable[[], object]) -> float:
    """Of processor time, of all threads."""
    started = time.process_time()
    work()
    return round(time.process_time() - started, 4)


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
