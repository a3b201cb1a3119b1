# SPDX-License-Identifier: Apache-2.0
"""Run the tasks of a stage in this process or on Dask workers, whichever is faster."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Protocol

from scalr_prod.compute.cluster import open_cluster
from scalr_prod.compute.worker_task import run_worker_task
from scalr_prod.workspace import open_duckdb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from scalr_prod.compute.cluster import Cluster
    from scalr_prod.config import ComputeSettings, Settings


#: Local workers cost seconds of imports once per process: less work is faster in this process; see ADR 0093.
LOCAL_WORKERS_MIN_WORK_S: Final = 17.5


class Executor(Protocol):
    """Runs tasks. A task is a function of a DuckDB connection and of values that can be pickled.

    Attributes:
        is_local: Whether tasks run on this machine, and so see its files.
    """

    is_local: bool

    def map(self, task: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield the results of calls ``task(connection, *each)`` as they complete."""


@contextmanager
def open_executor(
    settings: Settings, connection: Any, *, tasks: int, work_s: float, stage: str, run_id: str = ""
) -> Iterator[Executor]:
    """Open what runs a stage's tasks: the cluster of ``[compute] dask``, or this process if a cluster would not be faster.

    Args:
        settings: The project's settings.
        connection: DuckDB connection for tasks in this process.
        tasks: Number of tasks.
        work_s: Estimate of their processor time, in seconds.
        stage: Name of the stage, which is also the command that repeats it.
        run_id: The run that the stage works on, if the command names one.

    Raises:
        SchedulerUnreachable: No scheduler answers at the address, or it has no worker.
    """
    if not is_distributed(settings.compute, tasks=tasks, work_s=work_s):
        yield InProcessExecutor(connection)
        return
    with open_cluster(settings, tasks=tasks, resume=f"run: scalr {stage} {run_id}".rstrip()) as cluster:
        yield _Workers(cluster, settings, {"stage": stage} | ({"run_id": run_id} if run_id else {}))


def is_distributed(compute: ComputeSettings, *, tasks: int, work_s: float) -> bool:
    """Return whether tasks run on Dask workers."""
    if compute.dask != "local":
        return tasks > 1
    return min(tasks, compute.workers) > 1 and work_s >= LOCAL_WORKERS_MIN_WORK_S


class InProcessExecutor:
    """Runs tasks in this process, in the order of their arguments.

    Args:
        connection: DuckDB connection of all tasks.
    """

    is_local = True

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def map(self, task: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """See `Executor`."""
        return (task(self._connection, *each) for each in arguments)


class _Workers:
    def __init__(self, cluster: Cluster, settings: Settings, log_fields: Mapping[str, Any]) -> None:
        self.is_local = settings.compute.dask == "local"
        self._cluster, self._settings, self._log_fields = cluster, settings, log_fields

    def map(self, task: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        settings, fields = self._settings, self._log_fields
        calls = ((settings, fields, _run_with_duckdb, settings, task, *each) for each in arguments)
        return self._cluster.map(run_worker_task, calls)


def _run_with_duckdb(settings: Settings, task: Callable[..., Any], *arguments: Any) -> Any:
    """Call a task with a DuckDB connection of one thread that spills to the worker's own disk."""
    from distributed import get_worker

    with (
        TemporaryDirectory(prefix="duckdb-", dir=get_worker().local_directory) as folder,
        open_duckdb(settings, Path(folder)) as connection,
    ):
        connection.execute("SET threads = 1")
        return task(connection, *arguments)
