"""Processor time of the driver and of its workers in stages that run in tasks, on a Dask cluster of one and of two workers.

Made logs (`bench_scale`), the target log a tenth of the source's. A scheduler and workers of one thread each are processes of their
own, which have imported what tasks need before the clock starts; the stages run in this process, which is the driver. `driver_s`,
`workers_s` and `scheduler_s` are seconds of processor time; `alone` is all in this process, without a cluster. `ingest` reads the first
three quarters of both logs, `ingest_again` all of them, of which three quarters are in the lake. `training_set` has real events and four
negatives for each. `same` tells whether the tables' files and the training set's rows have the same bytes each time.

A driver that waits for a task uses the processor, too, for messages and to look whether the task has ended. This ends sooner the more
workers there are, so it is told apart: `waiting_s` is the time during which the workers were busy, times what a driver uses that waits
for one long task. `driver_share` is the driver's part, without this, of the driver's and the workers' time.

`rate_of_16` says how many times as fast as one worker 16 would do the stage, each with a core of its own: the tasks of each round, as long
as they took one worker, are given to 16 in their order; a round begins when the one before has ended, and the driver's own time is added
as if it worked alone.

`driver_mb` and `worker_mb` are the largest resident memory of a process in the stage.

SCALR_BENCH_EVENTS is the number of source events (default: 6000000), SCALR_BENCH_WORKERS are the clusters (default: 0,1,2).
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow.parquet as pq

from benchmarks.bench_scale import write_logs
from benchmarks.makespan import Caller, makespan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from scalr_prod.config.settings import Settings

EVENTS = int(os.environ.get("SCALR_BENCH_EVENTS", "6000000"))
STAGES = ("ingest", "ingest_again", "histories", "training_set")
#: Numbers of workers; 0: no cluster.
WORKERS = tuple(map(int, os.environ.get("SCALR_BENCH_WORKERS", "0,1,2").split(",")))
SIMULATED = 16
#: Seconds of the task that a driver waits for.
WAITED_S = 20
#: What tasks of the stages import, the benchmark's own module among them.
MODULES = (
    "benchmarks.bench_shares",
    "great_expectations",
    "scalr_prod.compute.worker_preload",
    "scalr_prod.ingest.pipeline",
    "scalr_prod.quality.training_set",
    "scalr_prod.training_set.build",
    "scalr_prod.training_set.features",
)


def main() -> dict[str, Any]:
    figures: dict[str, Any] = {}
    digests = set()
    waiting = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        write_logs(Path(scratch), EVENTS)
        for workers in WORKERS:
            name = "alone" if not workers else f"{workers} workers"
            home = Path(scratch) / name.replace(" ", "_")
            with cluster(Path(scratch), workers) as (address, processes):
                waiting = waiting_share(address) if address and not waiting else waiting
                figures[name] = stages(Path(scratch), home, address, processes, waiting)
            digests.add(digest(home))
            print(f"  {name}: {figures[name]}", flush=True)
    return {"source_events": EVENTS, "waiting_share": round(waiting, 4), "stages": figures, "same": len(digests) == 1}


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[tuple[str | None, list[psutil.Process]]]:
    """The address of a scheduler with so many workers, and the processes: the scheduler first. None of them without workers."""
    if not workers:
        yield None, []
        return
    from distributed import Client

    told = folder / f"scheduler_{workers}.json"
    common = ["--scheduler-file", str(told), "--no-dashboard"]
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", *common]
    worker = [
        sys.executable,
        "-m",
        "distributed.cli.dask_worker",
        "--nthreads",
        "1",
        "--no-nanny",
        "--memory-limit",
        "0",
        *common,
    ]
    worker += ["--local-directory", str(folder)]
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen(scheduler, **quiet)]
    try:
        while not told.exists():
            time.sleep(0.1)
        processes += [subprocess.Popen(worker, **quiet) for _ in range(workers)]
        address = json.loads(told.read_text())["address"]
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(workers)
            for name in MODULES:
                client.run(importlib.import_module, name)
        yield address, [psutil.Process(process.pid) for process in processes]
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def waiting_share(address: str) -> float:
    """The processor seconds of a driver for each second that it waits for a task."""
    from distributed import Client

    from scalr_prod.compute import Cluster

    with Client(address, set_as_default=False) as client:
        found = Cluster(client)
        list(found.map(time.sleep, [(0.1,)]))
        began, used_before = time.monotonic(), time.process_time()
        list(found.map(time.sleep, [(WAITED_S,)]))
        return (time.process_time() - used_before) / (time.monotonic() - began)


def stages(
    folder: Path, home: Path, address: str | None, processes: list[psutil.Process], waiting: float
) -> dict[str, dict[str, float]]:
    """Processor seconds of each stage."""
    from scalr_prod.config.settings import load_settings
    from scalr_prod.features import apply_feature_repo
    from scalr_prod.histories import build_histories
    from scalr_prod.ingest import ingest
    from scalr_prod.training_set import build_training_set

    for name in MODULES:
        importlib.import_module(name)
    parts: dict[str, Any] = {"compute": {"dask": address or "local", "workers": 1}, "project": {"home": str(home)}}
    parts["training_set"] = {"negatives_per_event": 4}
    settings, earlier = (
        load_settings(folder / "scalr.toml", **parts | {"domains": logs(folder, share)}) for share in (1.0, 0.75)
    )

    def prepared() -> None:
        apply_feature_repo(settings)
        build_training_set(settings)

    work: dict[str, Callable[[Settings], object]] = {
        "ingest": lambda _: ingest(earlier),
        "ingest_again": ingest,
        "histories": build_histories,
        "training_set": lambda _: prepared(),
    }
    figures = {}
    for stage in STAGES:
        with timed_tasks() as rounds:
            figures[stage] = measured(lambda stage=stage: work[stage](settings), processes, waiting)
        if len(processes) == 1 + 1:
            figures[stage][f"rate_of_{SIMULATED}"] = simulated_rate(figures[stage], rounds)
    return figures


@contextmanager
def timed_tasks() -> Iterator[list[list[float]]]:
    """The processor seconds of each task of each round of tasks, in the order in which they end."""
    from scalr_prod.compute import Cluster

    rounds: list[list[float]] = []
    plain = Cluster.map

    def timed_map(self: Cluster, task: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        rounds.append([])
        tasks = rounds[-1]
        for seconds, result in plain(self, timed, ((task, *each) for each in arguments)):
            tasks.append(seconds)
            yield result

    Cluster.map = timed_map  # type: ignore[method-assign]
    try:
        yield rounds
    finally:
        Cluster.map = plain  # type: ignore[method-assign]


def timed(task: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    started = time.process_time()
    result = task(*arguments)
    return time.process_time() - started, result


def simulated_rate(figures: dict[str, float], rounds: list[list[float]]) -> float:
    """How many times as fast `SIMULATED` workers are as one."""
    tasks = sum(map(len, rounds))
    around = (figures["workers_s"] - sum(map(sum, rounds))) / max(tasks, 1)  # what Dask does for a task
    ends = makespan(Caller([[("", task + around) for task in seconds] for seconds in rounds]), SIMULATED)
    own = figures["driver_s"] - figures["waiting_s"]
    return round((figures["workers_s"] + own) / (ends + own), 1)


def logs(folder: Path, share: float) -> dict[str, dict[str, str]]:
    """The domains, whose logs are the first part of the events."""
    found = {}
    for name in ("source", "target"):
        path = folder / f"{name}.parquet"
        if share < 1:
            part = folder / f"{name}_{share}.parquet"
            if not part.exists():
                rows = pq.read_table(path)
                pq.write_table(rows.slice(0, int(len(rows) * share)), part)
            path = part
        found[name] = {"name": name, "events": str(path)}
    return found


def measured(work: Callable[[], object], processes: list[psutil.Process], waiting: float) -> dict[str, float]:
    """Seconds of processor time of the driver, the workers and the scheduler."""
    everybody = [psutil.Process(), *processes]
    for process in everybody:
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the largest memory counts from now on
    before, started = [used(process) for process in processes], time.process_time()
    work()
    driver = time.process_time() - started
    memory = [peak_mb(process) for process in everybody]
    scheduler, *workers = [used(process) - earlier for process, earlier in zip(processes, before, strict=True)] or [0.0]
    figures = {"driver_s": driver, "driver_mb": memory[0]}
    if workers:
        figures["worker_mb"] = max(memory[2:])
        figures |= {"waiting_s": waiting * max(workers), "workers_s": sum(workers), "longest_worker_s": max(workers)}
        own = driver - figures["waiting_s"]
        figures |= {"scheduler_s": scheduler, "driver_share": own / (own + sum(workers))}
    return {name: round(value, 3) for name, value in figures.items()}


def used(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


def peak_mb(process: psutil.Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM"))


def digest(home: Path) -> str:
    """A hash of the files of the events tables and of the training set's rows."""
    from deltalake import DeltaTable

    files = [
        Path(home, "lake", table, name)
        for table in ("source_events", "target_events")
        for name in names(DeltaTable, home, table)
    ]
    contents = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    rows = sorted((home / "datasets").rglob("rows/*.parquet"))
    return hashlib.sha256(
        json.dumps([contents, [hashlib.sha256(file.read_bytes()).hexdigest() for file in rows]]).encode()
    ).hexdigest()


def names(opener: Any, home: Path, table: str) -> list[str]:
    return [Path(uri).name for uri in opener(str(home / "lake" / table)).file_uris()]


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
