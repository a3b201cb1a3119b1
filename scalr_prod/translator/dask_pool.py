# SPDX-License-Identifier: Apache-2.0
"""Training on a Dask cluster: the workers of `worker_pool.WorkerPool` are those of the scheduler that ``[compute] dask`` names.

Inputs and large results are files in the lake, which all workers reach. A worker reads the inputs of a `map` once.
"""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from scalr_prod.compute import open_cluster, progress_channel, run_worker_task, shuffle_folder, worker_folder
from scalr_prod.core.logging import current_log_context
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table
from scalr_prod.translator.object_files import ObjectReader, ObjectWriter, PackedFile, PackedObject
from scalr_prod.translator.training_device import training_device
from scalr_prod.translator.worker_pool import (
    ConcurrentPool,
    WorkerPool,
    ignore_progress,
    limit_threads,
    open_worker_pool,
    run_unit,
)
from scalr_prod.workspace import staging_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from scalr_prod.compute import Cluster, ShuffleFolder
    from scalr_prod.config import Settings


Inputs = TypeVar("Inputs")
Unit = TypeVar("Unit")
Result = TypeVar("Result")

#: Trainings whose inputs a worker keeps: a driver that was killed does not tell it to forget them.
_MAX_TRAININGS: Final = 2


@contextmanager
def open_training_pool(settings: Settings, *, command: str) -> Iterator[WorkerPool]:
    """Open the pool of workers for training: the cluster whose address ``[compute] dask`` names, or threads of this process.

    A GPU of this machine is used by this process alone, so the pool is one of threads then.

    Args:
        settings: The project's settings.
        command: The command that repeats the work, for error messages.

    Raises:
        SchedulerUnreachable: No scheduler answers at the address, or it has no worker.
    """
    if settings.compute.dask == "local" or training_device(settings.compute.device) != "cpu":
        with open_worker_pool(settings.translator.threads) as threads:
            yield threads
        return
    lake = Lake.open(settings)
    with (
        open_worker_pool(1),  # what this process computes itself must not depend on its threads either
        open_cluster(settings, tasks=1, resume=f"run: {command}", smaller_tasks="give workers more memory") as cluster,
        shuffle_folder(lake.uri(Table.TARGET_EVENTS), lake.storage_options) as folder,
        staging_folder(settings, "translator") as scratch_dir,
    ):
        pool = _DaskPool(cluster, settings, folder, scratch_dir)
        try:
            yield pool
        finally:
            pool.cancel()


class _Call(NamedTuple):
    """What all units of a `map` share.

    Attributes:
        folder: Folder of inputs and results; its prefix identifies the training.
        inputs: File of the inputs.
        finished: Files of inputs that no unit needs any more.
        topic: Topic of progress messages.
        work: The work.
    """

    folder: ShuffleFolder
    inputs: PackedFile
    finished: tuple[PackedFile, ...]
    topic: str
    work: Callable[[Any, Any], Any]


class _DaskPool(ConcurrentPool):
    def __init__(self, cluster: Cluster, settings: Settings, folder: ShuffleFolder, scratch_dir: Path) -> None:
        super().__init__()
        self._cluster, self._settings, self._folder = cluster, settings, folder
        self._scratch_dir, self._writer, self._write_lock = scratch_dir, ObjectWriter(folder), threading.Lock()
        self._finished: list[PackedFile] = []

    def cancel(self) -> None:
        super().cancel()
        self._cluster.call_workers(_end_training, self._folder.prefix)

    def map(
        self,
        work: Callable[[Inputs, Unit], Result],
        inputs: Inputs,
        units: Iterable[Unit],
        on_progress: Callable[[float], None] = ignore_progress,
    ) -> Iterator[Result]:
        if self._cancelled.is_set():
            raise CancelledError
        with self._write_lock:
            written = self._writer.write(inputs)
        call = _Call(self._folder, written, tuple(self._finished), f"training-{uuid.uuid4()}", work)
        if on_progress is not ignore_progress:
            self._cluster.subscribe(call.topic, on_progress)
        fields = {name: value for name, value in current_log_context().items() if name != "project"}
        tasks = ((self._settings, fields, _run_unit, call, number, unit) for number, unit in enumerate(units))
        early: dict[int, PackedObject | None] = {}
        following = 0
        try:
            for number, packed in self._cluster.map(run_worker_task, tasks):
                early[number] = packed
                while following in early:
                    yield self._unpack(early.pop(following))
                    following += 1
        except BaseException:
            self.cancel()
            raise
        self._finished.append(written)

    def _unpack(self, packed: PackedObject | None) -> Any:
        if packed is None:
            raise CancelledError
        return ObjectReader(self._folder, self._scratch_dir).unpack(packed)


class _Inputs:
    """Inputs that units of a training share, in a worker."""

    def __init__(self, folder: ShuffleFolder) -> None:
        self._reader, self._lock = ObjectReader(folder, worker_folder()), threading.Lock()

    def read(self, packed_file: PackedFile, *, finished: tuple[PackedFile, ...]) -> Any:
        with self._lock:
            value = self._reader.read(packed_file)
            self._reader.forget(finished)  # only now: both may share arrays
            return value


#: Training, by its folder's prefix → set when it ends. Kept, since units of an ended training may still be queued.
_cancelled: Final[dict[str, threading.Event]] = {}
#: What this worker process has read of the latest trainings.
_inputs: Final[OrderedDict[str, _Inputs]] = OrderedDict()
_lock: Final = threading.Lock()


def _run_unit(call: _Call, number: int, unit: Any) -> tuple[int, PackedObject | None]:
    """Run a unit in a worker: its number and its result, or None if it was cancelled."""
    limit_threads()
    _limit_blas_threads()
    cancelled = _cancellation(call.folder.prefix)
    if cancelled.is_set():
        return number, None
    inputs = _open_inputs(call.folder).read(call.inputs, finished=call.finished)
    try:
        with progress_channel(call.topic) as count:
            result = run_unit(call.work, inputs, unit, cancelled, count)
    except CancelledError:
        return number, None
    return number, ObjectWriter(call.folder).pack(result)


@cache
def _limit_blas_threads() -> None:
    """Let BLAS use one thread in this process: units of other threads run beside this one, so the limit stays."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, "blas")


def _cancellation(training: str) -> threading.Event:
    with _lock:
        return _cancelled.setdefault(training, threading.Event())


def _open_inputs(folder: ShuffleFolder) -> _Inputs:
    with _lock:
        inputs = _inputs.setdefault(folder.prefix, _Inputs(folder))
        _inputs.move_to_end(folder.prefix)
        while len(_inputs) > _MAX_TRAININGS:
            _inputs.popitem(last=False)
        return inputs


def _end_training(training: str) -> None:
    """Cancel the units of a training in this worker, and forget its inputs."""
    _cancellation(training).set()
    with _lock:
        _inputs.pop(training, None)
