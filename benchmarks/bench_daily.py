"""Thirty days, one after another: what each of them costs, stage by stage, and how much it adds to the lake and the training sets.

Every day brings as many events as the day before, a twentieth of them late, and as many synthetic events for its own window. A stage
whose cost follows the day takes as long on day 30 as on day 5; one whose cost follows the log takes six times as long.
On the days that are compared, ``training_set_whole`` is the same training set with nothing of a former version.
``maintained`` are the last days once more, after `scalr maintain` has removed all that it ever may: what the weekly upkeep saves a day.

SCALR_BENCH_DAYS and SCALR_BENCH_EVENTS (of each domain, a day) change the size.
"""

from __future__ import annotations

import logging
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.config.settings import Settings

DAYS = max(int(os.environ.get("SCALR_BENCH_DAYS", "30")), 8)
EVENTS = int(os.environ.get("SCALR_BENCH_EVENTS", "5000"))
#: A fifth of the users are there on a day, other ones each day. Histories and trailing counts are full before the days that are compared.
USERS, PRESENT, ITEMS, LENGTH, TRAILING = 5_000, 1_000, 2_000, 5, 3
START = datetime(2026, 1, 1, tzinfo=UTC)
DAY_US = 86_400_000_000
#: The first days fill caches and meet users for the first time; a day is compared with these.
FORMER, LATTER = (4, 5, 6), (-3, -2, -1)
LIMIT = 1.3


def main() -> dict[str, Any]:
    """Seconds (``cpu``: of all threads, whatever else the machine does) and bytes of each day, and the last days beside the first."""
    logging.disable(logging.WARNING)  # Feast and Great Expectations tell each write
    with tempfile.TemporaryDirectory() as scratch:
        folder, before = Path(scratch) / "project", Path(scratch) / "before"
        folder.mkdir()
        days = []
        for day in range(DAYS):
            if day == DAYS + LATTER[0]:
                copy(folder, before)
            days.append(one_day(folder, day, whole=day in {index % DAYS for index in (*FORMER, *LATTER)}))
            print(f"  day {day + 1}: {days[-1]}", flush=True)
        shutil.rmtree(folder)
        copy(before, folder)  # to where it was: definitions name whole paths
        removed = upkeep(folder, DAYS + LATTER[0])
        maintained = [one_day(folder, DAYS + index) for index in LATTER]
        print(f"  after upkeep, {removed} removals: {maintained}", flush=True)
    logging.disable(logging.NOTSET)
    again = [*days[: LATTER[0]], *maintained]
    stages, places = days[FORMER[0]]["seconds"], days[FORMER[0]]["bytes"]
    return {
        "days": DAYS,
        "events_a_day": EVENTS,
        "ratio_limit": LIMIT,
        "cpu_ratio": {stage: _ratio([day["cpu"].get(stage) for day in days]) for stage in stages},
        "seconds_ratio": {stage: _ratio([day["seconds"].get(stage) for day in days]) for stage in stages},
        "bytes_ratio": {place: _ratio([day["bytes"].get(place) for day in days]) for place in places},
        "cpu": {stage: [day["cpu"].get(stage) for day in days] for stage in stages},
        "seconds": {stage: [day["seconds"].get(stage) for day in days] for stage in stages},
        "bytes": {place: [day["bytes"].get(place) for day in days] for place in places},
        "maintained": {
            "removed": removed,
            "cpu_ratio": {stage: _ratio([day["cpu"].get(stage) for day in again]) for stage in maintained[0]["cpu"]},
            "cpu": {stage: [day["cpu"][stage] for day in maintained] for stage in maintained[0]["cpu"]},
        },
    }


def copy(folder: Path, to: Path) -> None:
    """A project's folder; files with several names stay one file."""
    subprocess.run(["cp", "--archive", str(folder), str(to)], check=True)


def upkeep(folder: Path, day: int) -> int:
    """`scalr maintain`, where everything is as old as it has to be to go; gives how many things went."""
    from scalr_prod.operations import apply_retention

    settings = settings_of(folder, day)
    retention = settings.retention.model_copy(update={"days": 0.0, "files_days": 0.0})
    return len(apply_retention(settings.model_copy(update={"retention": retention})).removed)


def _ratio(values: list[Any]) -> dict[str, float]:
    """Medians of the first days that are compared and of the last ones; all of these were measured."""
    former = statistics.median(values[index] for index in FORMER)
    latter = statistics.median(values[index] for index in LATTER)
    return {"former": round(former, 3), "latter": round(latter, 3), "ratio": round(latter / max(former, 1e-9), 2)}


def one_day(folder: Path, day: int, *, whole: bool = False) -> dict[str, Any]:
    """Ingest, histories, online store and training set of one day, and where asked for the training set from nothing."""
    from scalr_prod.features import apply_feature_repo, materialize
    from scalr_prod.histories import build_histories
    from scalr_prod.ingest import ingest
    from scalr_prod.training_set import build_training_set

    settings = settings_of(folder, day)
    seconds: dict[str, float] = {}
    cpu: dict[str, float] = {}
    sizes = _sizes(folder / "home")

    def timed(stage: str, work: Any) -> None:
        started, used = time.perf_counter(), time.process_time()
        work()
        seconds[stage] = round(time.perf_counter() - started, 3)
        cpu[stage] = round(time.process_time() - used, 3)

    timed("ingest", lambda: ingest(settings))
    timed("histories", lambda: build_histories(settings))
    if not day:
        apply_feature_repo(settings)
    publish(settings, day)
    timed("online_store", lambda: materialize(settings, end=START + timedelta(days=day + 1)))
    timed("training_set", lambda: build_training_set(settings))
    grown = {place: size - sizes.get(place, 0) for place, size in _sizes(folder / "home").items()}
    if whole:
        named = settings.training_set.model_copy(update={"name": f"whole_{day}"})
        timed("training_set_whole", lambda: build_training_set(settings.model_copy(update={"training_set": named})))
        made = folder / "home" / "datasets" / named.name
        grown["training_set_whole"] = _bytes(made)
        shutil.rmtree(made)
    return {"seconds": seconds, "cpu": cpu, "bytes": grown}


def settings_of(folder: Path, day: int) -> Settings:
    """The project, reading the logs of one day."""
    from scalr_prod.config.settings import load_settings

    for domain in ("source", "target"):
        pq.write_table(events(domain, day), folder / f"{domain}.parquet")
    domains = "".join(
        f'[domains.{domain}]\nname = "{domain}"\nevents = "{folder / domain}.parquet"\n'
        f'columns.timestamp = "time"\ncolumns.created = "created"\n'
        for domain in ("source", "target")
    )
    cutoff = (START + timedelta(days=day + 1)).isoformat()
    (folder / "scalr.toml").write_text(
        f'[project]\nname = "daily"\nhome = "{folder / "home"}"\n{domains}[histories]\nlength = {LENGTH}\n'
        f'trailing_days = {TRAILING}\n[training_set]\ncutoff = "{cutoff}"\n'
    )
    return load_settings(folder / "scalr.toml")


def events(domain: str, day: int) -> pa.Table:
    """What reached a domain's log on one day; a twentieth of it happened up to two days before."""
    draw = np.random.default_rng([day, domain == "target"])
    created = np.sort(draw.integers(0, DAY_US, EVENTS)) + day * DAY_US
    late = draw.random(EVENTS) < 0.05
    happened = np.maximum(created - late * draw.integers(1, 2 * DAY_US, EVENTS), 0)
    start = int(START.timestamp()) * 1_000_000
    kind = pa.timestamp("us", tz="UTC")
    return pa.table(
        {
            "user_id": draw.choice(present(day), EVENTS),
            "item_id": (ITEMS * draw.random(EVENTS) ** 2).astype(np.int64),
            "time": pa.array(happened + start).cast(kind),
            "created": pa.array(created + start).cast(kind),
        }
    )


def present(day: int) -> NDArray[np.int64]:
    """The users of a day."""
    return np.random.default_rng([day, 3]).choice(USERS, PRESENT, replace=False)


def publish(settings: Settings, day: int) -> None:
    """As many synthetic events as real ones, in one commit for the day's window, as a publication writes them."""
    from scalr_prod.lake import Lake
    from scalr_prod.schemas import Table

    lake, draw = Lake.open(settings), np.random.default_rng([day, 7])
    schema = lake.schema(Table.SYNTHETIC_TARGET_EVENTS)
    window = START + timedelta(days=day)
    start = int(window.timestamp()) * 1_000_000
    happened = pa.array(np.sort(draw.integers(0, DAY_US, EVENTS)) + start).cast(pa.timestamp("us", tz="UTC"))
    known = pa.array(np.full(EVENTS, start + DAY_US)).cast(pa.timestamp("us", tz="UTC"))
    columns = {
        "event_id": pa.array([f"{day}-{number}" for number in range(EVENTS)]),
        "user_id": draw.choice(present(day), EVENTS),
        "item_id": draw.integers(0, ITEMS, EVENTS),
        "event_timestamp": happened,
        "probability": pa.array(np.full(EVENTS, 0.5, np.float32)),
        "weight": pa.array(np.ones(EVENTS, np.float32)),
        "source_domain": pa.array(["source"] * EVENTS),
        "translator_version": pa.array(np.ones(EVENTS, np.int64)),
        "run_id": pa.array([f"run_{day}"] * EVENTS),
        "created_timestamp": known,
    }
    rows = pa.table([columns[name] for name in schema.names], schema=schema)
    lake.replace_window(
        Table.SYNTHETIC_TARGET_EVENTS, rows, start=window, end=window + timedelta(days=1), key=f"publish run_{day}"
    )


def _sizes(home: Path) -> dict[str, int]:
    """Bytes that lie in the lake, and in the training set's versions (a file that two versions share counts once)."""
    return {
        "lake": _bytes(home / "lake"),
        "training_set": _bytes(home / "datasets"),
    }


def _bytes(folder: Path) -> int:
    found = {(status.st_dev, status.st_ino): status.st_size for status in _statuses(folder)}
    return sum(found.values())


def _statuses(folder: Path) -> list[os.stat_result]:
    return [path.stat() for path in folder.rglob("*") if path.is_file()]
