# SPDX-License-Identifier: Apache-2.0
"""Pool of workers for training and measuring, whose results do not depend on their number.

A sum that is split among threads is added in another order than by one thread, and rounds differently. Therefore a *unit* of work (the fit
of one estimator, a block of rows) is never split: torch and BLAS use one thread, whole units run concurrently, and their results are
returned in the order of the units.

The workers are threads of this process, see `open_worker_pool`, or those of a Dask cluster, see `dask_pool`.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from scalr_prod.core.logging import bind_log_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


Inputs = TypeVar("Inputs")
Unit = TypeVar("Unit")
Result = TypeVar("Result")
First = TypeVar("First")
Second = TypeVar("Second")

#: Of the unit that the thread runs: ``cancelled``: the event that cancels it, ``on_progress``: what the pool does with its progress, and
#: ``report``: its progress callback, within `report_progress`.
_thread_state = threading.local()


def ignore_progress(work: float) -> None:
    """Ignore the progress of a unit."""
    del work


class WorkerPool:
    """Runs independent units of work, in the calling thread; its subclasses run them concurrently."""

    def map(
        self,
        work: Callable[[Inputs, Unit], Result],
        inputs: Inputs,
        units: Iterable[Unit],
        on_progress: Callable[[float], None] = ignore_progress,
    ) -> Iterator[Result]:
        """Yield ``work(inputs, unit)`` for each unit, in order. A unit must not call `map` itself.

        Args:
            work: A module's function, since it may run in another process.
            inputs: What all units read. It can be pickled; a worker in another process reads it once.
            units: Small values that can be pickled.
            on_progress: Called, in any thread, with the work done since its last call, see `report_progress`.

        Raises:
            Exception: Any error of a unit; the other units are cancelled.
        """
        return (run_unit(work, inputs, unit, None, on_progress) for unit in units)

    def run_concurrently(self, first: Callable[[], First], second: Callable[[], Second]) -> tuple[First, Second]:
        """Run two functions that call `map`, so that units of one fill the gaps of the other; inline, one after the other.

        Raises:
            Exception: The error of either function; units of both are cancelled.
        """
        return first(), second()


INLINE: Final = WorkerPool()


class ConcurrentPool(WorkerPool):
    """Runs units concurrently, until it is cancelled."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Cancel all units."""
        self._cancelled.set()

    def run_concurrently(self, first: Callable[[], First], second: Callable[[], Second]) -> tuple[First, Second]:
        """Run two functions in two threads, see `WorkerPool.run_concurrently`."""
        with ThreadPoolExecutor(1, "translator", limit_threads) as beside:
            future = beside.submit(bind_log_context(second))
            try:
                result = first()
            except CancelledError:
                future.result()  # its error cancelled the units
                raise
            except BaseException:
                self.cancel()
                raise
            return result, future.result()


class _ThreadPool(ConcurrentPool):
    def __init__(self, executor: ThreadPoolExecutor) -> None:
        super().__init__()
        self._executor = executor

    def map(
        self,
        work: Callable[[Inputs, Unit], Result],
        inputs: Inputs,
        units: Iterable[Unit],
        on_progress: Callable[[float], None] = ignore_progress,
    ) -> Iterator[Result]:
        run = bind_log_context(run_unit)
        futures = deque(self._executor.submit(run, work, inputs, unit, self._cancelled, on_progress) for unit in units)
        try:
            while futures:
                yield futures.popleft().result()
        except BaseException:
            self.cancel()
            for future in futures:
                future.cancel()
            raise


def run_unit(
    work: Callable[[Inputs, Unit], Result],
    inputs: Inputs,
    unit: Unit,
    cancelled: threading.Event | None,
    on_progress: Callable[[float], None],
) -> Result:
    """Call ``work(inputs, unit)`` in this thread.

    Args:
        work: See `WorkerPool.map`.
        inputs: See `WorkerPool.map`.
        unit: See `WorkerPool.map`.
        cancelled: Set to cancel the unit at its next `check_cancelled`, or None if it cannot be cancelled.
        on_progress: See `WorkerPool.map`.
    """
    before = vars(_thread_state).copy()
    _thread_state.cancelled, _thread_state.on_progress = cancelled, on_progress
    try:
        check_cancelled()
        return work(inputs, unit)
    finally:
        vars(_thread_state).clear()
        vars(_thread_state).update(before)


def check_cancelled(fraction: float = 0.0) -> None:
    """Stop a cancelled unit, and report progress. Long units call it before each step.

    Args:
        fraction: Share of the unit's work (0 to 1) that the next step does.

    Raises:
        CancelledError: The unit was cancelled, because another one failed.
    """
    cancelled = getattr(_thread_state, "cancelled", None)
    if cancelled is not None and cancelled.is_set():
        raise CancelledError
    report = getattr(_thread_state, "report", None)
    if report is not None:
        report(fraction)


@contextmanager
def report_progress(work: float) -> Iterator[None]:
    """Report the progress of one unit: each fraction passed to `check_cancelled` within the block, and the rest at its end.

    Args:
        work: Expected work of the unit, in the same measure for all units, see `training_budget`.
    """
    remaining, on_progress = 1.0, getattr(_thread_state, "on_progress", ignore_progress)

    def report(fraction: float) -> None:
        nonlocal remaining
        fraction = min(fraction, remaining)
        remaining -= fraction
        on_progress(work * fraction)

    _thread_state.report = report
    try:
        yield
    finally:
        _thread_state.report = None
    report(1.0)


def limit_threads() -> None:
    """Let torch use one thread for calls of this thread."""
    import torch

    torch.set_num_threads(1)


@contextmanager
def open_worker_pool(threads: int) -> Iterator[WorkerPool]:
    """Open a pool of threads for units of work, each of which uses one thread of torch and BLAS.

    One BLAS thread per unit is also faster on shared cores. BLAS threads spin while they wait for one another: with another process on
    the same cores, a factorisation of one second took half a minute with two of them.

    Args:
        threads: Number of threads; with 1, units run in the calling thread.
    """
    import torch
    from threadpoolctl import threadpool_limits

    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, "blas"):
            if threads == 1:
                yield INLINE
                return
            with ThreadPoolExecutor(threads, "translator", limit_threads) as executor:
                pool = _ThreadPool(executor)
                try:
                    yield pool
                finally:
                    pool.cancel()
                    executor.shutdown(wait=False, cancel_futures=True)
    finally:
        torch.set_num_threads(threads_before)
