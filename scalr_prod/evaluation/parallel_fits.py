# SPDX-License-Identifier: Apache-2.0
"""Fits of one model family, several at once in threads where its class allows that."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final, Self, TypeVar

from scalr_prod.core.logging import bind_log_context
from scalr_prod.evaluation.models import fits_in_parallel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


Job = TypeVar("Job")
Result = TypeVar("Result")

#: Most fits at once: each holds its own events and vectors in memory.
_MAX_FITS: Final = 4


class FitPool:
    """Runs fits, several at once or one after the other, with the same results.

    Attributes:
        lock: Hold it for everything that is not a fit or its evaluation, such as the arm's events: one thread at a time.

    Args:
        threads: Threads of all fits together.
        max_fits: Most fits at once.
    """

    def __init__(self, threads: int, max_fits: int) -> None:
        self._threads, self._max_fits = threads, max_fits
        self.lock = threading.Lock()

    @classmethod
    def from_family(cls, family: str, threads: int) -> Self:
        """Return the pool of a model family: of one fit at a time, unless its class sets ``fits_in_parallel``."""
        return cls(threads, min(threads, _MAX_FITS) if fits_in_parallel(family) else 1)

    def map(self, fit: Callable[[Job, int], Result], jobs: Sequence[Job]) -> list[Result]:
        """Return the result of each job, in order.

        Args:
            fit: Called with a job and the number of its threads.
            jobs: The jobs.

        Raises:
            Exception: The first error of a job; jobs that have not begun are cancelled.
        """
        workers = min(len(jobs), self._max_fits)
        if workers < 2:  # noqa: PLR2004 - one thread needs no pool
            return [fit(job, self._threads) for job in jobs]
        from threadpoolctl import threadpool_limits

        run = bind_log_context(partial(_call, fit, self._threads // workers))
        # The fits share the processors: threads of BLAS in each of them would compete.
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(workers, "fit") as executor:
            return list(executor.map(run, jobs))


def _call(fit: Callable[[Job, int], Result], threads: int, job: Job) -> Result:
    return fit(job, threads)
