# SPDX-License-Identifier: Apache-2.0
"""Worker pool whose results do not depend on the number of threads.

A sum that threads share out is added up in another order than by one thread, and rounds differently. So nothing within a *unit* of
work (the fit of one estimator, a block of rows) is shared out: torch and BLAS have one thread, whole units run side by side,
and their results are taken in the order of the units.
"""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from scalr_prod.core.logging import bind_log_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["INLINE", "WorkerPool", "check_cancelled", "open_worker_pool", "report_progress"]

Unit = TypeVar("Unit")
Result = TypeVar("Result")

#: Knows, in each thread of a pool, whether somebody still waits for its work; in any, whom a unit tells how far it is.
_here = threading.local()


class WorkerPool:
    """Threads that work on independent units side by side; made by `open_worker_pool`.

    Args:
        pool: Where they run; None: in the thread that asks.
        stopped: Set when nobody waits for the pool's results any more.
    """

    def __init__(self, pool: ThreadPoolExecutor | None = None, stopped: threading.Event | None = None) -> None:
        self._pool, self._stopped = pool, stopped

    def map(self, work: Callable[[Unit], Result], units: Iterable[Unit]) -> Iterator[Result]:
        """``work(unit)`` of each unit, in their order. A unit must not call `map` itself.

        Raises:
            Exception: What a unit raised; the other units are given up.
        """
        if self._pool is None or self._stopped is None:
            yield from map(work, units)
            return
        futures = [self._pool.submit(bind_log_context(work), unit) for unit in units]
        try:
            for future in futures:
                yield future.result()
        except BaseException:
            self._stopped.set()
            for future in futures:
                future.cancel()
            raise


#: No thread beside the one that asks.
INLINE: Final = WorkerPool()


def check_cancelled(fraction: float = 0.0) -> None:
    """Check for cancellation and report progress; long units call it now and then.

    Args:
        fraction: How much of the unit (0 to 1) the step is that comes now; the time that is left is reckoned by it.

    Raises:
        CancelledError: Nobody waits for this unit's result any more.
    """
    stopped = getattr(_here, "stopped", None)
    if stopped is not None and stopped.is_set():
        raise CancelledError
    tell = getattr(_here, "tell", None)
    if tell is not None:
        tell(fraction)


@contextmanager
def report_progress(work: float, on_progress: Callable[[float], None]) -> Iterator[None]:
    """The block is a unit of so much work: the parts that `check_cancelled` hears of are passed on as they are done, the rest at the end.

    Args:
        work: Expected, in any measure that all units have in common.
        on_progress: Called with the work that was done since its last call, in this thread.
    """
    left = 1.0

    def tell(part: float) -> None:
        nonlocal left
        part = min(part, left)
        left -= part
        on_progress(work * part)

    _here.tell = tell
    try:
        yield
    finally:
        _here.tell = None
    tell(1.0)


@contextmanager
def open_worker_pool(threads: int) -> Iterator[WorkerPool]:
    """So many threads for units of work. Inside, torch and BLAS have one thread for each of them.

    BLAS threads would also spin while they wait for one another: where another process wants the same cores, a factorisation
    of a second takes half a minute with two of them.
    """
    import torch
    from threadpoolctl import threadpool_limits

    before, stopped = torch.get_num_threads(), threading.Event()

    def begin() -> None:
        _here.stopped = stopped
        torch.set_num_threads(1)

    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, "blas"):
            if threads == 1:
                yield INLINE
                return
            with ThreadPoolExecutor(threads, "translator", begin) as pool:
                try:
                    yield WorkerPool(pool, stopped)
                finally:
                    stopped.set()
                    pool.shutdown(wait=False, cancel_futures=True)
    finally:
        torch.set_num_threads(before)
