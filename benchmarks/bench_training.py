"""Training in tasks: the processor time of each, and how many times as fast as one worker 16 workers would train.

Made logs (`bench_scale`), the target log a tenth of the source's. Training runs in this process with one thread and one task after the
other, as a worker would run them; each task's processor time is noted. ``rate_of_16`` gives the tasks to 16 workers, each with a core of
its own, in the order in which training asks for them: the tasks of a map begin when its caller has the results of the map before, and two
callers run side by side where training lets them (`WorkerPool.run_concurrently`). ``driver_s`` is what training computes outside of tasks,
reading the log included; it is added to both times. What Dask does for a task, 2 to 3 ms of the driver, and the copies of inputs and
results are not in it. ``longest_tasks`` are the longest tasks, in seconds.

SCALR_BENCH_EVENTS is the number of source events (default: 10000000, a quarter of an hour).
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from benchmarks.bench_scale import write_logs
from benchmarks.makespan import Caller, makespan
from scalr_prod import Project
from scalr_prod.translator import training
from scalr_prod.translator.worker_pool import WorkerPool, ignore_progress, open_worker_pool, run_unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

EVENTS = int(os.environ.get("SCALR_BENCH_EVENTS", "10000000"))
WORKERS = (1, 2, 4, 16)


class RecordingPool(WorkerPool):
    """Runs tasks inline, and records them."""

    def __init__(self) -> None:
        self.caller = Caller()

    def map(
        self,
        work: Callable[[Any, Any], Any],
        inputs: Any,
        units: Iterable[Any],
        on_progress: Callable[[float], None] = ignore_progress,
    ) -> Iterator[Any]:
        tasks: list[tuple[str, float]] = []
        self.caller.steps.append(tasks)
        for unit in units:
            started = time.process_time()
            result = run_unit(work, inputs, unit, None, on_progress)
            named = [part for part in unit if isinstance(part, str)] if isinstance(unit, tuple) else []
            tasks.append((" ".join([work.__name__.strip("_"), *named]), time.process_time() - started))
            yield result

    def run_concurrently(self, first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
        own, callers, results = self.caller, [Caller(), Caller()], []
        own.steps.append(callers)
        for self.caller, function in zip(callers, (first, second), strict=True):
            results.append(function())
        self.caller = own
        return results[0], results[1]


def main() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        write_logs(Path(scratch), EVENTS)
        with Project.open(Path(scratch) / "scalr.toml", compute={"device": "cpu"}) as project:
            project.ingest()
            project.histories()
            return {"source_events": EVENTS, "target_events": EVENTS // 10, **trained(project)}


def trained(project: Project) -> dict[str, Any]:
    pool = RecordingPool()

    @contextmanager
    def opened(*_: object, **__: object) -> Iterator[WorkerPool]:
        with open_worker_pool(1):
            yield pool

    started = time.process_time()
    with mock.patch.object(training, "open_training_pool", opened):
        project.train()
    total = time.process_time() - started
    tasks = list(pool.caller.tasks())
    busy = sum(seconds for _, seconds in tasks)
    by_name: dict[str, list[float]] = {}
    for name, seconds in tasks:
        by_name.setdefault(name, []).append(seconds)
    return {
        "total_s": round(total, 1),
        "driver_s": round(total - busy, 1),
        "tasks": len(tasks),
        **{f"rate_of_{n}": round(total / (total - busy + makespan(pool.caller, n)), 2) for n in WORKERS},
        "longest_tasks": [[name, round(seconds, 1)] for name, seconds in sorted(tasks, key=lambda task: -task[1])[:12]],
        "by_name": {
            name: {"tasks": len(each), "seconds": round(sum(each), 1)}
            for name, each in sorted(by_name.items(), key=lambda item: -sum(item[1]))
        },
    }


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
