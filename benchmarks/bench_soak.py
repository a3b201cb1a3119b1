"""Memory of every process over ten minutes of generation against Triton, with sixteen more clients; and back-pressure.

One driver plans and generates one run after the other (another seed each time) on two Dask workers that stay; sixteen clients,
each with a connection of its own, draw all the while. RSS is looked at every two seconds, once the first run is done. Growth is
the slope of a line through the last 80 % of them, over that time, as a share of their mean. Limit: 2 % for the driver, the
workers and Triton. Back-pressure: the server is stopped for three seconds in the middle of a stream; counted is how many
batches are taken beyond those that are answered.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

from benchmarks.bench_scoring import make_contexts, write_project
from scalr_prod.config.settings import load_settings
from scalr_prod.features import apply_feature_repo
from scalr_prod.generation import generate, plan_run
from scalr_prod.histories import build_histories
from scalr_prod.ingest import ingest
from scalr_prod.ledger import run_folder
from scalr_prod.serving import serve_with_watchdog
from scalr_prod.serving.client import open_scorer
from scalr_prod.serving.local_server.server_state import read_record
from scalr_prod.translator import train

SECONDS = float(os.environ.get("SCALR_SOAK_S", "600"))
CLIENTS, EVERY_S, SETTLED = 16, 2.0, 0.2
#: The last tenth of the made year: many short runs rather than few long ones.
WINDOW = "2023-11-25T00:00:00Z"
THREADS = {"serving": {"threads": 1, "deadline_s": 120}, "translator": {"threads": 1}}


def main() -> dict:
    import dask
    from distributed import LocalCluster

    with (
        tempfile.TemporaryDirectory() as scratch,
        # As the package's own workers: Dask's profiler fills its buffers, 25 MB a worker, for 17 minutes.
        dask.config.set({"distributed.worker.profile.enabled": False}),
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,
    ):
        config = write_project(Path(scratch))
        first = load_settings(config, **THREADS)
        ingest(first)
        build_histories(first)
        apply_feature_repo(first)
        version = train(first).version
        context = multiprocessing.get_context("spawn")
        stop = context.Event()
        with serve_with_watchdog(first, version):
            clients = context.Process(target=_clients, args=(str(config), version, stop))
            driver = context.Process(target=_driver, args=(str(config), version, cluster.scheduler_address, stop))
            for process in (clients, driver):
                process.start()
            while not (Path(scratch) / "warm").exists():  # the first run imports and fills caches
                assert driver.is_alive()
                time.sleep(0.5)
            server = read_record(first).pid
            samples = _watch(first, {"driver": driver.pid, "clients": clients.pid}, cluster)
            started_anew = read_record(first).pid != server
            taken = _back_pressure(config, version)
            stop.set()
            driver.join(300)
            clients.join(120)
        done = json.loads((Path(scratch) / "done.json").read_text())
        drawn = json.loads((Path(scratch) / "drawn.json").read_text())
    growth = {name: _growth(values) for name, values in samples.items()}
    return {
        "seconds": SECONDS,
        "clients": CLIENTS,
        **done,
        **drawn,
        **{f"rss_mb_{name}": round(statistics.mean(values[-20:]) / 2**20, 1) for name, values in samples.items()},
        **{f"rss_mb_{name}_by_minute": _by_minute(values) for name, values in samples.items()},
        **{f"growth_{name}": round(value, 4) for name, value in growth.items()},
        "growth_limit": 0.02,
        "triton_started_anew": started_anew,
        "batches_taken_while_stopped": taken,
        "in_flight": first.serving.in_flight,
        "other_load": [round(value, 1) for value in os.getloadavg()],
    }


def _watch(settings, pids: dict[str, int], cluster) -> dict[str, list[int]]:
    """RSS in bytes of each process, until the time is over."""
    server = psutil.Process(read_record(settings).pid)
    watched = {name: psutil.Process(pid) for name, pid in pids.items()}
    watched |= {f"worker_{name}": psutil.Process(worker.pid) for name, worker in cluster.workers.items()}
    watched["triton"] = server
    watched |= {f"triton_model_{n}": child for n, child in enumerate(server.children(recursive=True)) if "stub" in child.name()}
    samples: dict[str, list[int]] = {name: [] for name in watched}
    ends_at = time.monotonic() + SECONDS
    while time.monotonic() < ends_at:
        for name, process in watched.items():
            try:
                samples[name].append(process.memory_info().rss)
            except psutil.NoSuchProcess:  # a server that was started anew: what was seen of the former one counts
                continue
        time.sleep(EVERY_S)
    return samples


def _by_minute(values: list[int]) -> list[float]:
    return [round(value / 2**20, 1) for value in values[:: round(60 / EVERY_S)]]


def _growth(values: list[int]) -> float:
    """Of a line through the settled part: how much it rises, as a share of the mean."""
    settled = np.array(values[int(len(values) * SETTLED) :], dtype=np.float64)
    slope = np.polyfit(np.arange(len(settled)), settled, 1)[0]
    return float(slope * len(settled) / settled.mean())


def _driver(config: str, version: int, address: str, stop) -> None:
    """One run after the other; what it staged is removed, as it would be once it is published."""
    runs = events = 0
    while not stop.is_set():
        wanted = {"contexts": "events", "seed": runs, "partitions": 4, "start": WINDOW, "batch_size": 256}
        settings = load_settings(config, **THREADS, compute={"dask": address}, generation=wanted)
        spec = plan_run(settings, version=version)
        events += generate(settings, spec).events
        shutil.rmtree(run_folder(settings.home, spec.run_id))
        runs += 1
        (Path(config).parent / "warm").touch()
    (Path(config).parent / "done.json").write_text(json.dumps({"runs": runs, "events": events}))


def _clients(config: str, version: int, stop) -> None:
    """Each asks, waits a little, and asks again; every answer is checked by the scorer."""
    settings = load_settings(config, **THREADS)
    batch = make_contexts(0).slice(0, 32)
    answers = [0] * CLIENTS
    wrong = [0] * CLIENTS
    expected = open_scorer(settings, version).sample(batch, 8).items

    def client(number: int) -> None:
        with open_scorer(settings, version, has_watchdog=True) as scorer:
            while not stop.is_set():
                found = scorer.sample(batch, 8).items
                answers[number] += 1
                wrong[number] += int(not np.array_equal(found, expected))
                time.sleep(2)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {"client_answers": sum(answers), "client_answers_fewest": min(answers), "client_answers_wrong": sum(wrong)}
    (Path(config).parent / "drawn.json").write_text(json.dumps(found))


def _back_pressure(config: Path, version: int) -> int:
    """Batches that a stream takes while the server stands still, beyond those whose answers it has."""
    settings = load_settings(config, **THREADS)
    taken, answered = 0, 0

    def batches():
        nonlocal taken
        for seed in range(50):
            taken += 1
            yield make_contexts(seed % 4)

    most = 0
    with open_scorer(settings, version) as scorer:
        server = read_record(settings).pid
        for _ in scorer.sample_stream(batches(), 8):
            answered += 1
            if answered == 10:
                os.kill(server, signal.SIGSTOP)
                threading.Timer(3.0, os.kill, (server, signal.SIGCONT)).start()
            most = max(most, taken - answered)
    return most


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
