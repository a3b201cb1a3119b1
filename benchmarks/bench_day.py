"""A small day of a project that has run before: `scalr run` with the translator that it keeps, and with a training, from the same state.

The logs are a simulated world's; the day is their last 2 000 events, about three days of data. ``ratio`` is of processor time, which other
load on the machine hardly changes; that of Triton, which the command kills, is in it. ``imports`` are processor seconds of the command's
own process that modules took to import; those of Triton, which starts beside it, are not in it.

SCALR_BENCH_EVENTS changes the number of events of the day, SCALR_BENCH_USERS the world's users.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.worlds import World

EVENTS = int(os.environ.get("SCALR_BENCH_EVENTS", "2000"))
USERS = int(os.environ.get("SCALR_BENCH_USERS", "8000"))
#: A day with a kept translator over the same day with a training.
RATIO_LIMIT = 0.4
IMPORTS_LIMIT = 0.2
#: Of a day with a kept translator, on two idle cores.
SECONDS_LIMIT = 12
LOGS = ("source.parquet", "target.parquet")
#: Linux: processes whose parent has ended become children of this one, so that their processor time is known.
PR_SET_CHILD_SUBREAPER = 36
#: Time each module's execution, without what it imports itself counting twice, and run the command.
PROGRAM = """
import atexit, importlib.machinery, os, sys, time
spent, depth, parent = [0.0], [0], os.getpid()
def timed(kind):
    run = kind.exec_module
    def exec_module(self, module):
        started, depth[0] = time.process_time(), depth[0] + 1
        try:
            return run(self, module)
        finally:
            depth[0] -= 1
            spent[0] += (time.process_time() - started) * (depth[0] == 0)
    kind.exec_module = exec_module
timed(importlib.machinery.SourceFileLoader), timed(importlib.machinery.ExtensionFileLoader)
atexit.register(lambda: os.getpid() == parent and print(f"imports {spent[0]:.2f}", file=sys.stderr))
from scalr_prod.apps.cli import main
main()
"""


def main() -> dict[str, Any]:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    with tempfile.TemporaryDirectory() as scratch:
        folder, before = Path(scratch) / "project", Path(scratch) / "before"
        folder.mkdir()
        config = World(users=USERS).make().write(folder)
        whole = {name: pq.read_table(folder / name) for name in LOGS}
        times = pa.concat_arrays([table["timestamp"].combine_chunks() for table in whole.values()])
        first = times.sort()[len(times) - EVENTS]
        for name, table in whole.items():
            pq.write_table(table.filter(pc.less(table["timestamp"], first)), folder / name)
        runs = {"first": run(config)}
        for name, table in whole.items():
            pq.write_table(table, folder / name)
        shutil.copytree(folder, before, symlinks=True)
        for name, retrain_every in (("kept", "365"), ("trained", "0")):
            shutil.rmtree(folder)  # to where it was: definitions name whole paths
            shutil.copytree(before, folder, symlinks=True)
            runs[name] = run(config, SCALR_TRANSLATOR__RETRAIN_EVERY=retrain_every)
            print(f"  {name}: {runs[name]}", flush=True)
    kept, trained = runs["kept"], runs["trained"]
    return {
        "events": EVENTS,
        "seconds_limit": SECONDS_LIMIT,
        "ratio": round(kept["cpu"] / trained["cpu"], 2),
        "ratio_limit": RATIO_LIMIT,
        "imports_share": round(kept["imports"] / kept["cpu"], 2),
        "imports_limit": IMPORTS_LIMIT,
        **runs,
    }


def run(config: Path, **environment: str) -> dict[str, Any]:
    """`scalr run`: seconds, processor seconds of all its processes, those of imports, and seconds by stage."""
    command = [sys.executable, "-c", PROGRAM, "--quiet", "run", "--config", str(config), "--json"]
    used, started = os.times(), time.perf_counter()
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"scalr run failed with {done.returncode}: {done.stderr}")
    seconds = time.perf_counter() - started
    with suppress(ChildProcessError):  # there is none left
        while True:
            os.waitpid(-1, 0)
    report, now = json.loads(done.stdout), os.times()
    return {
        "seconds": round(seconds, 1),
        "cpu": round(now.children_user + now.children_system - used.children_user - used.children_system, 1),
        "imports": float(done.stderr.rsplit("imports ", 1)[1]),
        "translator": "trained" if not report["stages"]["translator"]["reused"] else "kept",
        "seconds_by_stage": report["seconds"],
    }
