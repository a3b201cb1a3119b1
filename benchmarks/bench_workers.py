"""One run on 1, 4, 16 and 64 Dask workers, with a scorer that takes a given time: what the driver and the data path allow.

Each worker has as many contexts as it has alone (weak scaling), in two tasks. The scorer waits and draws at random
(`simulated`), as if each worker had a server of its own elsewhere; all else is a run's own: Dask's scheduler and worker processes,
contexts laid out and read, histories joined through Feast, parts written, the ledger, the alignment. All workers share this machine's
cores, so what they need of them together is a limit of this measurement and not of the design: `cpu_s_a_worker` tells it.

- `efficiency`: the seconds that one worker takes alone, divided by those that so many take side by side.
- `driver_cpu_s`: of the driver and Dask's scheduler, the alignment included. What it grows by from one number of workers to the next,
  divided by the tasks, bounds the tasks a second of one driver.
- `driver_bytes_a_task`: what a task gives back, as JSON: its manifest, whatever its events.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil

from benchmarks.bench_run import PeakMemory
from benchmarks.bench_scale import DAYS, START, write_logs

WORKERS = tuple(int(w) for w in os.environ.get("SCALR_BENCH_WORKERS", "1,4,16,64").split(","))
CONTEXTS_A_WORKER = int(os.environ.get("SCALR_BENCH_CONTEXTS", "10000"))
SECONDS_A_CONTEXT = 0.004
TASKS_A_WORKER = 2


def main() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        return measure(Path(scratch))


def measure(folder: Path) -> dict[str, Any]:
    from scalr_prod import Project

    write_logs(folder, CONTEXTS_A_WORKER * max(WORKERS))
    with Project.open(folder / "scalr.toml") as project:
        project.ingest()
        project.histories()
    with Project.open(folder / "scalr.toml", translator={"epochs": 1, "pretraining_events": 10_000, "folds": 2}) as project:
        version = Path(project.train().path)
    items = json.loads((version / "manifest.json").read_text())["n_target"]
    start_forkserver(items)
    run(folder, 1, contexts=0.02)  # the first one waits for imports
    found = {str(workers): run(folder, workers) for workers in WORKERS}
    alone = found["1"]["seconds"]
    for figures in found.values():
        figures["efficiency"] = round(alone / figures["seconds"], 3)
    return {
        "contexts_a_worker": CONTEXTS_A_WORKER,
        "seconds_a_context": SECONDS_A_CONTEXT,
        "tasks_a_worker": TASKS_A_WORKER,
        "workers": found,
    }


def start_forkserver(items: int) -> None:
    """The process that workers are forked from, with the simulated scorer in it."""
    from multiprocessing import forkserver, get_context

    os.environ |= {"SCALR_BENCH_SECONDS_A_CONTEXT": str(SECONDS_A_CONTEXT), "SCALR_BENCH_ITEMS": str(items)}
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    for name in (
        "PROMETHEUS_MULTIPROCESS_DIR",
        "PROMETHEUS_MULTIPROC_DIR",
    ):  # of this process's Feast, see `compute.cluster`
        os.environ.pop(name, None)
    get_context("forkserver").set_forkserver_preload(["scalr_prod.compute.fork_probe", "benchmarks.simulated"])
    forkserver.ensure_running()


def run(folder: Path, workers: int, contexts: float = 1.0) -> dict[str, float]:
    """One run over a part of the year that has so many workers' contexts, or a share of them."""
    from scalr_prod.config.settings import load_settings
    from scalr_prod.generation import generate, plan_run

    known, end = START + timedelta(days=DAYS), START + timedelta(days=DAYS * workers * contexts / max(WORKERS))
    settings = load_settings(
        folder / "scalr.toml",
        compute={"workers": workers},
        generation={
            "contexts": "events",
            "start": START,
            "end": end,
            "as_of": known,
            "partitions": workers * TASKS_A_WORKER,
            "align": False,
        },
    )
    spec = plan_run(settings)
    peak, driver, others, started = PeakMemory(os.getpid()), own_cpu(), below_cpu(), time.perf_counter()
    report = generate(settings, spec)
    seconds, driver, others = time.perf_counter() - started, own_cpu() - driver, below_cpu() - others
    peak.stop()
    tasks = workers * TASKS_A_WORKER
    manifests = [path.read_text() for path in (folder / ".scalr" / "runs" / spec.run_id / "parts").glob("*.json")]
    assert len(manifests) == tasks, manifests
    return {
        "contexts": report.contexts,
        "events": report.events,
        "seconds": round(seconds, 2),
        "contexts_per_s": round(report.contexts / seconds, 1),
        "scoring_s": round(report.contexts * SECONDS_A_CONTEXT / workers, 2),
        "driver_cpu_s": round(driver, 2),
        "cpu_s_a_worker": round(others / workers, 3),
        "driver_bytes_a_task": round(sum(map(len, manifests)) / tasks),
        "memory_gib": round(peak.bytes / 2**30, 2),
    }


def own_cpu() -> float:
    return sum(psutil.Process().cpu_times()[:2])


def below_cpu() -> float:
    """Seconds of processor time of all processes below this one, those that have ended counted by their parents."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])
    return total


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
