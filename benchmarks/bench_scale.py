"""Every stage of a run at several sizes: processor time, memory, and the ratios of both from each size to the next.

Made logs: users of 20 source events each, a tenth as many target events, the same catalogue of 2 000 items at every size. Each stage is
a process of its own, which has its libraries imported before the clock starts. `cpu_s` counts it and all that it starts, whatever else
the machine does; `memory_mb` is the most that all of them hold together. The workers score, one at a time (`scorer = "local"`).
`ledger_s` is the processor time of the ledger's own calls, its opening included; `ledger_share` is that of all stages', at most 2 %.
Limits, for ten times the events: 10.5 times the time and 1.2 times the memory. `generate` compiles the kernels and imports what its
workers need, half a minute whatever the size, so that small sizes say little. The gate is let pass what was not measured: few users are
too few for that.

SCALR_BENCH_EVENTS are the numbers of source events (default: 300000,3000000; 1000000,10000000 take an hour and a half of a core).
SCALR_BENCH_FOLDER keeps the homes: a run that was cut off goes on after the last stage that ended.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.bench_run import PeakMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scalr_prod import Project

SIZES = [int(size) for size in os.environ.get("SCALR_BENCH_EVENTS", "300000,3000000").split(",")]
KEPT = os.environ.get("SCALR_BENCH_FOLDER")
EACH, ITEMS, GENRES, DAYS = 20, 2_000, 20, 365
START = datetime(2024, 1, 1, tzinfo=UTC)
STAGES = ("ingest", "histories", "train", "generate", "validate", "publish", "training_set")
LIMITS = {"cpu_ratio": 10.5, "memory_ratio": 1.2, "ledger_share": 0.02}


def main() -> dict[str, Any]:
    found = {}
    for events in SIZES:
        with nullcontext(KEPT) if KEPT else tempfile.TemporaryDirectory() as scratch:
            found[events] = stages(Path(scratch) / str(events), events)
    return {
        "limits": LIMITS,
        "source_events": SIZES,
        "ledger_share": {size: ledger_share(each) for size, each in found.items()},
        "ratios": {f"{less} to {more}": ratios(found[less], found[more]) for less, more in pairwise(SIZES)},
        "stages": {str(size): each for size, each in found.items()},
    }


def ratios(smaller: dict[str, dict[str, float]], larger: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """By stage, what the larger size took of what the smaller one took."""
    return {
        stage: {
            "cpu_ratio": round(larger[stage]["cpu_s"] / smaller[stage]["cpu_s"], 2),
            "memory_ratio": round(larger[stage]["memory_mb"] / smaller[stage]["memory_mb"], 2),
        }
        for stage in STAGES
    }


def ledger_share(stages: dict[str, dict[str, float]]) -> float | None:
    """The ledger's part of the processor time of all stages; None where one was measured by a former version."""
    if not all("ledger_s" in each for each in stages.values()):
        return None
    return round(sum(each["ledger_s"] for each in stages.values()) / sum(each["cpu_s"] for each in stages.values()), 4)


def stages(folder: Path, events: int) -> dict[str, dict[str, float]]:
    """What each stage took for so many source events, in a home that is fresh, or holds the stages that ended before."""
    told = folder / "figures.json"
    if not told.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_logs(folder, events)
        told.write_text("{}")
    figures = json.loads(told.read_text())
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "feast", "great_expectations", "distributed", "scalr_prod.project"])
    for stage in STAGES:
        if stage not in figures:
            with ProcessPoolExecutor(1, context) as alone:
                figures[stage] = alone.submit(measured, folder, stage).result()
            told.write_text(json.dumps(figures))
        print(f"  {events} {stage}: {figures[stage]}", flush=True)
    return figures


def measured(folder: Path, stage: str) -> dict[str, float]:
    """One stage, in a process that does nothing else."""
    from scalr_prod import Project

    peak, before, started = PeakMemory(os.getpid()), used(), time.perf_counter()
    with ledger_time() as spent, Project.open(folder / "scalr.toml") as project:
        done(project, stage)
        # Its workers' processor time is told by the process that they were forked from, while it lives.
        cpu = used() - before
    peak.stop()
    return {
        "cpu_s": round(cpu, 2),
        "ledger_s": round(sum(spent), 2),
        "seconds": round(time.perf_counter() - started, 2),
        "memory_mb": peak.bytes >> 20,
    }


@contextmanager
def ledger_time() -> Iterator[list[float]]:
    """Seconds of processor time of each opening and each transaction of this process's ledgers; workers open none."""
    from scalr_prod.ledger import database

    spent: list[float] = []

    def timed(name: str) -> Any:
        whole = getattr(database.LedgerDatabase, name)

        @contextmanager
        def transaction(ledger: Any) -> Iterator[Any]:
            started = time.thread_time()
            try:
                with whole(ledger) as session:
                    yield session
            finally:
                spent.append(time.thread_time() - started)

        return transaction

    made = database.LedgerDatabase.__init__

    def opened(*args: Any, **options: Any) -> None:
        started = time.thread_time()
        made(*args, **options)
        spent.append(time.thread_time() - started)

    with (
        mock.patch.object(database.LedgerDatabase, "__init__", opened),
        mock.patch.object(database.LedgerDatabase, "read_session", timed("read_session")),
        mock.patch.object(database.LedgerDatabase, "write_session", timed("write_session")),
    ):
        yield spent


def done(project: Project, stage: str) -> None:
    if stage in {"validate", "publish"}:
        getattr(project, stage)(project.runs()[-1].run_id)
    else:
        getattr(project, {"training_set": "build_training_set"}.get(stage, stage))()


def used() -> float:
    """Seconds of processor time of this process, of all below it, and of those below it that have ended."""
    own, total = psutil.Process(), 0.0
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])
    return total


def write_logs(folder: Path, events: int) -> None:
    """Users with tastes: each likes some genres of both domains, so that the translator has something to learn."""
    rng = np.random.default_rng(0)
    users = events // EACH
    tastes = rng.integers(0, GENRES, (users, 2))
    for name, count in (("source", events), ("target", events // 10)):
        user = rng.integers(0, users, count)
        genre = tastes[user, rng.integers(0, 2, count)]
        item = genre + GENRES * (rng.zipf(1.4, count) % (ITEMS // GENRES))
        moments = int(START.timestamp()) * 1_000_000 + rng.integers(0, DAYS * 86_400_000_000, count)
        log = {"user_id": user, "item_id": item, "timestamp": pa.array(moments, pa.timestamp("us", "UTC"))}
        pq.write_table(pa.table(log), folder / f"{name}.parquet")
    (folder / "scalr.toml").write_text(
        "".join(f'[domains.{name}]\nname = "{name}"\nevents = "{name}.parquet"\n' for name in ("source", "target"))
        + f'[generation]\ncontexts = "events"\nstart = {START.isoformat()}\nend = {(START + timedelta(days=DAYS)).isoformat()}\n'
        + '[serving]\nscorer = "local"\n[compute]\nworkers = 1\n[translator]\nthreads = 1\n[quality]\nmin_information = 0\n'
    )


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
