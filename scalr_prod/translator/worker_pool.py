# SPDX-License-Identifier: Apache-2.0
"""Thread pool for training and measuring, whose results do not depend on the number of threads.

A sum that is split among threads is added in another order than by one thread, and rounds differently. Therefore a *unit* of work (the fit
of one estimator, a block of rows) is never split: torch and BLAS use one thread, whole units run concurrently, and their results are
returned in the order of the units.
"""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from scalr_prod.core.logging import bind_log_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["INLINE", "WorkerPool", "check_cancelled", "open_worker_pool", "report_progress"]

Unit = TypeVar("Unit")
Result = TypeVar("Result")
First = TypeVar("First")
Second = TypeVar("Second")

#: ``cancelled``: the event that cancels the units of a pool's thread. ``report``: the progress callback of the unit that the thread runs.
_thread_state = threading.local()


class WorkerPool:
    """Pool of threads that run independent units of work concurrently. Create it with `open_worker_pool`.

    Args:
        executor: Executor of the units; None: run them in the calling thread.
        cancelled: Set to cancel the pool's units.
    """

    def __init__(self, executor: ThreadPoolExecutor | None = None, cancelled: threading.Event | None = None) -> None:
        self._executor, self._cancelled = executor, cancelled

    def map(self, work: Callable[[Unit], Result], units: Iterable[Unit]) -> Iterator[Result]:
        """Yield ``work(unit)`` for each unit, in order. A unit must not call `map` itself.

        Raises:
            Exception: Any error of a unit; the other units are cancelled.
        """
        if self._executor is None or self._cancelled is None:
            yield from map(work, units)
            return
        futures = [self._executor.submit(bind_log_context(work), unit) for unit in units]
        try:
            for future in futures:
                yield future.result()
        except BaseException:
            self._cancelled.set()
            for future in futures:
                future.cancel()
            raise

    def run_concurrently(self, first: Callable[[], First], second: Callable[[], Second]) -> tuple[First, Second]:
        """Run two functions that call `map`, so that units of one fill the gaps of the other; without threads, one after the other.

        Raises:
            Exception: The error of either function; units of both are cancelled.
        """
        if self._executor is None or self._cancelled is None:
            return first(), second()
        with ThreadPoolExecutor(1, "translator", partial(_initialize_thread, self._cancelled)) as beside:
            future = beside.submit(bind_log_context(second))
            try:
                result = first()
            except CancelledError:
                future.result()  # its error cancelled the units
                raise
            except BaseException:
                self._cancelled.set()
                raise
            return result, future.result()


#: Runs units in the calling thread.
INLINE: Final = WorkerPool()


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
def report_progress(work: float, on_progress: Callable[[float], None]) -> Iterator[None]:
    """Report the progress of one unit: each fraction passed to `check_cancelled` within the block, and the rest at its end.

    Args:
        work: Expected work of the unit, in the same measure for all units, see `training_budget`.
        on_progress: Called in this thread with the work done since its last call.
    """
    remaining = 1.0

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


def _initialize_thread(cancelled: threading.Event) -> None:
    import torch

    _thread_state.cancelled = cancelled
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

    threads_before, cancelled = torch.get_num_threads(), threading.Event()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, "blas"):
            if threads == 1:
                yield INLINE
                return
            with ThreadPoolExecutor(threads, "translator", partial(_initialize_thread, cancelled)) as executor:
                try:
                    yield WorkerPool(executor, cancelled)
                finally:
                    cancelled.set()
                    executor.shutdown(wait=False, cancel_futures=True)
    finally:
        torch.set_num_threads(threads_before)
