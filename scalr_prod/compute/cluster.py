# SPDX-License-Identifier: Apache-2.0
"""Dask cluster: local worker processes or a scheduler's address, with a bounded number of tasks in flight."""

from __future__ import annotations

import logging
import os
import sys
import time
import uuid
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import get_all_start_methods
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.signals import defer_signals
from scalr_prod.errors import ComputeError, ScalrError, SchedulerUnreachable, SettingsError
from scalr_prod.workspace import staging_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import NoReturn

    from scalr_prod.config import ComputeSettings, Settings


logger = logging.getLogger(__name__)

#: Tasks queued on each worker thread beside the running one: enough to keep it busy, few enough to bound memory.
_QUEUED_PER_THREAD: Final = 1

#: Seconds between two progress messages of a task.
_PROGRESS_INTERVAL_S: Final = 0.5

#: Start method of local workers: forked from a process with the imports that tasks need, where the system supports it.
_START_METHOD: Final = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
#: Dask's defaults for spawned workers, unless set already: libraries read them at import.
_ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
#: Variables that Feast sets on import: a temporary folder, which it removes when this process exits. A process that outlives
#: this one briefly would fail on the missing folder; without the variables, Feast creates its own.
_FEAST_METRICS_VARIABLES: Final = ("PROMETHEUS_MULTIPROCESS_DIR", "PROMETHEUS_MULTIPROC_DIR")


class Cluster:
    """Run tasks through a Dask client with few tasks in flight.

    Args:
        client: The Dask client.
        resume: What continues the work after an error, for error messages.
        smaller_tasks: What makes a task need less memory, for error messages.
    """

    def __init__(
        self, client: Any, *, resume: str = "run the command again", smaller_tasks: str = "lower [compute] workers"
    ) -> None:
        self._client = client
        self._resume, self._smaller_tasks = resume, smaller_tasks

    @property
    def threads(self) -> int:
        """Return the current number of worker threads; at least 1."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"]
        return max(1, sum(int(worker["nthreads"]) for worker in workers.values()))

    def subscribe(self, topic: str, handler: Callable[[Any], None]) -> None:
        """Call the handler with every message that workers send on a topic (`progress_channel`)."""
        self._client.subscribe_topic(topic, lambda event: handler(event[1]))

    def call_workers(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function once in the process of each worker, also while it runs tasks. Best effort: a lost worker is not called."""
        if self._client.status == "running":
            with suppress(OSError, TimeoutError):
                self._client.run(function, *arguments, on_error="ignore")

    def map(self, task: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield results as they complete. Tasks of a lost worker are repeated; a task's own error is raised unchanged.

        Args:
            task: A pure function that can be pickled.
            arguments: The arguments of each call.

        Raises:
            ComputeError: Workers died repeatedly on one task, or a task failed with an unexpected error.
            SchedulerUnreachable: The connection to the scheduler was lost.
        """
        from distributed import as_completed

        queue = iter(arguments)
        running = as_completed(loop=self._client.loop)
        pending = set()

        def submit_next() -> None:
            call = next(queue, None)
            if call is not None:
                future = self._client.submit(
                    _make_call, _OpaqueCall(task, call), key=f"{task.__name__}-{uuid.uuid4().hex}", pure=False
                )
                pending.add(future)
                running.add(future)

        try:
            for _ in range(self.threads * (1 + _QUEUED_PER_THREAD)):
                submit_next()
            for future in running:
                outcome = self._result(future)
                pending.discard(future)
                future.release()
                submit_next()
                yield outcome
        finally:
            self._client.cancel(list(pending))

    def _result(self, future: Any) -> Any:
        from concurrent.futures import CancelledError

        from distributed.comm import CommClosedError
        from distributed.scheduler import KilledWorker

        try:
            return future.result()
        except ScalrError:
            raise
        except (CancelledError, CommClosedError) as error:  # this process cancels nothing that it still waits for
            raise SchedulerUnreachable(
                "lost the connection to the Dask scheduler during the run",
                where=f"Dask at {self._client.scheduler.address}",
                next_step=f"restart it, then {self._resume}",
            ) from error
        except KilledWorker as error:
            raise ComputeError(
                f"worker processes died repeatedly on the same task ({error.task}), most likely out of memory",
                where=f"Dask at {self._client.scheduler.address}",
                next_step=f"{self._smaller_tasks}, then {self._resume}",
            ) from error
        except Exception as error:  # process boundary: any error becomes one clear sentence
            self._fail(error)

    def _fail(self, error: Exception) -> NoReturn:
        raise ComputeError(
            f"a task failed: {type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}",
            where=f"Dask at {self._client.scheduler.address}",
            next_step=f"fix the cause, then {self._resume}",
        ) from error


class _OpaqueCall:
    """A task and its arguments. Dask would look for futures in each part of them: milliseconds for a few hundred segments."""

    __slots__ = ("arguments", "task")

    def __init__(self, task: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.task, self.arguments = task, arguments


def _make_call(call: _OpaqueCall) -> Any:
    return call.task(*call.arguments)


@contextmanager
def open_cluster(settings: Settings, *, tasks: int, **advice: str) -> Iterator[Cluster]:
    """Open the cluster of ``[compute] dask``; ``local`` starts worker processes for the duration of the block.

    Args:
        settings: The project's settings.
        tasks: Number of tasks; at most that many local workers are started.
        advice: ``resume`` and ``smaller_tasks`` of `Cluster`.

    Raises:
        SchedulerUnreachable: No scheduler answers at the address, or it has no worker.
    """
    if settings.compute.dask == "local":
        with staging_folder(settings, "dask") as folder, _local_client(settings.compute, tasks, folder) as client:
            yield Cluster(client, **advice)
    else:
        with _remote_client(settings.compute, resolve=settings.resolve) as client:
            yield Cluster(client, **advice)


def preload_workers(compute: ComputeSettings) -> None:
    """Start, in the background, the process from which local workers are forked; one that runs already is kept.

    It exits with this process, even if this one is killed.
    """
    if compute.dask != "local" or _START_METHOD != "forkserver":
        return
    from multiprocessing import forkserver, get_context

    get_context(_START_METHOD).set_forkserver_preload(["scalr_prod.compute.fork_probe", "scalr_prod.compute.worker_preload"])
    added = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    feasts = [name for name in _FEAST_METRICS_VARIABLES if Path(os.environ.get(name, "")).name.startswith("feast_metrics_")]
    removed = {name: os.environ.pop(name) for name in feasts}
    os.environ.update(added)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.update(removed)
        for name in added:
            del os.environ[name]


@contextmanager
def progress_channel(topic: str) -> Iterator[Callable[[float], None]]:
    """Yield a function that adds to a task's count and sends the count to subscribers twice a second and at the end.

    Messages are rare since they pass through the scheduler, which shares the cores with the translator.
    """
    from distributed import get_worker

    last_sent = time.monotonic()
    unsent: float = 0

    def send() -> None:
        nonlocal last_sent, unsent
        if unsent:
            get_worker().log_event(topic, unsent)
        last_sent, unsent = time.monotonic(), 0

    def count(units: float) -> None:
        nonlocal unsent
        unsent += units
        if time.monotonic() - last_sent >= _PROGRESS_INTERVAL_S:
            send()

    try:
        yield count
    finally:
        send()


def worker_folder() -> Path | None:
    """Return the folder for temporary files of the Dask worker that runs the caller; None outside of a worker."""
    from distributed import get_worker

    try:
        return Path(get_worker().local_directory)
    except ValueError:
        return None


@contextmanager
def _local_client(compute: ComputeSettings, tasks: int, folder: Path) -> Iterator[Any]:
    import dask
    from distributed import Client, LocalCluster, Security

    # The package reports errors itself; Dask's own messages about closing workers would only obscure them.
    quiet: dict[str, Any] = {"distributed.logging.distributed": "critical", "distributed.comm.timeouts.connect": "60s"}
    preload_workers(compute)
    quiet["distributed.worker.multiprocessing-method"] = _START_METHOD
    quiet["distributed.worker.profile.enabled"] = False  # unused, and it takes 25 MB per worker within 17 minutes
    # Dask serves HTTP even without a dashboard, readable by every user of the machine: leave nothing to read.
    quiet["distributed.scheduler.http.routes"] = quiet["distributed.worker.http.routes"] = []
    with (
        _quiet_dask_logging(),
        _hidden_main_module(),
        dask.config.set(quiet),
        ExitStack() as stack,
    ):
        with defer_signals():  # Dask does not clean up a cluster that is still starting
            cluster = LocalCluster(
                n_workers=min(compute.workers, max(tasks, 1)),
                threads_per_worker=compute.threads_per_worker,
                processes=True,
                host="127.0.0.1",
                # Whoever connects can run code, and every user of the machine can reach the ports: ask for this run's certificate.
                security=Security.temporary(),
                dashboard_address=None,
                # The scheduler has an HTTP port even without a dashboard: use any free one, so that two runs do not collide.
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                silence_logs=logging.CRITICAL,
                # Shards bound the memory of a task; on small machines Dask's own limit would pause workers because of their imports.
                memory_limit=0,
                local_directory=str(folder),
            )
            stack.enter_context(_closing(cluster))
            client = stack.enter_context(Client(cluster, set_as_default=False))
        yield client


@contextmanager
def _closing(cluster: Any) -> Iterator[Any]:
    """Close the cluster at the end; log an error of closing, so that it neither fails the work nor hides its error.

    If a worker dies while its nanny restarts it, the process cannot be joined and closing raises. No process is left: the worker exits when
    its pipe to the nanny closes.
    """
    try:
        yield cluster
    finally:
        try:
            cluster.close()
        except Exception as error:
            logger.warning("the local cluster did not shut down cleanly: %s: %s", type(error).__name__, error)


@contextmanager
def _hidden_main_module() -> Iterator[None]:
    """Keep worker processes from importing the caller's main module, which tasks do not need.

    It may be a script without a ``__main__`` guard, which would run again in each worker, or a scheduler's task runner, which
    cannot be imported while it runs a task (Airflow).
    """
    main = sys.modules["__main__"]
    saved = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    main.__dict__.pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update(saved)


@contextmanager
def _remote_client(compute: ComputeSettings, *, resolve: Callable[[str], Path]) -> Iterator[Any]:
    from distributed import Client

    address, patience = compute.dask, compute.connect_timeout_s
    with _quiet_dask_logging():
        security = _client_security(compute, resolve)
        try:
            client = Client(address, timeout=patience, set_as_default=False, security=security)
        except (OSError, ValueError) as error:
            raise SchedulerUnreachable(
                f"the Dask scheduler does not answer within {patience:g} s",
                where=f"[compute] dask = {address}",
                next_step='start it (dask scheduler), correct the address, or set dask = "local"',
            ) from error
        with client:
            try:
                client.wait_for_workers(1, timeout=patience)
            except TimeoutError as error:
                raise SchedulerUnreachable(
                    f"the Dask scheduler has no worker, after {patience:g} s",
                    where=f"[compute] dask = {address}",
                    next_step=f"start one: dask worker {address}",
                ) from error
            yield client


def _client_security(compute: ComputeSettings, resolve: Callable[[str], Path]) -> Any:
    """Return the certificates for the scheduler: those of ``[compute]``, else those that Dask's own settings name.

    Raises:
        SettingsError: They are missing or cannot be read.
    """
    from distributed import Security

    security = Security()
    if compute.client_certificate is not None:
        security = Security(
            require_encryption=True,
            tls_ca_file=str(resolve(compute.ca_certificate or "")),
            tls_client_cert=str(resolve(compute.client_certificate)),
            tls_client_key=str(resolve(compute.client_key or "")),
        )
    if not compute.is_encrypted:
        return security
    try:
        context = security.get_connection_args("client")["ssl_context"]
    except OSError as error:  # ssl.SSLError is one
        raise SettingsError(
            f"the certificates of the Dask scheduler cannot be read: {error}",
            where="[compute] ca_certificate, client_certificate, client_key",
            next_step="name PEM files that this user can read",
        ) from error
    if context is None:
        raise SettingsError(
            f"{compute.dask} is encrypted, but no certificates are named",
            where="[compute] dask",
            next_step="set [compute] ca_certificate, client_certificate and client_key",
        )
    return security


@contextmanager
def _quiet_dask_logging() -> Iterator[None]:
    """Suppress Dask's log lines in this process; importing it sets them to INFO."""
    theirs = logging.getLogger("distributed")
    before = theirs.level
    theirs.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        theirs.setLevel(before)
