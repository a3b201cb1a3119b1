"""`scalr run` on two real domains, both directions: seconds, and the peak memory of all its processes together.

Needs the food and kitchen logs (SCALR_TEST_DATA, or ../shared/data beside the checkout); says so where they are absent.
Limits: 60 s and 4 GiB a direction, on two cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

DATA = Path(os.environ.get("SCALR_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
DIRECTIONS = (("kitchen", "food"), ("food", "kitchen"))


def main() -> dict:
    folder = DATA / "amazon_food_kitchen"
    if not folder.exists():
        return {"skipped": f"the data set is not at {folder}; set SCALR_TEST_DATA"}
    figures = {}
    for source, target in DIRECTIONS:
        with tempfile.TemporaryDirectory() as scratch:
            figures[f"{target}_from_{source}"] = run_direction(folder, source, target, Path(scratch))
    return figures


def write_settings(data: Path, source: str, target: str, folder: Path, extra: str = "") -> Path:
    """A whole scalr.toml for this data."""
    items = f'items = "{data / "items.parquet"}"'
    config = folder / "scalr.toml"
    config.write_text(
        f'[domains.source]\nname = "{source}"\nevents = "{data / source}.parquet"\n{items}\n'
        f'[domains.target]\nname = "{target}"\nevents = "{data / target}.parquet"\n{items}\n{extra}'
    )
    return config


def beside_each_other(module: str) -> dict:
    """`python -m MODULE SOURCE TARGET` for both directions at a time, one thread each: what the last line of each says, in JSON."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    running = {
        f"{target}_from_{source}": subprocess.Popen(
            [sys.executable, "-m", module, source, target], env=environment, stdout=subprocess.PIPE, text=True
        )
        for source, target in DIRECTIONS
    }
    found = {}
    try:
        for name, process in running.items():
            output, _ = process.communicate()
            if process.returncode:
                raise SystemExit(f"{name} failed with {process.returncode}")
            found[name] = json.loads(output.splitlines()[-1])
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return found


def run_direction(data: Path, source: str, target: str, scratch: Path) -> dict:
    """One direction in a fresh home: seconds by stage, peak memory, and what was published."""
    config = write_settings(data, source, target, scratch)
    command = [str(Path(sys.executable).with_name("scalr")), "--quiet", "run", "--config", str(config), "--json"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = PeakMemory(process.pid)
    output, _ = process.communicate()
    seconds = time.perf_counter() - started
    peak.stop()
    if process.returncode:
        raise SystemExit(f"scalr run failed with {process.returncode}")
    report = json.loads(output)
    return {
        "seconds": round(seconds, 1),
        "seconds_limit": 60,
        "peak_gib": round(peak.bytes / 2**30, 2),
        "peak_gib_limit": 4,
        "seconds_by_stage": report["seconds"],
        "published": report["stages"]["publish"],
    }


class PeakMemory:
    """The most memory that a process and its descendants hold together, pages that they share counted once, sampled four times a second.

    It is the larger of two lower bounds. Proportional set sizes add up to too little where others share pages with them, as the server
    that a process is forked from does, or another run beside it: libraries count by half. What each has to itself and the largest part
    that one of them shares is too little where they share different pages.
    """

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._root = psutil.Process(pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.25):
            self.bytes = max(self.bytes, self._sample())

    def _sample(self) -> int:
        try:
            family = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return 0
        proportional, own, shared = 0, 0, 0
        for process in family:
            try:
                held = process.memory_full_info()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            proportional, own, shared = proportional + held.pss, own + held.uss, max(shared, held.rss - held.uss)
        return int(max(proportional, own + shared))


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
